"""Training: from a run's configuration to checkpoints."""
