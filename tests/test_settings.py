from __future__ import annotations

import math
import typing
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from wsi_saliency.errors import SettingsError
from wsi_saliency.settings import (
    BatchSettings,
    Bounds,
    EvaluationSettings,
    InspectSettings,
    ModelCheckSettings,
    ModelSettings,
    Option,
    RunSettings,
    TrainingSettings,
    options_of,
    whole,
)

KINDS = [
    ModelSettings,
    InspectSettings,
    ModelCheckSettings,
    RunSettings,
    BatchSettings,
    TrainingSettings,
    EvaluationSettings,
]
DEFAULTS = [(kind, f.name, f.default) for kind in KINDS for f in fields(kind)]
NUMBERS = [(kind, name) for kind, name, _ in DEFAULTS if options_of(kind)[name].within]
CHOICES = [(kind, name) for kind, name, _ in DEFAULTS if options_of(kind)[name].choices]


def parts(hint):
    """Types that a hint is made of."""
    return [hint, *(part for arg in typing.get_args(hint) for part in parts(arg))]


def hints(kind):
    return typing.get_type_hints(kind)


@pytest.mark.parametrize(("kind", "name", "default"), DEFAULTS)
def test_each_setting_says_what_it_is(kind, name, default):
    known = options_of(kind)[name]
    assert known.help.endswith(".")
    assert known.help[0] == known.help[0].upper() or known.help.startswith("µm")
    assert (default is None or default in known.within) if known.within else True
    assert getattr(kind, name) == default
    assert kind.heading_of(name)


@pytest.mark.parametrize("kind", KINDS)
def test_each_number_has_a_range_and_each_literal_its_choices(kind):
    for name, hint in hints(kind).items():
        if name == "heading":
            continue
        known, inner = options_of(kind)[name], parts(hint)
        if hint != tuple[float, float] | None:
            assert (int in inner or float in inner) == (known.within is not None), name
        assert known.within is None or known.within.whole == (int in inner), name
        literals = [typing.get_args(part) for part in inner if typing.get_origin(part) is typing.Literal]
        assert literals == ([known.choices] if known.choices else []), name


@pytest.mark.parametrize("kind", KINDS[1:])
def test_docstrings_say_what_each_setting_means(kind):
    for f in fields(kind):
        assert f"{f.name} : {f.type}\n    {options_of(kind)[f.name].help}" in kind.__doc__
    assert "SettingsError" in kind.__doc__


def refused(kind, name, value):
    """Return the line that refuses a value; None if it is taken."""
    try:
        assert getattr(kind(**{name: value}), name) is value
    except SettingsError as e:
        return str(e)
    return None


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
@limits(max_examples=30)
@given(data=st.data())
def test_a_number_out_of_its_bounds_is_one_line_that_names_it(kind, name, data):
    known = options_of(kind)[name]
    b = known.within
    near = [x for edge in (b.low, b.high) if edge < math.inf for x in (edge - 1, edge, edge + 1)]
    numbers = st.integers(-(10**9), 10**9) if b.whole else st.floats()
    value = data.draw(numbers | st.sampled_from([*near, math.nan, math.inf, -math.inf, "1", 10**400]))
    within = (b.low < value if b.open else b.low <= value) if isinstance(value, int | float) else False
    allowed = within and value <= b.high and value != math.inf and not (b.whole and isinstance(value, float))
    line = refused(kind, name, value)
    if allowed:
        assert line is None
    else:
        assert line.startswith(f"{name} ({known.name(name)}) is ")
        assert line.endswith(f"; it has to be {b.wanted}")
        assert "\n" not in line


def test_what_is_wrong_stands_in_the_message():
    assert (
        refused(RunSettings, "overlap", 2.0)
        == "overlap (--overlap) is 2; it has to be a number from 0 to 0.9"
    )
    assert refused(RunSettings, "patch", 4) == (
        "patch (--patch) is 4; it has to be a whole number from 8 to 4096"
    )
    assert refused(RunSettings, "batch", 2.5) == (
        "batch (--batch) is 2.5; it has to be a whole number of at least 1"
    )
    assert refused(EvaluationSettings, "methods", ("none", "nix")) == (
        "methods (--method) is 'nix'; it has to be one of none, backward-hook, centred-hook, "
        "forward-hook, surrogate, shift-average"
    )
    assert refused(RunSettings, "range", (1.0, 0.0)) == (
        "range (--range) is 1,0; LOW has to be below HIGH, both finite, as in 0,0.001"
    )


@pytest.mark.parametrize(("kind", "name"), CHOICES)
def test_a_name_that_is_no_choice_is_refused(kind, name):
    known = options_of(kind)[name]
    listed = isinstance(getattr(kind, name), tuple)
    for choice in known.choices:
        assert refused(kind, name, (choice,) if listed else choice) is None
    line = refused(kind, name, (known.choices[0], "nix") if listed else "nix")
    assert line.startswith(f"{name} ({known.name(name)}) is 'nix'; it has to be one of {known.choices[0]}")


@example(0.0)
@example(-0.0)
@given(st.floats() | st.integers())
def test_bounds_hold_what_they_say(value):
    finite = isinstance(value, int) or math.isfinite(value)
    assert (value in Bounds(0, open=True)) == (finite and value > 0)
    assert (value in Bounds(-1, 2)) == (-1 <= value <= 2)
    assert (value in whole(-1, 2)) == (isinstance(value, int) and value in (-1, 0, 1, 2))


def test_bounds_in_words():
    assert str(Bounds(0, 1)) == "from 0 to 1"
    assert Bounds(0, open=True).wanted == "a number above 0"
    assert whole(1).wanted == "a whole number of at least 1"


@pytest.mark.parametrize(
    ("default", "shown", "wording"),
    [
        (None, "", ""),
        (None, "by device", "by device"),
        (False, "", ""),
        ("auto", "", "auto"),
        (4.0, "", "4"),
        (1e-3, "", "0.001"),
        (("a", "b"), "", "a,b"),
        ((), "all", "all"),
    ],
)
def test_a_default_in_words(default, shown, wording):
    assert Option("x", shown=shown).wording(default) == wording


def test_settings_are_frozen_and_have_to_be_named():
    with pytest.raises(FrozenInstanceError):
        RunSettings().layers = ("8",)
    with pytest.raises(TypeError):
        RunSettings("demo")


def test_settings_as_json():
    written = EvaluationSettings(methods=("none",), annotations=Path("a.xml")).to_json()
    assert (written["methods"], written["annotations"], written["step"]) == (["none"], "a.xml", None)
    assert RunSettings(range=(0.0, 1.0)).to_json()["range"] == [0.0, 1.0]
    assert next(iter(written)) == "model"


@pytest.mark.parametrize("name", ["layers", "methods", "attributions", "targets"])
def test_a_list_is_taken_for_a_tuple_and_a_single_text_refused(name):
    value = {"methods": "none", "attributions": "gradient"}.get(name, "8")
    assert getattr(RunSettings(**{name: [value]}), name) == (value,)
    with pytest.raises(SettingsError, match=rf"{name} \(--{name[:-1]}\) is '{value}'; it has to be several"):
        RunSettings(**{name: value})


@pytest.mark.parametrize("name", ["methods", "attributions"])
def test_a_run_has_at_least_one_method_and_attribution(name):
    with pytest.raises(SettingsError, match=rf"{name} \(--{name[:-1]}\) is empty; name at least one"):
        RunSettings(**{name: ()})


@pytest.mark.parametrize("method", ["none", "backward-hook", "forward-hook"])
def test_a_surrogate_that_would_be_ignored_is_refused(method):
    file = Path("s.safetensors")
    with pytest.raises(
        SettingsError, match=rf"surrogate \(--surrogate\) is s\.saf.*add surrogate to --method {method} "
    ):
        RunSettings(methods=(method,), surrogate=file)
    with pytest.raises(SettingsError, match=rf"add surrogate to --method none,{method} "):
        EvaluationSettings(methods=("none", method), surrogate=file)
    RunSettings(methods=(method, "surrogate"), surrogate=file)
    EvaluationSettings(surrogate=file)
    EvaluationSettings(methods=("none", "surrogate"), surrogate=file)


def test_a_hash_is_64_hexadecimal_digits_in_any_case():
    assert RunSettings(sha256=f" {'Ab' * 32} ").sha256 == "ab" * 32
    for text in ("ab" * 31, "ab" * 33, "zz" * 32, "", "\x1b" * 64):
        with pytest.raises(SettingsError, match=r"sha256 \(--sha256\) is .*64 hexadecimal digits") as refusal:
            ModelSettings(sha256=text)
        assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/0", "1", "a/b", "1/2/3", "", "-1/2", "1.0/2", "²/3"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(SettingsError, match=r"shard \(--shard\) is .* it has to be I/N with I from 1 to N"):
        BatchSettings(shard=shard)


def test_a_shard_is_a_number_of_a_count():
    assert BatchSettings().part is None
    assert BatchSettings(shard=" 2/4 ").part == (2, 4)


def test_classes_of_annotations_need_annotations():
    with pytest.raises(SettingsError, match="name them with --annotations"):
        EvaluationSettings(annotation_classes=("a",))
    assert EvaluationSettings(annotations=Path("a.geojson"), annotation_classes=("a",))
