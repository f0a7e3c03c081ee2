"""Where the time of a start goes: the stages that a model reports, summed into five phases.

An engine with a server of its own tells its stages by what its log says; the phase of a stage is looked up here.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["FINDING_CHECKPOINT", "IMPORTING_MODEL", "LOADING_MODEL", "PHASES", "StartProfile"]

# In the order of a start. "prepare" is the making of an engine's environment, which happens once.
PHASES: Final = ("prepare", "import", "resolve", "load", "compile", "warm-up")
IMPORTING_MODEL: Final = "importing model.py"
FINDING_CHECKPOINT: Final = "finding the checkpoint"
LOADING_MODEL: Final = "loading the model"

_PHASE_OF: Final[Mapping[str, str]] = {
    IMPORTING_MODEL: "import",
    "importing": "import",
    "reading the config": "import",
    "starting the engine": "import",
    FINDING_CHECKPOINT: "resolve",
    LOADING_MODEL: "load",
    "preparing weights": "load",
    "loading weights": "load",
    "compiling": "compile",
    "measuring memory": "compile",
    "allocating the KV cache": "compile",
    "capturing CUDA graphs": "compile",
    "starting the server": "warm-up",
    "warming up": "warm-up",
    "answering a first request": "warm-up",
}


@dataclass(frozen=True, slots=True)
class _Mark:
    stage: str
    began_s: float


class StartProfile:
    """Hears the stages of one start and says how long each has taken. Stages may come from any thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._marks = [_Mark(IMPORTING_MODEL, clock())]
        self._ended_s: float | None = None

    def begin(self, stage: str) -> None:
        """A stage begins, and the one before it has ended."""
        self._marks.append(_Mark(stage, self._clock()))

    def end(self) -> None:
        """The model is ready."""
        self._ended_s = self._clock()

    @property
    def total_s(self) -> float:
        """Seconds from the first stage to the end of the last."""
        return (self._clock() if self._ended_s is None else self._ended_s) - self._marks[0].began_s

    def stages(self) -> list[tuple[str, float]]:
        """Return each stage with its seconds; one that came several times in a row is one."""
        ends = [*(mark.began_s for mark in self._marks[1:]), self._marks[0].began_s + self.total_s]
        merged: list[tuple[str, float]] = []
        for mark, ended_s in zip(self._marks, ends, strict=True):
            took_s = ended_s - mark.began_s
            if merged and merged[-1][0] == mark.stage:
                took_s += merged.pop()[1]
            merged.append((mark.stage, took_s))
        return merged

    def phases(self) -> dict[str, float]:
        """Return the seconds of each phase, all of which are there but "prepare" where nothing was prepared."""
        sums = dict.fromkeys(PHASES, 0.0)
        for stage, took_s in self.stages():
            sums[_phase_of(stage)] += took_s
        return {phase: took_s for phase, took_s in sums.items() if took_s or phase != PHASES[0]}

    def content(self) -> dict[str, Any]:
        """Return it as JSON has it: seconds, by phase and by stage."""
        return {
            **{f"{phase.replace('-', '_')}_s": round(took_s, 3) for phase, took_s in self.phases().items()},
            "total_s": round(self.total_s, 3),
            "stages": [{"stage": stage, "took_s": round(took_s, 3)} for stage, took_s in self.stages()],
        }

    def table(self) -> str:
        """Return it as lines for a person: phase, seconds, share, and the stages where they are several."""
        lines = [f"  {'start':9}{'seconds':>8}  share"]
        for phase, took_s in self.phases().items():
            share = took_s / self.total_s if self.total_s else 0.0
            inside = [
                f"{stage} {seconds:.2f}" for stage, seconds in self.stages() if _phase_of(stage) == phase
            ]
            detail = f"  {', '.join(inside)}" if len(inside) > 1 else ""
            lines.append(f"  {phase:9}{took_s:8.2f}  {share:4.0%}{detail}")
        return "\n".join([*lines, f"  {'total':9}{self.total_s:8.2f}"])


def _phase_of(stage: str) -> str:
    """Return the phase of a stage; the stages of making an environment name packages and have no list."""
    return _PHASE_OF.get(stage, PHASES[0])
