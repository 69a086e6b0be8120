from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from tests.helpers.commands import SETTINGS, left, only_line
from wsi_saliency.cli import cli
from wsi_saliency.cli.options import Command, options
from wsi_saliency.errors import SettingsError
from wsi_saliency.settings import BatchSettings, Settings, option, options_of

BESIDE = {
    "run": {"out", "overwrite", "dry_run", "quiet", "verbose"},
    "inspect": set(),
    "check-model": {"as_json", "out"},
    "train-surrogate": {"out", "overwrite", "quiet"},
    "evaluate": {"out", "overwrite", "quiet"},
}
"""Options that are no settings."""

BESIDES = {"run": BatchSettings}
"""Further settings of a command."""

FIELDS = [
    (command, f.name)
    for command, kind in [*SETTINGS.items(), *BESIDES.items()]
    for f in fields(kind)
    if (command, f.name) != ("check-model", "model")  # its argument
]


def kind_of(command, name):
    """The settings that an option is one of."""
    return next(kind for kind in (SETTINGS[command], BESIDES.get(command)) if name in options_of(kind))


NUMBERS = [(c, name) for c, name in FIELDS if options_of(kind_of(c, name))[name].within]


def option_of(command, name):
    return next(p for p in cli.commands[command].params if p.name == name)


def parsed(command, *arguments):
    """What the command line makes of some options."""
    return cli.commands[command].make_context(command, ["demo", *map(str, arguments)]).params


def accepted(command, name, text):
    try:
        parsed(command, option_of(command, name).opts[0], text)
    except click.UsageError:
        return False
    return True


def help_of(command):
    """What ``--help`` says, with lines as long as they need to be."""
    return CliRunner().invoke(cli, [command, "--help"], prog_name="wsi-saliency", terminal_width=1000).output


def entry(command, flag):
    """What ``--help`` says of an option, in one line."""
    (found,) = re.findall(rf"^  {flag}(?:(?= )[^\n]*)?(?:\n {{4,}}[^\n]*)?$", help_of(command), re.MULTILINE)
    return " ".join(found.split())


# ------------------------------------------------------------------------ options and settings are the same


@pytest.mark.parametrize("command", SETTINGS)
def test_each_setting_is_an_option_and_each_option_a_setting(command):
    params = cli.commands[command].params
    flags = {p.name for p in params if isinstance(p, click.Option)}
    assert flags - BESIDE[command] == {name for c, name in FIELDS if c == command}
    assert flags >= BESIDE[command]
    assert {p.name for p in params if isinstance(p, click.Argument)} <= {"slides", "slide", "model"}


@pytest.mark.parametrize(("command", "name"), FIELDS)
def test_an_option_says_what_the_setting_says(command, name):
    kind = kind_of(command, name)
    known, shown = options_of(kind)[name], option_of(command, name)
    assert shown.opts == [known.name(name)]
    assert shown.help == known.help
    assert known.help in entry(command, known.name(name))
    if known.choices and not isinstance(getattr(kind, name), tuple):
        assert tuple(shown.type.choices) == known.choices


@pytest.mark.parametrize(("command", "name"), FIELDS)
def test_the_default_is_that_of_the_settings_and_the_help_says_so(command, name):
    kind = kind_of(command, name)
    known, default = options_of(kind)[name], getattr(kind, name)
    assert parsed(command)[name] == default
    behind = entry(command, known.name(name)).partition(known.help)[2]
    shown = re.match(r" \[default: ([^];]+?)[];]", behind)
    if known.shown:
        assert behind.startswith(f" [default: {known.shown}")
    elif default is None or default is False:
        assert shown is None
    else:
        assert parsed(command, known.name(name), shown[1])[name] == default


@pytest.mark.parametrize(("command", "name"), NUMBERS)
@limits(max_examples=30)
@given(data=st.data())
def test_the_command_line_takes_the_numbers_that_the_settings_take(command, name, data):
    kind = kind_of(command, name)
    within = options_of(kind)[name].within
    edges = [edge for edge in (within.low, within.high) if edge < math.inf]
    near = st.sampled_from([x for edge in edges for x in (edge - 1, edge, edge + 1)])
    value = data.draw(st.integers(-1000, 5000) | near if within.whole else st.floats() | near)
    try:
        kind(**{name: value})
    except SettingsError:
        assert not accepted(command, name, value)
    else:
        assert parsed(command, option_of(command, name).opts[0], value)[name] == value


@pytest.mark.parametrize(
    ("command", "name"), [(c, n) for c, n in NUMBERS if options_of(kind_of(c, n))[n].within.whole]
)
def test_whole_numbers_are_whole(command, name):
    assert accepted(command, name, "10")
    assert not accepted(command, name, "10.5")
    assert not accepted(command, name, "ten")


# ----------------------------------------------------------------------------------- how options are made


@dataclass(frozen=True, kw_only=True)
class Meal(Settings):
    heading: ClassVar[str] = "Kitchen"
    dish: str = option("soup", "What is eaten.", metavar="NAME")
    courses: tuple[str, ...] = option(
        ("main",), "When.", flag="course", choices=("first", "main"), everything=("first", "main")
    )
    guests: tuple[str, ...] = option((), "Who comes.", flag="guest", repeated=True)
    spices: tuple[str, ...] = option((), "With what.")
    hot: bool = option(False, "Whether it is hot.")

    def __post_init__(self):
        super().__post_init__()
        if self.hot and self.dish == "ice":
            raise SettingsError("ice cannot be hot\n")


@click.command(cls=Command)
@click.option("--quiet", is_flag=True, help="Say nothing.")
@options(Meal)
def cook(settings, quiet):
    click.echo(
        f"{settings.dish} {settings.courses} {settings.guests} {settings.spices} {settings.hot} {quiet}"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "soup ('main',) () () False False"),
        (["--dish", "ice", "--quiet"], "ice ('main',) () () False True"),
        (["--course", "first, main,first", "--hot"], "soup ('first', 'main') () () True False"),
        (["--course", "all"], "soup ('first', 'main') () () False False"),
        (["--guest", "a,b", "--guest", "c"], "soup ('main',) ('a,b', 'c') () False False"),
        (["--spices", "all,salt"], "soup ('main',) () ('all', 'salt') False False"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_gets_settings(arguments, said):
    assert CliRunner().invoke(cook, arguments).output == f"{said}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dish", "ice", "--hot"], "Error: ice cannot be hot\\n"),
        (["--course", "first,tea"], "'tea' is not one of first, main"),
        (["--course", "all,main"], "'all' is not one of first, main"),
    ],
    ids=lambda value: " ".join(value),
)
def test_settings_that_cannot_be_are_wrong_usage(arguments, words):
    result = CliRunner().invoke(cook, arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_options_stand_under_what_they_concern():
    text = CliRunner().invoke(cook, ["--help"]).output
    general, _, kitchen = text.partition("\nKitchen:\n")
    assert re.findall(r"^  (--\w+)", general, re.MULTILINE) == ["--quiet", "--help"]
    assert re.findall(r"^  (--\w+)", kitchen, re.MULTILINE) == [
        *("--dish", "--course", "--guest", "--spices", "--hot")
    ]
    assert "When.  [default: main]" in kitchen
    assert re.findall(r"--(?:course|spices) (\S+)", kitchen) == ["all|LIST", "LIST"]


# ---------------------------------------------------------------------------------------- of the commands


@pytest.mark.parametrize("command", SETTINGS)
def test_everything_has_a_help_text(command):
    assert cli.commands[command].help
    for param in cli.commands[command].params:
        assert isinstance(param, click.Argument) or param.help, param.opts
    text = help_of(command)
    assert f" wsi-saliency {command} " in text
    assert "\\b" not in text


@pytest.mark.parametrize(
    ("command", "mistyped", "meant"),
    [
        ("run", ["-model", "demo"], "--model"),
        ("run", ["-overlap", "0.5"], "--overlap"),  # -o has a value: the folder verlap
        ("run", ["-overlap=0.5"], "--overlap=0.5"),
        ("evaluate", ["-overwrite"], "--overwrite"),
        ("train-surrogate", ["-out", "x.safetensors"], "--out"),
        ("inspect", ["-mpp", "0.5"], "--mpp"),
        ("check-model", ["-help"], "--help"),
    ],
)
def test_a_long_option_with_one_dash_is_recognised(call, tmp_path, command, mistyped, meant):
    result = call(command, "a.svs", *mistyped)
    assert result.exit_code == 2
    assert f"No such option '{mistyped[0]}'; did you mean {meant}?" in result.stderr
    assert left(tmp_path) == []


FLOATS = [(c, option_of(c, n).opts[0]) for c, n in NUMBERS if not options_of(kind_of(c, n))[n].within.whole]


@pytest.mark.parametrize(("command", "option"), FLOATS)
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0,5", "'0,5' has a comma; write 0.5"),
        ("nan", "'nan' is not a number "),
        ("inf", "inf"),
        ("-inf", "-inf"),
        ("half", "'half' is not a number "),
    ],
)
def test_numbers_are_finite_and_have_a_point(call, command, option, value, words):
    result = call(command, "a.svs", option, value)
    assert result.exit_code == 2
    line = " ".join(result.stderr.split()).partition("Error: ")[2]
    assert line.startswith(f"Invalid value for '{option}': ")
    assert words in line


def test_none_is_a_word_where_the_settings_know_it(call):
    assert parsed("run", "--slide-timeout", "none")["slide_timeout"] is None
    assert parsed("run", "--slide-timeout", "90")["slide_timeout"] == 90
    assert "'none' is not a number" in " ".join(call("run", "a.svs", "--mpp", "none").stderr.split())


@pytest.mark.parametrize("command", SETTINGS)
def test_every_command_refuses_other_weights_than_those_wanted(call, slide, tmp_path, command):
    named = ["demo"] if command == "check-model" else [slide, "--model", "demo"]
    line = only_line(call(command, *named, "--sha256", "0" * 64))
    assert "--sha256 wants 0000" in line
    assert left(tmp_path) == []


@pytest.mark.parametrize("value", ["", " ", ","])
def test_a_list_without_a_name_is_refused(call, value):
    """It is what an empty variable of a script leaves, and not a wish for the default."""
    refused = call("run", "slide.svs", "--layer", value)
    assert refused.exit_code == 2
    assert "'--layer': " in refused.stderr
    assert "has no name in it" in refused.stderr
