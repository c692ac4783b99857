"""A federation on real machines: its credentials, its processes and its containers."""
