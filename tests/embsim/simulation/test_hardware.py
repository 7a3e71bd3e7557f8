"""Chips as data, and how long exchanges take on their topologies."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embsim.simulation.hardware import MARKS, NUMBERS, Pod, chip, chips

MINE = """
[sources]
sheet = "a data sheet"
[fast]
kind = "torus"
axes = 2
hbm_bytes = [1e9, "published", "sheet"]
hbm_bandwidth = [2e9, "assumed", "a guess"]
peak_flops = [3e9, "published", "sheet"]
link_bandwidth = [4e9, "memory", "sheet"]
link_latency = [0, "published", "sheet"]
pcie_bandwidth = [5e9, "published", "sheet"]
network_bandwidth = [6e9, "published", "sheet"]
"""


@pytest.fixture
def mine(tmp_path):
    def write(text=MINE):
        path = tmp_path / f"mine{len(list(tmp_path.iterdir()))}.toml"
        path.write_text(text)
        return path

    return write


def test_ours_are_those_that_are_asked_for_and_every_number_says_how_it_is_known():
    assert {"v4", "v5e", "v5p", "v6e", "v7x", "a100", "h100", "h200", "cpu"} <= set(chips())
    for name in chips():
        made = chip(name)
        assert set(made.numbers) == set(NUMBERS)
        for number in made.numbers.values():
            assert number.mark in MARKS and number.source
            assert number.value > 0 or number == made.numbers["sparsecores"]


def test_what_is_not_published_is_said():
    assert chip("v5e").doubtful() == []
    assert chip("v4").doubtful()[-1] == "v4: sparsecores 4 (memory)"
    assert "v7x: link_bandwidth 1e+11 bytes/s (memory)" in chip("v7x").doubtful()


def test_a_chip_of_one_s_own_is_a_file(mine):
    made = chip(f"{mine()}:fast")
    assert (made.hbm_bandwidth, made.ports, made.axes) == (2e9, 1, 2)
    assert made.numbers["hbm_bytes"].source == "a data sheet"
    assert made.doubtful() == [
        "fast: hbm_bandwidth 2e+09 bytes/s (assumed)",
        "fast: link_bandwidth 4e+09 bytes/s (memory)",
    ]
    with pytest.raises(AttributeError):
        made.speed


def test_a_file_of_another_form_is_refused(mine):
    for old, new, message in (
        (
            "2e9, ",
            "",
            r"\[fast\]: hbm_bandwidth is \['assumed', 'a guess'\]; it must be \[number, mark",
        ),
        (
            "assumed",
            "sure",
            r"hbm_bandwidth is \[2000000000.0, 'sure'.*with a mark of \('published'",
        ),
        ("peak_flops", "peak", r"\[fast\]: \['peak'\]; what a chip has is \('hbm_bytes'"),
        ("torus", "ring", r"kind is 'ring', axes 2; it must be a 'torus'"),
        ("[fast]", "[fast", "chips of .*"),
    ):
        with pytest.raises(ValueError, match=message):
            chip(f"{mine(MINE.replace(old, new))}:fast")
    with pytest.raises(
        ValueError, match=r"mine5.toml has fast; a chip of your own is FILE.toml:NAME"
    ):
        chip(f"{mine()}:slow")
    with pytest.raises(ValueError, match="No such file"):
        chip("none.toml:fast")
    with pytest.raises(ValueError, match="chip 'v99': embsim has v4, v5e"):
        chip("v99")


@given(st.sampled_from(["v4", "v5e", "h100"]), st.integers(1, 256))
def test_a_pod_has_the_most_equal_axes(name, count):
    pod = Pod(chip(name), count)
    assert prod(pod.shape) == count
    assert len(pod.shape) <= pod.chip.axes
    if (name, count) == ("v4", 64):
        assert pod.shape == (4, 4, 4)


def test_shapes():
    assert Pod(chip("v5p"), 64).shape == (4, 4, 4)
    assert Pod(chip("v5p"), 128).shape == (8, 4, 4)
    assert Pod(chip("v6e"), 16).shape == (4, 4)
    assert Pod(chip("h100"), 8).shape == (8,)
    assert Pod(chip("v5p"), 8, (8, 1)).shape == (8, 1)
    for shape in ((3, 3), (2, 2, 2)):
        with pytest.raises(ValueError, match="it must have that many chips on at most 2 axes"):
            Pod(chip("v5e"), 8, shape)
    with pytest.raises(ValueError, match="chips is 0"):
        Pod(chip("v5e"), 0)


class TestExchanges:
    def test_one_chip_exchanges_nothing(self):
        pod = Pod(chip("v5e"))
        assert pod.all_to_all(1e9, 0.5) == pod.all_reduce(1e9, 0.5) == 0

    def test_the_bisection_of_google_s_pods_is_nearly_what_google_says(self):
        """1.6 TB/s of 256 v5e and 3.2 of 256 v6e; a quarter of all crosses it each way."""
        for name, published in (("v5e", 1.6e12), ("v6e", 3.2e12)):
            pod = Pod(chip(name), 256)
            whole = pod.all_to_all(1e12, 1.0) - pod.chip.link_latency * 16
            assert 256 * 1e12 / 4 / whole == pytest.approx(published, rel=0.12)

    def test_on_a_ring_it_takes_a_quarter_of_an_all_gather(self):
        pod = Pod(chip("v5e"), 16, (16, 1))
        sent = 1e9
        gathered = 15 * sent / (2 * 4.5e10)  # both directions
        assert pod.all_to_all(sent, 1.0) == pytest.approx(gathered / 4 * 16 / 15, rel=0.1)

    def test_without_a_ring_it_takes_twice_as_long(self):
        ring, line = Pod(chip("v5e"), 16, (16, 1)), Pod(chip("v5e"), 8, (8, 1))
        assert ring.wraps and not line.wraps
        per_chip = [pod.all_to_all(1e9, 1.0) / max(pod.shape) for pod in (ring, line)]
        assert per_chip[1] == pytest.approx(2 * per_chip[0], rel=0.01)

    def test_on_a_switch_a_port_is_what_limits(self):
        pod = Pod(chip("h100"), 8)
        assert pod.all_to_all(8e9, 0.5) == pytest.approx(7e9 / (4.5e11 * 0.5) + 1e-6)
        assert pod.all_reduce(8e9, 1.0) == pytest.approx(14e9 / 4.5e11 + 2e-6)

    @given(st.sampled_from(chips()), st.sampled_from([2, 4, 8, 64]), st.floats(1.0, 1e10))
    def test_more_bytes_take_longer_and_efficiency_helps(self, name, count, size):
        pod = Pod(chip(name), count)
        for exchange in (pod.all_to_all, pod.all_reduce):
            assert 0 < exchange(size, 1.0) < exchange(size, 0.5) < exchange(4 * size, 0.5)


def test_nodes_exchange_over_the_network():
    """64 H100 are eight nodes of eight: 56 parts of 64 leave the node."""
    pod, one = Pod(chip("h100"), 64), Pod(chip("h100"), 8)
    assert pod.all_to_all(1e9, 0.5) == pytest.approx(1e-6 + 1e9 * 56 / 64 / 5e10 / 0.5)
    assert one.all_to_all(1e9, 0.5) == pytest.approx(1e-6 + 1e9 * 7 / 8 / 4.5e11 / 0.5)
    inside, across = 2e9 * 7 / 8 / 4.5e11, 2e9 / 8 * 7 / 8 / 5e10
    assert pod.all_reduce(1e9, 1.0) == pytest.approx(2e-6 + inside + across)
    assert one.all_reduce(1e9, 1.0) == pytest.approx(2e-6 + inside)


def test_one_number_of_a_chip_can_be_another():
    made = chip("a100").with_number("peak_flops", 1.56e14, "memory", "somewhere")
    assert made.peak_flops == 1.56e14 and chip("a100").peak_flops == 3.12e14
    assert any("peak_flops 1.56e+14 flop/s (memory)" in text for text in made.doubtful())
