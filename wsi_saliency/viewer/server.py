"""The server of the local page: this machine only, reading only, one token for each start."""

from __future__ import annotations

import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from wsi_saliency.errors import OutputError
from wsi_saliency.viewer.site import FORBIDDEN, POLICY, Answer

if TYPE_CHECKING:
    from wsi_saliency.viewer.site import Site

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_ONLY_READING = Answer(405, body=b"only GET and HEAD\n", headers={"Allow": "GET, HEAD"})
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LASTING = frozenset({"jpg", "f32"})  # kinds whose bytes stay the same while the server runs


class Server(ThreadingHTTPServer):
    """Serves a site on this machine, a thread for each connection.

    Parameters
    ----------
    site
        What is served.
    port
        0 takes any that is free.

    Raises
    ------
    OutputError
        If the port is taken.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int = 0) -> None:
        self.site = site
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OutputError(f"port {port}: cannot be used ({error}); choose another with --port") from error

    @property
    def url(self) -> str:
        """Where the site is, with the token."""
        return f"http://{HOST}:{self.server_address[1]}/{self.site.token}/"

    @property
    def hosts(self) -> frozenset[str]:
        """Names by which a browser may ask: another would be a stranger's page that was led here."""
        return frozenset(f"{name}:{self.server_address[1]}" for name in (HOST, "localhost"))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that hang up."""
        log.debug("a request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "wsi-saliency", ""
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._send(self._answer())

    def do_HEAD(self) -> None:
        self._send(self._answer())

    def _refuse(self) -> None:
        self.close_connection = True  # whatever else was sent is not read
        self._send(_ONLY_READING)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self) -> Answer:
        if self.headers.get("Host") not in self.server.hosts:
            return FORBIDDEN
        return self.server.site.answer(self.path)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        lasting = answer.status == 200 and answer.kind in _LASTING
        headers = _HEADERS | {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Cache-Control": "private, max-age=3600" if lasting else "no-store",
        }
        for name, value in (headers | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug(format, *args)
