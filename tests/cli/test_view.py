from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.helpers.commands import left, only_line
from tests.helpers.paths import ROOT
from tests.helpers.results import SIZE
from tests.helpers.slides import noise
from tests.helpers.viewed import planted, spot


@pytest.fixture
def result(tmp_path):
    return planted(tmp_path / "slides", noise(SIZE.h, SIZE.w), [spot(3, 3)])


def test_it_serves_until_ctrl_c_without_torch(result, tmp_path):
    script = (
        "import sys\nfrom wsi_saliency.cli import cli\n"
        f"try: cli(['view', {str(result.folder)!r}, '--no-open'])\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:
        line = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/)([\w-]+)/  \(Ctrl-C ends it\)\n", line)
        assert found, process.stderr.read()
        try:
            with urlopen(f"{found[1]}{found[2]}/", timeout=60) as page:
                assert b"openseadragon" in page.read()
            with pytest.raises(HTTPError, match="403"):
                urlopen(f"{found[1]}wrong/", timeout=60)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == "Ended.\n"


def test_a_folder_without_results_is_refused(call, tmp_path):
    assert "holds no complete result" in only_line(call("view", tmp_path, "--no-open"))


def test_a_slide_is_for_a_single_result(call, result, tmp_path):
    planted(tmp_path / "slides" / "more", noise(SIZE.h, SIZE.w), [spot(3, 3)])
    done = call("view", tmp_path, "--slide", "s.svs", "--no-open")
    assert done.exit_code == 2
    assert "--slide is for a single result" in done.output


def test_a_slide_that_is_not_there_is_refused(call, result):
    assert (
        only_line(call("view", result.folder, "--slide", "gone.svs", "--no-open")) == "gone.svs: no such file"
    )


@pytest.mark.parametrize("command", [["view"], ["render"], ["qupath", "-p", "project"]])
def test_results_at_a_url_are_to_be_copied_first(call, tmp_path, command):
    result = call(*command, "s3://name:word@bucket/maps")
    assert result.exit_code == 2
    assert "'s3://bucket/maps' is a URL; copy the results to this machine, with all files" in result.stderr
    assert left(tmp_path) == []
