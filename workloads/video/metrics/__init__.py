"""What video and language models are judged by, each by its definition."""
