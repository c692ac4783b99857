"""The command ``tessera``, and the Python API behind it."""
