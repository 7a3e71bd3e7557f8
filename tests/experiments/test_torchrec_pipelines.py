"""TorchRec's pipelines: their order, and what Base is."""

import pytest

from experiments.torchrec_pipelines import PIPELINES, ranking


def test_pipelines_of_torchrec_come_in_their_published_order():
    """In time, and in what they hold."""
    results = ranking()
    times = [each.step_seconds for each in results]
    assert times == sorted(times, reverse=True) and len(set(times)) == 3
    published = [seconds for seconds, _ in PIPELINES.values()]
    assert published == sorted(published, reverse=True)
    assert results[2].buffer_bytes > results[1].buffer_bytes >= results[0].buffer_bytes


def test_base_overlaps_nothing():
    timeline = ranking()[0].timeline
    assert sum(timeline.busy.values()) == pytest.approx(timeline.seconds)
