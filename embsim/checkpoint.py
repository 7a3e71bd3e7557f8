"""Placeholder."""


class Checkpoint:
    pass
