from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from torch import nn

from tests.helpers.nets import spot_classifier
from tests.helpers.paths import REAL_SLIDES, ROOT
from tests.helpers.slides import section, write_svs
from wsi_saliency.cli import cli
from wsi_saliency.cli.types import Number
from wsi_saliency.evaluation.contest import Contest
from wsi_saliency.heatmap.ome_zarr import Heatmap
from wsi_saliency.models import loading
from wsi_saliency.report import outputs
from wsi_saliency.saliency.engine import Explainer
from wsi_saliency.settings import (
    ATTRIBUTIONS,
)
from wsi_saliency.workflows import evaluate
from wsi_saliency.workflows import explain as pipeline

COMMANDS = ["run", "inspect", "check-model", "train-surrogate", "evaluate"]
HEAVY = ["torch", "timm", "numpy", "scipy", "matplotlib", "zarr", "tifffile", "openslide", "huggingface_hub"]
PICTURE = section(288, 192, (48, 48, 160, 112))

real = pytest.mark.skipif(not REAL_SLIDES.is_dir(), reason=f"no slides in {REAL_SLIDES}")


@pytest.fixture(autouse=True)
def _own_logging():
    """Leave no handler behind that writes to a stream of a test that is over."""
    loggers = [logging.getLogger(name) for name in ("wsi_saliency", "tifffile")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def spots(monkeypatch):
    """Replace every classifier by the hand-set one, and the picture, which takes longest, by nothing."""
    monkeypatch.setattr(loading, "_load", lambda uri, weights: spot_classifier(64))
    monkeypatch.setattr(pipeline, "write_overview", lambda path, *args, **how: path.write_bytes(b"drawn"))


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call the program in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(logging.root, "handlers", [])  # pytest's own hide what a library would print
            return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="wsi-saliency")

    return call


@pytest.fixture
def slide(tmp_path):
    return write_svs(tmp_path / "slide.svs", [PICTURE])


def left(folder):
    """Files that a run has left, without the slides."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".svs")


def only_line(result, code=1):
    """Return the one line that an error gave."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert result.stdout == ""
    return line.removeprefix("Error: ")


# ------------------------------------------------------------------------------------ options and help


def options_of(command):
    return {name for p in cli.commands[command].params for name in p.opts if isinstance(p, click.Option)}


def test_the_options_are_those_of_the_documentation():
    model = {"--weights", "--model-mpp", "--patch"}
    slide = {"--overlap", "--mpp", "--tissue-threshold"}
    assert options_of("run") >= {
        *(
            "-o",
            "--out",
            "--model",
            "--method",
            "--attribution",
            "--layer",
            "--target",
            "--batch",
            "--workers",
        ),
        *("--device", "--precision", "--overwrite", "--ome-zarr", "--range", "--quiet", "-v", "--verbose"),
        *model,
        *slide,
    }
    assert options_of("inspect") == {"--model", *model, *slide}
    assert options_of("check-model") == model


def test_everything_has_a_help_text(call):
    for name, command in cli.commands.items():
        assert command.help, name
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert option.help, f"{name} {option.opts}"
        text = call(name, "--help").output
        assert f"  wsi-saliency {name} " in text
        assert "\\b" not in text


def test_help_imports_nothing_that_takes_long():
    code = f"""
import sys, json
from click.testing import CliRunner
from wsi_saliency.cli import cli
from wsi_saliency.cli.types import Number
codes = [CliRunner().invoke(cli, args).exit_code for args in {[["-h"], *([c, "--help"] for c in COMMANDS)]}]
print(json.dumps([codes, [name for name in {HEAVY} if name in sys.modules]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [[0] * (1 + len(COMMANDS)), []]


def test_the_program_runs_from_its_folder():
    script = ROOT / "cli.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["nix"],
        ["run", "a.svs", "--overlap", "0.95"],
        ["run", "a.svs", "--method", "nix"],
        ["run", "a.svs", "--mpp", "0"],
        ["run", "a.svs", "--tissue-threshold", "2"],
        ["run", "a.svs", "--ome-zarr", "0.3"],
        ["run", "a.svs", "--patch", "100000"],
        ["run", "a.svs", "--surrogate", "s.safetensors"],
        ["evaluate", "a.svs", "--surrogate", "s.safetensors", "--method", "none,backward-hook"],
        *(
            ["run", "a.svs", "--range", text]
            for text in ("1,0", "0,0", "1", "0,1,2", "0,nan", "-inf,0", "a,b")
        ),
        ["inspect"],
        ["check-model", "demo", "--nix"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(call, arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr or "Usage: " in result.stderr


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


FLOATS = [
    (name, option.opts[0])
    for name, command in cli.commands.items()
    for option in command.params
    if isinstance(option.type, Number) and not option.type.within.whole
]


def test_there_are_numbers_to_try():
    assert FLOATS


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


# ----------------------------------------------------------------------------------------------- errors


def cut(path):
    whole = write_svs(path, [section(512, 512, seed=1)]).read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])


BAD_SLIDES = {
    "missing.svs": (lambda path: None, "no such file"),
    "text.svs": (lambda path: path.write_text("not a slide\n"), "it is a text file, not a slide"),
    "empty.svs": (lambda path: path.touch(), "the file is empty"),
    "truncated.svs": (cut, ""),
    # last in the alphabet: `inspect` describes it
    "without-mpp.svs": (lambda path: write_svs(path, [PICTURE], mpp=None, power=None), "give it with --mpp"),
}


@pytest.mark.parametrize(
    ("command", "name"),
    [*(("run", name) for name in BAD_SLIDES), *(("inspect", name) for name in sorted(BAD_SLIDES)[:-1])],
)
@pytest.mark.usefixtures("spots")
def test_a_bad_slide_is_one_line_that_names_it(call, tmp_path, name, command):
    make, reason = BAD_SLIDES[name]
    make(tmp_path / name)
    line = only_line(call(command, tmp_path / name))
    assert name in line
    assert reason in line
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "nix"], ["no layer 'nix'", "stage3", "1/8", "--layer"]),
        (["--layer", "3"], ["no stage of the model lies at 1/3", "1/4", "1/8"]),
        (["--target", "nix"], ["no class 'nix'", "0: normal, 1: tumour", "--target"]),
        (["--target", "2"], ["no class '2'"]),
        (["--device", "nix"], ["unknown device 'nix'", "auto, cpu, cuda"]),
        (["--patch", "16", "--layer", "32"], ["--layer"]),
        (["-o", "slide.svs"], ["slide.svs: cannot be written (it is a file, not a folder)", "with -o"]),
        (["-o", "slide.svs/below"], ["slide.svs: cannot be written (it is a file, not a folder)", "-o"]),
        (["-o", "x" * 300], ["cannot be written (File name too long)", "-o"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
@pytest.mark.usefixtures("spots")
def test_what_does_not_fit_is_one_line_that_names_the_way_out(call, slide, tmp_path, arguments, words):
    line = only_line(call("run", slide, "--device", "cpu", *arguments))
    assert [word for word in words if word not in line] == []
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nix"], ["'nix' is not understood", "demo", "timm:NAME"]),
        (["--model", "timm:test_resnet"], ["--weights FILE"]),
        (["--model", "timm:test_resnet", "--weights", "none.pt"], ["none.pt does not exist"]),
        (["--model", "demo", "--weights", "none.pt"], ["demo brings its own weights"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_classifier_that_cannot_be_had(call, slide, tmp_path, arguments, words):
    line = only_line(call("run", slide, *arguments))
    assert [word for word in words if word not in line] == []
    assert left(tmp_path) == []


class Features(nn.Conv2d):
    """Gives a feature map (N, K, h, w) where logits should be."""

    def __init__(self):
        super().__init__(3, 2, 3)


class Pair(Features):
    def forward(self, x):
        return (x.mean((2, 3))[:, :2],) * 2


@pytest.mark.parametrize("module", [Features, Pair])
@pytest.mark.parametrize("command", ["run", "check-model"])
def test_a_classifier_without_logits(call, slide, tmp_path, monkeypatch, module, command):
    monkeypatch.setattr(loading, "_load", lambda *_: replace(spot_classifier(64), module=module()))
    line = only_line(call(command, slide if command == "run" else "spots"))
    assert "spots" in line
    assert "logits (N, K)" in line
    assert left(tmp_path) == []


@pytest.mark.usefixtures("spots")
def test_a_folder_without_slides(call, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: no slides in this folder" in only_line(call("run", "empty"))
    assert "empty/*.svs: no slides match this pattern" in only_line(call("run", "empty/*.svs"))


@pytest.mark.usefixtures("spots")
def test_an_unexpected_error_has_a_traceback_with_v_only(call, slide, tmp_path, monkeypatch):
    def broken(*args):
        raise IndexError("what a bug says")

    monkeypatch.setattr(Explainer, "__call__", broken)
    line = only_line(call("run", slide))
    assert "slide.svs: unexpected IndexError: what a bug says (run with -v for the traceback)" in line
    assert "Traceback" in call("run", slide, "-v").stderr
    assert left(tmp_path) == []


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.usefixtures("spots")
def test_an_interrupted_run_says_so_and_leaves_nothing(call, slide, tmp_path, monkeypatch, name, code):
    def interrupted(*args):
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(5)

    monkeypatch.setattr(Explainer, "__call__", interrupted)
    result = call("run", slide)
    assert result.exit_code == code
    assert result.stderr == "Interrupted; nothing unfinished was left behind.\n"
    assert list(tmp_path.iterdir()) == [slide]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
@pytest.mark.parametrize(
    ("arguments", "lock", "sent", "code"),
    [
        (["run", "slide.svs", "-o", "new/out"], "new/out/.slide.lock", "SIGTERM", 143),
        (["evaluate", "slide.svs", "-o", "new/out"], "new/out/.metrics.json.lock", "SIGHUP", 129),
        (["train-surrogate", "slide.svs", "-o", "new/s.st"], "new/.s.st.lock", "SIGTERM", 143),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_program_that_gets_a_signal_leaves_nothing(slide, tmp_path, arguments, lock, sent, code):
    """Another process, which is at work as soon as it has its lock."""
    program = subprocess.Popen(
        [sys.executable, "-m", "wsi_saliency.cli", *arguments, "--model", "demo", "--device", "cpu"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        while not (tmp_path / lock).exists() and program.poll() is None:
            time.sleep(0.01)
        program.send_signal(getattr(signal, sent))
        _, said = program.communicate(timeout=60)
    finally:
        program.kill()
    assert said.splitlines()[-1] == "Interrupted; nothing unfinished was left behind."
    assert program.returncode == code
    assert list(tmp_path.iterdir()) == [slide]


HOSTILE = "\x1b[2J\u202e.svs"


@pytest.mark.usefixtures("spots")
def test_a_name_cannot_steer_the_terminal(call, tmp_path, monkeypatch):
    """Neither that of a slide nor what weights say, in results, warnings and errors."""
    noted = replace(spot_classifier(64), notes=("\x1b]0;title\x07",))
    monkeypatch.setattr(loading, "_load", lambda uri, weights: noted)
    write_svs(tmp_path / HOSTILE, [PICTURE])
    write_svs(tmp_path / f"empty{HOSTILE}", [section(96, 96)])
    (tmp_path / f"bad{HOSTILE}").touch()
    shown = 0
    for command in (
        ["run", "."],
        ["run", "."],
        ["inspect", HOSTILE],
        ["inspect", f"bad{HOSTILE}"],
        ["check-model", "x"],
    ):
        result = call(*command)
        assert not {"\x1b", "\x07", "\u202e"} & set(result.output)
        shown += result.output.count(r"\x1b[2J\u202e.svs") + result.output.count(r"\x1b]0;title\x07")
    assert shown > 6


# -------------------------------------------------------------------------------------------- good runs


@pytest.mark.usefixtures("spots")
def test_a_run_says_one_line_a_slide_and_quiet_says_nothing(call, slide, tmp_path):
    first = call("run", slide, "--device", "cpu")
    assert (first.exit_code, first.stderr) == (0, "")
    (line,) = first.stdout.splitlines()
    patches = json.loads((tmp_path / "saliency" / "slide" / "run.json").read_text())["patches"]
    counts = f"{patches['tissue']} of {patches['grid']} patches explained"
    assert line.startswith(f"{slide}: {counts} in ")
    assert line.endswith(f"→ {Path('saliency/slide')}")
    quiet = call("run", slide, "--quiet", "--overwrite", "--device", "cpu")
    assert (quiet.exit_code, quiet.output) == (0, "")


@pytest.mark.usefixtures("spots")
def test_a_complete_result_is_kept_and_the_run_says_so(call, slide):
    call("run", slide, "--device", "cpu")
    again = call("run", slide, "--workers", "2")
    assert again.stdout == f"{slide}: complete result kept in saliency/slide; --overwrite replaces it\n"
    other = call("run", slide, "--layer", "16", "--overlap", "0.25")
    made = "made with layer default (now 16), overlap 0.5 (now 0.25)"
    assert (
        other.stdout == f"{slide}: complete result kept in saliency/slide, {made}; --overwrite replaces it\n"
    )
    assert (again.exit_code, other.exit_code) == (0, 0)


@pytest.mark.usefixtures("spots")
def test_options_reach_the_record(call, slide, tmp_path):
    arguments = ["--mpp", "0.4", "--overlap", "0.25", "--layer", "16", "--target", "0", "--patch", "128"]
    arguments += ["--attribution", "gradient-x-activation", "--method", "none", "--ome-zarr", "0.5"]
    arguments += ["--tissue-threshold", "0.2", "--batch", "2", "--workers", "1", "--device", "cpu"]
    result = call("run", slide, "-o", "maps", "--range", "-0.5,2", *arguments)
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "maps" / "slide" / "run.json").read_text())["settings"]
    given = {
        name.removeprefix("--").replace("-", "_"): v
        for name, v in zip(arguments[::2], arguments[1::2], strict=True)
    }
    assert {name: str(settings[name]) for name in given} == given
    assert settings["range"] == [-0.5, 2.0]
    assert (tmp_path / "maps" / "slide" / "saliency.ome.zarr" / "zarr.json").is_file()


@pytest.mark.usefixtures("spots")
def test_a_bad_slide_among_others_is_named_at_the_end(call, tmp_path):
    for name in ("a.svs", "sub/c.svs"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_svs(tmp_path / "in" / name, [PICTURE])
    (tmp_path / "in" / "b.svs").write_text("no slide")
    for slides in (["in"], ["in/**/*.svs"], ["in/a.svs", "in/b.svs", "missing.svs", "in/sub/c.svs"]):
        result = call("run", *slides, "-o", "out", "--device", "cpu", "--overwrite")
        assert result.exit_code == 1
        bad = [line for line in result.stderr.splitlines() if line.startswith("  ")]
        n, failed = len(bad), "missing.svs" in slides
        assert n == 1 + failed
        assert f"Error: {n} of {3 + failed} slides failed:" in result.stderr
        assert bad[0].startswith("  in/b.svs: ")
        assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["in/a.svs", "in/sub/c.svs"]
        c = "c" if failed else "sub/c"
        assert {p.parent.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("run.json")} >= {
            "a",
            c,
        }
        assert not (tmp_path / "out" / "b").exists()


@pytest.mark.usefixtures("spots")
def test_what_the_classifier_notes_is_said_once(call, tmp_path, monkeypatch):
    noted = replace(spot_classifier(64), notes=("for tests only",))
    monkeypatch.setattr(loading, "_load", lambda uri, weights: noted)
    for name in "ab":
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    arguments = ["run", "a.svs", "b.svs", "--model", "noted", "--overlap", "0", "--overwrite"]
    assert call(*arguments).stderr == "WARNING: noted: for tests only\n"
    assert call(*arguments, "--quiet").stderr == ""


def test_inspect_and_check_model_print_what_they_describe(call, slide):
    inspected = call("inspect", slide, "--model", "demo")
    assert inspected.exit_code == 0
    assert "size          288 × 192 px\n" in inspected.stdout
    assert "(224 px at 0.5 µm/px, overlap 0.5; classifier demo)" in inspected.stdout
    checked = call("check-model", "demo")
    assert checked.exit_code == 0
    assert "input         224 × 224 px\n" in checked.stdout


# -------------------------------------------------------------------------------------------- evaluate

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
        ),  # it has no surrogate
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
@pytest.mark.parametrize("station", ["Contest.run", "write_report"])
def test_an_interrupted_evaluation_is_exit_code_130_and_leaves_nothing(
    call, slide, tmp_path, monkeypatch, station
):
    def interrupted(*args, **how):
        raise KeyboardInterrupt

    home = Contest if station == "Contest.run" else evaluate
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


# ------------------------------------------------------------------------------------------ real slides


@real
def test_a_real_slide_with_the_demo_classifier(call, tmp_path):
    slide = REAL_SLIDES / "cmu-1-small-region.svs"
    result = call("run", slide, "--model", "demo", "--overlap", "0", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("no medical meaning") == 1
    folder = tmp_path / "saliency" / "cmu-1-small-region"
    record = json.loads((folder / "run.json").read_text())
    assert record["slide"]["mpp"] == {"x": 0.499, "y": 0.499}
    assert 30 < record["patches"]["tissue"] < record["patches"]["grid"] == 10 * 14
    values = Heatmap.open(folder / "saliency.ome.zarr").read(0)
    assert 0.2 < (values != 0).mean() < 0.7


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_without_mpp_stops_and_with_it_is_not_enlarged(call, tmp_path):
    slide = REAL_SLIDES / "tumor_001aaf.tif"
    assert "give it with --mpp" in only_line(call("run", slide))
    inspected = call("inspect", slide, "--mpp", "7.8", "--model", "spots")
    assert "µm/px is too coarse for a classifier of 0.5 µm/px" in inspected.stderr
    assert "(64 px at 7.8 µm/px" in inspected.stdout


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_that_breaks_when_it_is_read(call, tmp_path):
    for command in ("run", "inspect"):
        line = only_line(call(command, REAL_SLIDES / "unreadable.svs"))
        assert "unreadable.svs: cannot read the region x=0, y=0, " in line
    assert left(tmp_path) == []


@real
@pytest.mark.usefixtures("spots")
def test_a_real_dicom_slide(call, tmp_path):
    result = call("run", REAL_SLIDES / "jpeg.dicom", "--overlap", "0", "--device", "cpu")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "saliency" / "jpeg" / "run.json").read_text())
    assert record["slide"]["format"] == "dicom"


@real
@pytest.mark.usefixtures("spots")
def test_a_real_slide_that_is_cut_off(call, tmp_path):
    whole = (REAL_SLIDES / "cmu-1-small-region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) * 6 // 10])
    assert "cut.svs" in only_line(call("run", "cut.svs"))
    assert left(tmp_path) == []
