"""Code blocks of the documentation, and which of them say that they are not run.

A block is run unless ``<!-- not run: reason -->`` stands in the line above it; pages do not show the comment.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [page for page in PAGES if page.name != "CONTRIBUTING.md"]  # whose commands are about this checkout
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A code block of a page; ``not_run`` says why, or is None."""

    page: Path
    language: str
    text: str
    not_run: str | None

    @property
    def commands(self) -> list[str]:
        """What stands behind the prompts, without comments."""
        lines = [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]
        return [shlex.join(shlex.split(line, comments=True)) for line in lines]


def blocks(language: str | None = None, pages: list[Path] = PAGES) -> list[Block]:
    """All code blocks of some pages, or those in one language, in order."""
    return [
        Block(page, found["language"], found["text"], found["reason"])
        for page in pages
        for found in _BLOCK.finditer(page.read_text())
        if language in (None, found["language"])
    ]


def to_run(language: str, page: Path | None = None) -> list[Block]:
    """Those blocks that are run, of all pages or one."""
    return [b for b in blocks(language, [page] if page else RUN) if b.not_run is None]
