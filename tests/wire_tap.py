"""A relay before a misbehaving server that keeps the truth of the wire: when requests and tokens passed it.

    python wire_tap.py HOST:PORT grpc|http        prints its port, and the truth for each line of its stdin; ends with it

What a server notes of itself has its own work still before it: serializing, framing, the other streams that are in step.
Here a request counts from when its bytes have come, a token and the end of an answer from just before their bytes go on
to the client. It is one thread that does nothing else and looks no deeper than it must: into HTTP/2's frames, or for the
running totals in server-sent events. Times are CLOCK_MONOTONIC's, which the client reads too.
"""

import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from misbehaving_server import Truth, child
from modelkit.inference.v1 import inference_pb2 as pb

# The script's name in a request: JSON in a string of JSON, in both protocols.
NAME = re.compile(rb'\{\\"name\\": \\"([^"\\]+)\\"')
TOTAL = re.compile(rb'"completion_tokens": (\d+)')
PIECE_BYTES = 2**18

DATA, END_STREAM = 0, 1
PREFACE_BYTES, FRAME_HEADER_BYTES, MESSAGE_HEADER_BYTES = 24, 9, 5


class Answer:
    """One request, and how far its answer is."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.told = 0
        self.rest = b""

    def pass_on(self, at_ns: int, total: int, *, is_end: bool) -> None:
        if total > self.told:
            self.truth.sent.append([at_ns, total - self.told])
            self.told = total
        if is_end:
            self.truth.ended_ns = at_ns


# What a piece of the answer's bytes means: the answer, its tokens so far, whether it ends.
Passing = tuple[Answer, int, bool]


class Http:
    """One connection of HTTP/1.1: an answer at a time."""

    def __init__(self, truth: dict[str, Truth]) -> None:
        self._truth = truth
        self._answer: Answer | None = None

    def request(self, data: bytes, at_ns: int) -> None:
        if found := NAME.search(data):
            truth = self._truth[found[1].decode()] = Truth(at_ns)
            self._answer = Answer(truth)

    def answer(self, data: bytes) -> list[Passing]:
        answer = self._answer
        if answer is None:
            return []
        *events, answer.rest = re.split(rb"(?<=\n\n)", answer.rest + data)
        totals = [int(total) for event in events for total in TOTAL.findall(event)]
        # The last chunk of the response has no bytes.
        return [(answer, max(totals, default=0), answer.rest.endswith(b"\r\n0\r\n\r\n"))]


class Grpc:
    """One connection of HTTP/2: an answer a stream."""

    def __init__(self, truth: dict[str, Truth]) -> None:
        self._truth = truth
        self._answers: dict[int, Answer] = {}
        self._up, self._down = bytearray(), bytearray()
        self._preface_bytes = PREFACE_BYTES

    def request(self, data: bytes, at_ns: int) -> None:
        skipped = min(self._preface_bytes, len(data))
        self._preface_bytes -= skipped
        self._up += data[skipped:]
        for kind, _, stream, payload in _frames(self._up):
            if kind == DATA and (found := NAME.search(payload)):
                truth = self._truth[found[1].decode()] = Truth(at_ns)
                self._answers[stream] = Answer(truth)

    def answer(self, data: bytes) -> list[Passing]:
        self._down += data
        passing = []
        for kind, flags, stream, payload in _frames(self._down):
            if answer := self._answers.get(stream):
                totals = [0]
                if kind == DATA:
                    answer.rest += payload
                    totals = [message.usage.output_tokens for message in _messages(answer)] or totals
                passing += [(answer, total, bool(flags & END_STREAM)) for total in totals]
        return passing


def _frames(buffer: bytearray) -> Iterator[tuple[int, int, int, bytes]]:
    """Take the complete frames out of a buffer: (type, flags, stream, payload)."""
    while len(buffer) >= FRAME_HEADER_BYTES:
        end = FRAME_HEADER_BYTES + int.from_bytes(buffer[:3], "big")
        if len(buffer) < end:
            return
        stream = int.from_bytes(buffer[5:9], "big") & 0x7FFFFFFF
        yield buffer[3], buffer[4], stream, bytes(buffer[FRAME_HEADER_BYTES:end])
        del buffer[:end]


def _messages(answer: Answer) -> Iterator[pb.GenerateResponse]:
    while len(answer.rest) >= MESSAGE_HEADER_BYTES:
        end = MESSAGE_HEADER_BYTES + int.from_bytes(answer.rest[1:MESSAGE_HEADER_BYTES], "big")
        if len(answer.rest) < end:
            return
        yield pb.GenerateResponse.FromString(answer.rest[MESSAGE_HEADER_BYTES:end])
        answer.rest = answer.rest[end:]


class Relay:
    """Accepts connections, passes both directions on, and notes what passes."""

    def __init__(self, address: tuple[str, int], protocol: type[Http | Grpc]) -> None:
        self.truth: dict[str, Truth] = {}
        self._address, self._protocol = address, protocol
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._tell)
        while True:
            for key, _ in self._selector.select():
                if (
                    self._selector.get_map().get(key.fileobj) is key
                ):  # the other end may just have closed both
                    key.data()

    def _tell(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        print(json.dumps({name: asdict(truth) for name, truth in self.truth.items()}), flush=True)

    def _accept(self) -> None:
        client, server = self._listener.accept()[0], socket.create_connection(self._address)
        protocol = self._protocol(self.truth)

        def up(data: bytes) -> None:
            protocol.request(data, time.perf_counter_ns())
            server.sendall(data)

        def down(data: bytes) -> None:
            passing = protocol.answer(data)
            at_ns = time.perf_counter_ns()
            client.sendall(data)
            for answer, total, is_end in passing:
                answer.pass_on(at_ns, total, is_end=is_end)

        self._pump(client, server, up)
        self._pump(server, client, down)

    def _pump(self, source: socket.socket, other: socket.socket, pass_on: Callable[[bytes], None]) -> None:
        """Pass on what comes from a socket, until either end is closed."""

        def readable() -> None:
            with suppress(OSError):
                if data := source.recv(PIECE_BYTES):
                    pass_on(data)
                    return
            for end in (source, other):
                self._selector.unregister(end)
                end.close()

        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(source, selectors.EVENT_READ, readable)


class Tap:
    """A relay in a process of its own, from outside."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self.address = f"127.0.0.1:{int(process.stdout.readline())}"

    def truth(self) -> dict[str, Truth]:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return {name: Truth(**truth) for name, truth in told.items()}


@contextmanager
def wire_tap(address: str, protocol: str) -> Iterator[Tap]:
    """Put a relay before the server at HOST:PORT."""
    with child(__file__, address, protocol) as process:
        yield Tap(process)


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    relay = Relay((host, int(port)), {"http": Http, "grpc": Grpc}[sys.argv[2]])
    print(relay.port, flush=True)
    relay.run()


if __name__ == "__main__":
    main()
