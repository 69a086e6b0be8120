"""What the text behind an option becomes, and which text is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wsi_saliency.errors import SettingsError
from wsi_saliency.settings import check_range
from wsi_saliency.urls import is_url, located, shown

if TYPE_CHECKING:
    from wsi_saliency.settings import Bounds

_Param = click.Parameter | None
_Context = click.Context | None


class Output(click.Path):
    """A place in the file system, or at a URL where that is possible; else one would become a folder's name.

    Parameters
    ----------
    urls
        Whether a URL is a place too.
    """

    def __init__(self, *, urls: bool = False) -> None:
        super().__init__(path_type=Path)
        self.urls = urls

    def convert(self, value: Any, param: _Param, ctx: _Context) -> Any:
        """Return a path, or what behaves like one at a URL."""
        if not isinstance(value, str) or "://" not in value:
            return super().convert(value, param, ctx)
        if not (self.urls and is_url(value)):
            self.fail(f"{shown(value)!r} is a URL, and only run writes to URLs; name a folder", param, ctx)
        try:
            return located(value)
        except SettingsError as error:
            return self.fail(str(error), param, ctx)


class Written(click.Path):
    """A folder that run has written, on this machine."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: _Param, ctx: _Context) -> Any:
        """Refuse URLs: results there are for other programs, and for copying."""
        if isinstance(value, str) and is_url(value):
            self.fail(
                f"{shown(value)!r} is a URL; copy the results to this machine, with all files, and name "
                "that folder",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number within bounds, with a decimal point; or a word for none at all."""

    name = "number"

    def __init__(self, within: Bounds, none: str = "") -> None:
        self.within = within
        self.none = none

    def convert(self, value: Any, param: _Param, ctx: _Context) -> Any:
        """Refuse what is out of bounds (nan always is), and a comma, which could mean 1000."""
        text = str(value).strip()
        if self.none and text == self.none:
            return None
        if not self.within.whole and re.fullmatch(r"[+-]?\d*,\d+", text):
            self.fail(f"{value!r} has a comma; write {text.replace(',', '.')}", param, ctx)
        try:
            number = int(value) if self.within.whole else float(value)
        except ValueError:
            self._refuse(value, param, ctx)
        if math.isinf(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        if number not in self.within:
            self._refuse(value, param, ctx)
        return number

    def _refuse(self, value: object, param: _Param, ctx: _Context) -> NoReturn:
        self.fail(f"{value!r} is not {self.within.wanted}", param, ctx)


class Span(click.ParamType):  # type: ignore[type-arg]
    """Two numbers with a comma between them, the first below the second."""

    name = "range"

    def convert(self, value: Any, param: _Param, ctx: _Context) -> tuple[float, float]:
        """Split the numbers and check them."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = map(float, value.split(","))
            check_range(low, high)
        except (ValueError, SettingsError):
            self.fail(f"{value!r} is not LOW,HIGH with LOW below HIGH, such as 0,0.001", param, ctx)
        return low, high


class Box(click.ParamType):  # type: ignore[type-arg]
    """Four numbers with commas between them: a corner, a width and a height."""

    name = "box"

    def convert(self, value: Any, param: _Param, ctx: _Context) -> tuple[float, float, float, float]:
        """Split the numbers; all are finite."""
        if isinstance(value, tuple):
            return value
        try:
            x, y, w, h = map(float, value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not X,Y,W,H, such as 12000,8000,4000,3000", param, ctx)
        if not all(map(math.isfinite, (x, y, w, h))):
            self.fail(f"{value!r} has a number that is not finite", param, ctx)
        return x, y, w, h


class Names(click.ParamType):  # type: ignore[type-arg]
    """Several names with commas between them; ``all`` is ``everything``, if that is anything."""

    name = "list"

    def __init__(self, choices: tuple[str, ...], everything: tuple[str, ...] | None) -> None:
        self.choices = choices
        self.everything = everything

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what stands for the names in ``--help``."""
        return "LIST" if self.everything is None else "all|LIST"

    def convert(self, value: Any, param: _Param, ctx: _Context) -> tuple[str, ...]:
        """Split the names, and check them if there are only certain ones."""
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        if not names:
            self.fail(f"{value!r} has no name in it; leave the option out for its default", param, ctx)
        if self.everything is not None and names == ("all",):
            return self.everything
        for name in names:
            if self.choices and name not in self.choices:
                self.fail(f"{name!r} is not one of {', '.join(self.choices)}", param, ctx)
        return names
