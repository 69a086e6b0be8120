"""Bars of a run with several slides: one for the patches of each slide at work, and one for the slides."""

from __future__ import annotations

from typing import Protocol

from tqdm import tqdm

from wsi_saliency.messages import printable
from wsi_saliency.workflows.progress import BYTE, PATCH


class Bars(Protocol):
    """Shows how far a run is; a device is the place of a slide."""

    def begin(self, device: str, name: str, count: int, unit: str = PATCH) -> None:
        """Begin with the patches of a slide, or with what else it is taken in."""
        ...

    def advance(self, device: str, count: int) -> None:
        """Show that so many more are done."""
        ...

    def end(self, device: str) -> None:
        """Show that the slide is done, if one was begun."""
        ...

    def slide_done(self) -> None:
        """Show that one slide more is done."""
        ...

    def close(self) -> None:
        """Take all bars away."""
        ...


class NoBars:
    """Shows nothing."""

    def begin(self, device: str, name: str, count: int, unit: str = PATCH) -> None:
        """Show nothing."""

    def advance(self, device: str, count: int) -> None:
        """Show nothing."""

    def end(self, device: str) -> None:
        """Show nothing."""

    def slide_done(self) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class TerminalBars:
    """Bars at the lower end of the terminal; none where stderr is no terminal.

    Parameters
    ----------
    slides
        How many slides there are to do.
    """

    def __init__(self, slides: int) -> None:
        self._slides = tqdm(total=slides, desc="slides", unit="slide", disable=None, position=0)
        self._patches: dict[str, tqdm] = {}

    def begin(self, device: str, name: str, count: int, unit: str = PATCH) -> None:
        """Begin with the patches of a slide, or with what else it is taken in."""
        self.end(device)
        used = {bar.pos for bar in self._patches.values()}
        self._patches[device] = tqdm(
            total=count,
            desc=printable(name),
            unit=unit,
            unit_scale=unit == BYTE,
            disable=None,
            leave=False,
            position=next(i for i in range(1, len(used) + 2) if -i not in used),
        )

    def advance(self, device: str, count: int) -> None:
        """Show that so many more are done."""
        self._patches[device].update(count)

    def end(self, device: str) -> None:
        """Show that the slide is done, if one was begun."""
        if bar := self._patches.pop(device, None):
            bar.close()

    def slide_done(self) -> None:
        """Show that one slide more is done, and when all may be."""
        self._slides.update()

    def close(self) -> None:
        """Take all bars away; that of the slides stays as it was last."""
        for device in list(self._patches):
            self.end(device)
        self._slides.close()
