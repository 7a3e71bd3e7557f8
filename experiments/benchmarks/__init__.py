"""Measurements of the engine itself: run by hand, never timed in tests."""
