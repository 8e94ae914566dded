"""Training: arguments, trainers, checkpoints, publishing."""
