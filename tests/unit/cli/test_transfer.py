"""How a transfer looks while several threads work on it."""

import threading

from modelkit.cli.transfer import Bars


def test_a_bar_is_not_taken_away_while_it_is_moved(monkeypatch):
    bars = Bars("fetching", lambda: None)
    bars.begin(1, 10)
    bars.started("a", 10)
    bar, move = bars._bars["a"], bars._progress.advance

    def slowly(task, num_bytes):
        if task == bar and not ending.ident:
            ending.start()
            ending.join(0.2)  # it waits for us
        move(task, num_bytes)

    ending = threading.Thread(target=bars.finished, args=("a",))
    monkeypatch.setattr(bars._progress, "advance", slowly)
    bars.advanced("a", 10)
    ending.join()
    assert bar not in bars._progress.task_ids
    assert bars.end().startswith("1 file, 10 bytes")
