"""A strategy and a workload as one run: the configuration that names both, and whether they fit."""
