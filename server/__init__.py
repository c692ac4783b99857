"""The Flower ServerApp: rounds, evaluation, checkpoints, records."""
