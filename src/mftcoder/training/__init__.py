"""The training loop, the step, the objective, checkpoints and metrics."""
