"""Giving up while the engine loads: at once, in order, and without a trace, whatever the thread is doing."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from modelkit.config import EngineConfig
from modelkit.engines import GenerationRequest, create
from modelkit.errors import LoadError, UnavailableError

# Reads its weights for longer than any test waits.
SLOW_MODEL = """
import time

from modelkit import LLM
from modelkit.engines.transformers import TransformersEngine


def load(self):
    print("reading weights", flush=True)
    time.sleep(600)


TransformersEngine._load = load


class Slow(LLM): ...
"""
# Waits for the engine as long as it is told, then ends like any program.
GIVE_UP = """
import asyncio, sys
from pathlib import Path
from modelkit.config import EngineConfig
from modelkit.engines import create

async def main():
    engine = create(EngineConfig(name="transformers"), Path(sys.argv[1]), "tiny-chat")
    try:
        await asyncio.wait_for(engine.start(), float(sys.argv[2]))
    except TimeoutError:
        print("gave up")
    await engine.close()

asyncio.run(main())
"""


@pytest.fixture
def folder(tiny_chat_checkpoint, tmp_path):
    return shutil.copytree(tiny_chat_checkpoint.parent, tmp_path / "tiny-chat")


def serve(folder):
    command = [sys.executable, "-m", "modelkit", "serve", str(folder), "--local", "--port", "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(process, number=signal.SIGINT):
    """Send the signal; return the exit code, the seconds until then, and what was written to stderr meanwhile."""
    process.send_signal(number)
    start = time.monotonic()
    _, errors = process.communicate(timeout=30)
    return process.returncode, time.monotonic() - start, errors


@pytest.mark.parametrize("delay_s", [0.0, 1.0])
def test_ctrl_c_while_torch_and_the_checkpoint_load(folder, delay_s):
    process = serve(folder)
    while "loading" not in (line := process.stderr.readline()):
        assert line, "ended before it loaded"
    time.sleep(delay_s)
    code, took_s, errors = interrupted(process)
    assert code == 130
    assert all(line.startswith("loading TinyChat: ") for line in errors.splitlines()), errors
    assert took_s < 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_weights_are_read_for_minutes(folder, number):
    (folder / "model.py").write_text(SLOW_MODEL)
    process = serve(folder)
    assert process.stdout.readline() == "reading weights\n"
    code, took_s, errors = interrupted(process, number)
    assert code == 130
    assert "Traceback" not in errors
    assert took_s < 2


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.0])
def test_a_program_that_gives_up_ends_well(tiny_chat_checkpoint, seconds):
    """A thread inside a C++ library when the interpreter ends would abort the process."""
    command = [sys.executable, "-c", GIVE_UP, str(tiny_chat_checkpoint), str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout in ("gave up\n", "")
    assert "InvalidStateError" not in result.stderr


async def test_an_engine_closed_while_it_loads_stops_between_the_steps(tiny_chat_checkpoint, monkeypatch):
    import torch
    import transformers

    engine = create(EngineConfig(name="transformers"), tiny_chat_checkpoint, "tiny-chat")
    at_tokenizer, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    load = transformers.AutoTokenizer.from_pretrained

    def from_pretrained(*args, **kwargs):
        loop.call_soon_threadsafe(at_tokenizer.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        return load(*args, **kwargs)

    def unexpected(*_args, **_kwargs):
        raise AssertionError("weights were read")

    assert torch
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", unexpected)
    start = asyncio.create_task(engine.start())
    await asyncio.wait_for(at_tokenizer.wait(), 30)
    with pytest.raises(UnavailableError, match="has not started"):
        await anext(engine.generate(GenerationRequest(prompt="Hi")))
    async with asyncio.timeout(1):
        await engine.close()
    go_on.set()
    with pytest.raises(UnavailableError, match="closed while it loaded"):
        await start


@pytest.mark.parametrize("size", [5, 1000, 100_000])
async def test_a_checkpoint_that_is_cut_off_is_an_error_with_a_cure(tiny_chat_checkpoint, tmp_path, size):
    folder = shutil.copytree(tiny_chat_checkpoint, tmp_path / "cut")
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(size)
    engine = create(EngineConfig(name="transformers"), folder, "tiny-chat")
    with pytest.raises(LoadError, match="a file of the checkpoint is damaged or cut off") as error:
        await engine.start()
    assert "fetch or copy the checkpoint again" in error.value.cure
    await engine.close()
