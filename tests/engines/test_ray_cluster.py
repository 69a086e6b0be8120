"""Slides on real Ray clusters of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile

from tests.helpers.commands import PICTURE
from tests.helpers.paths import ROOT
from tests.helpers.slides import write_svs
from tests.helpers.workers import notes

pytestmark = pytest.mark.slow
pytest.importorskip("ray")

TWO_NODES = """
import json, os, signal, sys, time, threading
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tests.helpers.workers import jobs_for, staged, notes
from wsi_saliency.engines.folders import FolderRun
from wsi_saliency.engines.ray import RayEngine
from wsi_saliency.settings import RunSettings

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
Path("in").mkdir()
engine = RayEngine(Path("in/out"), address=cluster.address, make_work=staged)
names = ["holds-1", "holds-2", *(f"s{i}" for i in range(6))]

def workers():
    there = notes(Path("in")) if Path("in/notes").exists() else []
    return [line.split()[2] for line in there if line.startswith("holds")]

def works(process):
    file = Path("/proc", process, "cmdline")
    return file.exists() and file.read_bytes() != b""

def kill_when_both_work():
    while len(workers()) < 2:
        time.sleep(0.05)
    if sys.argv[1] == "node":
        cluster.remove_node(second, allow_graceful=False)
    else:  # the process of Ray's above one of the workers
        status = Path("/proc", workers()[0], "status").read_text()
        os.kill(int(status.split("PPid:")[1].split()[0]), signal.SIGKILL)
    while all(map(works, workers())):
        time.sleep(0.05)
    Path("in/killed").touch()

thread = threading.Thread(target=kill_when_both_work, daemon=True)
thread.start()
run = FolderRun(Path("in/out"), RunSettings(device="cpu"), engine, retries=2, logs=False)
said = [outcome.failure for outcome in run.outcomes(jobs_for(*names))]
print(json.dumps([said, [path.name for path in Path("in").glob("out/*")]]))
cluster.shutdown()
"""


def python(folder, code, *arguments, seconds=300):
    """Run Python in a folder; returns its exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize("killed", ["node", "process"])
def test_what_is_killed_in_the_middle_costs_no_slide(tmp_path, killed):
    code, out, err = python(tmp_path, TWO_NODES, killed)
    assert code == 0, err
    said, left = json.loads(out[-1])
    names = ["holds-1", "holds-2", *(f"s{i}" for i in range(6))]
    assert sorted(said) == sorted(f"{name}.svs: {'failed' if 'holds' in name else 'done'}" for name in names)
    assert left == []
    tries = [line.split()[0] for line in notes(tmp_path / "in") if line.startswith("holds")]
    assert len(tries) == 3  # one of the two was tried again
    (line,) = [line for line in err if "tried again" in line]
    assert line.startswith("holds-")


GPUS = """
import json
from pathlib import Path
from ray.cluster_utils import Cluster
from tests.helpers.workers import jobs_for, seeing_gpus, notes
from wsi_saliency.engines.ray import RayEngine
from wsi_saliency.settings import RunSettings

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2})
with RayEngine(Path("in/out"), address=cluster.address, make_work=seeing_gpus) as engine:
    Path("in").mkdir()
    list(engine.run(jobs_for("waits", "b", "c", "d"), RunSettings()))
cluster.shutdown()
"""


def test_each_gpu_has_a_worker_that_stays_and_sees_no_other(tmp_path):
    code, _, err = python(tmp_path, GPUS)
    assert code == 0, err
    lines = [line for line in notes(tmp_path / "in") if line.startswith("sees")]
    assert sorted(lines) == ["sees 0 as cuda", "sees 1 as cuda"]


COMMAND = """
import sys
from wsi_saliency.cli import cli
cli(sys.argv[1:])
"""


def test_slides_on_a_cluster_of_this_machine_are_those_of_worker_processes(tmp_path):
    for name in "ac":
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    (tmp_path / "b.svs").touch()
    how = ["run", "a.svs", "b.svs", "c.svs", "--model", "demo", "--device", "cpu", "--overlap", "0"]
    code, out, err = python(tmp_path, COMMAND, *how, "-o", "ray", "--engine", "ray")
    assert code == 1
    assert sorted(line.split(":")[0] for line in out) == ["a.svs", "c.svs"]
    assert err[-2:] == ["Error: 1 of 3 slides failed:", "  b.svs: the file is empty"]
    assert len([line for line in err if "no medical meaning" in line]) == 1
    assert len(err) == 4
    python(tmp_path, COMMAND, *how, "-o", "local")
    there = {
        folder: sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("ray", "local")
    }
    assert there["ray"] == there["local"]
    maps = [tifffile.imread(tmp_path / folder / "a" / "saliency.ome.tif") for folder in ("ray", "local")]
    np.testing.assert_array_equal(*maps)
    code, out, err = python(tmp_path, COMMAND, *how[:2], *how[4:], "-o", "ray", "--engine", "ray")
    assert (code, err) == (0, [])
    assert "kept" in out[0]


HANGING = """
import sys
from pathlib import Path
from tests.helpers.workers import jobs_for, staged
from wsi_saliency.engines.ray import RayEngine
from wsi_saliency.interruption import interruptible
from wsi_saliency.settings import RunSettings
try:
    with interruptible(), RayEngine(Path("in/out"), make_work=staged) as engine:
        for outcome in engine.run(jobs_for("hangs"), RunSettings(device="cpu")):
            pass
except KeyboardInterrupt as e:
    sys.exit(e.exit_code)
"""


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_all_and_leaves_nothing(tmp_path, sent, code):
    (tmp_path / "in").mkdir()
    program = subprocess.Popen(
        [sys.executable, "-c", HANGING],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    while not list((tmp_path / "in").glob("out/.hangs.*.growing")):
        assert program.poll() is None
        time.sleep(0.05)
    os.killpg(program.pid, getattr(signal, sent))
    assert program.wait(60) == code
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["notes"]


def test_where_there_is_no_cluster_one_line_says_how_to_start_one(tmp_path):
    write_svs(tmp_path / "a.svs", [PICTURE])
    code, out, err = python(
        tmp_path, COMMAND, "run", "a.svs", "--model", "demo", "--engine", "ray", "--address", "auto"
    )
    assert (code, out) == (1, [])
    assert len(err) == 1
    assert "no Ray cluster can be had there" in err[0]
