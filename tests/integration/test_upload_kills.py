"""kill -9 of the uploading process and of the registry, at random moments: `latest` never lies, the next upload ends.

MODELKIT_TEST_KILLS and MODELKIT_TEST_KILL_BYTES make it more and larger.
"""

import contextlib
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from greeter import MODEL, send, write_greeter
from modelkit.registry import LayoutReference, open_store
from modelkit.registry.failures import TransientError
from modelkit.registry.layout import Layout
from modelkit.versions.upload import version_numbers
from modelkit.versions.verify import verify
from modelkit.versions.version import read_version
from registry_proxy import RegistryProxy

NUM_KILLS = int(os.environ.get("MODELKIT_TEST_KILLS", "20"))
WEIGHT_BYTES = int(os.environ.get("MODELKIT_TEST_KILL_BYTES", "2000000"))
NUM_FILES = 4
SEED = random.randrange(1_000_000)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def chance():
    print(f"seed {SEED}")
    return random.Random(SEED)


@pytest.fixture
def folder(tmp_path):
    return write_greeter(tmp_path / "greeter")


def change(folder, number):
    """Make the folder another version: other code, and other weights in every file."""
    (folder / "model.py").write_text(f"{MODEL}# {number}\n")
    for index in range(NUM_FILES):
        data = random.Random(f"{number} {index}").randbytes(WEIGHT_BYTES // NUM_FILES)
        (folder / f"checkpoint/model-{index}.safetensors").write_bytes(data)


def assert_whole(store):
    """Every version that has a number is whole, and `latest` is one of them."""
    numbers = version_numbers(store)
    for number in numbers:
        checks = verify(read_version(store, f"v{number}"))
        assert [check for check in checks if check.is_fine is False] == []
    latest = store.find_manifest("latest")
    if latest is not None:
        assert latest.digest in {store.find_manifest(f"v{number}").digest for number in numbers}
    return numbers


def start_upload(folder, target):
    command = [sys.executable, "-m", "modelkit", "-q", "upload", "--no-image", str(folder), "--to", target]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_the_uploading_process_is_killed(folder, own_registry, chance):
    proxy = RegistryProxy(own_registry.port)
    proxy.rules.bytes_per_s = 10_000_000
    try:
        with open_store(own_registry.reference("greeter")) as store:
            change(folder, "first")
            with start_upload(folder, f"{proxy.host}/greeter") as process:
                assert process.wait() == 0
            num_requests = len(proxy.requests)
            num_cut = 0
            for number in range(NUM_KILLS):
                change(folder, number)
                until = len(proxy.requests) + chance.randint(1, num_requests)
                with start_upload(folder, f"{proxy.host}/greeter") as process:
                    while process.poll() is None and len(proxy.requests) < until:
                        time.sleep(0.001)
                    time.sleep(chance.uniform(0, 0.05))
                    process.kill()
                num_cut += process.returncode == -9
                assert_whole(store)
            assert num_cut > NUM_KILLS // 2
            last = send(folder, store)
            assert assert_whole(store)[-1] == int(last.tag[1:])
            assert store.find_manifest("latest").digest == last.digest
            assert send(folder, store).copied.sent_bytes == 0
    finally:
        proxy.close()


def test_the_process_that_writes_a_layout_is_killed(folder, tmp_path, chance):
    layout = Layout(LayoutReference(tmp_path / "layout"))
    target = f"oci:{layout.folder}"
    change(folder, "first")
    with start_upload(folder, target) as process:
        assert process.wait() == 0
    for number in range(NUM_KILLS // 2):
        change(folder, number)
        before = len(list(layout.folder.rglob("*")))
        with start_upload(folder, target) as process:
            while process.poll() is None and len(list(layout.folder.rglob("*"))) <= before:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        assert_whole(layout)
    last = send(folder, layout)
    assert_whole(layout)
    assert layout.find_manifest("latest").digest == last.digest
    assert send(folder, layout).copied.sent_bytes == 0


def test_the_registry_is_killed(folder, own_registry, chance):
    proxy = RegistryProxy(own_registry.port)
    proxy.rules.bytes_per_s = 10_000_000
    over = threading.Event()

    def disturb():
        for _ in range(NUM_KILLS):
            if over.wait(chance.uniform(0.05, 0.5)):
                return
            own_registry.kill()
            time.sleep(chance.uniform(0, 0.3))
            own_registry.start()

    trouble = threading.Thread(target=disturb)
    trouble.start()
    try:
        number = 0
        while trouble.is_alive():
            change(folder, number)
            number += 1
            with contextlib.suppress(TransientError), open_store(proxy.reference("greeter")) as store:
                send(folder, store)
        with open_store(own_registry.reference("greeter")) as store:
            last = send(folder, store)
            assert_whole(store)
            assert store.find_manifest("latest").digest == last.digest
            assert send(folder, store).copied.sent_bytes == 0
    finally:
        over.set()
        trouble.join()
        proxy.close()
