"""Vocabulary shared by every layer: configuration, wire records, seeds, run records, errors.

Imports neither Flower nor Ray, and nothing of Tessera outside this package.
"""
