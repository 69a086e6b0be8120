"""How far a slide is, for those who wait: a bar in the terminal, or whatever else shows it; free of torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from wsi_saliency.messages import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

Advance = Callable[[int], object]
"""Told how many more patches are done."""
PATCH, BYTE = "patch", "B"


class Progress(Protocol):
    """Begins to show a slide, by its name, and how many patches, or pieces of another kind, it has."""

    def __call__(self, name: str, count: int, unit: str = PATCH) -> AbstractContextManager[Advance]:
        """Return the context in which they are done."""
        ...


@contextmanager
def bar(name: str, count: int, unit: str = PATCH) -> Iterator[Advance]:
    """Show patches, patches per second and the time left, where there is a terminal."""
    how = {"unit": unit, "unit_scale": unit == BYTE, "leave": unit == PATCH}
    with tqdm(total=count, desc=printable(name), disable=None, **how) as shown:
        yield shown.update


@contextmanager
def silence(name: str, count: int, unit: str = PATCH) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda done: None


def download(progress: Progress, name: str) -> Callable[[int], AbstractContextManager[Advance]]:
    """Return what shows how much of a slide has come from a URL, once its size is known."""
    return lambda count: progress(f"{name}: download", count, BYTE)


def shown_by(progress: bool | Progress) -> Progress:  # noqa: FBT001 - as the API takes it
    """Return how progress is shown: True is a bar, False nothing."""
    if isinstance(progress, bool):
        return bar if progress else silence
    return progress
