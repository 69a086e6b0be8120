"""Scripts for QuPath, run by Groovy against stubs with the signatures of QuPath's classes."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsi_saliency.geometry import Size
    from wsi_saliency.heatmap.result import Result

STUBS = ROOT / "tests" / "helpers" / "qupath_stubs"
OPTIONS = "-Dfile.encoding=UTF-8 -Djava.awt.headless=true -XX:TieredStopAtLevel=1"


def java_home() -> str | None:
    """Return where a Java lies that Groovy takes; Debian's wrapper wants to be told."""
    java = shutil.which("java")
    return os.environ.get("JAVA_HOME") or (str(Path(java).resolve().parents[1]) if java else None)


def groovy_starts() -> bool:
    """Whether there is a Groovy that runs."""
    if not shutil.which("groovy") or not (home := java_home()):
        return False
    env = {**os.environ, "JAVA_HOME": home}
    return subprocess.run(["groovy", "--version"], env=env, capture_output=True, check=False).returncode == 0


needs_groovy = pytest.mark.skipif(
    not groovy_starts(), reason="no Groovy to run scripts for QuPath (Debian: apt-get install groovy)"
)


@dataclass(frozen=True)
class Scene:
    """What is open in QuPath when a script is run, and what the user answers.

    Parameters
    ----------
    script
        The script's file.
    open
        Size of the open image; None without one.
    uri
        Of the open image.
    answer
        Which of the choices is taken; None: the dialog is closed.
    confirm
        Answer to a question.
    shown
        Whether an overlay is there already.
    variables
        Of the script.
    picture
        Where to paint what is shown, at full resolution.
    slides
        Sizes of the slides that can be opened, by their paths.
    project_open
        Whether the project of the scene before is open.
    turns
        By how many quarter turns, clockwise, images are shown turned; ``open`` is the size that is seen.
    window
        Whether there is one; a script can be run from a command line, too.
    changes
        Whether another image is opened while the script runs.
    """

    script: Path
    open: Size | None = None
    uri: str = "file:/slides/slide.svs"
    answer: int | None = 0
    confirm: bool = True
    shown: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    picture: Path | None = None
    slides: dict[Path, Size] = field(default_factory=dict)
    project_open: bool = False
    turns: int = 0
    window: bool = True
    changes: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what the stubs read."""
        facts = {**vars(self), "script": str(self.script)}
        facts["open"] = self.open and {**vars(self.open), "uri": self.uri, "turns": self.turns}
        facts["slides"] = {str(path): vars(size) for path, size in self.slides.items()}
        facts["picture"] = self.picture and str(self.picture)
        return facts


@dataclass(frozen=True)
class Played:
    """What a script did: its calls in order, and how it failed."""

    calls: list[dict[str, Any]]
    failure: str | None

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the calls of one name."""
        return [call for call in self.calls if call["call"] == name]

    @property
    def overlay(self) -> dict[str, Any]:
        """The one overlay that was made; it was shown."""
        (overlay,) = self.named("overlay")
        assert self.named("setCustomPixelLayerOverlay")[-1] == {
            "call": "setCustomPixelLayerOverlay",
            "removed": False,
        }
        return overlay

    @property
    def error(self) -> str:
        """The one message of an error; nothing was shown."""
        (message,) = self.named("showErrorMessage")
        assert not self.named("setCustomPixelLayerOverlay")
        return str(message["text"])


class Player:
    """A Groovy that plays scenes for as long as this process lives: to start it takes longest.

    What a test has left in it is that of a fresh one: no image is open, and no project.
    """

    _MARK = "--- played ---"

    def __init__(self) -> None:
        command = ["groovy", "-cp", str(STUBS), str(STUBS / "Play.groovy"), self._MARK]
        env = {**os.environ, "JAVA_HOME": str(java_home()), "JAVA_OPTS": OPTIONS}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen(command, env=env, text=True, encoding="utf-8", **pipes)
        atexit.register(self.end)

    def play(self, asked: Path, told: Path) -> None:
        """Play the scenes of one file; tell of them in the other."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(json.dumps([str(asked), str(told)]) + "\n")
        stdin.flush()
        said = list(itertools.takewhile(lambda line: not line.rstrip().endswith(self._MARK), stdout))
        if self._process.poll() is not None or not told.exists():
            self.end()
            player.cache_clear()
            raise AssertionError("Groovy has ended: " + "".join(said))

    def end(self) -> None:
        """Let it end, whatever it does."""
        self._process.kill()
        self._process.communicate()
        atexit.unregister(self.end)


@functools.cache
def player() -> Player:
    """Return the one of this process."""
    return Player()


def play(folder: Path, scenes: Sequence[Scene]) -> list[Played]:
    """Play scenes, one after another; nothing is open before the first."""
    asked, told = folder / "scenes.json", folder / "played.json"
    told.unlink(missing_ok=True)
    asked.write_text(json.dumps([scene.to_json() for scene in scenes]))
    player().play(asked, told)
    return [Played(**facts) for facts in json.loads(told.read_text(encoding="utf-8"))]


def stand_in(result: Result) -> None:
    """Put values beside the maps of a result that the stub of QuPath's image server can read."""
    for found in result.maps:
        heatmap, file = result.heatmap(found.spec), result.folder / result.files(found.spec).ome_tiff
        values = heatmap.levels[0][:]
        file.with_name(file.name + ".raw").write_bytes(values.astype("<f4").tobytes())
        size = {"w": values.shape[2], "h": values.shape[1]}
        file.with_name(file.name + ".json").write_text(json.dumps(size))
