"""What the documentation shows must exist: commands, options, names, links."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

import wsi_saliency
from tests.helpers.documents import PAGES, blocks
from tests.helpers.paths import ROOT, SAMPLE
from wsi_saliency.cli import cli
from wsi_saliency.settings import ATTRIBUTIONS, METHODS

COMMANDS = [shlex.split(command) for block in blocks("console") for command in block.commands]


@pytest.mark.parametrize("words", [words[1:] for words in COMMANDS if words[0] == "wsi-saliency"])
def test_commands_are_understood(words):
    """Also those that are not run."""
    name, *arguments = words
    cli.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("target", [words[1] for words in COMMANDS if words[0] == "make"])
def test_make_targets_exist(target):
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()


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


def keys_of(record):
    """All keys of nested facts, but those of free tables."""
    for key, value in record.items():
        yield key
        if isinstance(value, dict) and key not in ("settings", "versions", "seconds"):
            yield from keys_of(value)
        for entry in value if isinstance(value, list) else ():
            if isinstance(entry, dict):
                yield from keys_of(entry)


def test_every_key_of_the_record_is_explained(tmp_path):
    settings = wsi_saliency.RunSettings(
        model="demo", overlap=0.0, device="cpu", hotspots=2, exports=("dicom",)
    )
    result = wsi_saliency.explain_slide(SAMPLE, tmp_path / "result", settings)
    text = (ROOT / "docs/results-folder.md").read_text()
    common = {"x", "y", "w", "h", "unit"}
    assert [key for key in keys_of(result.record) if f"`{key}`" not in text and key not in common] == []
    assert {file.name for file in result.folder.iterdir()} == set(
        re.findall(r"`([a-z]+\.[a-z.]+)`", files_in(text))
    )


def files_in(text):
    return text[text.index("## Files") : text.index("## tiles.csv")]


def pages_in(nav):
    """Pages of a navigation, which may be nested."""
    for entry in nav:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from pages_in(target) if isinstance(target, list) else [target]


def test_the_site_leads_to_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages_in(site["nav"])) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs/reference.md").read_text()
    public = [getattr(wsi_saliency, name) for name in wsi_saliency.__all__]
    homes = sorted(f"{named.__module__}.{named.__name__}" for named in public)
    assert sorted(re.findall(r"^::: (\S+)$", text, re.M)) == homes
