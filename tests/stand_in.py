"""One HTTP server for all tests: stands alone or before a real server, and fails as its rules say.

    with StandIn(emulator, Rule("GET .*alt=media", "503", times=2)) as storage:
        ...                      # at storage.url; storage.asked has every request so far

A rule has a pattern that searches "METHOD /path?query" and what happens to the requests it finds:

    "503", "429", any status    answers so and forwards nothing; 429 asks for Retry-After
    "reset"                     resets the connection and forwards nothing
    "truncate"                  forwards, then ends in the middle of the answer
    "delay"                     waits delay_s, then forwards
    "hold"                      waits until release() is called, then forwards
    "flip"                      flips one bit of the file that is sent or received
    "lost"                      forwards, and resets the connection instead of answering
    "kept"                      forwards, and keeps the answer until release() is called
    "kill-before", "kill-after" kills the process `victim`, before or after forwarding; resets
    Answer(200, ...)            this answer; nothing is forwarded
    [b"...", b"..."]            these bytes as they are, delay_s apart; then the connection ends
    None                        nothing: the next rule may find the request
    a function                  is called with the request and returns one of the above

A function in the place of a rule is called with every request. Answers in JSON are never flipped:
nothing in the protocol could tell, and TLS does that part. Asked for whole URLs, as a proxy is, the
server forwards to where they point. It can be started by hand, too:

    python -m tests.stand_in http://127.0.0.1:9023 --share 0.1 --kinds 503,reset,flip --seed 1
"""

import argparse
import collections
import contextlib
import http.client
import json
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

KINDS = ("503", "429", "reset", "truncate", "delay", "flip", "lost")
DELAY_S = 0.2
UPSTREAM_TIMEOUT_S = 60
FRAMING = {"transfer-encoding", "content-length"}
HOP_BY_HOP = {"connection", "proxy-connection", "keep-alive", *FRAMING}


@dataclass(eq=False)
class Asked:
    """A request as it came; the names of its headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float  # time.monotonic()
    fault: str = ""  # what was done to it

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def is_file(self) -> bool:
        """Whether the body is (a chunk of) a file on its way into a bucket."""
        whole = "uploadType=media" in self.path or "uploadType=multipart" in self.path
        return whole or (self.method == "PUT" and "upload_id=" in self.path)

    def file(self) -> tuple[int, int]:
        """Where in the body the file is: of a multipart body in its second part."""
        if "uploadType=multipart" not in self.path:
            return 0, len(self.body)
        first_part = self.body.index(b"\r\n\r\n") + 4
        return self.body.index(b"\r\n\r\n", first_part) + 4, self.body.rindex(b"\r\n--")


class Answer(NamedTuple):
    """An answer; a body that is neither bytes nor text is sent as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = {}  # noqa: RUF012

    def content(self) -> tuple[bytes, dict[str, str]]:
        """The bytes of the body, and the headers."""
        if isinstance(self.body, bytes):
            return self.body, self.headers
        if isinstance(self.body, str):
            return self.body.encode(), {"Content-Type": "text/html; charset=utf-8", **self.headers}
        kind = {"Content-Type": "application/json", **self.headers}
        return json.dumps(self.body).encode(), kind


@dataclass(frozen=True, eq=False)
class Rule:
    """Which requests, what happens to them, how often."""

    pattern: str
    what: Any
    times: float = float("inf")
    after: int = 0  # requests that pass before the first fault


def in_order(*whats: Any) -> Callable[[Asked], Any]:
    """One thing after the other happens to the requests; the last one stays."""
    left = iter(whats[:-1])
    return lambda asked: next(left, whats[-1])


class StandIn:
    """Serves at `url` until the `with` block ends; `share` of the requests fail in one of `kinds`.

    `rules` come first; both can be changed while it runs. Without an upstream, what no rule
    answers is a 404.
    """

    def __init__(
        self,
        upstream: str | None = None,
        *rules: Rule | Callable[[Asked], Any],
        share: float = 0.0,
        kinds: tuple[str, ...] | list[str] = KINDS,
        seed: int = 0,
        retry_after: str = "0",
        delay_s: float = DELAY_S,
    ) -> None:
        self.upstream, self.rules = upstream, list(rules)
        self.share, self.kinds = share, kinds
        self.retry_after, self.delay_s = retry_after, delay_s
        self.victim: Any = None
        self.asked: list[Asked] = []
        self.ended = False
        self.holding = threading.Event()  # a request is held, or was
        self._random = random.Random(seed)
        self._matched: collections.Counter[Rule] = collections.Counter()
        self._lock = threading.Lock()
        self._released = threading.Event()

    @property
    def counts(self) -> collections.Counter[str]:
        """How many requests got which fault."""
        return collections.Counter(asked.fault for asked in self.asked)

    def requests(self, pattern: str) -> list[Asked]:
        """The requests that a pattern finds."""
        return [asked for asked in self.asked if re.search(pattern, str(asked))]

    def release(self) -> None:
        """Forward the requests that are held, and drop the rules that hold others."""
        self.rules = [rule for rule in self.rules if getattr(rule, "what", "") != "hold"]
        self._released.set()
        self._released = threading.Event()

    def hold(self) -> None:
        """Keep a request until the requests that are held may go on."""
        released = self._released
        self.holding.set()
        released.wait()

    def flipped(self, body: bytes) -> bytes:
        if not body:
            return body
        at = self._random.randrange(len(body))
        return body[:at] + bytes([body[at] ^ 1 << self._random.randrange(8)]) + body[at + 1 :]

    def kill(self) -> None:
        if self.victim:
            self.victim.kill()

    def happens(self, asked: Asked) -> Any:
        """What is to happen to this request, and None for nothing."""
        for rule in list(self.rules):
            what = None
            if not isinstance(rule, Rule):
                what = rule(asked)
            elif re.search(rule.pattern, str(asked)):
                with self._lock:
                    self._matched[rule] += 1
                    number = self._matched[rule]
                if rule.after < number <= rule.after + rule.times:
                    what = rule.what(asked) if callable(rule.what) else rule.what
            if what is not None:
                return what
        with self._lock:
            if self.share and self._random.random() < self.share:
                return self._random.choice(self.kinds)
        return None

    def __enter__(self) -> "StandIn":
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stand_in = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # of 5, a burst of connections loses some
    stand_in: StandIn

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Without the shutdown of the library, which says goodbye before a reset."""
        self.connections.discard(request)
        self.close_request(request)

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that end hang up on us."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms otherwise
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        stand_in = self.server.stand_in
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, self._body(headers), time.monotonic())
        stand_in.asked.append(asked)
        what = stand_in.happens(asked)
        if isinstance(what, str):
            asked.fault = what
            if what.isdecimal():
                retry = {"Retry-After": stand_in.retry_after} if what == "429" else {}
                what = Answer(int(what), b"fault", retry)
        if isinstance(what, Answer):
            self._send(what)
        elif what is None or isinstance(what, str):
            self._go_on(asked, what)
        else:
            self.close_connection = True
            for piece in what:
                self.wfile.write(piece)
                if stand_in.ended:
                    break
                time.sleep(stand_in.delay_s)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _answer

    def _go_on(self, asked: Asked, fault: str | None) -> None:
        """Forward a request and answer it, but for what a fault does before, within and after."""
        stand_in = self.server.stand_in
        if fault == "kill-before":
            stand_in.kill()
        if fault in ("reset", "kill-before"):
            return self._reset()
        if fault == "delay":
            time.sleep(stand_in.delay_s)
        if fault == "hold":
            stand_in.hold()
        if stand_in.ended:
            return self._reset()
        body = asked.body
        if fault == "flip" and asked.is_file():
            start, end = asked.file()
            body = body[:start] + stand_in.flipped(body[start:end]) + body[end:]
        answer = forwarded(asked, body, stand_in.upstream)
        if fault == "kill-after":
            stand_in.kill()
        if fault == "kept":
            stand_in.hold()
        if answer is None or fault in ("lost", "kill-after"):
            return self._reset()
        if fault == "flip" and "alt=media" in asked.path and not _is_json(answer):
            answer = answer._replace(body=stand_in.flipped(answer.body))
        self._send(answer, cut=fault == "truncate")

    def _send(self, answer: Answer, cut: bool = False) -> None:
        body, headers = answer.content()
        head = f"HTTP/1.1 {answer.status} {self.responses.get(answer.status, ('Status',))[0]}\r\n"
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            head += f"{name}: {value}\r\n"
        data = f"{head}\r\n".encode() + body * (self.command != "HEAD")
        if cut:
            data = data[: len(data) - max(1, len(body) // 2)]
            self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def _reset(self) -> None:
        """End the connection with RST: what a crashed peer or a firewall does."""
        linger = struct.pack("ii", 1, 0)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def forwarded(asked: Asked, body: bytes, upstream: str | None) -> Answer | None:
    """The upstream's answer to a request with this body; None where it gives none."""
    path = asked.path
    if not path.startswith("/"):
        url = urlsplit(path)
        upstream, path = f"http://{url.netloc}", url._replace(scheme="", netloc="").geturl()
    if upstream is None:
        return Answer(404, b"nothing here")
    connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=UPSTREAM_TIMEOUT_S)
    try:
        headers = {k: v for k, v in asked.headers.items() if k not in HOP_BY_HOP}
        connection.request(asked.method, path, body or None, headers)
        response = connection.getresponse()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP}
        return Answer(response.status, response.read(), kept)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _is_json(answer: Answer) -> bool:
    kinds = [value for name, value in answer.headers.items() if name.lower() == "content-type"]
    return any(kind.startswith("application/json") for kind in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description="A server before another one that makes it fail.")
    parser.add_argument("upstream")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    with StandIn(options.upstream, share=options.share, kinds=kinds, seed=options.seed) as server:
        print(server.url, flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: print(dict(server.counts)) or exit())
        signal.pause()


if __name__ == "__main__":
    main()
