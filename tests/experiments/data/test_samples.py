"""Samples from small files in each format: exact ids, labels and order; what is not one of them."""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from experiments import one_stale_step
from experiments.data import movielens, samples
from experiments.data.samples import Samples, load, provenance

RATINGS = [(2, 7, 3, 881_250_949), (1, 5, 4, 881_250_000), (2, 5, 5, 881_336_400)]
USERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "V0R2M")]
ITEMS = [(5, "Toy Story (1995)", "01-Jan-1995", ("Animation", "Comedy")), (7, "é", "", ("Drama",))]


def grouplens(directory: Path) -> Path:
    """As GroupLens writes them; the items are Latin-1."""
    lines = ["\t".join(map(str, row)) for row in RATINGS]
    (directory / "u.data").write_text("\n".join(lines) + "\n")
    (directory / "u.user").write_text("\n".join("|".join(map(str, u)) for u in USERS) + "\n")
    items = [
        f"{number}|{title}|{date}||http://x|"
        + "|".join(str(int(g in of)) for g in movielens.GENRES)
        for number, title, date, of in ITEMS
    ]
    (directory / "u.item").write_bytes("\n".join(items).encode("latin-1"))
    return directory


def recbole(directory: Path) -> Path:
    heads = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
    }
    items = [(n, t, date[-4:], " ".join(of)) for n, t, date, of in ITEMS]
    for name, rows in zip(heads, (RATINGS, USERS, items), strict=True):
        lines = [heads[name], *("\t".join(map(str, row)) for row in rows)]
        (directory / f"ml-100k.{name}").write_text("\n".join(lines))
    return directory


def widedeep(directory: Path) -> Path:
    names = ("user_id", "movie_id", "rating", "timestamp")
    flags = [{g: int(g in of) for g in movielens.GENRES} for *_, of in ITEMS]
    tables = {
        "data": [dict(zip(names, r, strict=True)) for r in RATINGS],
        "users": [dict(zip(movielens.USERS, u, strict=True)) for u in USERS],
        "items": [
            {"movie_id": n, "release_date": date or None, **each}
            for (n, _, date, _), each in zip(ITEMS, flags, strict=True)
        ],
    }
    for name, rows in tables.items():
        path = directory / f"MovieLens100k_{name}.parquet.brotli"
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return directory


def zipped(directory: Path) -> Path:
    grouplens(directory)
    path = directory / "ml-100k.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in movielens.LAYOUTS[0]:
            file.write(directory / name, f"ml-100k/{name}")
    return path


@pytest.mark.parametrize("layout", [grouplens, recbole, widedeep, zipped])
def test_movielens_is_the_same_in_every_layout(layout, tmp_path):
    found = load(f"movielens={layout(tmp_path)}")
    expected = {
        "user": [0, 1, 1],
        "item": [0, 1, 0],
        "age": [0, 1, 1],  # 20 and 50
        "gender": [1, 0, 0],
        "occupation": [1, 0, 0],
        "zip": [0, 1, 1],
        "genre": [0, 1, 0],  # Animation and Drama
        "weekday": [0, 0, 1],  # 4 December 1997, a Thursday, and the Friday
    }
    for name, ids in expected.items():
        assert found.ids[name].tolist() == ids, name
        assert found.ids[name].dtype == np.int32
        assert found.vocabulary_sizes[name] == max(ids) + 1
    assert len(set(found.ids["year"].tolist())) == 2 and len(found.features) == 10
    assert found.labels.tolist() == [1, 0, 1] and found.labels.dtype == np.float32
    assert found.times.tolist() == sorted(row[3] for row in RATINGS)
    assert provenance(f"movielens={tmp_path}")["data"] == "movielens"
    assert "no redistribution" in provenance(f"movielens={tmp_path}")["data_licence"]


def test_movielens_that_is_broken_is_refused(tmp_path):
    grouplens(tmp_path)
    (tmp_path / "u.data").write_text("1\t5\t4\t881250000\n9\t5\t4\t881250000\n")
    with pytest.raises(ValueError, match=r"movielens: rating 1 is of 9, which is in no other file"):
        load(f"movielens={tmp_path}")
    (tmp_path / "u.data").write_text("1\t5\t4\n")
    load.cache_clear()
    with pytest.raises(ValueError, match=r"movielens: .*u\.data and those .* not in their layout"):
        load(f"movielens={tmp_path}")


ADULT = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, <=50K\n"
    "52, ?, 209642, HS-grad, 9, Married, Exec, Husband, White, Female, 0, 1902, 45, Cuba, >50K.\n\n"
)


def test_adult_from_one_file_or_both(tmp_path):
    (tmp_path / "adult.data").write_text(ADULT)
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n" + ADULT)
    one, both = load(f"adult={tmp_path / 'adult.data'}"), load(f"adult={tmp_path}")
    assert one.labels.tolist() == [0, 1] and both.labels.tolist() == [0, 1, 0, 1]
    assert one.ids["age"].tolist() == [0, 1] and one.ids["gender"].tolist() == [1, 0]
    assert one.ids["gain"].tolist() == [1, 0] and one.vocabulary_sizes["workclass"] == 2
    assert "CC BY 4.0" in provenance(f"adult={tmp_path}")["data_licence"]
    assert provenance(f"adult={tmp_path}") != provenance(f"adult={tmp_path / 'adult.data'}")


def test_a_broken_line_of_adult_is_named(tmp_path):
    path = tmp_path / "adult.data"
    path.write_text(ADULT + "39, State-gov\n")
    with pytest.raises(ValueError, match=r"adult\.data, line 4: found \['39', 'State-gov'\]; req"):
        load(f"adult={path}")


def test_frappe(tmp_path):
    path = tmp_path / "frappe.libfm"
    path.write_text("1 4:1 957:1 30:1\n-1 4:1 958:1 29:1\n")
    found = load(f"frappe={path}")
    assert found.labels.tolist() == [1, 0]
    assert [found.ids[name].tolist() for name in found.features] == [[0, 0], [0, 1], [1, 0]]
    path.write_text("1 4:1 957:1\n-1 4:1\n")
    load.cache_clear()
    with pytest.raises(ValueError, match=r"frappe\.libfm, line 2: found '-1 4:1'; .*, 2 as in all"):
        load(f"frappe={path}")


def test_criteo_has_categories_and_bucketed_counts(tmp_path):
    path = tmp_path / "train.txt"
    counts = [["0", "1", "2", "", "-3", *["7"] * 8], ["3"] * 13]
    lines = ["\t".join([str(i), *counts[i], *["0a"] * 25, ""]) for i in (0, 1)]
    path.write_text("\n".join(lines) + "\n")
    found = load(f"criteo={path}")
    assert found.labels.tolist() == [0, 1] and len(found.features) == 26 + 13
    assert [found.ids[f"I{i}"][0] for i in range(1, 7)] == [0, 1, 1, 0, 0, 3]
    assert found.ids["I1"][1] == 2 and found.ids["C26"][0] == found.vocabulary_sizes["C26"] - 1


def test_synthetic_samples_are_those_of_the_stream():
    from experiments.data.synthetic import stream

    found = load("synthetic:campaign")
    examples, _ = stream("campaign", num_samples=400_000).draw(1000, 5)
    np.testing.assert_array_equal(found.ids["field_2"][1000:1005], examples.ids[:, 2])
    np.testing.assert_array_equal(found.labels[1000:1005], examples.labels)
    with pytest.raises(ValueError, match=r"synthetic:x: presets are static, drift"):
        load("synthetic:x")


@pytest.mark.parametrize("name", ["movielens", "adult", "frappe", "criteo"])
def test_without_a_path_of_yours_nothing_is_read(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{name}.*required: {name}=PATH.* not downloaded"):
        provenance(f"{name}={tmp_path / 'nothing'}")
    if name in ("frappe", "criteo"):
        with pytest.raises(FileNotFoundError, match=r"found none"):
            provenance(name)


def test_other_names_are_refused():
    with pytest.raises(
        ValueError, match=r"no source 'avazu'; it must be one of flights, movielens"
    ):
        load("avazu")
    with pytest.raises(ValueError, match=r"flights=x: flights come from an installed package"):
        load("flights=x")


def test_time_ties_keep_their_order():
    made = samples.encoded({"a": np.array(["z", "y", "x"])}, [1, 0, 1], [5, 5, 4])
    assert made.ids["a"].tolist() == [0, 2, 1] and made.labels.tolist() == [1, 1, 0]
    assert isinstance(made, Samples) and len(made.take(np.array([2]))) == 1


@pytest.mark.parametrize("name", ["movielens", "synthetic:static"])
def test_a_study_runs_on_other_data(name, tmp_path):
    if name == "movielens":
        draw = np.random.default_rng(0)
        grouplens(tmp_path)
        rows = [
            f"{draw.integers(1, 3)}\t{draw.choice([5, 7])}\t{draw.integers(1, 6)}\t{88_125 + i}"
            for i in range(900)
        ]
        (tmp_path / "u.data").write_text("\n".join(rows))
        name = f"movielens={tmp_path}"
    params = one_stale_step.Params(seeds=(0,), data=name, samples=900, epochs=1)
    fresh, stale = one_stale_step.run(params)
    assert fresh.steps == 810 // 256 and fresh.missed == 0 < stale.missed
