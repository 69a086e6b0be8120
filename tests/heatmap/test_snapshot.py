from __future__ import annotations

import json
import os
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_saliency.errors import OutputError
from wsi_saliency.heatmap import snapshot
from wsi_saliency.heatmap.snapshot import DamagedSnapshotError, Snapshot, named, write_snapshot

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    "part/b": np.array([np.pi, -np.inf]),
    "part/n": np.array(7),
    "empty": np.empty((0, 4), np.float32),
}


@pytest.fixture
def file(tmp_path):
    write_snapshot(tmp_path / "saved", {"done": 3, "text": "µ"}, ARRAYS)
    return tmp_path / "saved"


def forged(file, change, body=b""):
    """Let a header say something else, with a checksum that is right."""
    header = json.loads(file.read_bytes().split(b"\n")[1])
    text = json.dumps(change(header) or header).encode()
    file.write_bytes(b"%s%08x\n%s\n" % (snapshot._MAGIC, zlib.crc32(text), text) + body)


def test_what_was_written_is_read_back(file):
    saved = Snapshot.read(file)
    assert saved.facts == {"done": 3, "text": "µ"}
    np.testing.assert_array_equal(saved.array("a", "<f4", 1, range(3), 3), ARRAYS["a"])
    np.testing.assert_array_equal(saved.part("part").array("b", "<f8", 2), ARRAYS["part/b"])
    assert saved.part("part").number("n", range(8)) == 7
    assert saved.array("empty", "<f4", range(5), 4).shape == (0, 4)
    assert os.listdir(file.parent) == ["saved"]


@settings(max_examples=30)
@given(shape=st.lists(st.integers(0, 4), max_size=3), step=st.integers(1, 3), seed=st.integers(0, 9))
def test_any_shape_also_of_views(tmp_path_factory, shape, step, seed):
    whole = np.random.default_rng(seed).normal(size=[side * step for side in shape])
    view = whole[tuple(slice(None, None, step) for _ in shape)]
    file = tmp_path_factory.mktemp("s") / "saved"
    write_snapshot(file, {}, named("x", {"view": view}))
    np.testing.assert_array_equal(Snapshot.read(file).part("x").array("view", "<f8", *shape), view)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("b", "<f4", ()), ("a", "<f8", (1, 2, 3)), ("a", "<f4", (1, 2)), ("a", "<f4", (1, range(2), 3))],
)
def test_an_array_that_does_not_fit_is_refused(file, name, dtype, shape):
    with pytest.raises(DamagedSnapshotError, match="does not fit"):
        Snapshot.read(file).array(name, dtype, *shape)


def test_a_number_out_of_range_is_refused(file):
    with pytest.raises(DamagedSnapshotError, match="part/n is 7"):
        Snapshot.read(file).part("part").number("n", range(7))


def test_every_single_byte_that_is_damaged_is_noticed(file):
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(DamagedSnapshotError):
            _read_all(file)


def test_a_file_that_is_cut_or_too_long_is_noticed(file):
    content = file.read_bytes()
    for damaged in (*(content[:n] for n in range(len(content))), content + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(DamagedSnapshotError):
            Snapshot.read(file)


def _read_all(file):
    saved = Snapshot.read(file)
    for name, array in ARRAYS.items():
        saved.array(name, array.dtype.str, *array.shape)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: [],
        lambda header: header | {"facts": []},
        lambda header: header | {"arrays": None},
        lambda header: header | {"arrays": [["a"]]},
        *(
            lambda header, change=change: header | {"arrays": [header["arrays"][0] | change]}
            for change in (
                {"shape": [2**40, 2**40]},
                {"shape": [-6]},
                {"shape": [True, 6]},
                {"shape": [1e300]},
                {"dtype": "O"},
                {"dtype": []},
                {"name": []},
            )
        ),
    ],
)
def test_a_hostile_header_takes_no_memory_and_gives_one_error(file, change):
    forged(file, change, ARRAYS["a"].tobytes())
    with pytest.raises(DamagedSnapshotError):
        Snapshot.read(file)


def test_deep_json_and_what_is_no_file_give_one_error(tmp_path):
    deep = b"[" * 200_000
    (tmp_path / "deep").write_bytes(b"%s%08x\n%s\n" % (snapshot._MAGIC, zlib.crc32(deep), deep))
    for name in ("deep", "missing", "."):
        with pytest.raises(DamagedSnapshotError):
            Snapshot.read(tmp_path / name)


def test_the_older_one_stays_until_the_newer_is_whole(file, monkeypatch):
    def failing(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OutputError, match="No space left"):
        write_snapshot(file, {"done": 4}, {})
    assert Snapshot.read(file).facts["done"] == 3
