"""Data sources and partitioners. Code only: downloaded data lives in ``.data/``."""
