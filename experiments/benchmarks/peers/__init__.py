"""A training step of embedding tables in embsim and in other libraries, timed in turn."""
