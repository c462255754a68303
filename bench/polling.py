"""Many clients that wait for images: each has a connection of its own, asks for its image again and again,
and notes how long the answer took.

    python -m bench.polling FILE

FILE is JSON: `host` and `port`, `tokens`, `images` (ids), how many `clients`, and how long each waits between
two questions, `every_s`. They speak just enough HTTP to do so: they share the CPUs with the server, whose
answers are to be measured. The program is ready once all have asked for the first time, begins with a line on
its standard input, and ends with the next one, or with its end.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from bench.measure import Window, gate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_END_OF_HEAD: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_AT_ONCE: Final = 50
"""Connections being made; more would fill the server's backlog."""
_LAST_ANSWER_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class Answers:
    """What came, from all clients together."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    _waiting: int = 0
    _none_waiting: asyncio.Event = field(default_factory=asyncio.Event)

    def asked(self) -> None:
        self._waiting += 1
        self._none_waiting.clear()

    def came(self, status: str, latency_s: float | None) -> None:
        """An answer with an image, or what came instead: then without a time."""
        self.statuses[status] += 1
        if latency_s is not None:
            self.latencies_s.append(latency_s)
        self._waiting -= 1
        if not self._waiting:
            self._none_waiting.set()

    def forget(self) -> None:
        """What came so far."""
        self.latencies_s.clear()
        self.statuses.clear()

    async def all_came(self) -> None:
        """Wait until nobody waits; who waits too long has no answer."""
        if self._waiting:
            try:
                async with asyncio.timeout(_LAST_ANSWER_S):
                    await self._none_waiting.wait()
            except TimeoutError:
                self.statuses["none"] += self._waiting


class Client(asyncio.Protocol):
    """One connection with one question at a time. A connection that breaks is an answer without a status,
    and its client asks no more."""

    def __init__(self, request: bytes, answers: Answers) -> None:
        self._request = request
        self._answers = answers
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._asked_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def ask(self) -> None:
        """Unless it is still waiting: then this question is left out, as by one who sleeps between two."""
        if self._asked_at is None and self._transport is not None:
            self._asked_at = time.monotonic()
            self._answers.asked()
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._came += data
        size = whole_answer(self._came)
        if size is None or self._asked_at is None:
            return
        status = self._came[9:12].decode("ascii", "replace")
        self._answers.came(status, time.monotonic() - self._asked_at if status == "200" else None)
        self._asked_at = None
        del self._came[:size]

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._asked_at is not None:
            self._answers.came("broken", None)
            self._asked_at = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def whole_answer(came: bytes | bytearray) -> int | None:
    """The size of the HTTP answer that these bytes begin with; None while some of it is missing. Raises
    ValueError for one that does not say its length."""
    head = came.find(_END_OF_HEAD)
    if head < 0:
        return None
    for line in bytes(came[:head]).lower().split(b"\r\n"):
        if line.startswith(_LENGTH):
            size = head + len(_END_OF_HEAD) + int(line[len(_LENGTH) :])
            return size if len(came) >= size else None
    raise ValueError(f"an answer without a length: {bytes(came[:200])!r}")


def request_for(*, host: str, image: str, token: str) -> bytes:
    """The question."""
    lines = [
        f"GET /v2/images/{image} HTTP/1.1",
        f"Host: {host}",
        f"X-Auth-Token: {token}",
        "Accept: */*",
        "Connection: keep-alive",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value that this share of all do not exceed."""
    return sorted_values[max(0, math.ceil(len(sorted_values) * share) - 1)]


def told(answers: Answers, seconds: float) -> dict[str, object]:
    """The facts of a run that took so long; times only if there are any."""
    latencies = sorted(answers.latencies_s)
    counts = {
        "statuses": dict(answers.statuses),
        "answers": len(latencies),
        "unanswered": sum(answers.statuses.values()) - len(latencies),
    }
    if not latencies:
        return counts
    return {
        **counts,
        "requests_per_s": round(len(latencies) / seconds, 1),
        "p50_ms": round(percentile(latencies, 0.5) * 1000, 3),
        "p99_ms": round(percentile(latencies, 0.99) * 1000, 3),
        "slowest_ms": round(latencies[-1] * 1000, 3),
    }


async def poll(arguments: Mapping[str, Any]) -> None:
    """Connect, wait for the word, poll, and tell."""
    loop = asyncio.get_running_loop()
    answers = Answers()
    clients = await _connected(arguments, answers)
    try:
        # A connection that says nothing is closed by a server that takes care of itself.
        for client in clients:
            client.ask()
        await answers.all_came()
        answers.forget()
        await asyncio.to_thread(gate)
        with Window() as window:
            end = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
            started, every_s = loop.time(), float(arguments["every_s"])
            pace_s = every_s / len(clients)
            turn = 0
            while not end.done():
                # Spread evenly: who began at some time goes on from there.
                clients[turn % len(clients)].ask()
                turn += 1
                wait_s = started + turn * pace_s - loop.time()
                await asyncio.sleep(max(0.0, wait_s))
            await answers.all_came()
        window.tell(**told(answers, window.wall_s))
    finally:
        for client in clients:
            client.close()


async def _connected(arguments: Mapping[str, Any], answers: Answers) -> list[Client]:
    loop = asyncio.get_running_loop()
    host, port = arguments["host"], arguments["port"]
    tokens, images = arguments["tokens"], arguments["images"]
    room = asyncio.Semaphore(_AT_ONCE)

    async def connect(number: int) -> Client:
        request = request_for(
            host=host, image=images[number % len(images)], token=tokens[number % len(tokens)]
        )
        async with room:
            _, client = await loop.create_connection(lambda: Client(request, answers), host, port)
        return client

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(connect(number)) for number in range(arguments["clients"])]
    return [task.result() for task in tasks]


if __name__ == "__main__":
    # A file, because it holds tokens.
    with open(sys.argv[1]) as file:
        asyncio.run(poll(json.load(file)))
