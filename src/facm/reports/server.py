"""The page of a run on this machine alone, made anew whenever it is loaded."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from facm.core.terminal import say
from facm.reports.history import read_history
from facm.reports.page import report

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")
"""Names under which a browser may ask, so that no other page can by a name of its own that leads here."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def serving(paths: Sequence[Path], port: int, seconds: float) -> ThreadingHTTPServer:
    """A server of the page at ``port``, 0 for any free one; ``serve_forever`` starts it.

    Raises ValueError for a port that cannot be, or is in use, and what :func:`read_history` raises.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port = {port}, expected one within [0, 65535], 0 for any free one")
    for path in paths:
        read_history(path)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in HOSTS:
                self.send_error(403)
            elif self.path != "/":
                self.send_error(404)
            else:
                try:
                    text = report([read_history(path) for path in paths], seconds).encode()
                except (OSError, ValueError, RuntimeError) as error:
                    self.send_error(500, explain=str(error))
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: each load is not of interest."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Page)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        what = "is in use" if error.errno == errno.EADDRINUSE else "is not allowed"
        raise ValueError(f"port = {port} {what}: expected a free one, or 0 for any") from error


def serve(paths: Sequence[Path], port: int, seconds: float) -> None:
    """Serve the page until Ctrl-C, and say where."""
    with serving(paths, port, seconds) as server:
        say(f"http://localhost:{server.server_address[1]}/ shows it, on this machine alone; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the way to leave
            return
