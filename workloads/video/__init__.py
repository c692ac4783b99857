"""Workloads on video with language."""
