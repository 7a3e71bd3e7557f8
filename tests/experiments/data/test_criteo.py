"""Lines against a plain reading of them, files of every kind, and what a broken line is told."""

import gzip
import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embsim
from experiments.data import criteo

BUCKETS = 50


def line(label="1", counts=("3",) * 13, categories=("68fd1e64",) * 26) -> str:
    return "\t".join([label, *counts, *categories]) + "\n"


def random_lines(number: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)

    def count() -> str:
        return str(rng.choice(["", "0", "-1", "-2", "7", str(rng.integers(10**18))]))

    def category() -> str:
        text = f"{rng.integers(2**63) >> int(rng.integers(63)):0{rng.integers(1, 9)}x}"
        return str(rng.choice(["", text, text.upper()]))

    return [
        line(str(rng.integers(2)), [count() for _ in range(13)], [category() for _ in range(26)])
        for _ in range(number)
    ]


def plainly(lines: list[str], num_buckets: int = BUCKETS):
    """(ids, dense, labels)."""
    ids, dense, labels = [], [], []
    for text in lines:
        label, *fields = text.rstrip("\n").split("\t")
        labels.append(float(label))
        dense.append([math.log1p(max(0, int(x or 0))) for x in fields[:13]])
        ids.append(
            [
                embsim.hash_ids([int(x, 16)], num_buckets - 1)[0] if x else num_buckets - 1
                for x in fields[13:]
            ]
        )
    return np.array(ids), np.array(dense, np.float32), np.array(labels, np.float32)


def write(path: Path, lines: list[str]) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as file:
        file.writelines(lines)
    return path


def joined(batches):
    batches = list(batches)
    mask = np.concatenate([batch.mask for batch in batches])
    whole = [np.concatenate([getattr(b, name) for b in batches]) for name in NAMES]
    return [column[mask] for column in whole]


NAMES = ("ids", "dense", "labels")


class TestLines:
    def test_are_read_as_python_reads_them(self, tmp_path) -> None:
        lines = random_lines(300)
        stream = criteo.stream(write(tmp_path / "a", lines), BUCKETS)
        for found, expected in zip(joined(stream.batches(1)), plainly(lines), strict=True):
            assert found.shape == expected.shape
            # log1p of NumPy and of C round differently: one ulp of 41.4
            assert np.abs(found - expected).max() <= 2.0**-18 * (found.dtype == np.float32)
        assert stream.names == criteo.CATEGORIES and stream.num_dense == 13

    def test_the_last_row_is_for_missing_categories_alone(self, tmp_path) -> None:
        lines = random_lines(300)
        stream = criteo.stream(write(tmp_path / "a", lines), num_buckets=3)
        missing = np.array([[not x for x in text[:-1].split("\t")[14:]] for text in lines])
        ids = joined(stream.batches(1))[0]
        assert ((ids == 2) == missing).all() and set(np.unique(ids)) == {0, 1, 2}

    def test_tables_may_have_sizes_of_their_own(self, tmp_path) -> None:
        sizes = tuple(range(2, 28))
        stream = criteo.stream(write(tmp_path / "a", random_lines(300)), sizes)
        assert stream.vocabulary_sizes == sizes
        assert joined(stream.batches(1))[0].max(axis=0).tolist() == [n - 1 for n in sizes]

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (line("2"), "field label is b'2'; it must be 0 or 1"),
            (line(""), "field label is b''; it must be 0 or 1"),
            (line("-1"), "field label is b'-1'; it must be 0 or 1"),
            (line(counts=("",) * 12 + ("1.5",)), "field I13 is b'1.5'; it must be an integer"),
            (line(counts=("-",) * 13), "field I1 is b'-'; it must be an integer"),
            (line(counts=("1" * 19,) * 13), f"field I1 is b'{'1' * 19}'; .* at most 18 digits"),
            (line(counts=("ff",) * 13), "field I1 is b'ff'; it must be an integer"),
            (line(categories=("xyz",) * 26), "field C1 is b'xyz'; it must be a hex number"),
            (line(categories=("-1",) * 26), "field C1 is b'-1'; it must be a hex number"),
            (line(categories=("1" * 17,) * 26), "field C1 is b'1+'; .* at most 16 digits"),
            (line(categories=("",) * 25), "found 39 fields; there must be 40"),
            (line(categories=("",) * 27), "found 41 fields; there must be 40"),
            (line()[2:], "found 39 fields; there must be 40"),
            (line().replace("\n", "\r\n"), r"field C26 is b'68fd1e64\\r'; it must be a hex"),
            ("\n", "found 1 fields; there must be 40"),
        ],
    )
    def test_a_broken_line_is_named(self, tmp_path, monkeypatch, broken, message) -> None:
        monkeypatch.setattr(criteo, "BLOCK_LINES", 4)
        path = write(tmp_path / "log", [*random_lines(5), broken, *random_lines(3)])
        stream = criteo.stream(path, BUCKETS)
        assert len(next(stream.batches(4))) == 4  # the next block is not yet converted
        for start in (0, 4, 5):  # from the first line, at the block, within it
            with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line 6: {message}"):
                list(stream.batches(1, start))

    @given(
        position=st.integers(0, len(line()) - 2),
        width=st.integers(0, 2),
        text=st.text("019afAFgG-\t\r .", max_size=3),
    )
    def test_what_is_refused_is_explained(self, position, width, text) -> None:
        """The fast reading and the complaint draw the same border."""
        changed = line()[:position] + text + line()[position + width :].lstrip("\n")
        changed = changed.rstrip("\n") + "\n"
        label, *fields = changed[:-1].split("\t")
        good = (
            len(fields) == 39
            and label in ("0", "1")
            and all(re.fullmatch(r"-?[0-9]+|", x) for x in fields[:13])
            and all(re.fullmatch(r"[0-9a-fA-F]{0,16}", x) for x in fields[13:])
        )
        block = criteo.Block(Path("log"), 1, [changed.encode()])
        if good:
            found = criteo.converted(block, (BUCKETS,) * 26)
            assert (found.ids == plainly([changed])[0]).all()
        else:
            with pytest.raises(ValueError, match="criteo: log, line 1: f"):
                criteo.converted(block, (BUCKETS,) * 26)


class TestFiles:
    def test_of_one_every_so_manieth_block_is_held_out(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(criteo, "BLOCK_LINES", 10)
        lines = random_lines(95)
        stream = criteo.stream(write(tmp_path / "a", lines), BUCKETS, held_out_every=3)
        held_out = [*lines[20:30], *lines[50:60], *lines[80:90]]
        trained = [text for text in lines if text not in held_out]
        assert (joined(stream.held_out(7))[0] == plainly(held_out)[0]).all()
        assert (joined(stream.batches(5))[0] == plainly(trained)[0]).all()
        assert stream.num_steps(5) == 13 and stream.num_steps(4) == 16

    def test_of_several_the_last_is_held_out(self, tmp_path) -> None:
        lines = random_lines(90)
        parts = [lines[:20], lines[20:65], lines[65:]]
        paths = [write(tmp_path / f"{i}.gz", part) for i, part in enumerate(parts)]
        stream = criteo.stream(paths, BUCKETS)
        assert (joined(stream.held_out(7))[0] == plainly(lines[65:])[0]).all()
        assert (joined(stream.batches(5))[0] == plainly(lines[:65])[0]).all()

    def test_of_a_directory_are_in_the_order_of_their_numbers(self, tmp_path) -> None:
        for name in ("day_10.gz", "day_9", "day_1.gz", ".hidden"):
            write(tmp_path / name, random_lines(3))
        (tmp_path / "inner").mkdir()
        names = [path.name for path in criteo.stream(tmp_path).files]
        assert names == ["day_1.gz", "day_9", "day_10.gz"]
        assert criteo.stream(str(tmp_path)).files == criteo.stream([tmp_path]).files

    def test_compressed_and_without_last_newline_is_the_same(self, tmp_path) -> None:
        lines = random_lines(30)
        plain = criteo.stream(write(tmp_path / "a", lines), BUCKETS)
        lines[-1] = lines[-1].rstrip("\n")
        packed = criteo.stream(write(tmp_path / "a.gz", lines), BUCKETS)
        for a, b in zip(joined(plain.batches(3)), joined(packed.batches(3)), strict=True):
            assert (a == b).all()
        assert plain.num_steps(1) == packed.num_steps(1) == 30

    def test_cut_off_gzip_is_named(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(criteo, "BLOCK_LINES", 10)
        path = write(tmp_path / "a.gz", random_lines(500))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"a\.gz, after line \d+0: .* whole gzip file"):
            list(criteo.stream(path).batches(10))
        path.write_bytes(b"no gzip")
        with pytest.raises(ValueError, match=r"a\.gz, after line 0: .* whole gzip file"):
            next(criteo.stream(path).batches(10))

    def test_are_read_no_further_than_needed(self, tmp_path) -> None:
        """Memory is that of a block, whatever the size of the file."""
        path = tmp_path / "a"
        with path.open("w") as file:
            file.writelines([line()] * 80_000)
        batches = criteo.stream(path, BUCKETS).batches(100, start=500)
        next(batches)  # compiles
        tracemalloc.start()
        try:
            for _ in range(10):
                next(batches)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert path.stat().st_size > 20 * 10**6 > 2 * peak

    def test_that_cannot_be_are_refused(self, tmp_path) -> None:
        path = write(tmp_path / "a", random_lines(3))
        with pytest.raises(ValueError, match=r"nowhere is neither a file nor a directory"):
            criteo.stream(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=r"found no files; .* at least one"):
            criteo.stream([])
        for opened in (criteo.stream(path), criteo.stream(path, held_out_every=2)):
            assert opened.num_steps(1) == 3  # one block
            with pytest.raises(ValueError, match=r"no lines to hold out in 1 files; .* reduce"):
                next(opened.held_out(1))
        empty = write(tmp_path / "empty", [])
        with pytest.raises(ValueError, match=r"no lines to hold out in 2 files"):
            next(criteo.stream([path, empty]).held_out(1))
        with pytest.raises(ValueError, match=r"no lines to train on in 2 files"):
            criteo.stream([empty, path]).num_steps(1)
        empty.unlink()
        with pytest.raises(ValueError, match=r"a is given twice; .* once"):
            criteo.stream([path, tmp_path])
        with pytest.raises(ValueError, match=r"num_buckets is \(1, .* >= 2"):
            criteo.stream(path, num_buckets=1)
        with pytest.raises(ValueError, match=r"num_buckets is \(5, 5\); .* 26"):
            criteo.stream(path, num_buckets=(5, 5))
        with pytest.raises(ValueError, match=r"held_out_every is 1; it must be >= 2"):
            criteo.stream(path, held_out_every=1)
