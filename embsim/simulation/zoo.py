"""Published workloads, by name."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from ..config import integer
from .popularity import Popularity, zeta, zipf
from .reuse import fit, histogram
from .workload import Table, Workload, dcn, dlrm

_CRITEO_40M = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956),
    *(405_282, 10, 2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152),
    *(12_973, 108, 36),
)
_MULTI_HOT = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
_CRITEO = (
    *(39_884_406, 39_043, 17_289, 7_420, 20_263, 3, 7_120, 1_543, 63, 38_532_951, 2_953_546),
    *(403_346, 10, 2_208, 11_938, 155, 4, 976, 14, 39_979_771, 25_641_295, 39_664_984, 585_935),
    *(12_972, 108, 36),
)
CRITEO_ALPHA = 1.1
_DOUBTFUL = (f"Criteo's ids: Zipf with exponent {CRITEO_ALPHA} (memory)",)


def dcnv2() -> Workload:
    """MLPerf's DLRM-DCNv2: multi-hot Criteo of 214 ids a sample, Adagrad."""
    tables = tuple(
        Table(rows, 128, ids, law=_first_and_rest(rows, ids))
        for rows, ids in zip(_CRITEO_40M, _MULTI_HOT, strict=True)
    )
    cost = dcn(26, 128, (13, 512, 256, 128), (1024, 1024, 512, 256, 1), layers=3, rank=512)
    source = "MLPerf Training, DLRM-DCNv2"
    return Workload("dcnv2", tables, 65_536, *cost, source=source, doubtful=_DOUBTFUL)


def _first_and_rest(rows: int, ids: int) -> Popularity:
    """One id of a bag is Criteo's; MLPerf draws the others uniformly."""
    law = zipf(rows, CRITEO_ALPHA)
    return replace(law, probability=(law.probability + (ids - 1) / rows) / ids)


def dlrm_mlperf() -> Workload:
    """MLPerf's former DLRM: one-hot Criteo of 26 ids a sample, SGD."""
    tables = tuple(Table(rows, 128, alpha=CRITEO_ALPHA, slots=0) for rows in _CRITEO)
    cost = dlrm(26, 128, (13, 512, 256, 128), (1024, 1024, 512, 256, 1))
    source = "MLPerf Training, DLRM"
    return Workload("dlrm_mlperf", tables, 55_296, *cost, source=source, doubtful=_DOUBTFUL)


def dlrm_bench() -> Workload:
    """facebookresearch/dlrm's benchmark script: uniform ids, many of them."""
    tables = (Table(1_000_000, 64, 100, tables=8, slots=0),)
    cost = dlrm(8, 64, (512, 512, 64), (1024, 1024, 1024, 1))
    source = "facebookresearch/dlrm, bench/dlrm_s_benchmark.sh"
    return Workload("dlrm_bench", tables, 2048, *cost, dense_features=512, source=source)


def fbgemm_device(alpha: float = 0.0) -> Workload:
    """Defaults of FBGEMM's benchmark of tables in a device's memory, uniform unless alpha > 1; its
    help recommends 1.15 for training. No dense model."""
    law = zeta(100_000, alpha) if alpha > 1 else None
    tables = (Table(100_000, 128, 20, tables=32, slots=1 / 128, law=law),)
    source = "FBGEMM, split_table_batched_embeddings_benchmark.py"
    return Workload("fbgemm_device", tables, 512, 0.0, 0.0, dense_features=0, source=source)


def torchrec_sdd_base() -> Workload:
    """TorchRec's benchmark of pipelines, sparse_data_dist_base: 170 tables, 30 ids a bag."""
    tables = (Table(100_000, 256, 30, tables=170),)
    macs, weights = 128.0 * 1024 + 4 * 1024.0**2, 128.0 * 1024 + 4 * 1024.0**2
    source = "TorchRec, sparse_data_dist_base.yml"
    return Workload("torchrec_sdd_base", tables, 65_536, macs, weights, 128, source=source)


def dynamicemb() -> Workload:
    """NVIDIA's benchmark of DynamicEmb: one table, Zipf 1.05."""
    tables = (Table(25_000_000, 128, 16, 1.05),)
    source = "NVIDIA recsys-examples, dynamicemb benchmark"
    return Workload("dynamicemb", tables, 65_536, 0.0, 0.0, dense_features=0, source=source)


def jte_prod() -> Workload:
    """jax-tpu-embedding's benchmark of its input, there said to be derived from production: bags of
    27.2 ids on average, 42 % of them Zipf, the others uniform."""
    rows, share = 10**8, 0.42430
    law = zipf(rows, 1.00278)
    law = replace(law, probability=law.probability * share + (1 - share) / rows)
    tables = (Table(rows, 128, 27.2, tables=20, law=law),)
    source = "jax-tpu-embedding, input_preprocessing_benchmark.cc"
    return Workload(
        *("jte_prod", tables, 16_384 * 4 * 128, 0.0, 0.0, 0),
        source=source,
        doubtful=("dim 128 (assumed)",),
    )


def meta_2021() -> Workload:
    """Meta's data sets of 2021: 856 tables whose reuse is that of production ads models."""
    return _meta("meta_2021")


def meta_2022() -> Workload:
    """Meta's data sets of 2022: 788 tables whose reuse is that of production ads models."""
    return _meta("meta_2022")


def _meta(name: str) -> Workload:
    published = histogram(name)
    ids = published.ids / published.tables / published.samples
    tables = tuple(Table(rows, 128, ids, a, tables=n) for n, rows, a in fit(published))
    return Workload(
        *(name, tables, published.samples, 0.0, 0.0, 0),
        source="facebookresearch/dlrm_datasets, locality_stats.txt",
        doubtful=(
            "dim 128 (assumed)",
            "as many ids in each table (assumed)",
            "rows and Zipf exponents of tables: fitted to the histogram of reuse",
        ),
    )


_HUGECTR = {  # tables, ids of a bag, rows
    7: (
        *((1, 80, 10**7), (1, 20, 4 * 10**8), (1, 20, 10**9), (1, 40, 5 * 10**9), (1, 1, 10**9)),
        *((1, 1, 10**7), (1, 1, 10**7)),
    ),
    510: (
        *((100, 1, 1000), (150, 1, 10**5), (20, 1, 10**6), (50, 1, 2 * 10**6)),
        *((150, 1, 4 * 10**6), (20, 10, 4 * 10**6), (20, 100, 4 * 10**6)),
    ),
    180: (
        *((5, 100, 10**4), (5, 50, 4 * 10**6), (5, 30, 4 * 10**6), (5, 50, 5 * 10**7)),
        *((20, 50, 1000), (30, 30, 10**4), (10, 20, 5 * 10**6), (20, 20, 4 * 10**6)),
        *((10, 100, 10), (10, 10, 1000), (10, 100, 10**4), (5, 100, 10**5)),
        *((40, 200, 4 * 10**6), (1, 100, 5 * 10**7), (1, 100, 5 * 10**8)),
    ),
    200: (
        *((10, 1, 100), (10, 1, 1000), (10, 5, 1000), (10, 20, 10**4), (20, 100, 10**4)),
        *((10, 1, 10**4), (10, 1, 10**5), (10, 1, 10**6), (20, 1, 2 * 10**6), (30, 1, 4 * 10**6)),
        *((20, 10, 2 * 10**6), (10, 20, 4 * 10**6), (10, 30, 4 * 10**6), (10, 50, 4 * 10**6)),
        *((10, 100, 5 * 10**7),),
    ),
}


def hugectr(tables: int) -> Workload:
    """HugeCTR's benchmarks of its embedding collection, of 7, 180, 200 or 510 tables."""
    integer("hugectr: tables", tables)
    if tables not in _HUGECTR:
        raise ValueError(f"hugectr: {tables} tables; it must be one of {tuple(_HUGECTR)}")
    made = tuple(Table(rows, 128, ids, 1.1, tables=n) for n, ids, rows in _HUGECTR[tables])
    source = "HugeCTR, benchmarks/embedding_collection"
    return Workload(f"hugectr_{tables}", made, 65_536, 0.0, 0.0, 0, source=source)


_ZOO: dict[str, Callable[[], Workload]] = {
    each.__name__: each
    for each in (
        dcnv2,
        dlrm_mlperf,
        dlrm_bench,
        fbgemm_device,
        torchrec_sdd_base,
        dynamicemb,
        jte_prod,
        meta_2021,
        meta_2022,
    )
} | {f"hugectr_{n}": lambda n=n: hugectr(n) for n in _HUGECTR}


def workloads() -> tuple[str, ...]:
    """Names in the zoo."""
    return tuple(_ZOO)


@cache
def workload(name: str) -> Workload:
    """One of the zoo.

    Raises:
      ValueError: no such workload.
    """
    if name not in _ZOO:
        raise ValueError(f"workload is {name!r}; it must be one of {', '.join(_ZOO)}")
    return _ZOO[name]()
