"""Dataset distillation: matching distributions, augmentation, one client's set."""
