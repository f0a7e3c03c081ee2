"""Which containers are started and which are told to end next: pure, decided from what is there now.

Every step leaves a state from which anybody can take the next one. A container of the new version is made before the
first step, so that later steps need nothing but what is on the host: no secret, no file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["MAX_CRASHES", "Seen", "Steps", "Surge", "next_steps"]

# So often may a replica that has never answered end before its version counts as one that does not come up.
MAX_CRASHES = 2

Phase = Literal["created", "refused", "starting", "ready", "draining", "ended", "failed"]

# It does not run, and can be started or removed.
_IDLE: Final = frozenset[Phase]({"created", "refused", "ended"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A container as it is. `number` is its replica's; `is_new` tells whether it is of the revision that is wanted.

    refused: the daemon has just refused to start it, and goes on doing so until its port or whatever it was is free.
    starting: it runs and does not answer yet, or not any more. ended: it was told to and has. failed: it ends as it
    starts, again and again, and has never been in place.
    """

    id: str
    name: str
    number: int
    phase: Phase
    is_new: bool
    gpus: tuple[str, ...] = ()

    @property
    def is_up(self) -> bool:
        """Whether it takes a place of the deployment: it runs, or will again, and was not told to end."""
        return self.phase in {"starting", "ready", "failed"}

    @property
    def runs(self) -> bool:
        """Whether it runs, told to end or not: it holds its GPUs."""
        return self.phase in {"starting", "ready", "draining", "failed"}


@dataclass(frozen=True, slots=True)
class Surge:
    """How many containers more than wanted may run at a time, and how many fewer may answer."""

    more: int
    fewer: int

    @classmethod
    def of(cls, num_replicas: int, max_surge_percent: int) -> "Surge":
        """Return what a share of the wanted replicas allows; with none, one replica at a time is down."""
        more = math.ceil(num_replicas * max_surge_percent / 100)
        return cls(more, 0 if more else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What can be done now. `remove` are those that have ended and are needed no more."""

    start: tuple[Seen, ...] = ()
    drain: tuple[Seen, ...] = ()
    remove: tuple[Seen, ...] = ()
    is_done: bool = False
    has_failed: bool = False


def next_steps(seen: Sequence[Seen], num_replicas: int, surge: Surge) -> Steps:
    """Return the next steps towards `num_replicas` ready containers of the new revision, and no other."""
    new = sorted((each for each in seen if each.is_new), key=lambda each: each.number)
    old = sorted((each for each in seen if not each.is_new), key=lambda each: each.number)
    wanted, spare = _wanted(new, num_replicas)
    if any(each.phase == "failed" for each in wanted) or _is_refused(seen, wanted):
        return Steps(has_failed=True)
    num_ready = sum(each.phase == "ready" for each in wanted)
    if num_ready >= num_replicas:
        rest = [*old, *spare]
        return Steps(
            drain=tuple(each for each in rest if each.is_up),
            remove=tuple(each for each in rest if each.phase in _IDLE),
            is_done=all(each.phase in _IDLE for each in rest),
        )
    start = _to_start(seen, wanted, num_replicas + surge.more)
    drain = [] if start else _to_drain(seen, old, wanted, num_replicas - surge.fewer)
    return Steps(start=tuple(start), drain=tuple(drain))


def _wanted(new: Sequence[Seen], num_replicas: int) -> tuple[list[Seen], list[Seen]]:
    """Divide the new containers: those that are kept, the ones that answer first, and those too many."""
    rank = {"ready": 0, "starting": 1, "created": 2, "ended": 3, "refused": 4, "failed": 5, "draining": 6}
    ordered = sorted(new, key=lambda each: (rank[each.phase], each.number))
    kept = [each for each in ordered if each.phase != "draining"][:num_replicas]
    return kept, [each for each in new if each not in kept]


def _is_refused(seen: Sequence[Seen], wanted: Sequence[Seen]) -> bool:
    """Tell whether a start was refused for good: what drains may hold what it wants, a port or a name."""
    return any(each.phase == "refused" for each in wanted) and not any(
        each.phase == "draining" for each in seen
    )


def _to_start(seen: Sequence[Seen], wanted: Sequence[Seen], limit: int) -> list[Seen]:
    room = limit - sum(each.is_up for each in seen)
    taken = {gpu for each in seen if each.runs for gpu in each.gpus}
    start: list[Seen] = []
    for each in sorted(wanted, key=lambda each: each.number):
        if len(start) < room and each.phase in _IDLE and not taken & set(each.gpus):
            start.append(each)
            taken |= set(each.gpus)
    return start


def _to_drain(seen: Sequence[Seen], old: Sequence[Seen], wanted: Sequence[Seen], least: int) -> list[Seen]:
    """Return old ones that make room for a new one that waits: those that do not answer, else as many as can be missed."""
    if not any(each.phase in _IDLE for each in wanted):
        return []  # they serve on until the last new one answers: it may still fail
    useless = [each for each in old if each.phase in {"starting", "failed"}]
    surplus = sum(each.phase == "ready" for each in seen) - least
    return useless or [each for each in old if each.phase == "ready"][: max(0, surplus)]
