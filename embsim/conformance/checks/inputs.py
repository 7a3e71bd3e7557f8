"""Kinds of input (2.4 to 2.7, 2.9, 2.10), given to embsim's API over a backend.

Whatever form the ids of a batch have, the backend must compute what the law says of their bags.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...config import FeatureConfig
from ...ragged import RaggedTensor, SparseTensor
from ...strategy import TPUStrategy
from ...tpu_embedding import TPUEmbedding
from ..check import Draw, check
from ..difference import Difference, compare
from ..lockstep import definition_of
from ..program import Bag, Setup
from ..strategies import tables_of
from ..subject import Subject
from ._benches import backend_of
from ._operands import COMBINERS, NONZERO, one_table, plain_setups

DTYPES = ("i1", "u2", "i4", "i8", "u8", ">i4")


@contextmanager
def embedding_over(subject: Subject, feature: FeatureConfig, replicas: int = 1) -> Generator[Any]:
    """embsim's API over the subject's backend, closed at the end."""
    with TPUStrategy(num_replicas=replicas).scope():
        embedding = TPUEmbedding(feature, backend=backend_of(subject))
    try:
        yield embedding
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of batches that are given up
            embedding.close()


@dataclass(frozen=True)
class Given:
    """A batch of one feature: `bags` as the law reads them, and what the API is given."""

    bags: Sequence[Bag]
    ids: Any
    weights: Any = None
    shape: tuple[int, ...] | None = None  # of the activations without dim; None: one of each bag

    def __repr__(self) -> str:
        return f"ids {self.ids!r}, weights {self.weights!r}"


def _train(
    subject: Subject, draw: Draw, setup: Setup, config: FeatureConfig, *given: Given, **how: Any
) -> None:
    """Training steps of `config`, which the law sees as the setup's one feature."""
    law = definition_of(setup)
    with embedding_over(subject, config, how.get("replicas", 1)) as embedding:
        for step, each in enumerate(given):
            wanted = law.dequeue([each.bags])[0]
            dim = wanted.shape[-1]
            shape = wanted.shape if each.shape is None else (*each.shape, dim)
            gradient = draw(tables_of(shape, NONZERO), "gradient")
            embedding.enqueue(each.ids, each.weights)
            what = f"activations of step {step}, {each!r}"
            found = np.asarray(embedding.dequeue())
            compare(what, found, wanted.reshape(shape), table="t0", step=step)
            embedding.apply_gradients(gradient)
            law.apply_gradients([gradient.reshape(wanted.shape)])
            (table,) = embedding.embedding_tables.values()
            what = f"table after step {step}, {each!r}, gradient {gradient.tolist()}"
            (version,) = law.versions[-1].values()
            compare(what, np.asarray(table), version[0], table="t0", step=step)


def _setup(
    subject: Subject, draw: Draw, *, length: bool = False
) -> tuple[Setup, st.SearchStrategy]:
    can = subject.capabilities
    shapes = one_table(can, length=length)
    setup = draw(plain_setups(can, shapes, combiners=COMBINERS), "setup")
    return setup, st.integers(0, setup.features[0].table.vocabulary_size - 1)


def _sparse(bags: Sequence[Bag], dtype: Any = "i8", stride: int = 1, deep: bool = False) -> Any:
    """Its bags along the last axis, `stride` columns from id to id; None is a hole. `deep`: rank 3,
    two bags to a sample.
    """
    places = [
        ((*divmod(bag, 2), p * stride) if deep else (bag, p * stride), item)
        for bag, items in enumerate(bags)
        for p, item in enumerate(items)
        if item is not None
    ]
    width = 1 + max([place[-1] for place, _ in places], default=0)
    rows = (len(bags) // 2, 2) if deep else (len(bags),)
    indices = np.array([place for place, _ in places], "i8").reshape(-1, len(rows) + 1)
    return SparseTensor(indices, np.array([x for _, x in places], dtype), (*rows, width))


def _ragged(bags: Sequence[Bag], dtype: Any = "i8") -> RaggedTensor:
    return RaggedTensor.from_lists(bags, dtype)


@check("2.4", "2.5", "2.9", backend=True, effort=0.7)
def check_dense_ragged_and_sparse_ids_say_the_same(subject: Subject, draw: Draw) -> None:
    """One id a sample, in any form and any integer type: gain 1 under every combiner."""
    setup, ids = _setup(subject, draw)
    steps: list[Given] = []
    for _ in range(2):
        flat = draw(st.lists(ids, min_size=setup.samples, max_size=setup.samples), "ids")
        bags, dtype = [[id_] for id_ in flat], draw(st.sampled_from(DTYPES), "dtype")
        forms = {
            "dense": lambda f=flat, d=dtype: np.array(f, d),
            "column": lambda f=flat, d=dtype: np.array(f, d)[:, None],
            "a list": lambda f=flat: f,
            "a list of lists": lambda b=bags: b,
            "ragged": lambda b=bags, d=dtype: _ragged(b, d),
            "sparse": lambda b=bags, d=dtype: _sparse(b, d, stride=3),
        }
        steps.append(Given(bags, forms[draw(st.sampled_from(sorted(forms)), "form")]()))
    _train(subject, draw, setup, setup.features[0], *steps)


@check("2.5", "2.1", backend=True)
def check_bags_may_be_ragged_or_sparse_of_any_rank(subject: Subject, draw: Draw) -> None:
    """Each row of rank 2 is a bag; of a higher rank the last axis is, and the activations have the
    others. Two ids and none are two bags.
    """
    setup, ids = _setup(subject, draw)
    config = setup.features[0]
    most = {"sum": 2, "mean": 2, "sqrtn": 4}[config.table.combiner]
    full = st.lists(ids, min_size=most, max_size=most)
    one = st.lists(ids, min_size=1, max_size=1)
    bag = draw(st.sampled_from((one, one | full | st.just([]))), "the other bags")
    forms: dict[str, Callable[[Any], Any]] = {
        "lists": lambda bags: bags, "ragged": _ragged, "sparse": _sparse,
        "sparse of rank 3": lambda bags: _sparse(bags, deep=True),
    }  # fmt: skip
    form = draw(st.sampled_from(sorted(forms)), "form")
    count = setup.samples if setup.samples % 2 == 0 else setup.samples * 2
    uneven = [
        draw(full, "full bag"),
        [],
        *draw(st.lists(bag, min_size=count - 2, max_size=count - 2), "bags"),
    ]
    bags = draw(st.permutations(uneven), "order")
    shape = (count // 2, 2) if form == "sparse of rank 3" else (count,)
    _train(subject, draw, setup, config, Given(bags, forms[form](bags), shape=shape))


@check("2.6", "2.5", needs=("max_sequence_length",), backend=True, effort=0.7)
def check_holes_of_a_sparse_sequence_stay_zero(subject: Subject, draw: Draw) -> None:
    """Position p holds the id of column p: a column without id is zero and gets no gradient."""
    setup, ids = _setup(subject, draw, length=True)
    length = setup.features[0].max_sequence_length
    items = st.lists(st.one_of(st.none(), ids), min_size=length, max_size=length + 1)
    bags = draw(st.lists(items, min_size=setup.samples, max_size=setup.samples), "bags")
    bags[0] = [None, *bags[0][1:]]
    _train(subject, draw, setup, setup.features[0], Given(bags, _sparse(bags)))


@check("2.7", backend=True, effort=0.7)
def check_an_output_shape_reshapes_what_was_combined(subject: Subject, draw: Draw) -> None:
    """prod(output_shape) bags: combined, then reshaped; it is per replica, so that its first axis
    grows with their number.
    """
    setup, ids = _setup(subject, draw)
    replicas = draw(st.sampled_from((1, 2)), "replicas")
    shape = draw(st.sampled_from(((2, 2), (1, 3), (2, 1, 2))), "output_shape per replica")
    lengths = {"sum": (0, 1, 2), "mean": (0, 1, 2), "sqrtn": (0, 1, 4)}
    of = lengths[setup.features[0].table.combiner]
    bag = st.sampled_from(of).flatmap(lambda n: st.lists(ids, min_size=n, max_size=n))
    count = int(np.prod(shape)) * replicas
    bags = draw(st.lists(bag, min_size=count, max_size=count), "bags")
    config = FeatureConfig(setup.features[0].table, output_shape=shape)
    given = Given(bags, _ragged(bags), shape=(shape[0] * replicas, *shape[1:]))
    _train(subject, draw, setup, config, given, replicas=replicas)


@check("2.7", "2.6", needs=("max_sequence_length",), backend=True, effort=0.7)
def check_an_output_shape_of_more_rows_makes_sequences_of_the_bags(
    subject: Subject, draw: Draw
) -> None:
    """m times as many rows as bags: each bag is a sequence of length m, nothing is combined."""
    setup, ids = _setup(subject, draw, length=True)
    length, count = setup.features[0].max_sequence_length, setup.samples
    bags = draw(
        st.lists(st.lists(ids, max_size=length + 1), min_size=count, max_size=count), "bags"
    )
    shape = (count, length)
    config = FeatureConfig(setup.features[0].table, output_shape=shape)
    _train(subject, draw, setup, config, Given(bags, _ragged(bags), shape=shape))


@check("2.10", "2.1", "3.4", needs=("weights",), backend=True, effort=0.7)
def check_weights_and_gradients_are_cast_to_float32_once(subject: Subject, draw: Draw) -> None:
    """Before anything else: 2^24 + 1 is 2^24 in float32, also where -2^24 would leave 1."""
    can = subject.capabilities
    setup = draw(plain_setups(can, one_table(can)), "setup")
    config = setup.features[0]
    dtype = draw(st.sampled_from(("f8", "f4", "f2")), "dtype")
    huge = (2.0**24 + 1, -(2.0**24)) if dtype == "f8" else (3.0, -2.0)
    row = draw(st.integers(0, config.table.vocabulary_size - 1), "row")
    bags = [[row, row], *([[]] * (setup.samples - 1))]
    factors = [list(huge), *([[]] * (setup.samples - 1))]
    ones = [[(row, float(np.float32(x))) for x in huge], *bags[1:]]
    law = definition_of(setup)
    gradient = np.full((setup.samples, config.table.dim), 1.0, dtype)
    gradient[0] = huge[0]
    wanted = law.dequeue([ones])[0]
    law.apply_gradients([gradient.astype(np.float32)])
    with embedding_over(subject, config) as embedding:
        embedding.enqueue(_ragged(bags), _ragged(factors, dtype))
        what = f"activations of row {row} with weights {huge} of {dtype}"
        compare(what, np.asarray(embedding.dequeue()), wanted, table="t0", step=0)
        embedding.apply_gradients(gradient)
        (table,) = embedding.embedding_tables.values()
        what = f"table after weights {huge} and gradient {huge[0]} of {dtype}"
        compare(what, np.asarray(table), law.versions[-1][config.table][0], table="t0", step=0)


@check("2.4", "2.5", "2.6", "2.9", "2.10", "3.4", "6.4", backend=True, effort=0.7)
def check_inputs_of_a_wrong_kind_change_nothing(subject: Subject, draw: Draw) -> None:
    """Ids outside the table or of no integers, weights that do not fit, indices out of order,
    gradients that are none: each is refused by its own error, and the next step is as if it had
    never been given.
    """
    setup, ids = _setup(subject, draw)
    config, count = setup.features[0], setup.samples
    rows = config.table.vocabulary_size
    bags = [[draw(ids)] for _ in range(count)]
    weights = [[1.0]] * count
    backwards = SparseTensor(np.array([[0, 1], [0, 0]]), np.array([0, 0]), (count, 2))
    wrong: dict[str, tuple[type[Exception], Any, Any]] = {
        "an id below 0": (ValueError, _ragged([[-1], *bags[1:]]), None),
        "an id beyond the table": (ValueError, _sparse([[rows], *bags[1:]]), None),
        "an id that wraps": (ValueError, np.full(count, 2**32, "i8"), None),
        "ids that are floats": (TypeError, np.zeros(count, "f4"), None),
        "ids that are bools": (TypeError, np.zeros(count, "?"), None),
        "weights of dense ids": (ValueError, np.zeros(count, "i4"), np.ones(count, "f4")),
        "weights of other splits": (
            *(ValueError, _ragged(bags), _ragged([[1.0] * 2, *weights[1:]], "f4")),
        ),
        "weights of another kind": (ValueError, _sparse(bags), _ragged(weights, "f4")),
        "weights that are integers": (TypeError, _ragged(bags), _ragged([[1]] * count)),
        "indices out of order": (ValueError, backwards, None),
    }
    name = draw(st.sampled_from([*sorted(wrong), "a gradient"]), "what is wrong")
    law = definition_of(setup)
    with embedding_over(subject, config) as embedding:
        embedding.build(per_replica_batch_size=count)
        if name in wrong:
            kind, *given = wrong[name]
            _refused(name, lambda: embedding.enqueue(*given), kind)
        embedding.enqueue(_ragged(bags))
        found = np.asarray(embedding.dequeue())
        compare(f"activations after {name} was refused", found, law.dequeue([bags])[0], table="t0")
        gradient = draw(tables_of(found.shape, NONZERO), "gradient")
        if name not in wrong:
            for bad, kind in ((gradient.tolist(), ValueError), (gradient.astype("i4"), TypeError)):
                _refused(f"{name} of {type(bad)}", lambda g=bad: embedding.apply_gradients(g), kind)
        embedding.apply_gradients(gradient)
        law.apply_gradients([gradient])
        (table,) = embedding.embedding_tables.values()
        wanted = law.versions[-1][config.table][0]
        compare(f"table after {name} was refused", np.asarray(table), wanted, table="t0")


def _refused(what: str, call: Callable[[], Any], kind: type[Exception]) -> None:
    try:
        call()
    except kind:
        return
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise Difference(f"{what} must be a {kind.__name__}, but raised {found}") from error
    raise Difference(f"{what} must be a {kind.__name__}, but was taken")
