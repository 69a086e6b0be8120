"""Options of a command from the fields of its settings, and the command that shows them."""

from __future__ import annotations

from dataclasses import fields
from functools import wraps
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import click

from wsi_saliency.cli.types import Names, Number, Output, Span
from wsi_saliency.errors import SettingsError
from wsi_saliency.messages import printable
from wsi_saliency.settings import options_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.types import OptionHelpExtra

    from wsi_saliency.settings import Option, Settings

    _Callback = Callable[..., None]

_NO_BREAK = "\u00a0"  # a space at which no line ends


def options(
    kind: type[Settings], *, argument: str | None = None, name: str = "settings"
) -> Callable[[_Callback], _Callback]:
    """Give a command an option for each field of a settings class, and the settings themselves.

    Parameters
    ----------
    kind
        The settings class; the command gets an instance.
    argument
        A field that is an argument of the command, without a name and a default, in place of an option.
    name
        What the command calls the instance.
    """
    known = options_of(kind)
    defaults = {f.name: f.default for f in fields(kind)}

    def decorate(command: _Callback) -> _Callback:
        @wraps(command)
        def with_settings(**given: Any) -> None:
            chosen = {field: given.pop(field) for field in known}
            command(**{name: _together(kind, chosen)}, **given)

        for field in reversed(known):
            if field == argument:
                click.argument(field, metavar=known[field].metavar)(with_settings)
            else:
                _option(kind, field, known[field], defaults[field])(with_settings)
        return with_settings

    return decorate


slides_argument = click.argument("slides", nargs=-1, required=True, metavar="SLIDE...")
quiet_option = click.option("--quiet", is_flag=True, help="Say nothing but errors.")


def out_option(
    metavar: str, default: str | None, text: str, *, urls: bool = False
) -> Callable[[_Callback], _Callback]:
    """Give a command ``-o``, with its default and its help; ``urls`` as `Output` takes it."""
    return click.option(
        "-o",
        "--out",
        type=Output(urls=urls),
        default=None if default is None else Path(default),
        show_default=default is not None,
        metavar=metavar,
        help=text,
    )


def _together(kind: type[Settings], chosen: dict[str, Any]) -> Settings:
    """Put settings together; those that do not go together are wrong usage."""
    try:
        return kind(**chosen)
    except SettingsError as e:
        raise click.UsageError(printable(str(e))) from e


def _option(kind: type[Settings], name: str, known: Option, default: Any) -> Callable[[_Callback], _Callback]:
    """Make the option of a field."""
    hint = _without_none(get_type_hints(kind)[name])
    return click.option(
        known.name(name),
        name,
        cls=SettingOption,
        heading=kind.heading_of(name),
        known=known,
        default=default,
        is_flag=hint is bool,
        type=None if hint is bool else _type(hint, known),
        multiple=known.repeated,
        metavar=known.metavar,
        help=known.help,
    )


def _without_none(hint: Any) -> Any:
    """Return the type that a setting has if it is not None."""
    parts = get_args(hint)
    return next(part for part in parts if part is not NoneType) if NoneType in parts else hint


def _type(hint: Any, known: Option) -> click.ParamType[Any]:
    """Return the type of an option's values."""
    if known.within:
        return Number(known.within, none=known.none)
    if hint == tuple[float, float]:
        return Span()
    if get_origin(hint) is tuple and not known.repeated:
        return Names(known.choices, known.everything)
    if known.choices:
        return click.Choice(known.choices)
    return click.Path(path_type=Path) if hint is Path else click.STRING


class SettingOption(click.Option):
    """An option that says its default and its range in the words of the settings."""

    def __init__(self, *args: Any, heading: str, known: Option, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading
        self.known = known

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Return what stands in brackets behind the help."""
        extra: OptionHelpExtra = {}
        if default := self.known.wording(self.default):
            extra["default"] = default
        if self.known.within:
            extra["range"] = str(self.known.within).replace(" ", _NO_BREAK)
        return extra


class Command(click.Command):
    """A command that shows its options by what they concern, and knows a long one with a single dash.

    Click takes that for short ones: ``-model demo`` would be an unknown ``-m``, and ``-overlap 0.5`` an
    output folder ``verlap``.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those that are no settings first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                sections.setdefault(getattr(param, "heading", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse a long option with one dash, and say what may be meant."""
        names = {name for option in self.get_params(ctx) for name in option.opts if name.startswith("--")}
        for arg in takewhile(lambda arg: arg != "--", args):
            if f"-{arg.partition('=')[0]}" in names:
                raise click.UsageError(f"No such option {arg!r}; did you mean -{arg}?", ctx)
        return super().parse_args(ctx, args)


def examples(*lines: str) -> str:
    """Return lines of a command's epilog that click must not join."""
    return "\n".join(["\b", "Examples:", *(f"  wsi-saliency {line}" for line in lines)])
