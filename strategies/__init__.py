"""Federated methods: one algorithm, one file, both halves."""
