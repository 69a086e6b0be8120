"""Pages in tests: their structure, and what a headless Chromium makes of them; skips where there is none."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'\x01\udcff.svs"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "input", "br", "hr", "link"}

# Runs before anything else of the page, and collects all that goes wrong.
WATCH = """<script>
window.failures = [];
addEventListener("error", (event) => failures.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => failures.push(event.violatedDirective));
for (const level of ["error", "warn"]) console[level] = (...words) => failures.push(words.join(" "));
window.alert = () => failures.push("alert");
</script>"""

WIDTHS = (1280, 1024, 768, 600, 400)

# Shows the page at each width, and writes down how wide it has become.
MEASURE = """<!DOCTYPE html><body><script>
const page = PAGE, found = {};
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.srcdoc = page;
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    const boxes = [...root.querySelectorAll(".scroll, .picture")];
    const stiff = boxes.filter((box) => getComputedStyle(box).overflowX !== "auto").length;
    found[width] = { scroll: root.scrollWidth, client: root.clientWidth, boxes: boxes.length, stiff };
    if (Object.keys(found).length < WIDTHS.length) return;
    const outcome = document.body.appendChild(document.createElement("pre"));
    outcome.id = "outcome";
    outcome.textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""


def browser(profile: Path) -> list[str]:
    """Start of a command that runs a browser without a window; the test is skipped where there is none."""
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    return [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]


def browsed(page: str, path: Path) -> dict[str, Any]:
    """Open a page in a browser, and return what its script has written down."""
    command = browser(path / "profile")
    (path / "index.html").write_text(page, "utf-8")
    command += ["--virtual-time-budget=5000", "--dump-dom", (path / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=240, check=True)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout.decode("utf-8"), re.DOTALL)
    assert found, "the page's scripts did not run to their end"
    return json.loads(html.unescape(found[1]))


def measured(page: str, path: Path) -> dict[int, dict[str, int]]:
    """How wide a page becomes at each of `WIDTHS`, and how many of its boxes do not scroll."""
    script = MEASURE.replace("PAGE", json.dumps(page).replace("</", "<\\/")).replace("WIDTHS", str([*WIDTHS]))
    return {int(width): found for width, found in browsed(script, path).items()}


def watched(page: str, act: str) -> str:
    """Put a page between what collects its failures and a script that uses it."""
    return page.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{act}</body>", 1)


class Structure(HTMLParser):
    """Follows tags: all closed in order; collects ids, references and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.addresses: set[str] = set()
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []

    @classmethod
    def of(cls, page: str) -> Structure:
        parser = cls()
        parser.feed(page)
        parser.close()
        return parser

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open += [tag] * (tag not in VOID)
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.references |= {values[n] for n in ("for", "aria-controls", "aria-labelledby") if n in values}
        self.addresses |= {values[n] for n in ("src", "href", "srcset", "action", "data") if n in values}
        assert not any(name.startswith("on") for name in values)
        assert tag != "img" or values["alt"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
