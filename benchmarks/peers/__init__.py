"""The contenders that are not Tessera. They import nothing of it, but for `environment`."""
