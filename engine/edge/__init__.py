"""A federation on real machines: its credentials, its containers, its server and its clients."""
