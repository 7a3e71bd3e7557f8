"""Facts of the data, and that nothing known only after departure is among the features."""

import numpy as np

from experiments.data import flights


def test_the_package_holds_the_published_table() -> None:
    table = flights.read_table()
    assert table.num_rows == 336_776
    assert table["arr_delay"].is_valid().to_numpy().sum() == 327_346


def test_labels_and_vocabularies() -> None:
    data = flights.load()
    assert len(data) == 327_346
    assert round(100 * data.labels.mean(), 1) == 23.7
    assert tuple(data.ids) == flights.FEATURES
    sizes = data.vocabulary_sizes
    assert (sizes["carrier"], sizes["origin"], sizes["month"], sizes["weekday"]) == (16, 3, 12, 7)
    for feature, ids in data.ids.items():
        assert ids.dtype == np.int32
        assert ids.min() == 0 and ids.max() == sizes[feature] - 1


def test_flights_are_in_order_of_scheduled_departure() -> None:
    data = flights.load()
    assert (np.diff(data.times) >= np.timedelta64(0, "m")).all()
    days = data.times.astype("datetime64[D]")
    origin_day, origin = data.ids["origin_day"], data.ids["origin"]
    for day in (0, 100, 364):
        of_day = days == np.datetime64("2013-01-01") + np.timedelta64(day, "D")
        assert len(np.unique(origin_day[of_day])) == len(np.unique(origin[of_day])) == 3
    monday = data.times.astype("datetime64[D]") == np.datetime64("2013-01-07")
    assert set(data.ids["weekday"][monday]) == {0}


def test_within_a_minute_the_order_says_nothing_of_the_delay() -> None:
    """Ties are broken by the timetable: late flights do not stand behind punctual ones."""
    data = flights.load()
    same = data.times[1:] == data.times[:-1]
    worse = (data.labels[1:] > data.labels[:-1])[same].mean()
    better = (data.labels[1:] < data.labels[:-1])[same].mean()
    # The two shares have equal expectation if order and label are independent: 5 standard errors.
    assert abs(worse - better) < 5 * np.sqrt((worse + better) / same.sum())


def test_take_keeps_the_years_vocabularies() -> None:
    data = flights.load()
    part = data.take(np.array([5, 3]))
    assert part.vocabulary_sizes == data.vocabulary_sizes
    assert part.labels.tolist() == data.labels[[5, 3]].tolist()
    assert flights.provenance()["data_licence"] == "CC0"
