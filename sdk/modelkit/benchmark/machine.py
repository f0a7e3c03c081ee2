"""The machine beside the metrics: GPU memory, use and power; the engine's queue and KV cache; CPU of server and engine.

Sampled once a second by the parent, never by a process that takes times. Everything here is optional: what a machine or
a server does not tell is absent from the report.
"""

import asyncio
import os
import platform
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["Machine", "Sampler", "describe_host"]

_EVERY_S = 1.0
_QUERY = ("memory.used", "utilization.gpu", "power.draw")
_MIB = 1024**2
# What the engines call the same four figures. A name may have changed between releases; the first that is there counts.
ENGINE_METRICS: Final = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs", "lmdeploy:num_requests_running"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "lmdeploy:num_requests_waiting"),
    "kv_use": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "lmdeploy:gpu_cache_usage_perc",
    ),
    "preemptions": ("vllm:num_preemptions_total",),
}
_SAMPLE_LINE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})?\s+(\S+)")


@dataclass(slots=True)
class Machine:
    """The samples of one level, and CPU seconds where the server's process is known."""

    gpu: list[dict[str, float]] = field(default_factory=list)
    engine: list[dict[str, float]] = field(default_factory=list)
    server_cpu_s: float | None = None
    engine_cpu_s: float | None = None

    def as_json(self, num_tokens: int) -> dict[str, Any]:
        """Return peaks and means as run.json has them."""
        result: dict[str, Any] = {}
        if self.gpu:
            result["gpu"] = {
                "memory_bytes_max": round(max(sample["memory_bytes"] for sample in self.gpu)),
                "utilization_pct_mean": _mean([sample["utilization_pct"] for sample in self.gpu]),
                "power_w_mean": _mean([sample["power_w"] for sample in self.gpu]),
            }
        if self.engine:
            names = {name for sample in self.engine for name in sample}
            found = {
                name: [sample[name] for sample in self.engine if name in sample] for name in sorted(names)
            }
            result["engine"] = {
                name: {"mean": _mean(values), "max": round(max(values), 4)} for name, values in found.items()
            }
        for name in ("server_cpu_s", "engine_cpu_s"):
            seconds = getattr(self, name)
            if seconds is not None and num_tokens:
                result[f"{name}_per_1k_tokens"] = round(seconds / num_tokens * 1000, 4)
        return result


class Sampler:
    """Samples while a level runs: the engine's metrics from one of `metrics_urls`, the CPU of the process `server_pid`."""

    def __init__(
        self, *, metrics_urls: Sequence[str] = (), server_pid: int | None = None, is_local: bool = True
    ) -> None:
        self._metrics_urls = metrics_urls
        self._server_pid = server_pid
        self._tool = shutil.which("nvidia-smi") if is_local else None

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[Machine]:
        """Sample until the block ends."""
        machine = Machine()
        before = self._cpu()
        tasks = [
            asyncio.create_task(self._engine(machine.engine)),
            asyncio.create_task(self._gpu(machine.gpu)),
        ]
        try:
            yield machine
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            after = self._cpu()
            if before is not None and after is not None:
                machine.server_cpu_s, machine.engine_cpu_s = after[0] - before[0], after[1] - before[1]

    def _cpu(self) -> tuple[float, float] | None:
        """Return the CPU seconds of the server and of the processes below it, the engine's."""
        if self._server_pid is None:
            return None
        try:
            import psutil
        except ModuleNotFoundError:
            return None
        try:
            server = psutil.Process(self._server_pid)
            own, children = server.cpu_times(), server.children(recursive=True)
        except psutil.Error:
            return None
        engine = 0.0
        for child in children:
            with suppress(psutil.Error):
                times = child.cpu_times()
                engine += times.user + times.system
        return own.user + own.system, engine

    async def _gpu(self, samples: list[dict[str, float]]) -> None:
        """Let one nvidia-smi repeat its query: starting it each second would cost the server CPU."""
        if self._tool is None:
            return
        from modelkit.engines.machine import is_visible

        process = await asyncio.create_subprocess_exec(
            *(
                self._tool,
                f"--query-gpu=index,uuid,{','.join(_QUERY)}",
                "--format=csv,noheader,nounits",
                "--loop=1",
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        try:
            current: list[list[float]] = []
            first = ""
            async for line in process.stdout:
                index, uuid, *cells = (cell.strip() for cell in line.decode().split(","))
                if not is_visible(index, uuid):
                    continue
                first = first or index
                if index == first and current:
                    samples.append(_all_gpus(current))
                    current = []
                current.append([_number(cell) for cell in cells])
            if current:
                samples.append(_all_gpus(current))
        finally:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()

    async def _engine(self, samples: list[dict[str, float]]) -> None:
        """Read the engine's metrics, from the first place that has them: modelkit passes them on, others are one."""
        if not self._metrics_urls:
            return
        import aiohttp

        urls = list(self._metrics_urls)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while urls:
                await asyncio.sleep(_EVERY_S)
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with session.get(urls[0]) as response:
                        sample = read_engine_metrics(await response.read())
                    if sample:
                        samples.append(sample)
                    elif not samples:
                        urls.pop(0)


def read_engine_metrics(content: bytes) -> dict[str, float]:
    """Return what the engine says of its queue and cache: sums over its processes, the fullest cache."""
    found: dict[str, list[float]] = {}
    for line in content.splitlines():
        if match := _SAMPLE_LINE.match(line):
            with suppress(ValueError):
                found.setdefault(match[1].decode(), []).append(float(match[2]))
    result = {}
    for name, spellings in ENGINE_METRICS.items():
        values = next((found[spelling] for spelling in spellings if spelling in found), None)
        if values:
            result[name] = max(values) if name == "kv_use" else sum(values)
    return result


def describe_host() -> dict[str, Any]:
    """Return the machine that measures, as run.json has it."""
    from modelkit.engines.machine import nvidia_gpus

    gpus = [
        {"name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver} for gpu in nvidia_gpus()
    ]
    return {
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpus": gpus,
    }


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _all_gpus(rows: list[list[float]]) -> dict[str, float]:
    memory, use, power = zip(*rows, strict=True)
    return {
        "memory_bytes": sum(memory) * _MIB,
        "utilization_pct": sum(use) / len(use),
        "power_w": sum(power),
        "at": time.perf_counter(),
    }


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # "[N/A]"
        return 0.0


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)
