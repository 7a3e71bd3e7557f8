"""What must not happen to a user's training, tried: see docs/reliability.md."""
