"""A value that several threads need at the same moment is made once."""

import threading
import time

from modelkit.checkpoints.once import once


class Source:
    def __init__(self):
        self.num_made = 0

    @once
    def client(self):
        self.num_made += 1
        time.sleep(0.05)  # in which the other threads come
        return object()


def test_threads_that_come_at_once_get_the_same_client():
    source, got, together = Source(), [], threading.Barrier(8)

    def ask():
        together.wait()
        got.append(source.client)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == source.num_made == 1
    assert source.__dict__["client"] is got[0]


def test_each_source_has_its_own():
    assert Source().client is not Source().client
    assert isinstance(Source.client, once)
