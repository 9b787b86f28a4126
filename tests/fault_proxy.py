"""A proxy before a real server that makes requests fail: for tests, on the loopback only.

    python -m tests.fault_proxy http://127.0.0.1:9023 --share 0.1 --kinds 503,reset,flip --seed 1

prints its own address and serves until it is ended; in tests `FaultProxy` runs it in a thread. What
it can do to a request:

    503, 429, any other status   answers so and forwards nothing; 429 asks for Retry-After
    reset                        resets the connection and forwards nothing
    truncate                     forwards, then ends in the middle of the answer
    delay                        waits DELAY_S, then forwards
    hold                         waits until release() is called, then forwards
    flip                         flips one bit of the file that is sent or received
    lost                         forwards, and resets the connection instead of answering
    kill-before, kill-after      kills the process `victim`, before or after forwarding; resets

Answers in JSON are never flipped: nothing in the protocol could tell, and TLS does that part.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

KINDS = ("503", "429", "reset", "truncate", "delay", "flip", "lost")
DELAY_S = 0.2
UPSTREAM_TIMEOUT_S = 60


class Rule(NamedTuple):
    """The requests whose "METHOD /path?query" a pattern finds, what happens to them, how often."""

    pattern: str
    kind: str
    times: float = float("inf")
    after: int = 0  # requests that pass before the first fault


class Seen(NamedTuple):
    """One request and what was done to it; "" if nothing was."""

    method: str
    target: str
    fault: str
    at: float  # time.monotonic()


class Message(NamedTuple):
    """A request or an answer: its first line, its headers as they came, its body."""

    first: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


class FaultProxy:
    """A proxy in a thread; a context manager. `share` of the requests fail in one of `kinds`.

    `rules` come first; both can be changed while it runs. `seen` is every request, in order;
    `counts` how many of them got which fault.
    """

    def __init__(
        self,
        upstream: str,
        *,
        share: float = 0.0,
        kinds: Sequence[str] = KINDS,
        rules: Sequence[Rule] = (),
        seed: int = 0,
        retry_after: str = "0",
        delay_s: float = DELAY_S,
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.share, self.kinds, self.rules = share, tuple(kinds), list(rules)
        self.retry_after, self.delay_s = retry_after, delay_s
        self.victim: subprocess.Popen[str] | None = None
        self.seen: list[Seen] = []
        self._random = random.Random(seed)
        self._matched: collections.Counter[Rule] = collections.Counter()
        self._started = threading.Event()

    @property
    def counts(self) -> collections.Counter[str]:
        return collections.Counter(seen.fault for seen in self.seen)

    def release(self) -> None:
        """Forward the requests that are held, and drop the rules that hold others."""
        self.rules = [rule for rule in self.rules if rule.kind != "hold"]
        self._loop.call_soon_threadsafe(self._forward_held)

    def _forward_held(self) -> None:
        self._released.set()
        self._released: asyncio.Event = asyncio.Event()

    def requests(self, pattern: str) -> list[Seen]:
        """The requests that a pattern finds."""
        return [seen for seen in self.seen if re.search(pattern, f"{seen.method} {seen.target}")]

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end, self._released = asyncio.Event(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._end.wait()
        server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
        await asyncio.sleep(0)  # aborted transports close their sockets

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while request := await _read(reader):
                    if not await self._answer(request, writer):
                        break
        except asyncio.CancelledError:  # asyncio.streams would log it
            if not self._end.is_set():
                raise
        finally:
            if self._end.is_set():
                writer.transport.abort()  # nobody reads what is left to send
            else:
                writer.close()

    def _fault(self, request: Message) -> str:
        """What is to happen to this request; "" for nothing."""
        line = " ".join(request.first.split()[:2])
        for rule in self.rules:
            if re.search(rule.pattern, line):
                self._matched[rule] += 1
                if rule.after < self._matched[rule] <= rule.after + rule.times:
                    return rule.kind
        if self.share and self._random.random() < self.share:
            return self._random.choice(self.kinds)
        return ""

    async def _answer(self, request: Message, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, or not; whether the connection may go on."""
        method, target = request.first.split()[:2]
        fault = self._fault(request)
        self.seen.append(Seen(method, target, fault, time.monotonic()))
        if fault == "kill-before":
            self._kill()
        if fault in ("reset", "kill-before"):
            return _reset(writer)
        if fault.isdecimal():
            headers = [("Retry-After", self.retry_after)] if fault == "429" else []
            writer.write(_bytes(Message(f"HTTP/1.1 {fault} Made to fail", headers, b"fault")))
            return True
        if fault == "delay":
            await asyncio.sleep(self.delay_s)
        if fault == "hold":
            await self._released.wait()
        if fault == "flip" and _is_file(request):
            start, end = _content(request)
            body, content = request.body, self._flipped(request.body[start:end])
            request = request._replace(body=body[:start] + content + body[end:])
        answer = await self._forward(request)
        if fault == "kill-after":
            self._kill()
        if answer is None or fault in ("lost", "kill-after"):
            return _reset(writer)
        if fault == "flip" and "alt=media" in target and not _is_json(answer):
            answer = answer._replace(body=self._flipped(answer.body))
        data = _bytes(answer, with_body=method != "HEAD")
        if fault == "truncate":
            writer.write(data[: len(data) - max(1, len(answer.body) // 2)])
            await writer.drain()
            return False
        writer.write(data)
        await writer.drain()
        return True

    def _kill(self) -> None:
        if self.victim:
            self.victim.kill()

    async def _forward(self, request: Message) -> Message | None:
        """The upstream's answer, on a connection of its own; None where it gives none."""
        host, port = self.upstream.hostname, self.upstream.port
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            return None
        try:
            headers = [pair for pair in request.headers if pair[0].lower() not in HOP_BY_HOP]
            closing = request._replace(headers=[*headers, ("Connection", "close")])
            writer.write(_bytes(closing))
            return await asyncio.wait_for(_read(reader, until_eof=True), UPSTREAM_TIMEOUT_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            return None
        finally:
            writer.transport.abort()

    def _flipped(self, body: bytes) -> bytes:
        if not body:
            return body
        at = self._random.randrange(len(body))
        return body[:at] + bytes([body[at] ^ 1 << self._random.randrange(8)]) + body[at + 1 :]


FRAMING = {"transfer-encoding", "content-length"}
HOP_BY_HOP = {"connection", "keep-alive", *FRAMING}


def _is_json(message: Message) -> bool:
    return message.header("content-type").startswith("application/json")


def _is_file(request: Message) -> bool:
    """Whether the body of a request is (a chunk of) a file on its way into the bucket."""
    method, target = request.first.split()[:2]
    whole = "uploadType=media" in target or "uploadType=multipart" in target
    return whole or (method == "PUT" and "upload_id=" in target)


def _content(request: Message) -> tuple[int, int]:
    """Where in the body of a request the file lies: of a multipart body in its second part."""
    body = request.body
    if "uploadType=multipart" not in request.first:
        return 0, len(body)
    first_part = body.index(b"\r\n\r\n") + 4
    return body.index(b"\r\n\r\n", first_part) + 4, body.rindex(b"\r\n--")


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection with RST: what a crashed peer or a firewall does."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _bytes(message: Message, with_body: bool = True) -> bytes:
    headers = [
        pair for pair in message.headers if pair[0].lower() not in HOP_BY_HOP - {"connection"}
    ]
    headers.append(("Content-Length", str(len(message.body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"{message.first}\r\n{head}\r\n".encode("latin-1") + message.body * with_body


async def _read(reader: asyncio.StreamReader, until_eof: bool = False) -> Message | None:
    """The next message; None at the end of the connection."""
    first = (await reader.readline()).decode("latin-1").rstrip()
    if not first:
        return None
    headers = []
    while line := (await reader.readline()).decode("latin-1").rstrip():
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    message = Message(first, headers, b"")
    if message.header("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    elif length := message.header("content-length"):
        has_none = until_eof and " 304 " in first
        body = b"" if has_none else await _exactly(reader, int(length), until_eof)
    else:
        body = await reader.read() if until_eof else b""
    return message._replace(body=body)


async def _exactly(reader: asyncio.StreamReader, size: int, until_eof: bool) -> bytes:
    """`size` bytes; of an answer fewer, if it ends before (to HEAD it has no body)."""
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        if until_eof and not error.partial:
            return b""
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description="A proxy that makes requests fail.")
    parser.add_argument("upstream")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with FaultProxy(
        arguments.upstream,
        share=arguments.share,
        kinds=arguments.kinds.split(","),
        seed=arguments.seed,
    ) as proxy:
        print(proxy.url, flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: print(dict(proxy.counts)) or exit())
        signal.pause()


if __name__ == "__main__":
    main()
