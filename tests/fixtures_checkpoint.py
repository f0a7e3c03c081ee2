"""The trained tiny-chat checkpoint, for every test that asks a real language model.

It is trained once, into the example's own folder, and kept there; of several test processes one trains and the others
wait. A test that uses it is marked `checkpoint`.
"""

import fcntl
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

EXAMPLE_DIR = Path(__file__).resolve().parent.parent / "examples" / "tiny-chat"


@pytest.fixture(scope="session")
def tiny_chat_checkpoint() -> Path:
    """The checkpoint folder of examples/tiny-chat."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        pytest.skip("needs torch and transformers")
    train = EXAMPLE_DIR / "train.py"
    with train.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([sys.executable, train], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return EXAMPLE_DIR / "checkpoint"


@pytest.fixture(scope="session")
def tiny_chat_answers(tiny_chat_checkpoint: Path) -> list[dict[str, Any]]:
    """Every question with its exact greedy answer: {"messages", "answer", "token_ids", "exact"}."""
    answers: list[dict[str, Any]] = json.loads((tiny_chat_checkpoint / "qa.json").read_text(encoding="utf-8"))
    return answers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tiny_chat_checkpoint" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.checkpoint)
