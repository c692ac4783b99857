"""Workloads that learn how to learn: MELTR, and what it is made of."""
