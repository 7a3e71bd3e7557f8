"""Nested structures (dict, list, tuple, namedtuple, or one leaf), led by the feature configuration.

config nest     {"user": [U, V], "ad": A}
flatten         [("ad", A), ("user/0", U), ("user/1", V)]     dict keys sorted, as in tf.nest
flatten_up_to   what another structure has at those places    there, lists and dicts are leaves
pack            three things back into {"user": [., .], "ad": .}
pad_batch       every leaf filled up with empty bags
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .config import integer
from .convert import as_feature, keyed_jagged
from .errors import BatchError
from .ragged import RaggedTensor, SparseTensor

Nest = Any  # a dict, list, tuple or namedtuple of Nests, or a leaf

MAX_BATCH = 2**27  # samples that pad_batch makes room for


def flatten(config_nest: Nest) -> list[tuple[str, Any]]:
    """(path, leaf) in the order of tf.nest: dict keys sorted. The path of a lone leaf is "".

    >>> flatten({"user": [10, 11], "ad": 12})
    [('ad', 12), ('user/0', 10), ('user/1', 11)]
    """
    if not _is_nest(config_nest):
        return [("", config_nest)]
    return [
        (f"{key}/{path}" if path else str(key), leaf)
        for key, child in _children(config_nest)
        for path, leaf in flatten(child)
    ]


def flatten_up_to(config_nest: Nest, value: Any, what: str = "features") -> list[Any]:
    """What stands in `value` where `config_nest` has its leaves, in flattened order.

    Containers at those places are leaves. Any mapping serves for a mapping.

    Raises:
      TypeError: another kind of container: a list for a tuple, a sequence for a mapping, an array.
      ValueError: another length, or other keys.

    >>> flatten_up_to({"user": 0, "ad": 1}, {"user": [[3, 7], []], "ad": [5, 6]})
    [[5, 6], [[3, 7], []]]
    """
    return list(_leaves_up_to(config_nest, value, what, ""))


def pack(config_nest: Nest, leaves: Sequence[Any]) -> Nest:
    """The inverse of flatten: the containers of `config_nest`, key order kept, around `leaves`.

    >>> pack({"user": [0, 0], "ad": 0}, ["a", "b", "c"])
    {'user': ['b', 'c'], 'ad': 'a'}
    """
    needed = len(flatten(config_nest))
    if len(leaves) != needed:
        raise ValueError(f"pack: found {len(leaves)} leaves; the structure has {needed}")
    return _pack(config_nest, iter(leaves))


def pad_batch(features: Any, batch_size: int, feature_config: Any = None) -> tuple[Any, np.ndarray]:
    """The last, partial batch filled up with empty bags; and the mask [batch_size], True = real.

    Empty bags give zeros and touch nothing. Ragged and sparse leaves get more bags. A dense leaf
    cannot hold an empty bag: it becomes a SparseTensor of one id a bag, with the same activations
    whatever the combiner. Weights are padded by a call of their own. `feature_config` says where
    the leaves are; without it a list of numbers or of lists is a leaf, any other list a structure.

    Raises:
      BatchError: more than batch_size samples, features of different batch sizes, a leaf that
        carries weights.

    >>> padded, mask = pad_batch({"clicks": RaggedTensor.from_lists([[3, 7], [5]])}, 4)
    >>> padded["clicks"].to_list(), mask
    ([[3, 7], [5], [], []], array([ True,  True, False, False]))
    """
    batch_size = integer("pad_batch: batch_size", batch_size, minimum=1, maximum=MAX_BATCH)
    keyed = keyed_jagged(features)
    if keyed is not None:
        if keyed[1] is not None:
            raise BatchError(
                "pad_batch: found features with weights of their own; pad the two apart"
            )
        features = keyed[0]
    samples: set[int] = set()
    if feature_config is None:
        padded = _pad_nest(features, batch_size, samples)
    else:
        leaves = [
            _pad_leaf(leaf, batch_size, samples) for leaf in flatten_up_to(feature_config, features)
        ]
        padded = pack(feature_config, leaves)
    if len(samples) > 1:
        raise BatchError(
            f"pad_batch: found features of {sorted(samples)} samples; all must have the same number"
        )
    mask = np.zeros(batch_size, np.bool_)
    mask[: max(samples, default=0)] = True
    return padded, mask


def _is_namedtuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_nest(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _sorted_keys(mapping: Mapping[Any, Any]) -> list[Any]:
    try:
        return sorted(mapping)
    except TypeError as error:
        keys = ", ".join(map(repr, mapping))
        raise TypeError(
            f"structure: the keys {keys} cannot be sorted; features are taken in sorted key order, "
            "so all keys of one dict must be of one type"
        ) from error


def _children(nest: Nest) -> list[tuple[Any, Any]]:
    if isinstance(nest, Mapping):
        return [(key, nest[key]) for key in _sorted_keys(nest)]
    return list(zip(getattr(nest, "_fields", range(len(nest))), nest, strict=True))


def _leaves_up_to(config_nest: Nest, value: Any, what: str, path: str) -> Iterator[Any]:
    if not _is_nest(config_nest):
        yield value
        return
    place = f"{what} at '{path}'" if path else what
    _check_kind(config_nest, value, place)
    if isinstance(config_nest, Mapping):
        _check_keys(config_nest, value, place)
        values: Sequence[Any] = [value[key] for key in _sorted_keys(config_nest)]
    else:
        if len(value) != len(config_nest):
            raise ValueError(
                f"{place}: found {type(value).__name__} of length {len(value)}; "
                f"the feature configuration has length {len(config_nest)} there"
            )
        values = value
    for (key, child), item in zip(_children(config_nest), values, strict=True):
        yield from _leaves_up_to(child, item, what, f"{path}/{key}" if path else str(key))


def _check_kind(config_nest: Nest, value: Any, place: str) -> None:
    if isinstance(config_nest, Mapping):
        fits, wanted = isinstance(value, Mapping), "mapping (a dict)"
    elif _is_namedtuple(config_nest):
        fields = config_nest._fields
        fits = _is_namedtuple(value) and value._fields == fields
        wanted = f"namedtuple with the fields {', '.join(fields)}"
    elif isinstance(config_nest, list):
        fits, wanted = isinstance(value, list), "list"
    else:
        fits, wanted = isinstance(value, tuple) and not _is_namedtuple(value), "tuple"
    if not fits:
        raise TypeError(
            f"{place}: found {type(value).__name__}; the feature configuration has a {wanted} "
            "there, and structures must be the same"
        )


def _check_keys(config_nest: Mapping[Any, Any], value: Mapping[Any, Any], place: str) -> None:
    missing = [key for key in config_nest if key not in value]
    unexpected = [key for key in value if key not in config_nest]
    if missing or unexpected:
        raise ValueError(
            f"{place}: missing keys {missing}, unexpected keys {unexpected}; the keys must be "
            f"those of the feature configuration: {list(config_nest)}"
        )


def _pack(config_nest: Nest, leaves: Iterator[Any]) -> Nest:
    if not _is_nest(config_nest):
        return next(leaves)
    packed = {key: _pack(child, leaves) for key, child in _children(config_nest)}
    if isinstance(config_nest, Mapping):
        ordered = {key: packed[key] for key in config_nest}
        if isinstance(config_nest, defaultdict):
            return defaultdict(config_nest.default_factory, ordered)
        return ordered if type(config_nest) is dict else type(config_nest)(ordered)  # pyright: ignore
    if _is_namedtuple(config_nest):
        return type(config_nest)(*packed.values())
    return type(config_nest)(packed.values())


def _pad_nest(value: Any, batch_size: int, samples: set[int]) -> Any:
    if isinstance(value, Mapping):
        children = {key: _pad_nest(child, batch_size, samples) for key, child in value.items()}
        return children if type(value) is dict else type(value)(children)  # pyright: ignore
    is_list = isinstance(value, list | tuple) and not hasattr(value, "dense_shape")
    if is_list and not all(isinstance(x, list | tuple | int | float | np.generic) for x in value):
        children = [_pad_nest(item, batch_size, samples) for item in value]
        return type(value)(*children) if _is_namedtuple(value) else type(value)(children)
    return _pad_leaf(value, batch_size, samples)


def _pad_leaf(value: Any, batch_size: int, samples: set[int]) -> RaggedTensor | SparseTensor | None:
    if value is None:  # weights may be
        return None
    leaf, weights = as_feature(value, "pad_batch")
    if weights is not None:
        raise BatchError("pad_batch: found a feature with weights of its own; pad the two apart")
    if isinstance(leaf, np.ndarray):
        leaf = _one_id_a_bag(leaf)
    rows = len(leaf) if isinstance(leaf, RaggedTensor) else leaf.dense_shape[0]
    if rows > batch_size:
        raise BatchError(f"pad_batch: found {rows} samples; batch_size is {batch_size}, raise it")
    samples.add(rows)
    if isinstance(leaf, SparseTensor):
        return SparseTensor(leaf.indices, leaf.values, (batch_size, *leaf.dense_shape[1:]))
    splits = np.pad(leaf.row_splits, (0, batch_size - rows), mode="edge")
    return RaggedTensor(leaf.values, splits)


def _one_id_a_bag(ids: np.ndarray) -> SparseTensor:
    if ids.ndim == 0 or (ids.ndim > 1 and ids.shape[-1] != 1):
        raise BatchError(
            f"pad_batch: found a dense array of shape {ids.shape}; it must be [B] or [..., 1]"
        )
    shape = ids.shape if ids.ndim > 1 else (len(ids), 1)
    indices = np.stack(np.unravel_index(np.arange(ids.size), shape), axis=1)
    return SparseTensor(indices, ids.reshape(-1), shape)
