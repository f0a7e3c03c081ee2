"""Continuous batching without torch: one thread that admits, advances and ends requests, and the way to it.

    event loop                                   the engine's thread
    submit(row) ──► inbox (a queue) ──────► waiting (first come, first served) ─► prefill ─┐
    ChunkStream ◄── one call_soon_threadsafe per event loop and step ◄── text, tokens ◄── decode ◄┘

A caller that has gone is noticed at the next step, and its row is given to the next in the queue. A caller that reads
slowly holds nobody up: what it has not read is merged into one chunk, and an answer is never longer than max_tokens,
so what is kept for it is bounded.

What goes wrong with one request ends that one: a row that cannot be sampled is told apart by the batch, and where a
whole step fails its rows are tried one by one. Only a device that answers nobody any more, or a fault of this file,
ends the thread; then everybody is told at once, and `on_down` says why.
"""

import asyncio
import atexit
import contextlib
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from modelkit.engines.base import Chunk, FinishReason, Sampling
from modelkit.engines.detokenize import Detokenizer
from modelkit.engines.stops import StopMatcher
from modelkit.errors import EngineError, ModelkitError, OverloadedError, UnavailableError

__all__ = ["Batch", "ChunkStream", "Row", "Scheduler"]

log = logging.getLogger(__name__)

# How long an interpreter that ends gives a thread to come to its next look at whether to stop.
AT_EXIT_S = 5.0


class ChunkStream:
    """The reading end of one request; lives in the event loop that made the request."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._num_prompt_tokens = num_prompt_tokens
        self._num_output_tokens = 0
        self._unread: list[Piece] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, piece: "Piece") -> None:
        """Add what the engine made; called in the event loop."""
        self._unread.append(piece)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Chunk:
        """Return everything unread as one chunk, waiting until there is something. Raises the request's error."""
        if not self._unread:
            self._waiter = self.loop.create_future()
            await self._waiter
        if self._unread[0].error is not None:
            raise self._unread[0].error
        # What was written before an error is read before it.
        num = len(self._unread) - (self._unread[-1].error is not None)
        pieces, self._unread = self._unread[:num], self._unread[num:]
        last = pieces[-1]
        if len(pieces) == 1:
            text, token_ids = last.text, last.token_ids
        else:
            text = "".join([piece.text for piece in pieces])
            token_ids = tuple(itertools.chain.from_iterable(piece.token_ids for piece in pieces))
        self._num_output_tokens += len(token_ids)
        return Chunk(
            text=text,
            token_ids=token_ids,
            prompt_tokens=self._num_prompt_tokens,
            output_tokens=self._num_output_tokens,
            finish_reason=last.finish_reason,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step made for one request. An error, like a finish reason, is the last thing a stream gets."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: ModelkitError | None = None


_NUMBERS = itertools.count()


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One request in the engine: its prompt, what it has answered so far, and how it ends.

    Owned by the engine's thread once submitted, except `cancelled`, which the event loop sets.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling
    max_tokens: int
    eos_ids: frozenset[int]
    detokenizer: Detokenizer
    stream: ChunkStream
    output_ids: list[int] = field(default_factory=list)
    cancelled: bool = False
    number: int = field(default_factory=lambda: next(_NUMBERS))
    _matcher: StopMatcher | None = field(init=False)
    _text: str = field(default="", init=False)
    _num_sent: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._matcher = StopMatcher(self.sampling.stop) if self.sampling.stop else None

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt_ids) + len(self.output_ids)

    def advance(self, token_id: int) -> Piece | None:
        """Add an output token; return what may be sent now, None where nothing is certain yet."""
        self.output_ids.append(token_id)
        finish = self._finish_reason(token_id)
        if finish is None and not self._text:
            return None
        if finish is not None and self._matcher is not None:
            self._text += self._matcher.flush()
        piece = Piece(self._text, tuple(self.output_ids[self._num_sent :]), finish)
        self._text, self._num_sent = "", len(self.output_ids)
        return piece

    def abort(self) -> Piece:
        """Return the end of an answer that is cut off because the engine closes."""
        return Piece(self._text, tuple(self.output_ids[self._num_sent :]), "abort")

    def _finish_reason(self, token_id: int) -> FinishReason | None:
        """Take the token's text into `_text` and say whether it ends the answer."""
        if token_id in self.eos_ids and not self.sampling.ignore_eos:
            return "stop"
        text = self.detokenizer.feed(token_id)
        if self._matcher is not None and len(self.output_ids) > self.sampling.min_tokens:
            text = self._matcher.feed(text)
            if self._matcher.stopped:
                self._text += text
                return "stop"
        self._text += text
        return "length" if len(self.output_ids) >= self.max_tokens else None


class Batch(Protocol):
    """What the scheduler needs of the model: rows that are filled, advanced together, and dropped."""

    @property
    def rows(self) -> Sequence[Row]:
        """The running rows, in the order of `decode`'s answer."""
        ...

    def prefill(self, rows: Sequence[Row]) -> "list[int | Exception]":
        """Append new rows; return the first output token of each, or what is wrong with it. Adds none where it raises.

        A row whose place holds an exception is appended like the others.
        """
        ...

    def decode(self, *, one_by_one: bool = False) -> "list[int | Exception]":
        """Return the next token of each row, or what is wrong with it. May be called again where it raised.

        `one_by_one` computes each row alone, which is slow, and raises nothing.
        """
        ...

    def drop(self, rows: Sequence[Row]) -> None:
        """End the rows of these rows and free what they hold; the order of the rest may change."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool:
        """Say whether `error` means that there was not enough memory."""
        ...

    def is_lost(self) -> bool:
        """Say, after an error, whether the device computes nothing any more, whatever the request."""
        ...


class _LostDeviceError(Exception):
    """The device is gone; only a new process brings it back."""


class Scheduler:
    """Runs a batch in a thread of its own.

    `load` is called in that thread and returns the batch. At most `max_num_seqs` requests run at a time, and at most
    `max_waiting` more wait. New ones are prefilled together as long as they fill no more than
    `max_batched_tokens` tokens, padding included, so that those running are not held up for long. `on_down` is called
    in that thread, with the reason, where it ends before it is closed.
    """

    def __init__(
        self,
        load: Callable[[], Batch],
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        max_waiting: int,
        on_down: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._load = load
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._max_waiting = max_waiting
        self._on_down = on_down
        self._batch: Batch | None = None
        self._inbox: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._waiting: deque[Row] = deque()
        self._admitting: list[Row] = []  # off the queue, and not in the batch yet
        self._outbox: dict[asyncio.AbstractEventLoop, list[tuple[ChunkStream, Piece]]] = {}
        # Why no request is taken; "" while they are. Guarded together with the inbox, so that no row is put into it
        # after the last look.
        self._refusal = "the engine has not started"
        self._guard = threading.Lock()
        self._closing = threading.Event()
        # Both are running from the first, so that a caller who gives up waiting does not cancel them.
        self._ready: Future[None] = _running_future()
        self._ended: Future[None] = _running_future()
        # A daemon, so that an interpreter that exits without `close` does not wait for it.
        self._thread = threading.Thread(target=self._run, name="modelkit-engine", daemon=True)

    @property
    def num_running(self) -> int:
        """Requests that have a row in the batch."""
        return 0 if self._batch is None else len(self._batch.rows)

    @property
    def num_waiting(self) -> int:
        """Requests that have no row yet."""
        return len(self._waiting) + self._inbox.qsize()

    @property
    def is_closing(self) -> bool:
        """Whether `close` has been called: a `load` that takes long may look, and stop."""
        return self._closing.is_set()

    async def start(self) -> None:
        """Start the thread; return when `load` has, or raise what it raised.

        Cancelling this does not end the thread, which nothing can; `close` makes it free what it loads.
        """
        atexit.register(self._at_exit)
        self._thread.start()
        await asyncio.wrap_future(self._ready)

    def check_open(self) -> None:
        """Raise UnavailableError where no request is taken."""
        if self._refusal:
            raise UnavailableError(self._refusal)

    def submit(self, row: Row) -> None:
        """Queue a request; its stream gets the answer. Raises OverloadedError or UnavailableError."""
        with self._guard:
            self.check_open()
            if self.num_waiting >= self._max_waiting:
                raise OverloadedError(
                    f"{self._max_waiting} requests are waiting for the engine already",
                    cure="try again later, or raise engine.args.max_waiting",
                )
            self._inbox.put(row)

    async def close(self) -> None:
        """End the running and waiting requests with "abort" and the thread with them.

        A thread that is still loading is left to itself: it frees what it has loaded when it is done.
        """
        self._end_soon()
        if self._thread.is_alive() and self._ready.done():
            # Not `join` in a thread of asyncio's, which could not be given up and would hold the interpreter up.
            await asyncio.wrap_future(self._ended)

    def _end_soon(self) -> None:
        self._closing.set()
        self._refuse("the engine is closed")
        self._inbox.put(None)

    def _at_exit(self) -> None:
        """Let the thread end by itself: one that is inside a library of C++ when Python ends aborts the process."""
        self._end_soon()
        self._thread.join(AT_EXIT_S)

    def _refuse(self, reason: str) -> None:
        """Take no requests from now on; the first reason stays."""
        with self._guard:
            if not (self._refusal and self._ready.done()):
                self._refusal = reason

    # ---------------------------------------------------------------------------------- in the engine's own thread

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            atexit.unregister(self._at_exit)
            self._ended.set_result(None)

    def _serve(self) -> None:
        try:
            batch = self._load()
        except BaseException as error:  # noqa: BLE001 - `start` raises it in the event loop
            self._refuse("the engine could not be loaded")
            self._ready.set_exception(error)
            return
        with self._guard:
            closed = self.is_closing
            if not closed:
                self._batch, self._refusal = batch, ""
        if closed:
            _free(batch)
            self._ready.set_exception(UnavailableError("the engine was closed while it loaded"))
            return
        self._ready.set_result(None)
        down: ModelkitError | None = None
        try:
            while self._receive(batch):
                self._step(batch)
                self._flush()
        except BaseException as error:  # whatever it was, nobody is left waiting for an answer
            log.critical("the engine is down", exc_info=error)
            cause = error.__cause__ if isinstance(error, _LostDeviceError) and error.__cause__ else error
            down = UnavailableError(f"the engine is down: {_summary(cause)}", cure="start the server again")
            self._refuse(down.message)
            self._on_down(down.message)
        self._end_all(batch, down)

    def _receive(self, batch: Batch) -> bool:
        """Take in what was submitted, waiting where there is nothing to do; False when it is time to end."""
        block = not (batch.rows or self._waiting)
        while True:
            try:
                row = self._inbox.get(block)
            except queue.Empty:
                return True
            if row is None:
                return False
            self._waiting.append(row)
            block = False

    def _step(self, batch: Batch) -> None:
        cancelled = [row for row in batch.rows if row.cancelled]
        if cancelled:
            batch.drop(cancelled)
        self._admitting = self._next_group(len(batch.rows))
        if self._admitting:
            self._prefill(batch, self._admitting)
            self._flush()  # a first token does not wait for the others' next one
            self._admitting = []
        if batch.rows:
            self._decode(batch)

    def _next_group(self, num_running: int) -> list[Row]:
        """Take those off the queue that fit in the batch and in one prefill; the first always fits in a prefill."""
        group: list[Row] = []
        longest = 0
        while self._waiting and num_running + len(group) < self._max_num_seqs:
            candidate = self._waiting[0]
            if candidate.cancelled:
                self._waiting.popleft()
                continue
            longest = max(longest, len(candidate.prompt_ids))
            if group and longest * (len(group) + 1) > self._max_batched_tokens:
                break
            group.append(self._waiting.popleft())
        return group

    def _prefill(self, batch: Batch, group: list[Row]) -> None:
        try:
            tokens = batch.prefill(group)
        except Exception as error:  # noqa: BLE001 - whatever a model raises is the reason its callers get
            if len(group) == 1:
                self._fail(batch, group, error)
                return
            self._check_device(batch, error)
        else:
            self._accept(batch, group, tokens)
            return
        # One of them is to blame; alone, each answers for itself.
        for row in group:
            self._prefill(batch, [row])

    def _decode(self, batch: Batch) -> None:
        rows = list(batch.rows)
        try:
            tokens = batch.decode()
        except Exception as error:
            if batch.is_out_of_memory(error):
                # The newest has lost the least; the others try again at the next step.
                self._fail(batch, [max(rows, key=lambda row: row.number)], error)
                return
            if len(rows) == 1:
                self._fail(batch, rows, error)
                return
            self._check_device(batch, error)
            log.warning("a step of %d requests failed; trying each alone", len(rows), exc_info=error)
        else:
            self._accept(batch, rows, tokens)
            return
        self._accept(batch, rows, batch.decode(one_by_one=True))

    def _accept(self, batch: Batch, rows: list[Row], tokens: list[int | Exception]) -> None:
        """Give each row its token, and drop those that end with it or have none."""
        finished = []
        for row, token in zip(rows, tokens, strict=True):
            if isinstance(token, Exception):
                self._fail(batch, [row], token)
                continue
            try:
                piece = row.advance(token)
            except Exception as error:  # noqa: BLE001 - a tokenizer may raise anything; only this row is concerned
                self._fail(batch, [row], error)
                continue
            if piece is None:
                continue
            self._send(row, piece)
            if piece.finish_reason is not None:
                finished.append(row)
        if finished:
            batch.drop(finished)

    def _fail(self, batch: Batch, rows: list[Row], error: Exception) -> None:
        """End these with the reason; the engine goes on, unless its device is gone."""
        if batch.is_out_of_memory(error):
            log.warning("out of memory: %s", error)
            reason: ModelkitError = OverloadedError(
                "the engine ran out of memory on this request",
                cure="send a shorter request, or lower engine.max_model_len or engine.args.max_num_seqs",
            )
        elif isinstance(error, ModelkitError):
            reason = error
        else:
            self._check_device(batch, error)
            log.error("the engine failed on %d requests", len(rows), exc_info=error)
            reason = EngineError(f"the engine failed on this request: {_summary(error)}")
        running = set(batch.rows)
        batch.drop([row for row in rows if row in running])
        for row in rows:
            self._send(row, Piece(error=reason))

    def _check_device(self, batch: Batch, error: Exception) -> None:
        """End the thread where the device is gone: every further request would fail like this one."""
        if batch.is_lost():
            raise _LostDeviceError from error

    def _send(self, row: Row, piece: Piece) -> None:
        self._outbox.setdefault(row.stream.loop, []).append((row.stream, piece))

    def _flush(self) -> None:
        """Wake each event loop once for all that a step made; a loop that has ended reads no more."""
        for loop, deliveries in self._outbox.items():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, deliveries)
        self._outbox = {}

    def _end_all(self, batch: Batch, error: ModelkitError | None) -> None:
        """End every request, with `error` or, where there is none, with "abort"; then free the batch."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (row := self._inbox.get_nowait()) is not None:
                    self._waiting.append(row)
        for row in dict.fromkeys((*batch.rows, *self._admitting, *self._waiting)):
            self._send(row, row.abort() if error is None else Piece(error=error))
        self._waiting.clear()
        self._flush()
        _free(batch)


def _running_future() -> "Future[None]":
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


def _free(batch: Batch) -> None:
    try:
        batch.close()
    except Exception:  # a device that is gone cannot free its memory either
        log.exception("the batch could not be freed")


def _summary(error: BaseException) -> str:
    """Return the error's kind and first line; those of CUDA go on with advice for developers."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _deliver(deliveries: list[tuple[ChunkStream, Piece]]) -> None:
    for stream, piece in deliveries:
        stream.push(piece)
