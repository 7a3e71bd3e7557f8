"""The tables that a set of features uses: order, names, optimizers.

Resolved once; the configs stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import FeatureConfig, TableConfig
from .optimizers import Optimizer, accumulates_gradients, updates_every_row
from .optimizers.base import clip_values
from .state import TableSpec


@dataclass(frozen=True, eq=False)
class Tables:
    """Tables in the order in which the flattened features first name them."""

    configs: tuple[TableConfig, ...]
    specs: tuple[TableSpec, ...]
    of_feature: tuple[str, ...]  # the table's name, by feature

    def config_of(self, name: str) -> TableConfig:
        return next(c for c, s in zip(self.configs, self.specs, strict=True) if s.name == name)


def resolve_tables(features: Sequence[FeatureConfig], optimizer: Any, *, trains: bool) -> Tables:
    """Names (unnamed tables become 'table_<position>') and optimizers (the table's own, else
    `optimizer`).

    Raises:
      ValueError: two tables of one name; an optimizer of no supported form; none at all where the
        tables are trained.
    """
    if not features:
        raise ValueError("there are no features; an embedding needs at least one FeatureConfig")
    configs = tuple(dict.fromkeys(feature.table for feature in features))
    names = [config.name or f"table_{i}" for i, config in enumerate(configs)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(
                f"tables {names.index(name)} and {i} are both named {name!r}; every table of an "
                "embedding needs a name of its own (an unnamed table is called 'table_<position>')"
            )
    specs = tuple(
        TableSpec(
            name,
            config.vocabulary_size,
            config.dim,
            _checked(name, config.optimizer if config.optimizer is not None else optimizer, trains),
            config.quantization_config,
        )
        for name, config in zip(names, configs, strict=True)
    )
    name_of = dict(zip(configs, names, strict=True))
    return Tables(configs, specs, tuple(name_of[feature.table] for feature in features))


def _checked(table: str, optimizer: Any, trains: bool) -> Optimizer | None:
    if optimizer is None:
        if trains:
            raise ValueError(
                f"table {table!r} has no optimizer; under a TPUStrategy every table needs one: "
                "pass optimizer= to TPUEmbedding or to the TableConfig"
            )
        return None
    if isinstance(optimizer, type) or not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"table {table!r}: {optimizer!r} is an unsupported optimizer class; use one of "
            "embsim's (SGD, Adagrad, ...) or an object with learning_rate, slots, coefficients "
            "and rule"
        )
    names = [slot.name for slot in optimizer.slots]
    if len(set(names)) < len(names):
        raise ValueError(
            f"table {table!r}: {type(optimizer).__name__} has the slots {names}; each needs a name "
            "of its own"
        )
    needs_sum = updates_every_row(optimizer) or clip_values(optimizer) != (None, None)
    if needs_sum and not accumulates_gradients(optimizer):
        raise ValueError(
            f"table {table!r}: {type(optimizer).__name__} has use_gradient_accumulation=False "
            "together with clipping of gradients or with updates of every row, which need the "
            "accumulated gradient"
        )
    return optimizer
