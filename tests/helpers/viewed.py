"""Results with a slide, and the page that shows them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from tests.helpers.results import Planted
from tests.helpers.slides import pyramid, write_svs
from wsi_saliency.heatmap.result import RUN_JSON, Result
from wsi_saliency.viewer.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from http.client import HTTPResponse
    from pathlib import Path

    from wsi_saliency.viewer.site import Site

CELLS = 112, 160  # rows and columns that cover a slide of `Planted`'s size, and more


def planted(
    folder: Path,
    rgb: np.ndarray,
    maps: Sequence[np.ndarray],
    tiles: Sequence[tuple[Sequence[float], Sequence[float], Sequence[float]]] = (),
    how: Planted | None = None,
) -> Result:
    """Write a slide, (h, w, 3) uint8, and a result beside it that knows where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    how = replace(how or Planted(), slides=str(folder))
    slide = write_svs(folder / how.name, pyramid(rgb, (1, 4)))
    made = how.write(folder / "result", maps, tiles)
    facts = made.record["slide"] | {"bytes": slide.stat().st_size}
    (made.folder / RUN_JSON).write_text(json.dumps(made.record | {"slide": facts}))
    result = Result.read(made.folder)
    assert result is not None
    return result


@contextmanager
def served(site: Site) -> Iterator[Server]:
    """Serve a site from a thread of its own."""
    with Server(site) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    """Ask a server for a path as it stands, and return the reply with its body."""
    connection = HTTPConnection(*server.server_address[:2], timeout=60)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


def spot(cell_x: int, cell_y: int, value: float = 1.0, background: float = 0.0) -> np.ndarray:
    """A map (1, h, w) of one strong cell."""
    values = np.full((1, *CELLS), background, np.float32)
    values[0, cell_y, cell_x] = value
    return values
