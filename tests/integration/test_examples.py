"""Every example for real: the model served on loopback, the client programs as processes of their own."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modelkit import AsyncClient, Client, InvalidArgumentError
from modelkit.config import load_config
from modelkit.model.importing import import_model_class
from modelkit.testing import run_server
from paths import EXAMPLES, ROOT, load_file


@contextmanager
def served(example: str) -> Iterator[str]:
    folder = EXAMPLES / example
    config = load_config(folder / "config.yaml")
    with run_server(import_model_class(folder), config=config, model_dir=folder) as server:
        yield server.address


@pytest.fixture(scope="module")
def hello() -> Iterator[str]:
    with served("hello") as address:
        yield address


@pytest.fixture(scope="module")
def classifier() -> Iterator[Client]:
    with served("image-classifier") as address, Client(address) as client:
        yield client


def output_of(program: str, address: str) -> str:
    command = [sys.executable, EXAMPLES / "clients" / f"{program}.py", address]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


def test_quickstart(hello):
    methods, _, calls = output_of("quickstart", hello).partition("\n\n")
    assert "greet(name: str = 'world' [length 1..40]) -> str" in methods
    greeting, introduction, refusal = calls.splitlines()
    assert greeting == "Hello, Ada!"
    assert introduction == "{'en': 'Hello, Ada!', 'fr': 'Bonjour, Ada!'}"
    assert refusal.startswith("refused: ")
    assert "40 characters" in refusal


def test_streaming(hello):
    assert output_of("streaming", hello).splitlines() == [
        "to be or not to be ",
        "enough after 'and '",
        "you said: FIRST LINE",
        "you said: SECOND LINE",
    ]


def test_asynchronous(hello):
    assert output_of("asynchronous", hello).splitlines() == [
        "['Hello, Ada!', 'Hello, Alan!', 'Hello, Grace!']",
        "to be or not to be ",
        "you said: first line",
        "you said: second line",
    ]


async def test_hello_answers_each_line_before_the_next_is_sent(hello):
    heard: list[str] = []

    async def one_at_a_time():
        for number in range(3):
            assert len(heard) == number
            yield f"line {number}"
            while len(heard) == number:
                await asyncio.sleep(0.001)

    async with AsyncClient(hello) as client:
        async for answer in client.stream(one_at_a_time()):
            heard.append(answer)
    assert heard == ["you said: line 0", "you said: line 1", "you said: line 2"]


def test_the_classifier_names_pictures_it_has_never_seen(classifier):
    train = load_file(EXAMPLES / "image-classifier" / "train.py")
    images, labels = train.dataset(num_per_name=50, seed=12345)
    answers = [classifier.predict(image=image, top=1)[0]["name"] for image in images]
    right = np.mean([answer == train.NAMES[label] for answer, label in zip(answers, labels, strict=True)])
    assert right > 0.95


def test_the_classifier_scores_every_label(classifier):
    image = Image.new("L", (300, 200), 255)
    ImageDraw.Draw(image).ellipse((40, 40, 160, 160), fill=0)
    labels = classifier.predict(image=image)
    assert labels[0]["name"] == "circle"
    assert labels[0]["score"] > 0.9
    assert sum(label["score"] for label in labels) == pytest.approx(1)
    assert [label["score"] for label in labels] == sorted((label["score"] for label in labels), reverse=True)


def test_the_classifier_says_what_is_wrong_with_a_picture(classifier):
    with pytest.raises(InvalidArgumentError, match="one colour"):
        classifier.predict(image=Image.new("RGB", (64, 64)))


def test_the_classifier_takes_pictures_only(classifier):
    with pytest.raises(InvalidArgumentError, match="image"):
        classifier.predict(image="circle")


def readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_model_in_the_readme_works(tmp_path):
    (tmp_path / "model.py").write_text(readme_blocks()[0])
    with run_server(import_model_class(tmp_path)) as server, Client(server.address) as client:
        assert client.predict(name="Ada") == "Hello, Ada!"
        assert client.predict() == "Hello, world!"
        with pytest.raises(InvalidArgumentError, match="40"):
            client.predict(name="x" * 41)


def test_the_client_in_the_readme_works(hello, capsys):
    exec(readme_blocks()[1].replace("localhost:50051", hello), {})
    assert capsys.readouterr().out.endswith("Hello, Ada!\nto be or not ")


def test_training_writes_the_weights_that_are_committed(tmp_path):
    """The same on any machine up to rounding: a picture is drawn with numpy's seeded generator."""
    folder = tmp_path / "image-classifier"
    folder.mkdir()
    for name in ("model.py", "train.py"):
        (folder / name).write_text((EXAMPLES / "image-classifier" / name).read_text())
    finished = subprocess.run(
        [sys.executable, folder / "train.py"], capture_output=True, text=True, timeout=100, check=True
    )
    assert finished.stdout == "100.0% of 1000 pictures it has never seen are named right\n"
    made, kept = (
        json.loads(path.read_text())
        for path in (folder / "weights.json", EXAMPLES / "image-classifier/weights.json")
    )
    assert np.allclose(made["weights"], kept["weights"], atol=0.05)
