"""Lookups on a CPU from given tables: no strategy, no queue, no gradients; the same law."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .batch import make_batch
from .border import named_features
from .config import FeatureConfig, TableConfig
from .convert import keyed_jagged
from .lookup import lookup
from .nest import flatten_up_to, pack
from .plan import build_plans
from .shapes import resolve


def serving_embedding_lookup(
    inputs: Any, weights: Any, tables: Mapping[TableConfig, Any], feature_config: Any
) -> Any:
    """Activations of `inputs`, in their structure: float32 arrays [*output shape, dim].

    Equal to what an embedding with these tables dequeues, to the last bit: ids are checked and
    never clipped, quantization is applied, the trailing 1 of dense ids is dropped. Any batch size,
    unless a feature has an output_shape.

    Args:
      inputs: the structure of feature_config; where that is a dict, some of its keys will do.
        Leaves as for TPUEmbedding.enqueue. Or a TorchRec KeyedJaggedTensor.
      weights: None, or the structure of inputs with weights or None at the leaves.
      tables: float32 [vocabulary_size, dim] by TableConfig, as TPUEmbedding.embedding_tables.
      feature_config: nested dicts, lists and tuples of FeatureConfig, or one.

    Raises:
      ValueError: a feature that feature_config does not have; a table that is missing, or of
        another shape or dtype; an input that TPUEmbedding.enqueue refuses.
      TypeError: another structure; ids that are no integers, weights that are no floats.

    >>> from embsim import FeatureConfig, TableConfig
    >>> items = TableConfig(vocabulary_size=3, dim=2)
    >>> tables = {items: np.float32([[0, 0], [1, 10], [2, 20]])}
    >>> serving_embedding_lookup([[1, 2], []], None, tables, FeatureConfig(items))
    array([[ 1.5, 15. ],
           [ 0. ,  0. ]], dtype=float32)
    """
    keyed = keyed_jagged(inputs)
    if keyed is not None:
        inputs, carried = keyed
        weights = carried if weights is None else weights
    nest = _asked_for(inputs, feature_config)
    configs, names = named_features(nest)
    names = ["inputs"] if isinstance(nest, FeatureConfig) and not nest.name else names
    ids = flatten_up_to(nest, inputs, "inputs")
    gains = None if weights is None else flatten_up_to(nest, weights, "weights")
    shapes = resolve(configs, names, None, None)
    batch = make_batch(ids, gains, configs, names, shapes, num_replicas=1)

    keys = {table: str(i) for i, table in enumerate(dict.fromkeys(c.table for c in configs))}
    sizes = [(key, table.vocabulary_size) for table, key in keys.items()]
    plans, outputs = build_plans(batch, sizes, [keys[config.table] for config in configs])
    arrays = {key: _array_of(table, tables) for table, key in keys.items()}
    found = {
        key: lookup(arrays[key], plans[key], table.quantization_config)
        for table, key in keys.items()
    }
    return pack(nest, [found[o.table][o.lo : o.hi].reshape(*o.shape, -1) for o in outputs])


def _asked_for(inputs: Any, feature_config: Any) -> Any:
    """The part of the configuration that has inputs: some keys of the outermost dict."""
    if not isinstance(feature_config, Mapping) or not isinstance(inputs, Mapping):
        return feature_config
    unknown = [key for key in inputs if key not in feature_config]
    if unknown:
        raise ValueError(
            f"serving_embedding_lookup: inputs have the keys {', '.join(map(repr, unknown))}; the "
            f"feature configuration has {', '.join(map(repr, feature_config))}"
        )
    return {key: config for key, config in feature_config.items() if key in inputs}


def _array_of(config: TableConfig, tables: Mapping[TableConfig, Any]) -> np.ndarray:
    what = "the table" if config.name is None else f"table {config.name!r}"
    if config not in tables:
        raise ValueError(
            f"serving_embedding_lookup: {what} of {config.vocabulary_size} rows is not in tables; "
            "its keys must be the very TableConfig objects of the features (equal ones are others)"
        )
    array, shape = np.asarray(tables[config]), (config.vocabulary_size, config.dim)
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(
            f"serving_embedding_lookup: {what} is {array.dtype} {array.shape}; it must be float32 "
            f"{shape}"
        )
    return array
