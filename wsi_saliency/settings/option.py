"""What is known of one setting: its help, its range, its choices; said once, in the field's metadata.

The command line makes its options of it (`wsi_saliency.cli.options`), `check` reads ranges and choices,
`documented` the help.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

from wsi_saliency.errors import SettingsError

_KEY = "option"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Bounds:
    """Which numbers a setting may be: finite, from ``low`` to ``high``, without ``low`` where ``open``."""

    low: float
    high: float = math.inf
    open: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        """Tell whether something is one of them; NaN and text never are."""
        if not isinstance(value, SupportsIndex if self.whole else SupportsFloat):
            return False
        number: Any = value
        above = self.low < number if self.open else self.low <= number
        return bool(above and number <= self.high and number < math.inf)

    def __str__(self) -> str:
        above = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return above if self.high == math.inf else f"from {self.low:g} to {self.high:g}"

    @property
    def wanted(self) -> str:
        """The numbers in words, for a message."""
        of = "" if self.open or self.high < math.inf else "of "
        return f"a {'whole ' if self.whole else ''}number {of}{self}"


def whole(low: float, high: float = math.inf) -> Bounds:
    """Return bounds that only whole numbers are within."""
    return Bounds(low, high, whole=True)


@dataclass(frozen=True)
class Option:
    """What is known of a setting beside its type and its default.

    A setting whose type is a tuple of names is a list with commas on the command line.

    Parameters
    ----------
    help
        What the setting decides, in a sentence.
    metavar
        What stands for the value in ``--help``, where its type does not say enough.
    within
        The range of a number; each number has one.
    choices
        The names that there are, of which a list takes several.
    everything
        What ``all`` stands for in a list; None: it is no word of its own.
    shown
        The default in words, where the value does not say it.
    flag
        The option's name without its dashes, where it is not the field's.
    none
        The word for None among numbers.
    repeated
        Whether the values of a list, which may have commas, are given one by one.
    recorded
        Whether results say what it was; not where it says something of a machine only.
    """

    help: str
    metavar: str | None = None
    within: Bounds | None = None
    choices: tuple[str, ...] = ()
    everything: tuple[str, ...] | None = None
    shown: str = ""
    flag: str = ""
    none: str = ""
    repeated: bool = False
    recorded: bool = True

    def name(self, field_name: str) -> str:
        """Return the option's name on the command line."""
        return f"--{self.flag or field_name.replace('_', '-')}"

    def wording(self, default: object) -> str:
        """Return the default as ``--help`` shows it; empty where there is nothing to say."""
        if self.shown or default is None or isinstance(default, bool):
            return self.shown
        if isinstance(default, tuple):
            return ",".join(map(str, default))
        return f"{default:g}" if isinstance(default, float) else str(default)


def option(default: _T, help: str, **how: Any) -> _T:  # noqa: A002
    """Make the field of a setting, which is also an option; ``how`` is that of `Option`."""
    return field(default=default, metadata={_KEY: Option(help, **how)})


def varied(kind: type, name: str, default: _T, **changes: Any) -> _T:
    """Take a setting over from another class, with another default and whatever else is to change."""
    return field(default=default, metadata={_KEY: replace(options_of(kind)[name], **changes)})


def options_of(settings: Any) -> dict[str, Option]:
    """Return what is known of each setting of a settings class, or of an instance, in order."""
    return {f.name: f.metadata[_KEY] for f in fields(settings)}


def check(settings: Any) -> None:
    """Find out whether all numbers among some settings are within bounds and all names there; None always is.

    Raises
    ------
    SettingsError
        If one is not.
    """
    for name, known in options_of(settings).items():
        value = getattr(settings, name)
        called = f"{name} ({known.name(name)})"
        if isinstance(value, str) and isinstance(getattr(type(settings), name, None), tuple):
            raise SettingsError(f"{called} is {value!r}; it has to be several: ({value!r},)")
        if known.within and value is not None and value not in known.within:
            raise SettingsError(f"{called} is {_short(value)}; it has to be {known.within.wanted}")
        for chosen in (value if isinstance(value, tuple) else [value]) if known.choices else ():
            if chosen not in known.choices:
                raise SettingsError(f"{called} is {chosen!r}; it has to be one of {', '.join(known.choices)}")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def documented(kind: type[_T]) -> type[_T]:
    """Add to a class's docstring what its settings mean and what it raises."""
    lines = [inspect.cleandoc(kind.__doc__ or ""), "", "Parameters", "----------"]
    for f in fields(kind):  # type: ignore[arg-type]
        known: Option = f.metadata[_KEY]
        lines += [f"{f.name} : {f.type}", f"    {known.help}{known.shown and f' Default: {known.shown}.'}"]
    lines += ["", "Raises", "------", "SettingsError"]
    lines += ["    If a setting is out of its bounds, or two do not go together."]
    kind.__doc__ = "\n".join(lines)
    return kind
