"""A small real HTTP server before another one: it answers what a rule says, and forwards the rest.

It notes every request. Without an upstream it is a server of its own; asked for whole URLs, as a
proxy is, it forwards them to where they point.
"""

import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "content-length"}


class Asked(NamedTuple):
    """A request as it came; the names of its headers in lower case."""

    method: str
    path: str
    headers: dict
    body: bytes


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: dict = {}  # noqa: RUF012


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms otherwise

    def _answer(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        asked = Asked(self.command, self.path, headers, body)
        self.server.front.asked.append(asked)
        answer = self.server.front.rule(asked) or _forwarded(asked, self.server.front.upstream)
        with contextlib.suppress(ConnectionError):
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _answer

    def log_message(self, *_):
        pass


def _forwarded(asked, upstream):
    if not asked.path.startswith("/"):
        url = urlsplit(asked.path)
        upstream = f"http://{url.netloc}"
        asked = asked._replace(path=url._replace(scheme="", netloc="").geturl())
    if upstream is None:
        return Answer(404, b"nothing here")
    connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
    try:
        headers = {k: v for k, v in asked.headers.items() if k not in HOP_BY_HOP}
        connection.request(asked.method, asked.path, asked.body or None, headers)
        response = connection.getresponse()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP}
        return Answer(response.status, response.read(), kept)
    finally:
        connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # of 5, a burst of connections loses some

    def handle_error(self, *_):
        """Say nothing: clients that end hang up on us."""


class Front:
    """Serves at `url` until the `with` block ends; `asked` holds every request so far."""

    def __init__(self, upstream=None, rule=lambda asked: None):
        self.upstream, self.rule, self.asked = upstream, rule, []

    def __enter__(self):
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.front = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
