import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelkit.checkpoints import partial as module
from modelkit.checkpoints.partial import Claim, Partial, RestartedError

DATA = random.Random(1).randbytes(1000)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 100)
    monkeypatch.setattr(module, "_HASH_STEP_BYTES", 50)


@pytest.fixture
def opened(tmp_path):
    made = []

    def open_one(size_bytes=1000):
        made.append(Partial(tmp_path / "x", size_bytes))
        made[-1].open()
        return made[-1]

    yield open_one
    for each in made:
        each.close()


def feed(partial, index, count=None):
    start, stop = partial.span(index)
    at = start + partial.counts[index]
    partial.write(index, DATA[at : stop if count is None else at + count])
    partial.advance_hash()
    return partial.completes()


def test_parts_may_come_in_any_order_and_the_hash_is_that_of_the_whole(opened):
    partial = opened()
    order = list(range(10))
    random.Random(2).shuffle(order)
    complete = [feed(partial, index) for index in order]
    assert complete.count(True) == 1
    assert complete[-1]
    assert partial.sha256 == hashlib.sha256(DATA).hexdigest()
    assert partial.path.read_bytes() == DATA


def test_whoever_goes_on_finds_what_has_arrived(opened):
    first = opened()
    feed(first, 0)
    feed(first, 3, 40)
    feed(first, 9)
    first.close()
    second = opened()
    assert second.done_bytes == 240
    assert second.missing() == [1, 2, 3, 4, 5, 6, 7, 8]
    results = [feed(second, index) for index in second.missing()]
    assert results[-1]
    assert second.sha256 == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("damage", ["no journal", "short journal", "short file", "another size", "noise"])
def test_a_journal_that_does_not_fit_is_not_believed(opened, tmp_path, damage):
    first = opened()
    feed(first, 0)
    feed(first, 9)
    first.close()
    journal = tmp_path / "x.parts"
    if damage == "no journal":
        journal.unlink()
    elif damage == "short journal":
        journal.write_bytes(journal.read_bytes()[:-3])
    elif damage == "short file":
        (tmp_path / "x").write_bytes(DATA[:50])
    elif damage == "noise":
        journal.write_bytes(random.Random(3).randbytes(96))
    second = opened(900 if damage == "another size" else 1000)
    assert second.done_bytes == 0


def test_other_sizes_of_parts_are_taken_over(opened, monkeypatch):
    first = opened()
    feed(first, 0)
    first.close()
    monkeypatch.setattr(module, "PART_BYTES", 300)
    second = opened()
    assert (second.part_bytes, second.done_bytes) == (100, 100)


def test_a_closed_transfer_is_not_written_to(opened):
    partial = opened()
    partial.close()
    with pytest.raises(ValueError, match="ended"):
        partial.write(0, b"x")


def test_a_part_does_not_overflow(opened):
    with pytest.raises(ValueError, match="more bytes"):
        opened().write(0, b"x" * 101)


def test_threads_may_write_at_the_same_time(opened):
    partial = opened()
    complete = []
    threads = [threading.Thread(target=lambda i=i: complete.append(feed(partial, i))) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert complete.count(True) == 1
    assert partial.sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_claim_is_one_ones_only(tmp_path):
    first, second = Claim(tmp_path / "x.lock"), Claim(tmp_path / "x.lock")
    assert first.take()
    assert not second.take()
    first.give_up()
    assert not (tmp_path / "x.lock").exists()
    assert second.take()
    second.give_up()


def test_a_claim_that_two_threads_give_up_is_closed_once(tmp_path):
    """The second close would hit whatever has got the number of the descriptor meanwhile."""
    from modelkit.checkpoints.partial import Claim

    with ThreadPoolExecutor(4) as pool:
        for _ in range(200):
            claim = Claim(tmp_path / "x.lock")
            assert claim.take()
            for ended in [pool.submit(claim.give_up) for _ in range(4)]:
                ended.result()


def test_what_belongs_to_the_parts_of_before_is_refused(tmp_path):
    file = Partial(tmp_path / "file", 10)
    file.open()
    layout = file.layout
    file.write(0, b"12345", layout)
    assert file.count(0, layout) == 5
    assert file.restart(whole=True) == 5
    with pytest.raises(RestartedError):
        file.write(0, b"67890", layout)
    with pytest.raises(RestartedError):
        file.count(0, layout)
    assert file.count(0, file.layout) == 0
    file.close()
