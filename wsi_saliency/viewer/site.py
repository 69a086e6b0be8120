"""What stands at which address: an address in, an answer out; nothing here knows of sockets.

All addresses begin with a token that nobody can guess. Results are numbered, and files have fixed names, so
no address holds a path.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from threading import Lock
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

from wsi_saliency.errors import WsiSaliencyError
from wsi_saliency.messages import one_line, storable
from wsi_saliency.viewer.shown import Shown, summary, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from wsi_saliency.heatmap.result import Result
    from wsi_saliency.settings import CacheSettings
    from wsi_saliency.urls import Location

log = logging.getLogger(__name__)

_OPEN = 8  # results that are kept open
_KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "json": "application/json",
    "jpg": "image/jpeg",
    "f32": "application/octet-stream",
    "txt": "text/plain; charset=utf-8",
}
_STATIC = ("openseadragon.min.js", "layer.js", "pane.js", "view.js", "index.js", "viewer.css")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int
    kind: str = "txt"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The kind of the body in HTTP's words."""
        return _KINDS[self.kind]


FORBIDDEN, NOT_FOUND = Answer(403, body=b"not allowed\n"), Answer(404, body=b"not found\n")


class Site:
    """The pages of some results; a context manager, which closes their slides.

    Parameters
    ----------
    results
        What is shown.
    slide
        Where the slide of a single result is, if it is not where it was.
    cache
        Settings that name the cache of slides from URLs.

    Raises
    ------
    SlideError
        If ``slide`` cannot be read, or is another one.
    """

    def __init__(
        self, results: Sequence[Result], slide: Location | None = None, cache: CacheSettings | None = None
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._results, self._slide, self._cache = results, slide, cache
        self._open: dict[int, Shown] = {}
        self._lock = Lock()
        self._thumbnail = lru_cache(500)(lambda number: thumbnail(results[number]))
        if slide is not None:
            self._shown(0)

    def answer(self, address: str) -> Answer:
        """Answer a request for an address, such as ``/TOKEN/r/0/facts.json``."""
        path = unquote(urlsplit(address).path)
        _, token, *names = path.split("/") if path.startswith("/") else ("", "")
        right = secrets.compare_digest(token.encode("utf-8", "replace"), self.token.encode())
        if not right or ".." in names or "\\" in path or "\x00" in path:
            return FORBIDDEN
        if not names:
            return Answer(302, headers={"Location": f"/{self.token}/"})
        for pattern, make in _PAGES:
            if found := re.fullmatch(pattern, "/".join(names)):
                return self._made(make, found.groups())
        return NOT_FOUND

    def _made(self, make: Callable[..., Answer], found: tuple[str, ...]) -> Answer:
        try:
            return make(self, *(int(part) if part.isdecimal() else part for part in found))
        except WsiSaliencyError as error:
            log.warning("%s", error)
            return Answer(500, body=one_line(error).encode() + b"\n")

    def close(self) -> None:
        """Close the slides."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _shown(self, number: int) -> Shown:
        """Return an open result; the one that was asked for last is the last to be closed."""
        with self._lock:
            shown = self._open.pop(number, None)
            if shown is None:
                alone = len(self._results) == 1
                shown = Shown(self._results[number], self._slide, alone=alone, cache=self._cache)
            self._open[number] = shown
            if len(self._open) > _OPEN:
                self._open.pop(next(iter(self._open))).close()
        return shown

    def _start(self) -> Answer:
        if len(self._results) == 1:
            return Answer(302, headers={"Location": f"/{self.token}/r/0/"})
        return self._static("index.html")

    def _static(self, name: str) -> Answer:
        return Answer(200, name.rpartition(".")[2], _packaged(name))

    def _list(self) -> Answer:
        told = [
            {
                "folder": storable(result.folder.name),
                "slide": storable(result.record["slide"]["name"]),
                "predictions": summary(result),
            }
            for result in self._results
        ]
        return Answer(200, "json", json.dumps(told).encode())

    def _of(self, number: int, kind: str, make: Callable[[Shown], bytes | None]) -> Answer:
        """Answer with something of a result, if there is such a result, and such a thing of it."""
        body = make(self._shown(number)) if number < len(self._results) else None
        return NOT_FOUND if body is None else Answer(200, kind, body)

    def _view(self, number: int) -> Answer:
        return self._static("view.html") if number < len(self._results) else NOT_FOUND

    def _facts(self, number: int) -> Answer:
        return self._of(number, "json", lambda shown: shown.facts)

    def _small(self, number: int) -> Answer:
        body = self._thumbnail(number) if number < len(self._results) else None
        return NOT_FOUND if body is None else Answer(200, "jpg", body)

    def _picture(self, number: int) -> Answer:
        return self._of(number, "jpg", lambda shown: shown.slide_picture)

    def _slide_tile(self, number: int, *place: int) -> Answer:
        return self._of(number, "jpg", lambda shown: shown.slide_tile(*place))

    def _map_tile(self, number: int, *place: int) -> Answer:
        return self._of(number, "f32", lambda shown: shown.map_tile(*place))


_N = r"(\d{1,7})"
_PAGES: tuple[tuple[str, Callable[..., Answer]], ...] = (
    ("", Site._start),
    (f"static/({'|'.join(map(re.escape, _STATIC))})", Site._static),
    ("results.json", Site._list),
    (f"r/{_N}/", Site._view),
    (f"r/{_N}/facts\\.json", Site._facts),
    (f"r/{_N}/thumbnail\\.jpg", Site._small),
    (f"r/{_N}/slide\\.jpg", Site._picture),
    (f"r/{_N}/slide/{_N}/{_N}_{_N}\\.jpg", Site._slide_tile),
    (f"r/{_N}/map/{_N}/{_N}/{_N}/{_N}_{_N}\\.f32", Site._map_tile),
)


@lru_cache
def _packaged(name: str) -> bytes:
    return (files("wsi_saliency.viewer") / "static" / name).read_bytes()
