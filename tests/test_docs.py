"""What the documentation shows must exist: commands, options, names, links."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

import wsi_saliency
from tests.helpers.paths import ROOT
from wsi_saliency.cli import cli
from wsi_saliency.settings import ATTRIBUTIONS, METHODS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """Code blocks of all pages in a language."""
    return [b for p in PAGES for b in re.findall(rf"```{language}\n(.*?)```", p.read_text(), re.DOTALL)]


def commands():
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [
        line.split("#")[0].removeprefix("$ wsi-saliency ") for line in lines if line.startswith("$ wsi-sal")
    ]


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line):
    name, *arguments = shlex.split(line)
    cli.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_names_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "wsi_saliency"
            assert all(callable(getattr(wsi_saliency, alias.name)) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_method_and_attribution_is_explained():
    text = (ROOT / "docs/methods.md").read_text()
    assert all(f"| `{name}`" in text for name in (*METHODS, *ATTRIBUTIONS))


@pytest.mark.parametrize("name", wsi_saliency.__all__)
def test_public_names_are_documented(name):
    assert getattr(wsi_saliency, name).__doc__
