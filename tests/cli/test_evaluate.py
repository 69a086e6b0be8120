from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import left, only_line
from wsi_saliency.evaluation.map_comparison import MapComparison
from wsi_saliency.report import outputs
from wsi_saliency.settings import ATTRIBUTIONS
from wsi_saliency.workflows import evaluate

BRIEF = ["--patches", "6", "--step", "2048", "--layer", "8", "--attribution", "gradient"]


BRIEF += ["--stability-mpx", "0", "--device", "cpu"]


@pytest.fixture
def undrawn(spots, monkeypatch):
    monkeypatch.setattr(outputs, "plots", lambda evaluation: [])


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def compared_in(folder):
    """Names of each kind that were compared, in their order."""
    maps = [c for c in metrics_of(folder)["combinations"] if not c["control"]]
    return {name: list(dict.fromkeys(c[name] for c in maps)) for name in ("method", "attribution", "layer")}


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_says_its_findings_and_where_its_page_is(call, slide, tmp_path):
    result = call("evaluate", slide, *BRIEF)
    assert (result.exit_code, result.stderr) == (0, "")
    *sentences, last = result.stdout.splitlines()
    assert last == f"→ {Path('evaluation/index.html')}"
    assert [f"- {sentence}" for sentence in metrics_of(tmp_path / "evaluation")["findings"]] == sentences
    assert (tmp_path / "evaluation" / "index.html").is_file()
    line = only_line(call("evaluate", slide, *BRIEF))
    assert line.startswith("evaluation: holds an evaluation already; --overwrite")
    quiet = call("evaluate", slide, *BRIEF, "--quiet", "--overwrite")
    assert (quiet.exit_code, quiet.output) == (0, "")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (
            ["--method", "all"],
            {"method": ["none", "backward-hook", "centred-hook", "forward-hook"]},
        ),  # it has no surrogate, and hooks reach it
        (["--method", "shift-average"], {"method": ["none", "shift-average"]}),
        (["--method", "none,backward-hook"], {"method": ["none", "backward-hook"]}),
        (["--method", " backward-hook , backward-hook,"], {"method": ["none", "backward-hook"]}),
        (["--layer", "8,stage3,16"], {"layer": ["stage3", "stage4"]}),
        (["--attribution", "gradcam,gradient"], {"attribution": ["gradcam", "gradient"]}),
        (["--method", "none", "--attribution", "all"], {"attribution": list(ATTRIBUTIONS)}),
    ],
    ids=lambda value: " ".join(value),
)
def test_lists_of_what_is_compared(call, slide, tmp_path, arguments, names):
    result = call("evaluate", slide, *BRIEF, *arguments)
    assert result.exit_code == 0, result.output
    assert names.items() <= compared_in(tmp_path / "evaluation").items()


@pytest.mark.usefixtures("undrawn")
def test_a_surrogate_that_is_asked_for_has_to_be_there(call, slide, tmp_path):
    line = only_line(call("evaluate", slide, *BRIEF, "--method", "none,surrogate"))
    assert "no surrogate comes with this model" in line
    assert "--surrogate FILE" in line
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--method", "none,nix"],
            ["'nix' is not one of none, backward-hook, centred-hook, forward-hook, surrogate"],
        ),
        (["--method", "all,none"], ["'all' is not one of"]),
        (["--attribution", "nix"], ["'nix' is not one of gradient, gradient-x-activation, deeplift"]),
        (["--patches", "0"], ["--patches"]),
        (["--deletion-to", "black"], ["zeros", "blur", "mean", "white"]),
        (["--score-on", "nix"], ["original", "method"]),
        (["--stability-mpx", "17"], ["--stability-mpx"]),
        (["--annotation-scale", "0"], ["--annotation-scale"]),
        (["--step", "0"], ["--step"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_wrong_usage_of_evaluate_is_exit_code_2(call, slide, arguments, words):
    result = call("evaluate", slide, *arguments)
    assert result.exit_code == 2
    assert [word for word in words if word not in " ".join(result.stderr.split())] == []
    assert call("evaluate").exit_code == 2


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "8,nix"], ["no layer 'nix'", "stage3"]),
        (["--target", "nix"], ["no class 'nix'", "--target"]),
        (["--annotations", "none.xml"], ["none.xml: cannot be read", "--annotations"]),
        (["--annotations", "slide.svs"], ["slide.svs", "--annotations takes QuPath GeoJSON"]),
        (["--patches", "9999999"], ["--patches"]),
        (["-o", "slide.svs"], ["slide.svs: cannot be written", "-o"]),
        (["-o", "slide.svs/below"], ["slide.svs: cannot be written", "-o"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_an_evaluation_that_cannot_be_is_one_line(call, slide, tmp_path, arguments, words):
    line = only_line(call("evaluate", slide, *BRIEF, *arguments))
    assert [word for word in words if word not in line] == []
    assert left(tmp_path) == []
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("station", ["MapComparison.run", "write_report"])
def test_an_interrupted_evaluation_is_exit_code_130_and_leaves_nothing(
    call, slide, tmp_path, monkeypatch, station
):
    def interrupted(*args, **how):
        raise KeyboardInterrupt

    home = MapComparison if station == "MapComparison.run" else evaluate
    monkeypatch.setattr(home, station.rpartition(".")[2], interrupted)
    result = call("evaluate", slide, *BRIEF)
    assert result.exit_code == 130
    assert result.stderr == "Interrupted; nothing unfinished was left behind.\n"
    assert left(tmp_path) == []
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.usefixtures("undrawn")
def test_options_of_evaluate_reach_the_metrics(call, slide, tmp_path):
    given = {
        "seed": 3,
        "patches": 4,
        "step": 2000,
        "target": "normal",
        "deletion_to": "white",
        "insertion_from": "mean",
        "score_on": "method",
        "mpp": 0.4,
        "tissue_threshold": 0.2,
        "batch": 3,
        "workers": 1,
        "stability_mpx": 0.0,
        "precision": "fp32",
        "sanity": True,
        "method": ["none", "forward-hook"],
        "layer": ["8"],
        "attribution": ["gradient"],
    }
    arguments = ["--device", "cpu", "-o", "elsewhere"]
    for name, value in given.items():
        shown = [] if value is True else [",".join(value) if isinstance(value, list) else value]
        arguments += [f"--{name.replace('_', '-')}", *shown]
    result = call("evaluate", slide, *arguments)
    assert result.exit_code == 0, result.output
    metrics = metrics_of(tmp_path / "elsewhere")
    settings, lists = metrics["facts"]["settings"], {"method", "layer", "attribution"}
    assert {name: settings[f"{name}s" if name in lists else name] for name in given} == given
    assert len(metrics["patches"]) == 4
    assert metrics["sanity"]


@pytest.mark.usefixtures("undrawn")
def test_annotation_classes_are_given_one_by_one(call, slide, tmp_path):
    ring = [[48, 48], [120, 48], [120, 120], [48, 120]]
    outlined = {"type": "Polygon", "coordinates": [ring]}
    names = ("Tumor", "Stroma")
    features = [
        {"type": "Feature", "geometry": outlined, "properties": {"classification": {"name": name}}}
        for name in names
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    classes = [word for name in names for word in ("--annotation-class", name)]
    result = call("evaluate", slide, *BRIEF, "--method", "none", "--annotations", "a.geojson", *classes)
    assert result.exit_code == 0, result.output
    metrics = metrics_of(tmp_path / "evaluation")
    assert metrics["facts"]["settings"]["annotation_classes"] == list(names)
    assert [row["kind"] and row["kind"]["label"] for row in metrics["localised"]] == [
        None,
        "none · gradient · stage3",
    ]
    assert "'Nix'" in only_line(
        call("evaluate", slide, *BRIEF, "--annotations", "a.geojson", "--annotation-class", "Nix", "-o", "b")
    )
