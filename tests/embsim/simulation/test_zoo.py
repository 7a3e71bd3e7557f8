"""Published workloads against what is published of them."""

import pytest

from embsim.simulation.popularity import uniform
from embsim.simulation.reuse import histogram
from embsim.simulation.traffic import expected
from embsim.simulation.zoo import fbgemm_device, hugectr, workload, workloads


@pytest.mark.parametrize("name", workloads())
def test_each_has_its_name_and_its_source(name):
    made = workload(name)
    assert made.name == name and made.source
    assert made.ids > 0 and made.bytes > 0


def test_dcnv2_is_mlperf_s():
    made = workload("dcnv2")
    assert len(made.tables) == 26 and made.ids == 214
    assert sum(table.rows for table in made.tables) == 204_184_588
    assert made.doubtful == ("Criteo's ids: Zipf with exponent 1.1 (memory)",)


def test_dcnv2_s_long_bags_are_nearly_uniform():
    """Stale lookups of its uniform part at a batch of 55,296: .004, .037, .129 of 3, 27, 100."""
    for hot, stale in ((3, 0.004), (27, 0.037), (100, 0.129)):
        table = next(t for t in workload("dcnv2").tables if (t.rows, t.ids) == (40_000_000, hot))
        ids = 55_296 * hot
        assert uniform(40_000_000).conflict(ids, 1) == pytest.approx(stale, abs=5e-4)
        # One id of each bag is popular.
        assert stale < table.popularity.conflict(ids, 1) < stale + 1 / hot


def test_jax_tpu_embedding_s_mix():
    """Distinct rows of a lookup, and stale ones, over a SparseCore, a device, and 128 of these."""
    law = workload("jte_prod").tables[0].popularity
    for samples, unique, stale in (
        (16_384, 0.787, 0.237),
        (16_384 * 4, 0.753, 0.274),
        (16_384 * 4 * 128, 0.340, 0.858),
    ):
        ids = samples * 27.2
        assert law.unique(ids) / ids == pytest.approx(unique, abs=1e-3)
        assert law.conflict(ids, 1) == pytest.approx(stale, abs=1e-3)


def test_hugectr_s_hot_tables():
    """Distinct rows of a lookup of 4 million rows at Zipf 1.1: .293, .128, .083."""
    law = hugectr(510).tables[4].popularity
    for hot, unique, stale in ((1, 0.293, 0.757), (50, 0.128, 0.907), (200, 0.083, 0.948)):
        ids = 65_536 * hot
        assert law.unique(ids) / ids == pytest.approx(unique, abs=2e-3)
        assert law.conflict(ids, 1) == pytest.approx(stale, abs=2e-3)


def test_fbgemm_s_default_is_uniform():
    law = fbgemm_device().tables[0].popularity
    assert law.unique(10_240) / 10_240 == pytest.approx(0.951, abs=1e-3)
    assert law.conflict(10_240, 1) == pytest.approx(0.097, abs=1e-3)
    assert fbgemm_device(1.15).tables[0].popularity.conflict(10_240, 1) == pytest.approx(
        0.674, abs=1e-3
    )


def test_other_names_are_refused():
    with pytest.raises(
        ValueError, match="workload is 'mine'; it must be one of dcnv2, dlrm_mlperf"
    ):
        workload("mine")
    with pytest.raises(ValueError, match="hugectr: 8 tables; it must be one of"):
        hugectr(8)


@pytest.mark.parametrize(
    "name, samples, tables, ids, unique",
    [
        ("meta_2021", 65_536, 856, 887_017_990, 128_435_723),
        ("meta_2022", 131_072, 788, 1_405_163_864, 110_259_238),
    ],
)
def test_meta_s_totals_come_out(name, samples, tables, ids, unique):
    """Distinct rows within 1 %: tables are whole. Stale lookups: 0.93 and 0.97 by one Zipf law."""
    made = workload(name)
    assert made.samples == samples and sum(table.tables for table in made.tables) == tables
    assert made.ids * samples == pytest.approx(ids)
    found = expected(made)
    assert found.asked == pytest.approx(unique, rel=0.01)
    assert found.stale[1] == pytest.approx({2021: 0.93, 2022: 0.97}[int(name[-4:])], abs=0.01)
    assert "dim 128 (assumed)" in made.doubtful


@pytest.mark.parametrize("name", ["meta_2021", "meta_2022"])
def test_new_rows_are_as_good_and_toulmin_estimate_them(name):
    """f1 - f2 + f3 - ... of the rows of a batch are new in one more, f_k being those that are there
    k times: so between f1 - f2 and f1 - f2 + f3, whatever the law. One Zipf law has 0.68 and 0.80
    that are not new."""
    once, twice, more = histogram(name).rows_share[:3]
    old = expected(workload(name)).conflict[1]
    assert 1 - once + twice - more < old < 1 - once + twice
