"""Two first builds at once."""

import threading
import time

from modelkit.image import sdk_wheel as module


def test_the_second_of_two_builds_waits_for_the_wheel_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    built = []

    def build(_root, folder):
        built.append(folder)
        time.sleep(0.2)  # in which the other one comes
        folder.mkdir()
        (folder / "modelkit.whl").touch()
        return folder / "modelkit.whl"

    monkeypatch.setattr(module, "_build", build)
    wheels = []
    threads = [threading.Thread(target=lambda: wheels.append(module.sdk_wheel())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert wheels == [built[0] / "modelkit.whl"] * 2
