"""The scheduler with a batch of plain Python: who runs, who waits, who ends, and with what."""

import asyncio
import contextlib
import threading

import pytest

from modelkit.engines._scheduler import ChunkStream, Row, Scheduler
from modelkit.engines.sampling import Sampling
from modelkit.errors import EngineError, LoadError, OverloadedError, UnavailableError

EOS = 0


class Letters:
    """A detokenizer: token 1 is "a", 2 is "b", ..."""

    def feed(self, token_id):
        return chr(ord("a") + (token_id - 1) % 26)


class CountingBatch:
    """Answers 1, 2, 3, ...; a prompt's first id says after how many tokens it ends, and `faults` are raised in turn."""

    def __init__(self):
        self.rows: list[Row] = []
        self.prefills: list[list[int]] = []
        self.faults: list[Exception | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.poison: int | None = None
        self.poison_in_decode: int | None = None
        self.mute: int | None = None
        self.decodes_alone = 0
        self.drop_fault: Exception | None = None
        self.lost = False
        self.most_rows = 0
        self.closed = False

    def prefill(self, rows):
        self.gate.wait(5)
        self.prefills.append([row.prompt_ids[0] for row in rows])
        if self.poison is not None and any(row.prompt_ids[0] == self.poison for row in rows):
            raise RuntimeError("poisoned")
        self.rows.extend(rows)
        self.most_rows = max(self.most_rows, len(self.rows))
        return [self._token(row) for row in rows]

    def decode(self, *, one_by_one=False):
        self.gate.wait(5)
        if one_by_one:
            self.decodes_alone += 1
            return [
                RuntimeError("poisoned") if self._is_poisoned(row) else self._token(row) for row in self.rows
            ]
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        if any(self._is_poisoned(row) for row in self.rows):
            raise RuntimeError("somebody is poisoned")
        return [
            ValueError("no token") if row.prompt_ids[0] == self.mute else self._token(row)
            for row in self.rows
        ]

    def _is_poisoned(self, row):
        return row.prompt_ids[0] == self.poison_in_decode and len(row.output_ids) == 3

    def _token(self, row):
        number = len(row.output_ids) + 1
        return EOS if number > row.prompt_ids[0] else number

    def drop(self, rows):
        if self.drop_fault is not None:
            raise self.drop_fault
        self.rows = [row for row in self.rows if row not in rows]

    def close(self):
        self.rows, self.closed = [], True

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)

    def is_lost(self):
        return self.lost


def make_row(length, *, prompt_tokens=1, **sampling):
    resolved = Sampling(**sampling)
    return Row(
        prompt_ids=[length] * prompt_tokens,
        sampling=resolved,
        max_tokens=resolved.max_tokens or 1000,
        eos_ids=frozenset({EOS}),
        detokenizer=Letters(),
        stream=ChunkStream(prompt_tokens),
    )


async def read(row):
    """Return the joined text, the token ids, and the finish reason."""
    text, ids = "", []
    while True:
        chunk = await row.stream.next()
        text += chunk.text
        ids += chunk.token_ids
        assert chunk.output_tokens == len(ids)
        if chunk.finish_reason:
            return text, ids, chunk.finish_reason


@pytest.fixture
def batch():
    return CountingBatch()


@pytest.fixture
async def scheduler(batch):
    scheduler = Scheduler(lambda: batch, max_num_seqs=4, max_batched_tokens=16, max_waiting=8)
    await scheduler.start()
    yield scheduler
    batch.gate.set()
    await scheduler.close()


async def test_an_answer_ends_at_its_end_token_which_counts_and_has_no_text(scheduler):
    row = make_row(3)
    scheduler.submit(row)
    assert await read(row) == ("abc", [1, 2, 3, EOS], "stop")


async def test_length_stop_strings_and_ignored_ends(scheduler):
    cases = [
        (make_row(9, max_tokens=2), ("ab", [1, 2], "length")),
        (make_row(9, stop=("cd",)), ("ab", [1, 2, 3, 4], "stop")),
        (make_row(9, stop=("cz",), max_tokens=3), ("abc", [1, 2, 3], "length")),
        (make_row(3, stop=("cz",)), ("abc", [1, 2, 3, EOS], "stop")),
        (make_row(9, stop=("b", "e"), min_tokens=3), ("abcd", [1, 2, 3, 4, 5], "stop")),
    ]
    for row, expected in cases:
        scheduler.submit(row)
        assert await read(row) == expected


async def test_requests_share_the_batch_up_to_its_size_and_are_served_in_order(scheduler, batch):
    batch.gate.clear()
    rows = [make_row(length) for length in (5, 6, 7, 8, 9, 10)]
    for row in rows:
        scheduler.submit(row)
    batch.gate.set()
    answers = await asyncio.gather(*map(read, rows))
    assert [len(ids) - 1 for _, ids, _ in answers] == [5, 6, 7, 8, 9, 10]
    assert batch.most_rows == 4
    assert [length for group in batch.prefills for length in group] == [5, 6, 7, 8, 9, 10]


async def test_a_prefill_takes_no_more_tokens_than_allowed_but_always_one_request(scheduler, batch):
    batch.gate.clear()
    first = make_row(1)
    scheduler.submit(first)
    await until(lambda: scheduler.num_waiting == 0)
    rows = [make_row(n, prompt_tokens=size) for n, size in ((2, 8), (3, 8), (4, 8), (5, 40))]
    for row in rows:
        scheduler.submit(row)
    batch.gate.set()
    await asyncio.gather(*map(read, [first, *rows]))
    assert batch.prefills == [[1], [2, 3], [4], [5]]


async def test_a_cancelled_request_leaves_the_batch_at_the_next_step(scheduler, batch):
    endless, other = make_row(10**9), make_row(10**9)
    scheduler.submit(endless)
    scheduler.submit(other)
    await endless.stream.next()
    endless.cancelled = True
    await until(lambda: batch.rows == [other])
    other.cancelled = True
    await until(lambda: not batch.rows)


async def test_a_cancelled_request_that_waits_never_runs(scheduler, batch):
    batch.gate.clear()
    running, waiting = make_row(2), make_row(5)
    scheduler.submit(running)
    scheduler.submit(waiting)
    waiting.cancelled = True
    batch.gate.set()
    await read(running)
    last = make_row(3)
    scheduler.submit(last)
    await read(last)
    assert 5 not in [length for group in batch.prefills[1:] for length in group]


async def test_a_slow_reader_gets_several_tokens_in_one_chunk(scheduler, batch):
    row = make_row(5)
    scheduler.submit(row)
    await until(lambda: not batch.rows and batch.prefills)
    await asyncio.sleep(0.01)
    chunk = await row.stream.next()
    assert (chunk.text, chunk.token_ids, chunk.finish_reason) == ("abcde", (1, 2, 3, 4, 5, EOS), "stop")


async def test_a_failed_step_fails_its_requests_with_the_reason_and_not_the_engine(scheduler, batch):
    batch.faults = [ZeroDivisionError("in layer 3")]
    row = make_row(5)
    scheduler.submit(row)
    with pytest.raises(EngineError, match=r"ZeroDivisionError: in layer 3"):
        await read(row)
    assert not batch.rows
    again = make_row(2)
    scheduler.submit(again)
    assert (await read(again))[0] == "ab"


async def test_what_was_written_before_an_error_is_read_before_it(scheduler, batch):
    batch.faults = [None, None, ZeroDivisionError("in layer 3")]
    row = make_row(5)
    scheduler.submit(row)
    await until(lambda: batch.prefills and not batch.faults and not batch.rows)
    await asyncio.sleep(0.01)
    assert (await row.stream.next()).text == "abc"
    for _ in range(2):
        with pytest.raises(EngineError):
            await row.stream.next()


async def test_of_several_prompts_only_the_one_that_breaks_prefill_fails(scheduler, batch):
    batch.gate.clear()
    blocker = make_row(1)
    scheduler.submit(blocker)
    await until(lambda: scheduler.num_waiting == 0)
    rows = [make_row(2), make_row(7), make_row(3)]
    batch.poison = 7
    for row in rows:
        scheduler.submit(row)
    batch.gate.set()
    results = await asyncio.gather(*map(read, rows), return_exceptions=True)
    assert [results[0][0], results[2][0]] == ["ab", "abc"]
    assert isinstance(results[1], EngineError)


async def test_of_several_requests_only_the_one_that_breaks_a_step_fails(scheduler, batch):
    batch.gate.clear()
    batch.poison_in_decode = 7
    rows = [make_row(5), make_row(7), make_row(6)]
    for row in rows:
        scheduler.submit(row)
    batch.gate.set()
    results = await asyncio.gather(*map(read, rows), return_exceptions=True)
    assert [results[0], results[2]] == [
        ("abcde", [1, 2, 3, 4, 5, EOS], "stop"),
        ("abcdef", [1, 2, 3, 4, 5, 6, EOS], "stop"),
    ]
    assert isinstance(results[1], EngineError)
    assert "RuntimeError: poisoned" in results[1].message
    assert batch.decodes_alone == 1


async def test_a_row_without_a_token_fails_alone(scheduler, batch):
    batch.gate.clear()
    batch.mute = 7
    rows = [make_row(5), make_row(7), make_row(3)]
    for row in rows:
        scheduler.submit(row)
    batch.gate.set()
    results = await asyncio.gather(*map(read, rows), return_exceptions=True)
    assert [results[0][0], results[2][0]] == ["abcde", "abc"]
    assert isinstance(results[1], EngineError)
    assert batch.decodes_alone == 0


async def test_only_the_first_line_of_a_fault_is_told(scheduler, batch):
    batch.faults = [RuntimeError("the reason\nadvice for developers")]
    row = make_row(5)
    scheduler.submit(row)
    with pytest.raises(EngineError) as caught:
        await read(row)
    assert caught.value.message.endswith("RuntimeError: the reason")


async def test_out_of_memory_ends_the_newest_request_only(scheduler, batch):
    batch.gate.clear()
    rows = [make_row(5), make_row(6)]
    for row in rows:
        scheduler.submit(row)
    batch.faults = [MemoryError("no room")]
    batch.gate.set()
    results = await asyncio.gather(*map(read, rows), return_exceptions=True)
    assert results[0][0] == "abcde"
    assert isinstance(results[1], OverloadedError)
    assert "max_num_seqs" in results[1].cure


async def test_a_tokenizer_that_fails_fails_one_request(scheduler, batch):
    batch.gate.clear()
    bad, good = make_row(5), make_row(3)
    bad.detokenizer.feed = lambda _token: 1 / 0
    scheduler.submit(bad)
    scheduler.submit(good)
    batch.gate.set()
    results = await asyncio.gather(read(bad), read(good), return_exceptions=True)
    assert isinstance(results[0], EngineError)
    assert results[1][0] == "abc"


async def test_close_ends_running_and_waiting_requests_with_abort(batch):
    scheduler = Scheduler(lambda: batch, max_num_seqs=1, max_batched_tokens=16, max_waiting=8)
    await scheduler.start()
    running, waiting = make_row(10**9), make_row(3)
    scheduler.submit(running)
    scheduler.submit(waiting)
    await running.stream.next()
    await scheduler.close()
    assert (await read(waiting))[2] == "abort"
    while (chunk := await running.stream.next()).finish_reason is None:
        pass
    assert chunk.finish_reason == "abort"
    assert batch.closed
    with pytest.raises(UnavailableError):
        scheduler.submit(make_row(1))


async def test_the_queue_is_bounded(scheduler, batch):
    batch.gate.clear()
    scheduler.submit(make_row(1))
    await until(lambda: scheduler.num_waiting == 0)
    for _ in range(8):
        scheduler.submit(make_row(1))
    with pytest.raises(OverloadedError, match="8 requests are waiting"):
        scheduler.submit(make_row(1))


async def test_what_load_raises_start_raises(batch):
    def load():
        raise LoadError("no weights")

    scheduler = Scheduler(load, max_num_seqs=1, max_batched_tokens=1, max_waiting=1)
    with pytest.raises(LoadError, match="no weights"):
        await scheduler.start()
    await scheduler.close()


async def test_after_a_failed_load_nothing_runs_and_nothing_is_taken():
    scheduler = Scheduler(lambda: 1 / 0, max_num_seqs=1, max_batched_tokens=1, max_waiting=1)
    with pytest.raises(UnavailableError, match="has not started"):
        scheduler.submit(make_row(1))
    with pytest.raises(ZeroDivisionError):
        await scheduler.start()
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    with pytest.raises(UnavailableError, match="could not be loaded"):
        scheduler.submit(make_row(1))
    await scheduler.close()


async def test_a_start_that_is_given_up_ends_in_order_and_close_does_not_wait_for_it(batch):
    loading, go_on = threading.Event(), threading.Event()

    def load():
        loading.set()
        go_on.wait(30)
        return batch

    scheduler = Scheduler(load, max_num_seqs=1, max_batched_tokens=1, max_waiting=1)
    start = asyncio.create_task(scheduler.start())
    await until(loading.is_set)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert scheduler.num_running == 0
    async with asyncio.timeout(1):
        await scheduler.close()
    assert scheduler.is_closing
    go_on.set()
    await until(lambda: batch.closed and not scheduler._thread.is_alive())
    with pytest.raises(UnavailableError, match="closed"):
        scheduler.submit(make_row(1))


async def test_a_start_that_is_given_up_may_still_be_used(batch):
    """Nothing but `close` ends an engine: who waited for it may have been only one of several."""
    go_on = threading.Event()
    scheduler = Scheduler(
        lambda: (go_on.wait(30), batch)[1], max_num_seqs=1, max_batched_tokens=1, max_waiting=1
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scheduler.start(), 0.01)
    go_on.set()
    await until(lambda: not scheduler._refusal)
    row = make_row(2)
    scheduler.submit(row)
    assert (await read(row))[0] == "ab"
    await scheduler.close()


@pytest.mark.parametrize("fault", ["a lost device", "a fault of the batch"])
async def test_where_the_thread_ends_everybody_is_told_and_nobody_taken(batch, fault):
    reasons = []
    scheduler = Scheduler(
        lambda: batch, max_num_seqs=2, max_batched_tokens=16, max_waiting=8, on_down=reasons.append
    )
    await scheduler.start()
    batch.gate.clear()
    rows = [make_row(10**9), make_row(3), make_row(4), make_row(5)]
    for row in rows:
        scheduler.submit(row)
    await until(lambda: scheduler.num_waiting < 4)
    if fault == "a lost device":
        batch.lost = True
        batch.faults = [RuntimeError("CUDA error: unspecified launch failure")]
    else:
        batch.drop_fault = KeyError("CUDA error: unspecified launch failure")
    batch.gate.set()
    async with asyncio.timeout(5):
        results = await asyncio.gather(*map(read, rows), return_exceptions=True)
    answered = [result for result in results if not isinstance(result, Exception)]
    assert len(answered) <= 1  # the one whose end the batch could not drop
    assert all(isinstance(result, UnavailableError) for result in results if result not in answered)
    assert len(reasons) == 1
    assert "unspecified launch failure" in reasons[0]
    await until(lambda: not scheduler._thread.is_alive())
    with pytest.raises(UnavailableError, match="the engine is down"):
        scheduler.submit(make_row(1))
    assert scheduler.num_running == 0
    assert batch.closed
    await scheduler.close()
    with pytest.raises(UnavailableError, match="the engine is down"):
        scheduler.submit(make_row(1))


async def test_a_request_that_comes_while_the_thread_dies_is_refused_or_told(batch):
    """No moment in which a row is taken and never answered."""
    for attempt in range(30):
        dying = CountingBatch()
        scheduler = Scheduler(
            lambda dying=dying: dying, max_num_seqs=2, max_batched_tokens=16, max_waiting=10**6
        )
        await scheduler.start()
        rows = [make_row(10**9)]
        scheduler.submit(rows[0])
        await asyncio.sleep(0.001 * (attempt % 3))
        dying.lost, dying.faults = True, [RuntimeError("gone")]
        with contextlib.suppress(UnavailableError):
            while True:
                row = make_row(3)
                scheduler.submit(row)
                rows.append(row)
        async with asyncio.timeout(5):
            results = await asyncio.gather(*map(read, rows), return_exceptions=True)
        assert all(isinstance(result, UnavailableError | tuple) for result in results)
        await scheduler.close()


async def test_a_step_wakes_the_event_loop_once_for_all_requests(scheduler, batch, monkeypatch):
    loop = asyncio.get_running_loop()
    calls = []
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: calls.append(args) or wake(*args))
    batch.gate.clear()
    rows = [make_row(20) for _ in range(4)]
    for row in rows:
        scheduler.submit(row)
    batch.gate.set()
    await asyncio.gather(*map(read, rows))
    # 4 rows x 21 tokens in 21 steps; those that joined later make a few more.
    assert len(calls) < 40


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)
