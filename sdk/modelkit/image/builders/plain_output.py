"""Reads what a build says while it runs: BuildKit's `--progress=plain`, and the lines of podman.

#7 [4/6] RUN --mount=type=bind,... pip install ...
#7 0.532 Collecting numpy
#7 DONE 2.1s
#7 ERROR: executor failed running [...]: exit code: 1

STEP 4/9: RUN --mount=type=bind,... pip install ...
"""

import re
from dataclasses import dataclass, field

from modelkit.image.builders.base import Progress

__all__ = ["BuildOutput"]

_STEP = re.compile(r"#(?P<id>\d+) (?P<rest>.*)")
_TIMED = re.compile(r"\d+\.\d+ (?P<text>.*)")
_PODMAN_STEP = re.compile(r"STEP \d+(?:/\d+)?: (?P<instruction>.*)")
_NOISE = re.compile(
    r"sha256:|DONE |CACHED|transferring |resolve |extracting |exporting |naming |writing |\.\.\.$"
)

# What an instruction of the rendered Dockerfile, or a step of BuildKit's own, means to a person.
_STAGES = (
    ("apt-get install", "installing system packages"),
    ("-m pip install", "installing dependencies"),
    ("-m venv", "making an environment"),
    ("COPY weights", "copying weights"),
    ("COPY app", "copying code"),
    ("load build context", "sending the context"),
    ("load metadata", "looking for the base image"),
    ("FROM ", "fetching the base image"),
    ("exporting to image", "writing the image"),
)


@dataclass(slots=True)
class BuildOutput:
    """Takes the lines of a build as they come; tells stages, and keeps what a failure has to show."""

    progress: Progress
    tails: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    failed: str | None = None
    other: list[str] = field(default_factory=list)
    _stage: str = ""
    _current: str = ""

    def feed(self, line: str) -> None:
        """Take one line."""
        self.progress.on_output(line)
        step, podman = _STEP.fullmatch(line), _PODMAN_STEP.fullmatch(line)
        if podman:
            self._begin(line, podman["instruction"])
            self._current = line
        elif step is None:
            self.tails.get(self._current, self.other).append(line)
        else:
            self._feed_step(step["id"], step["rest"])

    @property
    def failed_step(self) -> str:
        """The instruction that failed, as the Dockerfile has it; "" where none is known to."""
        return self.names.get(self.failed or self._current, "")

    @property
    def tail(self) -> list[str]:
        """What the failed step has said, or what was said outside of steps."""
        return self.tails.get(self.failed or self._current) or self.other

    def _feed_step(self, step: str, rest: str) -> None:
        if step not in self.names:
            self._begin(step, rest)
        elif rest.startswith("ERROR"):
            self.failed = step
        elif timed := _TIMED.fullmatch(rest):
            self.tails[step].append(timed["text"])
        elif not _NOISE.match(rest) and rest != self.names[step]:
            self.tails[step].append(rest)

    def _begin(self, step: str, instruction: str) -> None:
        self.names[step] = instruction
        self.tails[step] = []
        stage = next((stage for mark, stage in _STAGES if mark in instruction), "")
        if stage and stage != self._stage:
            self._stage = stage
            self.progress.on_stage(stage)
