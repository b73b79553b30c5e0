"""What `scripts/gpu_check` is made of: where it works, its answers, a training step's events, and speed."""
