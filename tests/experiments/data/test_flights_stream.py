"""The flights in the stream are those of the table, in the order that was asked for."""

import numpy as np
import pytest

from experiments.data import flights, flights_stream

BATCH = 4096


def test_by_time_it_is_the_year_and_its_end_is_held_out() -> None:
    stream, data = flights_stream.stream(), flights.load()
    trained = list(stream.batches(BATCH))
    held_out = list(stream.held_out(BATCH))
    ids = np.stack(list(data.ids.values()), axis=1)
    n = stream.num_steps(BATCH) * BATCH
    assert stream.num_training - n < BATCH
    assert (np.concatenate([e.ids for e in trained]) == ids[:n]).all()
    assert (np.concatenate([e.labels for e in trained]) == data.labels[:n]).all()
    mask = np.concatenate([e.mask for e in held_out])
    assert mask.sum() == len(data) - stream.num_training == round(0.1 * len(data))
    assert (np.concatenate([e.ids for e in held_out])[mask] == ids[stream.num_training :]).all()
    assert stream.names == flights.FEATURES
    assert stream.vocabulary_sizes == tuple(data.vocabulary_sizes.values())


def test_shuffled_every_epoch_has_every_training_flight_once_in_another_order() -> None:
    stream = flights_stream.stream("shuffled", epochs=2, seed=5)
    size = stream.num_training  # a batch is an epoch
    first, second = stream.batches(size)
    assert stream.num_steps(size) == 2
    ids = np.stack(list(flights.load().ids.values()), axis=1)[:size]
    for epoch in (first, second):
        assert (np.sort(epoch.ids, axis=0) == np.sort(ids, axis=0)).all()
        assert (epoch.ids != ids).any()
    assert (first.ids != second.ids).any()
    [other] = flights_stream.stream("shuffled", seed=6).batches(size)
    assert (first.ids != other.ids).any()


def test_epochs_by_time_repeat() -> None:
    stream = flights_stream.stream(epochs=3)
    steps = stream.num_steps(BATCH) // 3
    starts = [next(stream.batches(BATCH, start)) for start in (0, steps, 2 * steps)]
    assert all((batch.ids == starts[0].ids).all() for batch in starts)
    assert not list(stream.batches(BATCH, 3 * steps))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"order is 'random'; .* \('time', 'shuffled'\)"):
        flights_stream.stream("random")
    with pytest.raises(ValueError, match=r"epochs is 0, .* >= 1"):
        flights_stream.stream(epochs=0)
    with pytest.raises(ValueError, match=r"held_out_share 1; .* between 0 and 1"):
        flights_stream.stream(held_out_share=1)
