"""Nested containers of arrays <-> arrays by path.

    {"w": [a, b], "step": 3}      containers   ""      dict with keys 'step', 'w'
                                               ['w']   list of 2
                                  leaves       ['step']  3     ['w'][0]  a     ['w'][1]  b

Containers are dict, list, tuple, namedtuple, None, and what is registered with JAX; leaves are
NumPy and JAX arrays and Python bools, ints and floats. JAX is never imported: a tree can only hold
its objects where the caller has imported it.
"""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._safetensors import check_storable
from .errors import CheckpointError

_SCALARS = {bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float64)}


def flatten(tree: Any, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays by path, containers by path), of what `rebuild` needs a template for.

    Raises:
      TypeError: a leaf that is no array; a key of a dict that is no str or int. The message names
        the path.
    """
    containers, leaves = _walk(tree, what)
    return {path: _as_numpy(leaf) for path, leaf in leaves.items()}, containers


def rebuild(
    template: Any, arrays: Mapping[str, np.ndarray], containers: Mapping[str, str], what: str
) -> Any:
    """The tree that was flattened, in the containers of `template` and with leaves of its kinds, in
    memory of their own.

    Raises:
      CheckpointError: another structure, shape or dtype than the template's. The message names the
        path.
    """
    required_containers, leaves = _walk(template, what)
    required = required_containers | {path: _describe(leaf) for path, leaf in leaves.items()}
    found = dict(containers) | {
        path: f"{a.dtype.name} {list(a.shape)}" for path, a in arrays.items()
    }
    for path, text in required.items():
        if found.get(path) != text:
            raise CheckpointError(
                f"{_place(what, path)}: found {found.get(path, 'nothing')} in the checkpoint; the "
                f"object that was given has {text} there, and they must be equal"
            )
    return _build(template, arrays, "", what)


@dataclass(frozen=True)
class _Container:
    text: str
    children: Sequence[tuple[str, Any]]  # (step of the path, child)
    build: Callable[[list[Any]], Any]


def _walk(tree: Any, what: str) -> tuple[dict[str, str], dict[str, Any]]:
    containers: dict[str, str] = {}
    leaves: dict[str, Any] = {}

    def visit(node: Any, path: str) -> None:
        container = _container(node, _place(what, path))
        if container is None:
            _check_leaf(node, path, _place(what, path))
            leaves[path] = node
            return
        containers[path] = container.text
        for step, child in container.children:
            visit(child, path + step)

    visit(tree, "")
    return containers, leaves


def _build(template: Any, arrays: Mapping[str, np.ndarray], path: str, what: str) -> Any:
    container = _container(template, _place(what, path))
    if container is None:
        return _like(template, arrays[path])
    return container.build(
        [_build(child, arrays, path + step, what) for step, child in container.children]
    )


def _container(node: Any, where: str) -> _Container | None:
    if node is None:
        return _Container("None", [], lambda _: None)
    if isinstance(node, dict):
        return _dict(node, where)
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        fields = [f".{field}" for field in node._fields]  # pyright: ignore[reportAttributeAccessIssue]
        text = f"namedtuple with fields {', '.join(fields) or 'none'}"
        return _Container(text, list(zip(fields, node, strict=True)), type(node)._make)  # pyright: ignore
    if isinstance(node, list | tuple):
        kind = "list" if isinstance(node, list) else "tuple"
        return _Container(
            f"{kind} of {len(node)}",
            [(f"[{i}]", child) for i, child in enumerate(node)],
            type(node),
        )
    return _registered_with_jax(node)


def _dict(node: dict[Any, Any], where: str) -> _Container:
    for key in node:
        if type(key) not in (str, int):
            raise TypeError(f"{where}: found the key {key!r}; keys must be str or int")
    keys = sorted(map(repr, node))

    def build(children: list[Any]) -> Any:
        new = copy.copy(node)  # a subclass, its default_factory and the order of keys stay
        new.update(zip(node, children, strict=True))
        return new

    return _Container(
        f"dict with keys {', '.join(keys) or 'none'}",
        [(f"[{k!r}]", c) for k, c in node.items()],
        build,
    )


def _registered_with_jax(node: Any) -> _Container | None:
    jax = sys.modules.get("jax")
    if jax is None or isinstance(node, np.ndarray | np.generic | jax.Array | bool | int | float):
        return None
    children, definition = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda inner: inner is not node
    )
    if len(children) == 1 and children[0][1] is node:
        return None
    steps = [(jax.tree_util.keystr(path), child) for path, child in children]
    text = f"{type(node).__name__} with {', '.join(step for step, _ in steps) or 'nothing'}"
    return _Container(text, steps, definition.unflatten)


def _check_leaf(leaf: Any, path: str, where: str) -> None:
    if type(leaf) in _SCALARS:
        if type(leaf) is int and not -(2**63) <= leaf < 2**63:
            raise TypeError(f"{where}: found the int {leaf}; it must fit 64 bits")
        return
    array = isinstance(leaf, np.ndarray | np.generic) and not isinstance(leaf, np.ma.MaskedArray)
    if not array and not _is_jax(leaf):
        raise TypeError(
            f"{where}: found {type(leaf).__name__}; leaves must be NumPy or JAX arrays, or Python "
            "bools, ints or floats"
        )
    check_storable(path, leaf.dtype, where)


def _is_jax(leaf: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(leaf, jax.Array)


def _describe(leaf: Any) -> str:
    if type(leaf) in _SCALARS:
        return f"{_SCALARS[type(leaf)].name} []"
    return f"{leaf.dtype.name} {list(leaf.shape)}"


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, _SCALARS.get(type(leaf)))


def _like(leaf: Any, array: np.ndarray) -> Any:
    if type(leaf) in _SCALARS:
        return array.item()
    if _is_jax(leaf):
        return _jax_array(leaf, array)
    own = np.array(array)
    return own if isinstance(leaf, np.ndarray) else own[()]


def _jax_array(leaf: Any, array: np.ndarray) -> Any:
    """Of the leaf's sharding if it is committed to one, and weakly typed if it is."""
    jax = sys.modules["jax"]
    made = jax.numpy.array(array)
    if leaf.weak_type:
        zeros = jax.numpy.full(array.shape, array.dtype.type(0).item())
        made = zeros.at[...].set(made) if zeros.dtype == made.dtype else made
    return jax.device_put(made, leaf.sharding) if leaf.committed else made


def _place(what: str, path: str) -> str:
    return f"{what} at {path}" if path else what
