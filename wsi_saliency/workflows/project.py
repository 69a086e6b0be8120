"""Finished results in a QuPath project: the scripts that put them there, and remembering which they are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_saliency.errors import OutputError
from wsi_saliency.files import check_folder, locked, replacing, writing
from wsi_saliency.heatmap.qupath import write_project
from wsi_saliency.heatmap.result import RUN_JSON, Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

KNOWN = "wsi-saliency.json"
"""Which results a project has, in the project's folder."""


def extend_project(project: Path, outs: Sequence[Path], *, tiles: bool = True) -> list[Result]:
    """Write the scripts of a QuPath project, for results and those that the project has already.

    Parameters
    ----------
    project
        The project's folder; it is made, or has a project in it.
    outs
        Folders of results, or folders that have such in them.
    tiles
        Whether patches are put into the project too.

    Returns
    -------
    The results of the project.

    Raises
    ------
    OutputError
        If there is no result in one of the folders, or the project cannot be written.
    """
    given = [result for out in outs for result in find_results(out)]
    check_folder(project, "-p")
    with writing(project, option="-p"):
        project.mkdir(parents=True, exist_ok=True)
    with locked(project / KNOWN, "file"):
        results = {result.home: result for result in [*_known(project), *given]}
        write_project(project, list(results.values()), tiles=tiles)
        with replacing(project / KNOWN) as growing:
            growing.write_text(json.dumps([str(home) for home in results], indent=2) + "\n", encoding="utf-8")
    return list(results.values())


def find_results(out: Path) -> list[Result]:
    """Return the complete results in a folder, itself or below, by name.

    Raises
    ------
    OutputError
        If there is none, or one is of another version of the program.
    """
    found = list(_results(record.parent for record in sorted(out.rglob(RUN_JSON))))
    if not found:
        raise OutputError(f"{out}: holds no complete result; make one with wsi-saliency run")
    for result in found:
        assert result.maps  # or it says that it is of another version
    return found


def _known(project: Path) -> Iterator[Result]:
    """Yield the results that a project has; says which are gone."""
    try:
        folders = [Path(text) for text in json.loads((project / KNOWN).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"{project / KNOWN}: cannot be read ({error}); remove it, and name all results again"
        ) from error
    there = {result.home: result for result in _results(folders)}
    for folder in folders:
        if folder not in there:
            log.warning("%s: no longer a complete result; left out", folder)
    yield from there.values()


def _results(folders: Iterator[Path] | list[Path]) -> Iterator[Result]:
    return (result for folder in folders if (result := Result.read(folder)) is not None)
