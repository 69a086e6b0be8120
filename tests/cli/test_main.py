from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.helpers.commands import PICTURE, SETTINGS
from tests.helpers.nets import spot_classifier
from tests.helpers.paths import ROOT
from tests.helpers.slides import section, write_svs
from wsi_saliency.models import loading

HEAVY = ["torch", "timm", "numpy", "scipy", "matplotlib", "zarr", "tifffile", "openslide", "huggingface_hub"]


def test_help_imports_nothing_that_takes_long():
    code = f"""
import sys, json
from click.testing import CliRunner
from wsi_saliency.cli import cli
from wsi_saliency.cli.types import Number
codes = [CliRunner().invoke(cli, args).exit_code for args in {[["-h"], *([c, "--help"] for c in SETTINGS)]}]
print(json.dumps([codes, [name for name in {HEAVY} if name in sys.modules]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [[0] * (1 + len(SETTINGS)), []]


def test_help_leads_with_run_and_cuts_no_sentence(call):
    told = call("--help").stdout
    commands = told.partition("Commands:\n")[2]
    assert commands.split()[0] == "run"
    assert "..." not in commands


def test_the_program_runs_from_its_folder():
    script = ROOT / "cli.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(command in done.stdout for command in SETTINGS)


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


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
@pytest.mark.parametrize(
    ("arguments", "lock", "sent", "code"),
    [
        (["run", "slide.svs", "-o", "new/out"], "new/out/.slide.lock", "SIGTERM", 143),
        pytest.param(
            ["evaluate", "slide.svs", "-o", "new/out"],
            "new/out/.metrics.json.lock",
            "SIGHUP",
            129,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["train-surrogate", "slide.svs", "-o", "new/s.st"],
            "new/.s.st.lock",
            "SIGTERM",
            143,
            marks=pytest.mark.slow,
        ),
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
