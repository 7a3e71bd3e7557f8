"""One atomic checkpoint of an embedding and the rest of a run: dense model, optimizer, step."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, runtime_checkable

import numpy as np

from . import _pytree
from ._manifest import Group as Group
from ._numbered import load_arrays as load_arrays
from ._numbered import save_arrays as save_arrays
from .errors import CheckpointError


@runtime_checkable
class Saveable(Protocol):
    """An object that is saved and restored in place, as TPUEmbedding is."""

    def saving(self, drain: bool) -> AbstractContextManager[tuple[dict[str, np.ndarray], Any]]:
        """Arrays by name, and what else must be known as JSON.

        They may be views of what is used for training: while the context is open, other threads'
        calls wait.
        """
        ...

    def prepare_restore(self, arrays: Mapping[str, np.ndarray], meta: Any) -> Callable[[], None]:
        """Check everything, change nothing, and return the function that takes it over.

        The arrays are read-only views of mapped files. The function may not fail.
        """
        ...


class Checkpoint:
    """Objects that are saved and restored together: embeddings, and pytrees of arrays.

    A pytree is nested dicts, lists, tuples, namedtuples, None and containers registered with JAX,
    around NumPy arrays, JAX arrays and Python numbers. It is saved as it is when given; on restore
    it is the template for structure, shapes and dtypes, and is not changed.

    Args:
      keep: after each save delete all but the newest `keep` complete checkpoints. None: all stay.
      objects: what to save, by name.

    >>> import tempfile
    >>> params = {"w": np.float32([1, 2]), "step": 7}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Checkpoint(model=params).save(directory)
    ...     template = {"w": np.zeros(2, np.float32), "step": 0}
    ...     restored = Checkpoint(model=template).restore(directory)
    >>> os.path.basename(path), restored["model"]
    ('000001', {'w': array([1., 2.], dtype=float32), 'step': 7})
    """

    def __init__(self, /, *, keep: int | None = None, **objects: Any) -> None:
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
            raise ValueError(
                f"Checkpoint: keep is {keep!r}; it must be an int >= 1, or None to keep all"
            )
        if not objects:
            raise ValueError(
                "Checkpoint: found no objects; name at least one, as in "
                "Checkpoint(embedding=embedding)"
            )
        self._keep = keep
        self._objects = objects

    def save(self, path: str | os.PathLike[str], drain: bool = False) -> str:
        """Write a new numbered checkpoint below the directory `path`, and return where it is.

        Killed at any moment, the previous one stays what `restore(path)` finds. `drain` makes
        pending updates of embeddings visible first (a pipeline bubble, which changes later
        results); without it they are saved as pending.

        Raises:
          TypeError: a leaf that is no array. Nothing was written.
          DeadlockError: an embedding's dequeued step waits for its gradients. Nothing was written.
          OSError: the disk is full, or the directory cannot be written. Earlier checkpoints are
            unchanged.
        """
        pytrees = {
            name: _pytree_group(name, tree)
            for name, tree in self._objects.items()
            if not _is_saveable(tree)
        }
        groups: dict[str, Group] = {}
        with ExitStack() as held:
            for name, value in self._objects.items():
                if name in pytrees:
                    groups[name] = pytrees[name]
                else:  # only now: a drain changes it, so the pytrees must be in order
                    arrays, meta = held.enter_context(value.saving(drain))
                    groups[name] = Group(arrays, {"object": meta})
            return save_arrays(path, groups, self._keep)

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Restore every object from the newest checkpoint below `path`; return the pytrees by name.

        Leaves are of the kind that was given: NumPy, JAX (with its sharding) or Python number.
        Embeddings are restored in place and are not in the dict. Either all objects are restored or
        none: each is checked before the first changes. `path` may also be one numbered checkpoint.
        A checkpoint may hold more than is asked for.

        Raises:
          CheckpointError: no checkpoint there; a file missing, truncated or altered; another
            structure, shape or dtype.
          DeadlockError, RuntimeError, ValueError: an embedding that cannot be restored now, or is
            of another kind.
        """
        groups = load_arrays(path, list(self._objects))
        trees: dict[str, Any] = {}
        commits: list[Callable[[], None]] = []
        for name, value in self._objects.items():
            group = groups[name]
            found, required = _kind(group.meta), "an object" if _is_saveable(value) else "a pytree"
            if found != required:
                raise CheckpointError(
                    f"restore '{path}': {name!r} was saved as {found}, the one that was given is "
                    f"{required}"
                )
            if _is_saveable(value):
                commits.append(value.prepare_restore(group.arrays, group.meta["object"]))
            else:
                trees[name] = _pytree.rebuild(
                    value, group.arrays, group.meta["pytree"], f"restore {name!r}"
                )
        for commit in commits:
            commit()
        return trees


def _is_saveable(value: Any) -> bool:
    return isinstance(value, Saveable) and not isinstance(value, type)


def _pytree_group(name: str, tree: Any) -> Group:
    arrays, containers = _pytree.flatten(tree, f"save {name!r}")
    return Group(arrays, {"pytree": containers})


def _kind(meta: Any) -> str:
    if isinstance(meta, dict) and "object" in meta:
        return "an object"
    if isinstance(meta, dict) and isinstance(meta.get("pytree"), dict):
        return "a pytree"
    return "something else"
