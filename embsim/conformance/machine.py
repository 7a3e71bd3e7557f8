"""Random programs of calls, legal and illegal: what `lockstep.replay` runs against the law."""

from typing import Any

from hypothesis import strategies as st

from .adapter import ALL, Capabilities
from .program import (
    Apply,
    Call,
    Dequeue,
    Drain,
    Enqueue,
    Evaluate,
    Look,
    Program,
    Restore,
    Save,
    Setup,
    Train,
)
from .strategies import batches, gradients, setups

# More of what makes progress; the first is what shrinking prefers.
KINDS = (
    ("train", 6),
    ("drain", 3),
    ("look", 1),
    ("evaluate", 2),
    ("enqueue", 2),
    ("dequeue", 3),
    ("apply", 3),
    ("save", 1),
    ("restore", 1),
)


@st.composite
def calls(draw: Any, setup: Setup, can: Capabilities = ALL, regime: str = "exact") -> Call:
    """Any call, legal or not: replay tells, and wants the illegal ones refused."""
    offered = [name for name, count in KINDS for _ in range(count) if _offered(name, can)]
    kind = draw(st.sampled_from(offered))
    simple = {"dequeue": Dequeue, "drain": Drain, "look": Look, "save": Save, "restore": Restore}
    if kind in simple:
        return simple[kind]()
    if kind == "apply":
        return Apply(draw(gradients(setup, can, regime)))
    batch = draw(batches(setup, can, regime))
    if kind == "train":
        return Train(batch, draw(gradients(setup, can, regime)))
    if kind == "evaluate":
        return Evaluate(batch)
    training = draw(st.sampled_from((True, True, False))) if can.offers("inference") else True
    return Enqueue(batch, training)


def _offered(kind: str, can: Capabilities) -> bool:
    if kind in ("save", "restore"):
        return can.offers("checkpoints")
    if kind == "evaluate":
        return can.offers("inference")
    return can.output_shift == 0 or kind in ("train", "drain")


@st.composite
def programs(
    draw: Any,
    can: Capabilities = ALL,
    regime: str = "exact",
    setup: st.SearchStrategy[Setup] | None = None,
    *,
    max_calls: int = 20,
) -> Program:
    """A setup, and calls on it in any order, legal and illegal."""
    drawn = draw(setups(can, "exact" if regime == "exact" else "real") if setup is None else setup)
    decays = any(
        getattr(config.optimizer, "weight_decay_factor", None) for config in drawn.tables.values()
    )
    most = min(max_calls, 6) if regime == "exact" and decays else max_calls
    made = draw(st.lists(calls(drawn, can, regime), max_size=most))
    return Program(drawn, tuple(_put_together(made)))


def _put_together(made: list[Call]) -> list[Call]:
    """The same program in fewer words: Train and Evaluate where their calls stand together."""
    found: list[Call] = []
    for call in made:
        found.append(call)
        match found[-3:]:
            case [Enqueue(training=True) as put, Dequeue(), Apply() as apply]:
                found[-3:] = [Train(put.batch, apply.gradients)]
            case [*_, Enqueue(training=False) as put, Dequeue()]:
                found[-2:] = [Evaluate(put.batch)]
            case _:
                pass
    return found


@st.composite
def training_loops(
    draw: Any,
    can: Capabilities = ALL,
    regime: str = "exact",
    setup: st.SearchStrategy[Setup] | None = None,
    *,
    max_steps: int = 6,
) -> Program:
    """A setup, and training steps one after the other, with drains between where it offers them."""
    drawn = draw(setups(can, "exact" if regime == "exact" else "real") if setup is None else setup)
    step = st.builds(Train, batches(drawn, can, regime), gradients(drawn, can, regime))
    other = st.just(Drain()) if can.drain_points == "any" else st.nothing()
    made = draw(st.lists(st.one_of(step, other), min_size=1, max_size=max_steps))
    return Program(drawn, tuple(made))
