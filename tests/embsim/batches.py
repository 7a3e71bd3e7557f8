"""Batches of one feature, for tests of the inputs."""

import numpy as np

from embsim.batch import FeatureBatch, make_batch
from embsim.config import FeatureConfig, TableConfig
from embsim.ragged import RaggedTensor, SparseTensor

ITEMS = TableConfig(512, 2, combiner="sqrtn", name="items")
CLICKS = FeatureConfig(ITEMS)
ragged = RaggedTensor.from_lists


def batch_of(feature, weight=None, config=CLICKS, shape=None, replicas=1, **options):
    batch = make_batch([feature], [weight], [config], ["clicks"], [shape], replicas, **options)
    return batch.features[0]


def rows_of(feature: FeatureBatch):
    """The ids (or weights) of each output row."""
    return RaggedTensor(feature.ids, feature.splits).to_list()


def sparse(rows, columns=None, dtype=np.int64):
    """Bags as a SparseTensor; `columns` are where each id stands."""
    columns = [range(len(row)) for row in rows] if columns is None else columns
    entries = [(i, c) for i, places in enumerate(columns) for c in places]
    flat = np.array([item for row in rows for item in row], dtype)
    width = 1 + max((c for _, c in entries), default=0)
    return SparseTensor(np.array(entries, np.int64).reshape(-1, 2), flat, (len(rows), width))
