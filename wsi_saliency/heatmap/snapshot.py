"""A snapshot: arrays and facts in one file, from which work that was cut short goes on.

The first line is a magic word with a checksum of the second line. That is JSON: the facts, and name, dtype,
shape and checksum of each array. Then come the arrays' bytes, one after another. The file may be damaged, or
others may have put it there: nothing in it is executed, and an array is read only if it has the dtype and the
shape that the reader expects.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_saliency.files import writing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    State = dict[str, NDArray[Any]]
    Side = int | range

_MAGIC = b"wsi-saliency snapshot 1 "
_LONGEST = 16 * 2**20  # bytes of the header: a run's facts take some thousand
_DTYPES = ("<f4", "<f8", "<i8")


class DamagedSnapshotError(Exception):
    """A snapshot is not what was written, or does not fit who reads it."""


def named(prefix: object, state: Mapping[str, NDArray[Any]]) -> State:
    """Put a name before the names of arrays, so that several states fit into one snapshot."""
    return {f"{prefix}/{name}": array for name, array in state.items()}


def write_snapshot(file: Path, facts: Mapping[str, Any], state: Mapping[str, NDArray[Any]]) -> None:
    """Write a snapshot in the place of an older one, which stays until the new one is on the disk.

    Parameters
    ----------
    file
        Where it goes.
    facts
        JSON-ready.
    state
        Arrays of float32, float64 or int64, by name. One at a time is copied, if it is not contiguous.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    listed = [
        {"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "crc": _crc(_bytes_of(array))}
        for name, array in state.items()
    ]
    header = json.dumps({"facts": facts, "arrays": listed}, allow_nan=False).encode()
    unfinished = file.with_name(f"{file.name}.new")
    with writing(file, "file"):
        with unfinished.open("wb") as out:
            out.write(b"%s%08x\n%s\n" % (_MAGIC, _crc(header), header))
            for array in state.values():
                out.write(_bytes_of(array))
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, file)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _crc(content: bytes | memoryview) -> int:
    return zlib.crc32(content)


@dataclass(frozen=True)
class _Stored:
    """Where an array stands in the file."""

    dtype: str
    shape: tuple[int, ...]
    crc: int
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is there: its facts, and arrays that are read when they are asked for.

    Parameters
    ----------
    file
        Where it stands.
    facts
        What was written with it; whoever reads them checks them.
    prefix
        What stands before the names of arrays.
    """

    file: Path
    facts: Mapping[str, Any]
    _arrays: Mapping[str, _Stored]
    prefix: str = ""

    @classmethod
    def read(cls, file: Path) -> Snapshot:
        """Read facts and the list of arrays.

        Raises
        ------
        DamagedSnapshotError
            If the file is no snapshot, or not whole.
        """
        try:
            with file.open("rb") as content:
                first, header = content.readline(len(_MAGIC) + 9), content.readline(_LONGEST)[:-1]
                start, end = content.tell(), os.fstat(content.fileno()).st_size
            if first != b"%s%08x\n" % (_MAGIC, _crc(header)):
                raise DamagedSnapshotError("it is no snapshot, or its header is damaged")
            parsed = json.loads(header)
            arrays = _placed(parsed["arrays"], start, end)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise DamagedSnapshotError(f"it cannot be read ({type(error).__name__})") from error
        if not isinstance(parsed["facts"], dict):
            raise DamagedSnapshotError("it has no facts")
        return cls(file, parsed["facts"], arrays)

    def part(self, prefix: object) -> Snapshot:
        """Return the arrays whose names begin so, as `named` has named them."""
        return Snapshot(self.file, self.facts, self._arrays, f"{self.prefix}{prefix}/")

    def array(self, name: str, dtype: str, *shape: Side) -> NDArray[Any]:
        """Read an array.

        Parameters
        ----------
        name
            Its name in this part.
        dtype
            What it has to be.
        shape
            What its sides have to be: numbers, or ranges in which they have to be.

        Raises
        ------
        DamagedSnapshotError
            If there is no such array, or its bytes are not those that were written.
        """
        found = self._arrays.get(self.prefix + name)
        if found is None or found.dtype != dtype or not _fits(found.shape, shape):
            raise DamagedSnapshotError(f"{self.prefix + name} does not fit")
        try:
            with self.file.open("rb") as content:
                content.seek(found.offset)
                array = np.fromfile(content, found.dtype, math.prod(found.shape))
        except OSError as error:
            raise DamagedSnapshotError(f"it cannot be read ({error.strerror})") from error
        if _crc(_bytes_of(array)) != found.crc or array.size != math.prod(found.shape):
            raise DamagedSnapshotError(f"{self.prefix + name} is damaged")
        return array.reshape(found.shape)

    def number(self, name: str, within: range) -> int:
        """Read a whole number that was written as an array without sides, such as ``np.array(3)``.

        Raises
        ------
        DamagedSnapshotError
            If there is none, or it is not in the range.
        """
        value = int(self.array(name, "<i8"))
        if value not in within:
            raise DamagedSnapshotError(f"{self.prefix + name} is {value}")
        return value


def _fits(shape: tuple[int, ...], expected: tuple[Side, ...]) -> bool:
    return len(shape) == len(expected) and all(
        side in wanted if isinstance(wanted, range) else side == wanted
        for side, wanted in zip(shape, expected, strict=True)
    )


def _placed(listed: Any, start: int, end: int) -> dict[str, _Stored]:
    """Find where arrays stand; they fill the file to its last byte."""
    arrays: dict[str, _Stored] = {}
    for facts in listed:
        shape = tuple(facts["shape"])
        if facts["dtype"] not in _DTYPES or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("an array that nobody writes")
        arrays[facts["name"]] = stored = _Stored(facts["dtype"], shape, facts["crc"], start)
        start += stored.bytes
    if start != end:
        raise ValueError("bytes that are missing or too many")
    return arrays
