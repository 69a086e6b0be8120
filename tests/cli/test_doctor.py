from __future__ import annotations

import builtins
import subprocess
import sys

import torch

from tests.helpers.paths import ROOT
from wsi_saliency.workflows import doctor


def test_a_working_machine_has_no_fault(call, tmp_path):
    result = call("doctor", "-o", str(tmp_path / "maps" / "deep"))
    assert result.exit_code == 0, result.output
    assert "FAULT" not in result.stdout
    assert f"torch {torch.__version__.partition('+')[0]}" in result.stdout
    assert f"{tmp_path} can be written" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_a_fault_with_advice(call, tmp_path):
    (tmp_path / "file").touch()
    result = call("doctor", "-o", str(tmp_path / "file"))
    assert result.exit_code == 1
    assert "FAULT  output" in result.stdout
    assert "→ choose another folder with -o" in result.stdout


def test_a_library_that_cannot_be_loaded_is_a_fault_and_the_rest_is_looked_at(call, monkeypatch):
    load = builtins.__import__

    def broken(name, *args, **how):
        if name == "openslide":
            raise OSError("libopenslide.so.1:\ncannot open shared object file")
        return load(name, *args, **how)

    monkeypatch.setattr(builtins, "__import__", broken)
    result = call("doctor")
    assert result.exit_code == 1
    assert "FAULT  openslide  OSError: libopenslide.so.1: cannot open shared object file" in result.stdout
    assert "cache" in result.stdout


def test_scarce_room_and_memory_are_noted(call, monkeypatch):
    monkeypatch.setattr(doctor, "SCARCE_DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "SCARCE_MEMORY_GB", 1e9)
    result = call("doctor")
    assert result.exit_code == 0
    assert "note   memory" in result.stdout
    assert "note   output" in result.stdout


def test_the_version_comes_with_those_of_the_packages_and_without_torch():
    code = (
        "import sys; from wsi_saliency.cli import cli\n"
        "try: cli(['--version'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, imported = done.stdout.splitlines()
    assert first.startswith("wsi-saliency ")
    assert f"torch {doctor.installed('torch')}" in second
    assert imported == "False"
