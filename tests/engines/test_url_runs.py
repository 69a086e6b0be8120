"""Runs with results at URLs, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from urllib.parse import unquote

import numpy as np
import pytest
import zarr

from tests.helpers.commands import PICTURE
from tests.helpers.paths import ROOT
from tests.helpers.slides import write_svs
from wsi_saliency.urls import located

OPTIONS = ["--model", "demo", "--device", "cpu", "--overlap", "0"]
DIFFER = {"run.json", "overlay.groovy", "index.html", "summary.csv", "b.error.log"}
"""Files with times or places in them."""

COMMAND = """
import asyncio, sys
import s3fs
from tests.helpers.nets import spot_classifier
from wsi_saliency.cli import main
from wsi_saliency.models import loading

put_file = s3fs.S3FileSystem._put_file

async def hold(self, lpath, rpath, **how):
    if rpath.endswith("tiles.csv"):
        print("holds", flush=True)
        await asyncio.sleep(600)
    await put_file(self, lpath, rpath, **how)

if sys.argv[1] == "hold":
    s3fs.S3FileSystem._put_file = hold
    loading._load = lambda uri, weights: spot_classifier(64)
elif sys.argv[1] == "spots":
    loading._load = lambda uri, weights: spot_classifier(64)
del sys.argv[1]
if __name__ == "__main__":
    main()
"""


def started(folder, how, *arguments):
    (folder / "command.py").write_text(COMMAND)
    return subprocess.Popen(
        [sys.executable, "command.py", how, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(folder, how, *arguments):
    process = started(folder, how, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out.splitlines(), err.splitlines()


def files(place):
    if hasattr(place, "fs"):
        place.fs.invalidate_cache()
    return {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def slides(tmp_path):
    for name in "ac":
        write_svs(tmp_path / f"{name}.svs", [PICTURE])
    (tmp_path / "b.svs").touch()
    return tmp_path


def assert_same(folder, url):
    expected, there = files(folder), files(located(url))
    assert set(there) == set(expected)
    for name in expected:
        if name.rpartition("/")[2] not in DIFFER:
            assert there[name].read_bytes() == expected[name].read_bytes(), name


def assert_zarr_reads_it(url, folder):
    """In a process of its own: zarr leaves its connections open."""
    code = "import sys, zarr; print(zarr.open(sys.argv[1], mode='r', storage_options={})['0'][:].tolist())"
    read = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    np.testing.assert_array_equal(json.loads(read.stdout), zarr.open(folder, mode="r")["0"][:])


def assert_links_lead_somewhere(place):
    """The page has its type, so that browsers show it, and what it names is there."""
    page = place / "index.html"
    facts = page.fs.call_s3("head_object", Bucket=page.parts[0].strip("/"), Key="maps/index.html")
    assert facts["ContentType"] == "text/html"
    links = {unquote(link) for link in re.findall(r'(?:href|src)="\./([^"#]+)"', page.read_text())}
    of_a = {f"a/{name}" for name in ("report.html", "tiles.csv", "run.json", "overview.png")}
    assert of_a <= links <= set(files(place))


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_results_in_a_bucket_are_those_in_a_folder(slides, bucket, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    command = ["run", "a.svs", "b.svs", "c.svs", *OPTIONS]
    where = ["-o", f"{bucket}/maps", "--work", "work"]
    code, out, err = done(slides, "real", *command, *where, "--engine", engine)
    assert code == 1
    assert sorted(line.rpartition("→ ")[2] for line in out) == [f"{bucket}/maps/{name}" for name in "ac"]
    assert err[-2:] == ["Error: 1 of 3 slides failed:", "  b.svs: the file is empty"]
    assert len(err) == 4  # with the warning of the classifier, and that of the slide
    assert done(slides, "real", *command, "-o", "folder")[0] == 1
    assert_same(slides / "folder", f"{bucket}/maps")
    assert not (slides / "work").exists()
    assert_zarr_reads_it(f"{bucket}/maps/a/saliency.ome.zarr", slides / "folder" / "a" / "saliency.ome.zarr")
    table = located(f"{bucket}/maps/summary.csv").read_text()
    assert [line.split(",")[:2] for line in table.splitlines()[1:]] == [
        ["a.svs", "complete"],
        ["b.svs", "failed"],
        ["c.svs", "complete"],
    ]
    assert_links_lead_somewhere(located(f"{bucket}/maps"))


ENDS = [
    ("SIGTERM", 143),
    pytest.param("SIGINT", 130, marks=pytest.mark.slow),
    pytest.param("SIGKILL", -9, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("sent", "code"), ENDS)
def test_what_ends_in_the_middle_of_an_upload_is_no_result_and_is_gone_on_with(slides, bucket, sent, code):
    command = ["run", "a.svs", *OPTIONS, "--layer", "8", "-o", f"{bucket}/maps", "--work", "work"]
    program = started(slides, "hold", *command)
    assert program.stdout.readline() == "holds\n"
    program.send_signal(getattr(signal, sent))
    _, err = program.communicate(timeout=60)
    assert program.returncode == code
    if code > 0:
        assert "goes on with 1 slide that is half done" in err
    assert "a/run.json" not in files(located(f"{bucket}/maps"))
    assert [path.name for path in (slides / "work").rglob("run.json")] == ["run.json"]
    code, (line,), _ = done(slides, "spots", *command)
    assert code == 0
    assert line.endswith(f"→ {bucket}/maps/a")
    there = files(located(f"{bucket}/maps"))
    assert "a/run.json" in there
    assert [name for name in there if not name.startswith("a/")] == []
    assert list((slides / "work").glob("*")) == []
