"""Every error that embsim raises by a name of its own.

All of them are also the built-in error that TensorFlow raises in the same place, so that code
written for TPUEmbedding keeps its `except` clauses.
"""


class BatchError(ValueError):
    """A batch that cannot be looked up: wrong ids, splits, weights, shapes or batch size."""


class DeadlockError(RuntimeError):
    """A call that could never be served: on a TPU the program would hang here.

    The message names the call, the queue's contents and the call that is missing.
    """


class CapacityError(ValueError):
    """More lookups than a backend's static buffers hold. Nothing is ever dropped instead."""


class BackendError(RuntimeError):
    """A backend that cannot be loaded, or that refuses what it was given, with the reason."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, altered, or of another model."""
