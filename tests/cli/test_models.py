from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers.hub_cache import cached
from wsi_saliency.models.sources import model_sources

WITHOUT_NETWORK = """
import socket, sys
def refuse(*_): raise AssertionError("network")
socket.socket.connect = refuse
from click.testing import CliRunner
from wsi_saliency.cli import cli
done = CliRunner().invoke(cli, ["models"])
assert done.exit_code == 0, done.output
print(done.output)
print("loaded", *sorted({"torch", "timm", "torchvision"} & set(sys.modules)))
"""


def test_it_lists_all_without_a_network_and_without_torch(tmp_path):
    cached(
        tmp_path, "ORG/net", {"config.json": b'{"architecture": "resnet18"}', "model.safetensors": bytes(99)}
    )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "loaded"
    assert all(any(written in line for line in lines) for written in model_sources().split(", "))
    assert "downloaded    hf-hub:ORG/net: 99 B; resnet18, classes not named" in lines


def test_it_takes_no_arguments(call):
    assert call("models", "demo").exit_code == 2
