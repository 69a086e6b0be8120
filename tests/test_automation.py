"""What checks the project: make targets, the hooks of a commit, and the runs elsewhere, all of one mind."""

from __future__ import annotations

import re
import subprocess
import tomllib

import yaml

from tests.helpers.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]


def made_by(job):
    """The make targets of a job, those of its matrix among them."""
    commands = [step["run"] for step in job["steps"] if step.get("run", "").startswith("make ")]
    named = {target for command in commands for target in command.split()[1:] if target in TARGETS}
    return named | set(job.get("strategy", {}).get("matrix", {}).get("target", []))


def test_what_has_to_hold_before_landing_is_run_elsewhere_too():
    before_landing = set(re.findall(r"^step .* make (\S+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert before_landing
    assert made_by(JOBS["check"]) == before_landing <= TARGETS
    assert (
        made_by(JOBS["weekly"]) | made_by(JOBS["dist"])
        == {"test-all", "test-lowest", "coverage", "dist"} & TARGETS
    )


def test_every_python_that_the_package_names_is_tested():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [c.split(" :: ")[-1] for c in named if re.search(r":: Python :: 3\.", c)]
    assert JOBS["check"]["strategy"]["matrix"]["python"] == versions


def test_hooks_of_a_commit_are_the_tools_of_the_make_targets():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in local["hooks"]:
        tool = hook["entry"].removesuffix(" --force-exclude").removeprefix(".venv/bin/")
        assert f"$(BIN)/{tool}" in MAKEFILE


def test_make_says_all_its_targets_are_no_files():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == TARGETS


def test_make_understands_its_file():
    """And knows how to come to each target."""
    for target in TARGETS:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
