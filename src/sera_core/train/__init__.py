"""Training: the step algebra, its trainer, adapters, checkpoints, and one resumable training stage."""
