"""Corpora of video with sound and text: their record, their files, and how they are read."""
