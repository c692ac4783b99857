"""Runs federations: one, or a suite of methods x settings x seeds."""

import engine as engine  # before Flower, which reads at import whether it may call home
