"""Checks of an engine behind `modelkit serve`, as a user starts it: what tests/gpu and gpu_engines.py have in common.

A check returns what it saw as a dict whose "ok" says whether it is right; each has a limit of its own, in seconds.
Linux only: processes are read from /proc.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from modelkit import AsyncClient, CallError

# What SGLang takes where its own kernels cannot be compiled.
_SGLANG = {"attention-backend": "fa3", "sampling-backend": "pytorch", "grammar-backend": "none"}
BACK_ENDS: dict[str, dict[str, Any]] = {
    "vllm": {"name": "vllm"},
    "sglang": {"name": "sglang", "args": _SGLANG},
    "sglang-eager": {"name": "sglang", "args": {**_SGLANG, "disable-cuda-graph": True}},
    "turbomind": {"name": "lmdeploy", "args": {"backend": "turbomind"}},
    "pytorch": {"name": "lmdeploy", "args": {"backend": "pytorch"}},
}

STORY = "Tell me a story."
QUESTION = "What is the capital of France?"

# What each engine's own metrics call the number of requests that it is working on. LMDeploy writes its own every 10 s.
RUNNING_METRICS = ("vllm:num_requests_running", "sglang:num_running_reqs", "lmdeploy:num_requests_running")
METRIC_LAG_S = 12.0
_CANCELLATION_ATTEMPTS = 5

_PR_SET_PDEATHSIG = 1
_TICKS = os.sysconf("SC_CLK_TCK")


def has_gpu() -> bool:
    """Return whether there is an NVIDIA GPU, as far as its own tool says."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, check=False).returncode == 0


class CheckError(Exception):
    """A check could not be made: what stood in its way."""


# ---------------------------------------------------------------------------------------------------------- processes


def descendants(pid: int) -> list[int]:
    """Return every process below one. The engine's guards adopt orphans, so nothing that it started is missed."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found: list[int] = []
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += level
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _identity(pid: int) -> tuple[int, str]:
    """Return a process's id and when it was started: ids are given again."""
    return pid, _stat(pid)[19]


def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that checks is killed. What it started ends with it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


class Served:
    """`modelkit serve` of a folder, as a process of its own."""

    def __init__(self, folder: Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        self.address = self.http_url = ""
        self.ready_s = 0.0
        self._started = time.monotonic()
        command = [sys.executable, "-m", "modelkit", "-v", "serve", str(folder), "--json"]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, "--port", "0", "--http-port", "0"],
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                text=True,
                env=os.environ | dict(environment or {}),
                start_new_session=True,  # Ctrl-C is for the program that checks, which then stops the server
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread runs when a server is started
            )

    def wait_ready(self, timeout_s: float) -> None:
        """Return once the server says that it is ready. Raises CheckError with the end of its log."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(timeout_s) else None
        if not line:
            how = f"was not ready after {timeout_s:.0f} s" if line is None else "ended before it was ready"
            raise CheckError(f"the server {how}:\n{self.log.read_text(errors='replace')[-3000:]}")
        ready = json.loads(line)
        self.address, self.http_url = ready["address"], ready["http_url"]
        self.ready_s = round(time.monotonic() - self._started, 1)

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the server, politely, then everything that it started and that is still there."""
        started = [_identity(pid) for pid in descendants(self.process.pid) if Path(f"/proc/{pid}").exists()]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            print(f"the server did not stop in {timeout_s:.0f} s", file=sys.stderr, flush=True)
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for pid, start in started:
            with contextlib.suppress(OSError):
                if _identity(pid) == (pid, start):
                    os.kill(pid, signal.SIGKILL)

    # ----------------------------------------------------------------------------------------------------- the engine

    def guard(self) -> int:
        """Return the process that runs the engine's command. Raises CheckError where there is none."""
        for pid in descendants(self.process.pid):
            words = _words(pid)
            if any(word.endswith("_guard.py") for word in words) and "--inner" in words:
                return pid
        raise CheckError("the engine is not running")

    def engine_pid(self) -> int:
        """Return the engine's main process: the eldest child of its guard."""
        guard = self.guard()
        children = [pid for pid in descendants(guard) if int(_stat(pid)[1]) == guard]
        if not children:
            raise CheckError("the engine is not running")
        return min(children, key=lambda pid: int(_stat(pid)[19]))

    def engine_url(self) -> str:
        """Return the engine's own address, from its command line."""
        words = _words(self.guard())
        for flag in ("--port", "--server-port"):
            if flag in words:
                return f"http://127.0.0.1:{words[words.index(flag) + 1]}"
        raise CheckError("the engine's port was not found")

    def engine_key(self) -> str:
        """Return the key of the engine's port, from its environment."""
        entries = Path(f"/proc/{self.guard()}/environ").read_bytes().decode(errors="replace").split("\0")
        for name, _, value in (entry.partition("=") for entry in entries):
            if name in {"VLLM_API_KEY", "MODELKIT_ENGINE_KEY"}:
                return value
        return ""

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of the server and of the engine so far."""
        return _cpu_s(self.process.pid), sum(_cpu_s(pid) for pid in descendants(self.process.pid))

    async def num_running(self) -> float | None:
        """Return how many requests the engine says it works on; None where it does not say."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.http_url}/metrics/engine") as response,
        ):
            text = await response.text()
        found = [line for line in text.splitlines() if line.startswith(RUNNING_METRICS)]
        return sum(float(line.rpartition(" ")[2]) for line in found) if found else None


@contextmanager
def served(
    folder: Path, log: Path, timeout_s: float, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Serve a folder; ready inside, and ended with everything it started afterwards, whatever happens."""
    server = Served(folder, log, environment)
    try:
        server.wait_ready(timeout_s)
        yield server
    finally:
        server.stop()


def write_folder(
    folder: Path, checkpoint: Path, engine: Mapping[str, Any], num_accelerators: int = 1
) -> Path:
    """Write a model folder for a checkpoint and an engine's settings."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("from modelkit import LLM\n\n\nclass Served(LLM):\n    pass\n")
    config = {
        "model": {"id": "bench"},
        "engine": dict(engine),
        "compute": {"num_accelerators": num_accelerators},
        "checkpoints": {"type": "local", "path": str(checkpoint)},
        "server": {"max_concurrency": 256},
    }
    (folder / "config.yaml").write_text(json.dumps(config, indent=2))  # JSON is YAML
    return folder


# -------------------------------------------------------------------------------------------------------------- checks


async def check_answers(server: Served, questions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ask every question in three ways, 64 at a time; the answers are known exactly."""
    gate = asyncio.Semaphore(64)
    wrong: list[str] = []
    async with AsyncClient(server.address, timeout_s=300) as client:

        async def unary(messages: Any) -> str:
            return str(await client.predict(messages=messages, max_tokens=400, temperature=0.0))

        async def streamed(messages: Any) -> str:
            stream = client.generate(messages=messages, max_tokens=400, temperature=0.0)
            return "".join([str(item) async for item in stream])

        async def openai(messages: Any) -> str:
            body = json.dumps({"messages": messages, "max_tokens": 400, "temperature": 0})
            response = json.loads(str(await client.predict(body, method="openai_transport")))
            return str(response["choices"][0]["message"]["content"])

        async def is_right(way: Callable[[Any], Awaitable[str]], question: dict[str, Any]) -> bool:
            async with gate:
                answer = await way(question["messages"])
            if answer != question["answer"]:
                wrong.append(f"{way.__name__}: {question['messages'][-1]['content']!r} -> {answer!r}"[:300])
            return answer == question["answer"]

        result: dict[str, Any] = {"num_questions": len(questions)}
        for way in (unary, streamed, openai):
            result[way.__name__] = sum(
                await asyncio.gather(*(is_right(way, question) for question in questions))
            )
    return {"ok": not wrong, **result, "wrong": wrong[:5]}


async def check_key(server: Served) -> dict[str, Any]:
    """Ask the engine's own port with and without its key: only modelkit may use it."""
    url, key = server.engine_url(), server.engine_key()
    body = {"model": "bench", "prompt": "Hi", "max_tokens": 1}
    statuses = {}
    async with aiohttp.ClientSession() as session:
        for name, headers in (("without", {}), ("with", {"Authorization": f"Bearer {key}"})):
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                statuses[name] = response.status
    is_hidden = bool(key) and not any(
        key in word for pid in descendants(server.process.pid) for word in _words(pid)
    )
    is_in_log = bool(key) and key in server.log.read_text(errors="replace")
    return {
        "ok": statuses == {"without": 401, "with": 200} and is_hidden and not is_in_log,
        "status_without_key": statuses["without"],
        "status_with_key": statuses["with"],
        "in_a_command_line": not is_hidden,
        "in_the_log": is_in_log,
    }


async def check_cancellation(server: Served, *, num: int = 100, max_tokens: int = 3500) -> dict[str, Any]:
    """Cancel half of the streams and watch the engine's own count of running requests.

    Short streams may be over before they have been counted, on a busy machine above all: then there are others.
    """
    result: dict[str, Any] = {}
    for _ in range(_CANCELLATION_ATTEMPTS):
        result = await _cancel_half(server, num, max_tokens)
        if result["running_before"] == num or result["running_before"] is None:
            break
    return result


async def _cancel_half(server: Served, num: int, max_tokens: int) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": STORY}], "max_tokens": max_tokens, "ignore_eos": True}
    half = num // 2
    async with AsyncClient(server.address, timeout_s=300) as client:
        streams = [client.generate(json.dumps(body), method="openai_stream_transport") for _ in range(num)]
        readers = [asyncio.create_task(_drain(stream)) for stream in streams]
        try:
            before, _ = await _wait_for_running(server, readers, lambda running: running >= num)
            is_early = not any(reader.done() for reader in readers)
            for reader in readers[:half]:
                reader.cancel()
            after, took_s = await _wait_for_running(server, readers[half:], lambda running: running <= half)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    is_seen = is_early and before == num and after is not None and 0 < after <= half
    return {"ok": is_seen, "running_before": before, "running_after": after, "seen_after_s": round(took_s, 2)}


async def _wait_for_running(
    server: Served, readers: Sequence[asyncio.Task[str]], is_reached: Callable[[float], bool]
) -> tuple[float | None, float]:
    """Poll the engine's count until it is what is waited for; return the last one, and how long that took."""
    began = time.monotonic()
    while True:
        running = await server.num_running()
        took_s = time.monotonic() - began
        is_over = took_s > 2 * METRIC_LAG_S or all(reader.done() for reader in readers)
        if running is None or is_reached(running) or is_over:
            return running, took_s
        await asyncio.sleep(0.02)


async def check_kill(server: Served, *, max_tokens: int = 1500, timeout_s: float = 120.0) -> dict[str, Any]:
    """Kill the engine's main process in mid-stream: UNAVAILABLE, not ready, then ready again with the same answer."""
    body = {"messages": [{"role": "user", "content": STORY}], "max_tokens": max_tokens, "ignore_eos": True}
    async with AsyncClient(server.address, timeout_s=timeout_s) as client:
        before = await client.predict(QUESTION, max_tokens=20, temperature=0.0)
        streams = [client.generate(json.dumps(body), method="openai_stream_transport") for _ in range(12)]
        await asyncio.gather(*(anext(aiter(stream)) for stream in streams))
        os.kill(server.engine_pid(), signal.SIGKILL)
        killed = time.monotonic()
        ends = asyncio.gather(*(_drain_timed(stream) for stream in streams))
        not_ready_s = await _wait_for_readiness(server, is_ready=False, timeout_s=20.0)
        ended, ended_at = zip(*await ends, strict=True)
        await _wait_for_readiness(server, is_ready=True, timeout_s=timeout_s)
        back_s = time.monotonic() - killed
        after = await client.predict(QUESTION, max_tokens=20, temperature=0.0)
    codes = sorted(set(ended))
    return {
        # A stream may have been written whole before; all that were not say the same.
        "ok": "UNAVAILABLE" in codes and not set(codes) - {"OK", "UNAVAILABLE"} and after == before,
        "streams_ended_with": {code: ended.count(code) for code in codes},
        "streams_ended_after_s": round(max(ended_at) - killed, 2),
        "not_ready_after_s": round(not_ready_s, 2),
        "ready_again_after_s": round(back_s, 1),
        "same_answer_after": after == before,
    }


async def _drain(stream: Any) -> str:
    try:
        async for _ in stream:
            pass
    except CallError as error:
        return error.grpc_status
    return "OK"


async def _drain_timed(stream: Any) -> tuple[str, float]:
    return await _drain(stream), time.monotonic()


async def _wait_for_readiness(server: Served, *, is_ready: bool, timeout_s: float) -> float:
    """Poll /ready; return how long it took."""
    began = time.monotonic()
    async with aiohttp.ClientSession() as session, asyncio.timeout(timeout_s):
        while True:
            async with session.get(f"{server.http_url}/ready") as response:
                if (response.status == 200) == is_ready:
                    return time.monotonic() - began
            await asyncio.sleep(0.02)


_HOLDER = """
import sys, time, torch
free, _ = torch.cuda.mem_get_info()
block = torch.empty(free - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def memory_holder(python: str, leave_gib: float) -> Iterator[None]:
    """Hold all of the first GPU's memory but `leave_gib`, in another process."""
    command = [python, "-c", _HOLDER, str(leave_gib)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "held\n":
            raise CheckError("the process that is to hold the GPU's memory could not take it")
        yield
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def check_out_of_memory(
    folder: Path,
    log: Path,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Start where the memory is not enough: the server has to end by itself, with the cause and the cure."""
    began = time.monotonic()
    server = Served(folder, log, environment)
    try:
        code: int | None = server.process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        server.stop()
    text = log.read_text(errors="replace")
    told = [line[:300] for line in text.splitlines() if line.startswith(("error:", "  help:"))]
    names_memory = any(
        cause in text
        for cause in (
            "memory is not enough",
            "no memory left for the KV cache",
            "does not fit into the memory",
        )
    )
    return {
        "ok": code == 1 and names_memory and any(line.startswith("  help:") for line in told),
        "exit_code": code,
        "names_memory": names_memory,
        "told": told,
        "ended_after_s": round(time.monotonic() - began, 1),
    }
