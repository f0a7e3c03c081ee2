"""A roll, step by step: simulated from the first container to the last, for every shape that matters."""

import itertools
from dataclasses import replace

import pytest

from modelkit.deploy.docker.roll import Seen, Surge, next_steps


def seen(number, phase, *, is_new=True, gpus=()):
    name = f"{'new' if is_new else 'old'}-{number}"
    return Seen(id=name, name=name, number=number, phase=phase, is_new=is_new, gpus=gpus)


class Simulation:
    """Does what the steps say. What starts becomes ready one round later, what drains ends one round later."""

    def __init__(self, containers, num_replicas, max_surge_percent):
        self.containers = {each.id: each for each in containers}
        self.num_replicas = num_replicas
        self.surge = Surge.of(num_replicas, max_surge_percent)
        self.least_ready = self.num_ready
        self.most_up = 0

    @property
    def num_ready(self):
        return sum(each.phase == "ready" for each in self.containers.values())

    def _set(self, each, phase):
        self.containers[each.id] = replace(each, phase=phase)

    def round(self):
        for each in list(self.containers.values()):
            if each.phase == "draining":
                self._set(each, "ended")
            elif each.phase == "starting" and each.is_new:
                self._set(each, "ready")
        steps = next_steps(list(self.containers.values()), self.num_replicas, self.surge)
        for each in steps.start:
            holders = [other for other in self.containers.values() if other.runs]
            assert not any(set(each.gpus) & set(other.gpus) for other in holders)
            self._set(each, "starting")
        for each in steps.drain:
            assert each.is_up
            self._set(each, "draining")
        for each in steps.remove:
            del self.containers[each.id]
        self.least_ready = min(self.least_ready, self.num_ready)
        self.most_up = max(self.most_up, sum(each.is_up for each in self.containers.values()))
        return steps

    def run(self):
        for _ in range(50):
            if self.round().is_done:
                break
        else:
            raise AssertionError(self.containers)
        assert all(each.is_new and each.phase == "ready" for each in self.containers.values())
        assert len(self.containers) == self.num_replicas
        return self


@pytest.mark.parametrize(
    ("num_old", "num_new", "percent"),
    list(itertools.product((0, 1, 2, 3, 5), (1, 2, 3, 4), (0, 25, 50, 100))),
)
def test_every_roll_ends_within_its_bounds(num_old, num_new, percent):
    old = [seen(number, "ready", is_new=False) for number in range(num_old)]
    new = [seen(num_old + number, "created") for number in range(num_new)]
    surge = Surge.of(num_new, percent)
    done = Simulation([*old, *new], num_new, percent).run()
    assert done.least_ready >= min(num_old, num_new - surge.fewer)
    assert done.most_up <= max(num_old, num_new + surge.more)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_gpus_are_taken_over_from_those_that_end(num):
    old = [seen(number, "ready", is_new=False, gpus=(f"gpu{number}",)) for number in range(num)]
    new = [seen(num + number, "created", gpus=(f"gpu{number}",)) for number in range(num)]
    done = Simulation([*old, *new], num, 0).run()
    assert done.least_ready >= num - 1


def test_one_free_gpu_lets_a_roll_pass_from_one_to_the_next():
    old = [seen(number, "ready", is_new=False, gpus=(f"gpu{number}",)) for number in range(3)]
    new = [seen(3, "created", gpus=("free",)), *(seen(4 + i, "created", gpus=(f"gpu{i}",)) for i in range(2))]
    assert Simulation([*old, *new], 3, 100).run().least_ready >= 3


def test_old_ones_serve_until_the_last_new_one_answers():
    containers = [
        seen(1, "ready", is_new=False),
        seen(2, "ready", is_new=False),
        seen(3, "ready"),
        seen(4, "starting"),
    ]
    steps = next_steps(containers, 2, Surge.of(2, 100))
    assert (steps.start, steps.drain, steps.remove, steps.is_done) == ((), (), (), False)


def test_nothing_moves_once_a_new_one_has_failed():
    containers = [seen(1, "ready", is_new=False), seen(2, "failed"), seen(3, "created")]
    steps = next_steps(containers, 2, Surge.of(2, 100))
    assert steps.has_failed
    assert (steps.start, steps.drain, steps.remove) == ((), (), ())


def test_a_refused_start_is_a_failure_once_nothing_drains():
    containers = [seen(1, "ready", is_new=False), seen(2, "refused"), seen(3, "created")]
    steps = next_steps(containers, 2, Surge.of(2, 100))
    assert steps.has_failed
    assert (steps.start, steps.drain, steps.remove) == ((), (), ())
    # What still drains may hold its port.
    steps = next_steps([seen(1, "draining", is_new=False), seen(2, "refused")], 1, Surge.of(1, 0))
    assert not steps.has_failed
    assert [each.number for each in steps.start] == [2]
    # One too many condemns nothing, and goes.
    steps = next_steps([seen(1, "ready"), seen(2, "refused")], 1, Surge.of(1, 100))
    assert steps.is_done
    assert [each.number for each in steps.remove] == [2]


def test_old_ones_that_do_not_answer_make_room_first():
    containers = [
        seen(1, "ready", is_new=False),
        seen(2, "failed", is_new=False),
        seen(3, "ready", is_new=False),
        seen(4, "created"),
    ]
    steps = next_steps(containers, 3, Surge.of(3, 0))
    assert [each.number for each in steps.drain] == [2]


def test_one_that_was_told_to_end_and_is_wanted_again_is_started():
    containers = [seen(1, "ended"), seen(2, "failed", is_new=False)]
    assert [each.number for each in next_steps(containers, 1, Surge.of(1, 100)).start] == [1]
    still_draining = [seen(1, "draining"), seen(2, "ready", is_new=False)]
    steps = next_steps(still_draining, 1, Surge.of(1, 100))
    assert (steps.start, steps.drain, steps.is_done) == ((), (), False)


def test_fewer_replicas_end_those_with_the_highest_numbers():
    containers = [seen(number, "ready") for number in (1, 2, 3)]
    steps = next_steps(containers, 1, Surge.of(1, 100))
    assert [each.number for each in steps.drain] == [2, 3]


def test_one_too_many_that_has_failed_is_ended_and_condemns_nothing():
    """Scaled up, one did not come up, scaled down again."""
    steps = next_steps([seen(1, "ready"), seen(2, "failed")], 1, Surge.of(1, 100))
    assert not steps.has_failed
    assert [each.number for each in steps.drain] == [2]


def test_a_roll_is_done_when_the_old_ones_have_ended():
    draining = [seen(1, "ready"), seen(2, "draining", is_new=False)]
    assert not next_steps(draining, 1, Surge.of(1, 100)).is_done
    ended = [seen(1, "ready"), seen(2, "ended", is_new=False)]
    steps = next_steps(ended, 1, Surge.of(1, 100))
    assert steps.is_done
    assert [each.number for each in steps.remove] == [2]


@pytest.mark.parametrize(
    ("num", "percent", "more", "fewer"),
    [(1, 100, 1, 0), (1, 25, 1, 0), (4, 25, 1, 0), (4, 0, 0, 1), (3, 50, 2, 0)],
)
def test_surge(num, percent, more, fewer):
    assert Surge.of(num, percent) == Surge(more, fewer)
