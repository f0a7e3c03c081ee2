"""The supervisor with a real, misbehaving engine server in a process of its own (tests/fake_engine.py)."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from modelkit.config import EngineConfig
from modelkit.engines.engine_log import Deviation, Stage
from modelkit.engines.health import Patience
from modelkit.engines.lmdeploy import LmdeployEngine
from modelkit.engines.process import EngineProcess, Launch, RestartPolicy
from modelkit.engines.upstream import Upstream
from modelkit.errors import CallError, EngineError, UnavailableError

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"
STAGES = (
    Stage("loading weights", re.compile("Loading weights")),
    Stage("compiling", re.compile("Compiling")),
)
# Looks for failed requests often, and takes no machine that is busy with other tests for an engine that is wedged.
PATIENT = Patience(check_s=0.05, idle_s=3600, probe_timeout_s=60, num_failures=2)
WATCHFUL = Patience(check_s=0.05, idle_s=0.3, probe_timeout_s=2.0, num_failures=2)
HASTY = RestartPolicy(max_restarts=2, pause_s=0.05)


class Supervised:
    """A fake engine under the supervisor, and what the supervisor reported."""

    def __init__(self, log_dir, *options, timeout_s=120.0, patience=PATIENT, restarts=HASTY, deviations=()):
        self.options = list(options)
        self.deviations = deviations
        self.stages = []
        self.health = []
        self.given_up = []
        self.ports = []
        self.upstream = Upstream("fake", "")
        self.process = EngineProcess(
            "fake",
            self.launch,
            probe=self.probe,
            start_timeout_s=timeout_s,
            log_path=log_dir / "fake.log",
            traffic=self.upstream.traffic,
            on_stage=self.stages.append,
            on_health=lambda well, reason: self.health.append((well, reason)),
            on_given_up=self.given_up.append,
            patience=patience,
            restarts=restarts,
        )

    def launch(self, port):
        self.ports.append(port)
        return Launch(
            command=[sys.executable, str(FAKE), "--port", str(port), *self.options],
            port=port,
            stages=STAGES,
            deviations=self.deviations,
        )

    async def probe(self, url):
        self.upstream.url = url
        try:
            await self.upstream.post("/completions", b'{"prompt": "Hi", "max_tokens": 1}')
        except UnavailableError:
            raise
        except CallError as error:
            raise EngineError(f"it fails: {error.message}") from error

    async def control(self, **behaviour):
        async with self.upstream._pool().post(f"{self.upstream.url}/control", json=behaviour) as response:
            assert response.status == 200

    async def hears(self, is_well, timeout_s=60.0):
        """Wait for the next report of health, and return its reason."""
        before = len(self.health)
        async with asyncio.timeout(timeout_s):
            while not any(well is is_well for well, _ in self.health[before:]):
                await asyncio.sleep(0.01)
        return next(reason for well, reason in self.health[before:] if well is is_well)


@pytest.fixture
async def supervise(tmp_path):
    made = []

    def make(*options, **settings):
        made.append(Supervised(tmp_path, *options, **settings))
        return made[-1]

    yield make
    for supervised in made:
        await supervised.process.stop()
        await supervised.upstream.close()
    assert not [pid for pid in descendants(os.getpid()) if "fake_engine" in command_line(pid)]


def descendants(pid):
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(entry.name), *descendants(int(entry.name))]
    return found


def is_alive(pid):
    """Whether a process runs; one that has ended may still wait for its parent to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def engine_pid(supervised):
    """The engine's main process, behind two guards."""
    (pid,) = [
        pid
        for pid in descendants(supervised.process.pid)
        if command_line(pid).split()[1:2] == [str(FAKE)] and "_guard" not in command_line(pid)
    ]
    return pid


async def words_of(supervised, prompt="a b c d"):
    body = json.dumps({"prompt": prompt, "stream": True}).encode()
    return [json.loads(data) async for data in supervised.upstream.stream("/completions", body)]


# ------------------------------------------------------------------------------------------------------------ starting


async def test_a_start_tells_its_stages_and_ends_with_a_token(supervise, caplog):
    caplog.set_level("DEBUG", "modelkit.engine")
    engine = supervise(
        "--print", "Loading weights 1/2", "--print", "Loading weights 2/2", "--print", "Compiling"
    )
    await engine.process.start()
    assert engine.stages == ["importing", "loading weights", "compiling", "answering a first request"]
    assert engine.health == []
    assert await words_of(engine)
    assert "Compiling" in engine.process.log_path.read_text()
    assert "Compiling" in caplog.messages  # what `modelkit -v` shows


async def test_a_server_whose_health_says_yes_while_requests_fail_does_not_start(supervise):
    engine = supervise("--print", "the tokenizer gave no ids", "--behave", '{"fail": 500}')
    with pytest.raises(
        EngineError, match="it fails: fake: it is broken inside\n    the tokenizer gave no ids"
    ) as error:
        await engine.process.start()
    assert str(engine.process.log_path) in error.value.cure
    assert engine.process.pid is None


@pytest.mark.parametrize(
    ("line", "message", "cure"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory.",
            "free memory is not enough",
            "engine.gpu_memory_utilization",
        ),
        ("x.py: error: unrecognized arguments: --no-such", "refuses an option: --no-such", "engine.args"),
    ],
)
async def test_an_engine_that_ends_at_once_ends_the_start_with_the_cause_and_the_cure(
    supervise, line, message, cure
):
    # A start that waited for its deadline would outlast the test's.
    engine = supervise("--print", "starting", "--print", line, "--exit", "2", timeout_s=3600.0)
    with pytest.raises(EngineError) as error:
        await engine.process.start()
    assert "fake ended with exit code 2 before it was ready" in error.value.message
    assert message in error.value.message
    assert error.value.message.endswith(f"\n    starting\n    {line}")
    assert cure in error.value.cure


async def test_a_cause_far_above_the_end_of_the_log_is_shown_too(supervise):
    cause = "ValueError: No available memory for the cache blocks."
    lines = [part for number in range(30) for part in ("--print", f"frame {number}")]
    engine = supervise("--print", cause, *lines, "--exit", "1")
    with pytest.raises(EngineError) as error:
        await engine.process.start()
    assert f"\n    {cause}\n    ...\n    frame 15" in error.value.message


async def test_a_start_has_a_deadline(supervise):
    engine = supervise("--print", "Loading weights", "--behave", '{"healthy": false}', timeout_s=1.0)
    with pytest.raises(EngineError, match="fake was not ready after 1 s") as error:
        await engine.process.start()
    assert "engine.start_timeout" in error.value.cure


async def test_a_health_route_that_hangs_does_not_outlast_the_deadline(supervise):
    engine = supervise("--behave", '{"health_hangs": true}', timeout_s=1.0)
    with pytest.raises(EngineError, match="not ready after 1 s"):
        await engine.process.start()


def slower_kernels(*, is_fatal):
    return Deviation(
        pattern=re.compile("slower kernels"),
        message="it has no fast kernels",
        cure="set kernels: slow",
        is_fatal=is_fatal,
    )


@pytest.mark.parametrize(
    "then",
    [("--behave", '{"healthy": false}'), ("--exit", "1"), ()],
    ids=["is not ready", "ends", "is ready"],
)
async def test_an_engine_that_does_something_else_than_it_was_told_does_not_start(supervise, then):
    # A start that waited for its deadline would outlast the test's.
    engine = supervise(
        "--print", "taking slower kernels", "--print", "No module named 'x'", *then,
        deviations=(slower_kernels(is_fatal=True),), timeout_s=3600.0,
    )  # fmt: skip
    with pytest.raises(EngineError) as error:
        await engine.process.start()
    assert error.value.message == "it has no fast kernels\n    taking slower kernels"
    assert error.value.cure == f"set kernels: slow (the log: {engine.process.log_path})"
    assert engine.process.pid is None


async def test_what_an_engine_does_unasked_is_one_warning(supervise, caplog):
    engine = supervise(
        *("--print", "taking slower kernels") * 2, deviations=(slower_kernels(is_fatal=False),)
    )
    await engine.process.start()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["it has no fast kernels; to say so yourself, set kernels: slow"]
    assert await words_of(engine)


class FakeLmdeploy(LmdeployEngine):
    """LMDeploy's adapter over the fake engine, which says that its TurboMind does not run the model."""

    def command(self, python, port):
        line = "lmdeploy - WARNING - archs.py:38 - Fallback to pytorch engine because '/m' not supported by turbomind engine."
        return [python, str(FAKE), "--port", str(port), "--print", line]

    def arguments(self):
        return []


@pytest.fixture
async def lmdeploy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("modelkit.engines.child.find_python", lambda *_: sys.executable)
    monkeypatch.setattr("modelkit.engines.child.installed_version", lambda *_: "0.18.0")
    (tmp_path / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}')
    made = []

    def make(**args):
        made.append(FakeLmdeploy(EngineConfig(name="lmdeploy", args=args), tmp_path, "chat"))
        return made[-1]

    yield make
    for engine in made:
        await engine.close()


async def test_turbomind_that_was_asked_for_is_turbomind_or_an_error(lmdeploy):
    with pytest.raises(
        EngineError, match=r"TurboMind of LMDeploy 0\.18\.0 does not run MistralForCausalLM"
    ) as error:
        await lmdeploy(backend="turbomind").start()
    assert "--engine lmdeploy:pytorch" in error.value.cure


async def test_lmdeploy_may_choose_where_nobody_has(lmdeploy, caplog):
    await lmdeploy().start()
    assert len([text for text in caplog.messages if "LMDeploy runs it on PyTorch in its place" in text]) == 1
    caplog.clear()
    await lmdeploy(backend="pytorch").start()
    assert "TurboMind" not in caplog.text


async def test_a_taken_port_is_tried_again_with_another(supervise):
    engine = supervise("--print", "OSError: [Errno 98] Address already in use", "--exit", "1")
    with pytest.raises(EngineError, match="port was taken"):
        await engine.process.start()
    assert len(set(engine.ports)) == 3


async def test_cancelling_a_start_leaves_nothing(supervise):
    engine = supervise("--start-delay", "60", "--worker")
    start = asyncio.create_task(engine.process.start())
    await until(lambda: engine.process.pid and descendants(engine.process.pid))
    guard = engine.process.pid
    start.cancel()
    await asyncio.wait([start])
    assert start.cancelled()
    assert not is_alive(guard)


async def test_a_stubborn_engine_with_a_worker_in_its_own_session_is_ended(supervise):
    engine = supervise("--stubborn", "--worker")
    await engine.process.start()
    pids = descendants(engine.process.pid)
    assert len(pids) >= 3
    await engine.process.stop()
    assert not [pid for pid in pids if is_alive(pid)]


# -------------------------------------------------------------------------------------------------------------- dying


async def test_an_engine_that_is_killed_ends_its_streams_and_is_back_soon(supervise):
    engine = supervise("--worker")
    await engine.process.start()
    await engine.control(delay_s=0.05)
    stream = asyncio.create_task(words_of(engine, "word " * 5000))
    while not json.loads(await engine.upstream.get("/state"))["running"]:
        await asyncio.sleep(0.02)
    before = engine_pid(engine)
    down = asyncio.create_task(engine.hears(False))
    up = asyncio.create_task(engine.hears(True))
    await asyncio.sleep(0)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(UnavailableError) as error:
        await stream
    assert error.value.retry_after_s
    assert await down == "fake was ended by SIGKILL"
    assert await up == ""
    assert engine_pid(engine) != before
    assert await words_of(engine)
    assert engine.process.num_restarts == 1


async def test_a_death_is_told_before_what_it_left_behind_has_ended(supervise):
    engine = supervise("--stubborn", "--worker")  # the worker holds out against SIGTERM, for seconds
    await engine.process.start()
    guard = engine.process.pid
    down, up = asyncio.create_task(engine.hears(False)), asyncio.create_task(engine.hears(True))
    await asyncio.sleep(0)
    os.kill(engine_pid(engine), signal.SIGKILL)
    assert await down == "fake was ended by SIGKILL"
    assert is_alive(guard)
    assert descendants(guard)
    await up
    assert not is_alive(guard)


async def test_a_killed_guard_is_noticed_and_leaves_no_second_engine(supervise):
    engine = supervise("--worker")
    await engine.process.start()
    guard = engine.process.pid
    before = descendants(guard)
    up = asyncio.create_task(engine.hears(True))
    await asyncio.sleep(0)
    os.kill(guard, signal.SIGKILL)
    await up
    assert not [pid for pid in before if is_alive(pid)]
    assert await words_of(engine)


async def test_an_engine_that_keeps_dying_is_given_up(supervise):
    engine = supervise()
    await engine.process.start()
    engine.options += ["--print", "torch.OutOfMemoryError: CUDA out of memory", "--exit", "1"]
    os.kill(engine_pid(engine), signal.SIGKILL)
    await until(lambda: len(engine.health) >= 2)
    reason = "fake was ended by SIGKILL; started 2 times again, and now no more"
    assert engine.health[-1] == (False, reason)
    assert engine.given_up == [reason]
    assert engine.process.pid is None


async def test_stopping_while_it_restarts_leaves_nothing(supervise):
    engine = supervise("--start-delay", "0.5")
    await engine.process.start()
    down = asyncio.create_task(engine.hears(False))
    await asyncio.sleep(0)
    os.kill(engine_pid(engine), signal.SIGKILL)
    await down
    await asyncio.sleep(0.3)
    await engine.process.stop()
    assert engine.process.pid is None


# ------------------------------------------------------------------------------------------------------------ wedging


@pytest.mark.parametrize("fault", [{"hang": True}, {"fail": 500}, {"fail": 503}])
async def test_an_engine_that_answers_no_more_is_started_again(supervise, fault):
    engine = supervise(patience=WATCHFUL)
    await engine.process.start()
    down, up = asyncio.create_task(engine.hears(False)), asyncio.create_task(engine.hears(True))
    await engine.control(**fault)
    assert (await down).startswith("fake no longer answers (")
    await up
    assert await words_of(engine)


async def test_a_failed_request_is_looked_into_at_once(supervise):
    engine = supervise()
    await engine.process.start()
    await engine.control(fail=500)
    await asyncio.sleep(0.3)
    assert engine.health == []
    down = asyncio.create_task(engine.hears(False))
    with pytest.raises(CallError):
        await words_of(engine)
    assert "it is broken inside" in await down


async def test_bad_requests_do_not_count_against_the_engine(supervise):
    engine = supervise()
    await engine.process.start()
    await engine.control(fail=400)
    for _ in range(5):
        with pytest.raises(CallError):
            await words_of(engine)
    assert engine.upstream.traffic.num_failed == 0


# -------------------------------------------------------------------------------------- however modelkit itself ends


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGKILL, ["--stubborn"]),
        (signal.SIGKILL, []),
        (signal.SIGTERM, []),
        (signal.SIGINT, []),
        (signal.SIGHUP, []),
    ],
)
async def test_no_engine_outlives_modelkit(number, options, tmp_path):
    script = f"""
import asyncio, sys
from pathlib import Path
from modelkit.engines.process import EngineProcess, Launch
async def probe(url): pass
async def main():
    make = lambda port: Launch(command=[sys.executable, {str(FAKE)!r}, "--port", str(port), "--worker", *sys.argv[1:]], port=port)
    process = EngineProcess("fake", make, probe=probe, start_timeout_s=120, log_path=Path({str(tmp_path / "x.log")!r}))
    await process.start()
    print(process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    modelkit = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert modelkit.stdout is not None
    guard = int(await modelkit.stdout.readline())
    pids = [guard, *descendants(guard)]
    assert len(pids) >= 4
    modelkit.send_signal(number)
    await modelkit.wait()
    await until(lambda: not [pid for pid in pids if is_alive(pid)])


# ------------------------------------------------------------------------------------------------------------- the log


async def test_the_log_of_the_run_before_is_kept(supervise):
    engine = supervise("--print", "first run")
    await engine.process.start()
    await engine.process.stop()
    engine.options = ["--print", "second run"]
    await engine.process.start()
    assert "second run" in engine.process.log_path.read_text()
    assert "first run" in engine.process.log_path.with_suffix(".previous.log").read_text()


async def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "logs").write_text("a file in the way")
    engine = Supervised(tmp_path / "logs", "--print", "hello")
    await engine.process.start()
    assert await words_of(engine)
    await engine.process.stop()
    await engine.upstream.close()
    assert "the engine's output is not kept" in caplog.text
