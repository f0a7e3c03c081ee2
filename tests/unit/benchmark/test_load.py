"""The load and its clock against a server that knows the truth: when it sent each token, by the same clock."""

import asyncio
import functools
import statistics
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from misbehaving_server import Misbehaving, Script, http_server, read_truth
from modelkit import Model, current_request, method
from modelkit.benchmark.load import Conversation, Job, split
from modelkit.benchmark.metrics import measure
from modelkit.benchmark.record import Record
from modelkit.benchmark.targets import Target, TargetSpec, Turn
from modelkit.benchmark.targets.base import now_ns
from modelkit.benchmark.targets.grpc import GrpcTarget
from modelkit.benchmark.worker import run_jobs
from modelkit.errors import ServeError
from modelkit.testing import run_server
from wire_tap import wire_tap

# What the two processes may need to exchange a message. An idle machine needs a fraction of a millisecond:
# benchmarks/bench_accuracy.py prints it.
TOLERANCE_S = 0.25

# A machine that is busy with other tests lets a process wait for seconds, now and then; a wrong clock is wrong always.
NUM_TRIES = 6


@pytest.fixture(scope="module")
def url():
    with http_server() as address:
        yield address


@pytest.fixture(scope="module")
def strict_url():
    with http_server("--strict") as address:
        yield address


@pytest.fixture(scope="module")
def grpc_server():
    with run_server(Misbehaving) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def place(request, url, grpc_server):
    """Return (spec, a function that gives the truth) for both protocols."""
    if request.param == "http":
        return TargetSpec(protocol="http", address=url), lambda: read_truth(url)
    spec = TargetSpec(protocol="grpc", address=grpc_server.address)
    return spec, lambda: grpc_server.server.predictor.model.answers.truth


def once_in_a_while(test):
    """A test of times passes when the machine has let both processes run in one of the tries."""

    @functools.wraps(test)
    async def tried(**fixtures):
        for _ in range(NUM_TRIES - 1):
            try:
                return await test(**fixtures)
            except AssertionError:
                continue
        return await test(**fixtures)

    return tried


def scripted(*scripts):
    return [Conversation((Turn(str(script), script.tokens),)) for script in scripts]


async def play(spec, *scripts, **job):
    result = await run_jobs([Job(spec, "closed", scripted(*scripts), **job)])
    return sorted(result.records, key=lambda record: record.index), result


@once_in_a_while
async def test_every_message_is_timed_when_it_was_sent(place):
    spec, truth = place
    scripts = [
        Script("slow first token", first_s=0.12),
        Script("a stall", stall_before=4, stall_s=0.15),
        Script("coalesced writes", tokens=12, coalesce=4),
        Script("several tokens a chunk", tokens=12, per_chunk=3),
    ]
    records, _ = await play(spec, *scripts)
    for script, record in zip(scripts, records, strict=True):
        sent = truth()[script.name].sent
        assert record.is_ok, record.error
        assert record.counted_by == "usage"
        assert record.output_tokens == sum(record.tokens) == script.tokens
        assert record.cached_tokens == 2
        delays = delays_s(record, sent)
        assert min(delays) >= 0
        assert statistics.median(delays) < TOLERANCE_S


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@once_in_a_while
async def test_no_message_is_noted_before_it_passed_the_wire(url, grpc_server, protocol):
    address = url.removeprefix("http://") if protocol == "http" else grpc_server.address
    scripts = [Script(f"{uuid4().hex} {number}", tokens=12, per_chunk=3) for number in range(32)]
    with wire_tap(address, protocol) as tap:
        spec = TargetSpec(
            protocol=protocol, address=f"http://{tap.address}" if protocol == "http" else tap.address
        )
        records, _ = await play(spec, *scripts, concurrency=16)
        truth = tap.truth()
    for script, record in zip(scripts, records, strict=True):
        passed = truth[script.name]
        assert record.is_ok, record.error
        assert sum(number for _, number in passed.sent) == record.output_tokens == script.tokens
        delays = [
            (passed.received_ns - record.sent_ns) * 1e-9,
            *delays_s(record, passed.sent),
            (record.ended_ns - passed.ended_ns) * 1e-9,
        ]
        assert min(delays) >= 0
        assert statistics.median(delays) < TOLERANCE_S


def delays_s(record, sent):
    """How long after the truth each message of a record was noted, in seconds."""
    return [
        (at - next(when for when, total in cumulative(sent) if total >= got)) * 1e-9
        for at, got in cumulative(zip(record.times_ns, record.tokens, strict=True))
    ]


def cumulative(pairs):
    total = 0
    for at, number in pairs:
        total += number
        yield at, total


class Together(Target):
    """Answers all requests that are there at once, as a server does whose streams march in step."""

    def __init__(self, num_at_once):
        super().__init__(TargetSpec(protocol="http", address=""))
        self.barrier = asyncio.Barrier(num_at_once)
        self.encoded_ns = []

    async def open(self):
        pass

    async def close(self):
        pass

    def encode(self, body):
        self.encoded_ns.append(now_ns())

    async def stream(self, encoded, arrivals):
        await self.barrier.wait()
        arrivals.usage(1, 1, 0)
        arrivals.message(now_ns(), 1, 1)


async def test_what_ends_together_is_noted_before_the_next_request_is_made():
    target = Together(8)
    records = [Record(index=number, asked_tokens=1, scheduled_ns=0) for number in range(16)]

    async def slot(number):
        for record in records[number::8]:
            await target.ask(Turn("a", 1), [], record)

    await asyncio.gather(*(slot(number) for number in range(8)))
    assert all(record.is_ok for record in records)
    assert max(record.ended_ns for record in records[:8]) < min(target.encoded_ns[8:])


async def test_a_grpc_request_is_sent_when_the_others_are_no_longer_made(grpc_server, monkeypatch):
    """gRPC sends in a task of its own: behind the tasks that make their requests at the same time."""
    made_ns = []
    encode = GrpcTarget.encode
    monkeypatch.setattr(
        GrpcTarget, "encode", lambda self, body: (encode(self, body), made_ns.append(now_ns()))[0]
    )
    target = GrpcTarget(TargetSpec(protocol="grpc", address=grpc_server.address))
    await target.open()
    records = [Record(index=number, asked_tokens=1, scheduled_ns=0) for number in range(8)]
    script = Script("at once", tokens=1)
    try:
        await asyncio.gather(*(target.ask(Turn(str(script), 1), [], record) for record in records))
    finally:
        await target.close()
    assert all(record.is_ok for record in records)
    assert max(made_ns) < min(record.sent_ns for record in records)


@once_in_a_while
async def test_metrics_follow_the_known_delays(place):
    spec, _ = place
    script = Script("known", tokens=6, first_s=0.2, gap_s=0.1, stall_before=3, stall_s=0.3)
    records, result = await play(spec, script)
    metrics = measure(records, mode="closed", window=result.window, concurrency=1)
    # Sleeps may be late, never early; but a message that arrives late makes the gap after it shorter.
    late_ms = 60
    assert metrics["ttft_ms"]["p50"] >= 200
    assert metrics["itl_ms"]["max"] >= 400 - late_ms
    assert metrics["itl_ms"]["p50"] >= 100 - late_ms
    assert metrics["tpot_ms"]["p50"] >= (5 * 100 + 300) / 5 - late_ms
    assert metrics["e2e_s"]["p50"] >= 0.2 + 0.5 + 0.3 - 0.001
    assert metrics["n_ok"] == 1
    assert metrics["out_tok_s_whole"] == pytest.approx(6 / metrics["duration_s"], rel=1e-3)


@once_in_a_while
async def test_coalesced_chunks_show_as_gaps_and_as_tokens_per_message(url):
    script = Script("lumps", tokens=32, gap_s=0.02, coalesce=8)
    records, result = await play(TargetSpec(protocol="http", address=url), script)
    metrics = measure(records, mode="closed", window=result.window, concurrency=1)
    assert metrics["tokens_per_msg"]["max"] == 8
    # A reader waits eight times as long as the gap per token says.
    assert metrics["chunk_gap_ms"]["p50"] == pytest.approx(8 * metrics["itl_ms"]["p50"], rel=0.01)


async def test_tokens_are_spread_where_the_server_tells_its_usage_at_the_end_only(place):
    spec, _ = place
    script = Script("quiet", tokens=12, per_chunk=3, running_usage=False)
    (record,), _ = await play(spec, script)
    assert record.counted_by == "spread"
    assert record.output_tokens == sum(record.tokens) == 12
    assert record.tokens == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("protocol", "script", "status"),
    [
        ("http", Script("reset", reset_before=3), "CONNECTION_RESET"),
        ("http", Script("error event", error_before=3), "STREAM_ERROR"),
        ("http", Script("refused", status=503), "HTTP_503"),
        ("http", Script("no done", done=False), "STREAM_CUT"),
        ("http", Script("silent", hang=True), "TIMEOUT"),
        ("http", Script("uncounted", running_usage=False, final_usage=False), "NO_TOKENS"),
        ("grpc", Script("reset", reset_before=3), "UNAVAILABLE"),
        ("grpc", Script("slow", first_s=5), "TIMEOUT"),
        ("grpc", Script("refused", status=503), "UNAVAILABLE"),
    ],
)
@once_in_a_while
async def test_failures_are_counted_by_code(url, grpc_server, protocol, script, status):
    address = url if protocol == "http" else grpc_server.address
    spec = TargetSpec(protocol=protocol, address=address, timeout_s=2.0)
    records, result = await play(spec, script, Script("fine"))
    assert [record.status for record in records] == [status, "OK"]
    assert records[0].error
    metrics = measure(records, mode="closed", window=result.window, concurrency=1)
    assert metrics["errors"] == {status: 1}
    assert (metrics["n_ok"], metrics["n_err"]) == (1, 1)
    # A failure is infinitely late: JSON's null.
    assert metrics["ttft_ms"]["max"] is None


async def test_short_answers_are_counted_and_in_no_latency(place):
    spec, _ = place
    conversations = [
        Conversation((Turn(str(Script("short", tokens=4, first_s=0.5)), 8),)),
        *scripted(Script("whole")),
    ]
    result = await run_jobs([Job(spec, "closed", conversations)])
    metrics = measure(result.records, mode="closed", window=result.window, concurrency=1)
    assert (metrics["n_ok"], metrics["n_short"]) == (2, 1)
    assert metrics["e2e_s"]["n"] == 1
    assert metrics["output_tokens"]["max"] == 8


@once_in_a_while
async def test_slots_are_kept_busy_and_ramp_requests_count_in_no_latency(place):
    spec, truth = place
    scripts = [Script(f"slot {number}", tokens=20) for number in range(12)]
    ramp = scripted(*(Script(f"ramp {number}", tokens=number + 1) for number in range(4)))
    records, result = await play(spec, *scripts, concurrency=4, ramp=ramp)
    assert sum(record.is_ramp for record in records) == 4
    metrics = measure(records, mode="closed", window=result.window, concurrency=4)
    assert metrics["n_ok"] == 12
    assert metrics["inflight_mean"] > 3
    inside = [
        number
        for record in records
        for at, number in zip(record.times_ns, record.tokens, strict=True)
        if result.window.start_ns < at <= result.window.end_ns
    ]
    assert metrics["out_tok_s_steady"] == pytest.approx(sum(inside) / result.window.length_s, rel=1e-3)
    assert {script.name for script in scripts} <= set(truth())


class Plain(Model):
    """A model without OpenAI's transport: it has a `generate` of its own."""

    @method
    async def generate(
        self, prompt: str, max_tokens: int | None = None, min_tokens: int = 0
    ) -> AsyncIterator[str]:
        call = current_request()
        call.usage.prompt_tokens = len(prompt.split())
        for _ in range(max(min_tokens, 1)):
            call.usage.output_tokens += 1
            yield "word "
            await asyncio.sleep(0.001)


async def test_a_model_with_a_generate_of_its_own_is_measured_too():
    with run_server(Plain) as server:
        spec = TargetSpec(protocol="grpc", address=server.address, keep_text=True)
        result = await run_jobs([Job(spec, "closed", [Conversation((Turn("a b c", 7),))])])
    (record,) = result.records
    assert (record.status, record.prompt_tokens, record.output_tokens) == ("OK", 3, 7)
    assert record.text == "word " * 7
    assert record.counted_by == "usage"


@once_in_a_while
async def test_a_duration_ends_a_level(url):
    spec = TargetSpec(protocol="http", address=url)
    scripts = [Script(f"long {number}", tokens=10) for number in range(200)]
    records, _ = await play(spec, *scripts, concurrency=2, duration_s=0.5)
    assert 2 <= len(records) < 200
    assert all(record.is_ok for record in records)


async def test_several_processes_share_slots_and_requests(url):
    spec = TargetSpec(protocol="http", address=url)
    scripts = [Script(f"part {number}") for number in range(10)]
    jobs = split(Job(spec, "closed", scripted(*scripts), concurrency=3), 2)
    assert [job.concurrency for job in jobs] == [2, 1]
    seen = []
    result = await run_jobs(jobs, seen.append)
    assert len(result.records) == 10
    assert result.client.num_processes == 2
    assert seen[-1].num_tokens <= 80
    assert len({record.index for record in result.records}) == 10


async def test_conversations_grow_by_their_answers(url):
    spec = TargetSpec(protocol="http", address=url, endpoint="chat", keep_text=True)
    turns = tuple(Turn(f"turn {number} of a talk", 3) for number in range(3))
    result = await run_jobs([Job(spec, "closed", [Conversation(turns, "be brief")])])
    # The server counts ten tokens for each message before the last.
    assert [record.prompt_tokens for record in result.records] == [25, 45, 65]


async def test_a_server_that_is_not_there_is_an_error_with_its_cure():
    spec = TargetSpec(protocol="http", address="http://127.0.0.1:9")
    with pytest.raises(ServeError, match="cannot reach http") as caught:
        await run_jobs([Job(spec, "closed", scripted(Script("x")))])
    assert caught.value.cure


@once_in_a_while
async def test_coordinated_omission_is_seen_in_open_loop_only(url):
    """The server stands still for a second. One user in a closed loop meets that once; a schedule meets it a hundred times."""
    import aiohttp

    async def freeze_after(name):
        """Wait for an answer, for the worker takes its time to start."""
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{url}/truth") as response:
                    if name in await response.json():
                        break
                await asyncio.sleep(0.02)
            async with session.post(f"{url}/freeze", json={"seconds": 1.0}):
                pass

    spec = TargetSpec(protocol="http", address=url)
    offsets = [number / 100 for number in range(200)]
    figures = {}
    run = uuid4().hex  # the server knows the names of the try before
    for mode in ("closed", "open"):
        scripts = (Script(f"{run} {mode} {n}", tokens=2, first_s=0.005, gap_s=0.001) for n in range(200))
        job = Job(spec, mode, scripted(*scripts), offsets_s=offsets if mode == "open" else ())
        result, _ = await asyncio.gather(run_jobs([job]), freeze_after(f"{run} {mode} 40"))
        figures[mode] = measure(result.records, mode=mode, window=result.window, concurrency=1)[
            "ttft_sched_ms"
        ]
    assert figures["open"]["p90"] > 300
    assert figures["open"]["p90"] > 3 * figures["closed"]["p90"]
