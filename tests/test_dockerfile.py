from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch

from tests.helpers.paths import ROOT


def instructions():
    """Return the Dockerfile's instructions as (name, arguments), continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, rest in (line.split(maxsplit=1) for line in lines)]


def copied():
    """Files that are copied from the checkout."""
    for name, rest in instructions():
        words = shlex.split(rest)
        if name in ("COPY", "ADD") and not any(word.startswith("--from") for word in words):
            yield from words[:-1]


def test_every_copied_file_exists_and_is_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert list(copied())
    for path in copied():
        assert (ROOT / path).exists(), path
        assert any(fnmatch(path, pattern) for pattern in kept), path


def test_base_is_an_argument_and_every_stage_uses_it():
    names = instructions()
    assert names[0][0] == "ARG"
    assert names[0][1].startswith("BASE=")
    assert all(rest.startswith("${BASE}") for name, rest in names if name == "FROM")


def test_runs_as_an_ordinary_user_with_the_command_as_its_entry_point():
    last = dict(instructions())
    assert last["USER"] not in ("root", "0")
    assert json.loads(last["ENTRYPOINT"]) == ["wsi-saliency"]


def test_only_known_instructions():
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} <= known
