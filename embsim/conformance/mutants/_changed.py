"""embsim's engine with other optimizers than it was asked for: one method says which."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from ...config import FeatureConfig
from ..embsim_engine import EmbsimEngine
from ..program import Setup

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Changed:
    """An optimizer like `original`, but for what is given."""

    def __init__(self, original: Any, **changes: Any) -> None:
        self.original = original
        self.learning_rate = original.learning_rate
        self.slots = original.slots
        self.coefficients: Callable[[float], Mapping[str, float]] = original.coefficients
        self.rule: Callable[[Any], Callable[..., Any]] = original.rule
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


class OtherOptimizers(EmbsimEngine):
    """`changed` says what stands in the place of each table's optimizer."""

    def features(self, setup: Setup) -> list[FeatureConfig]:
        self.setup = setup
        tables = {
            config: replace(config, optimizer=self.changed(config.optimizer))
            for config in setup.tables.values()
        }
        return [replace(each, table=tables[each.table]) for each in setup.features]

    def changed(self, optimizer: Any) -> Any:
        raise NotImplementedError


class OtherOptions(OtherOptimizers):
    """The options in the head of a subclass replace those of every optimizer that has them."""

    options: ClassVar[Mapping[str, Any]] = NOTHING

    def __init_subclass__(cls, **options: Any) -> None:
        cls.options = options

    def changed(self, optimizer: Any) -> Any:
        known = {name: value for name, value in self.options.items() if hasattr(optimizer, name)}
        return replace(optimizer, **known)


class OtherRule(OtherOptimizers):
    """`formula` is the rule of every optimizer of `kinds`; the numbers in the head of a subclass
    are coefficients more.
    """

    kinds: ClassVar[tuple[type, ...]] = (object,)
    numbers: ClassVar[Mapping[str, float]] = NOTHING

    def __init_subclass__(cls, **numbers: float) -> None:
        cls.numbers = numbers

    def changed(self, optimizer: Any) -> Any:
        if not isinstance(optimizer, self.kinds):
            return optimizer
        return Changed(
            optimizer,
            rule=lambda ops: partial(self.formula, optimizer, ops),  # type: ignore[reportUnknownLambdaType]
            coefficients=lambda rate: {**optimizer.coefficients(rate), **self.numbers},  # type: ignore[reportUnknownLambdaType]
        )

    def formula(self, optimizer: Any, ops: Any, w: Any, g: Any, slots: Any, c: Any) -> Any:
        raise NotImplementedError
