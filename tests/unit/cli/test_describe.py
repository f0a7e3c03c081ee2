import json
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from modelkit import Field, Image, Model, method
from modelkit.cli.app import main
from modelkit.testing import run_server


@dataclass
class Person:
    name: str
    languages: list[str]


class Desk(Model):
    @method
    def predict(
        self, prompt: str = Field(description="what to say"), temperature: float | None = None
    ) -> str:
        """Answer.

        At once.
        """
        return f"{prompt}!"

    @method
    def greet(self, person: Person, times: int = Field(ge=2)) -> str:
        return person.name * times

    @method
    def look(self, image: Image, caption: str = "") -> str:
        return caption

    @method
    async def talk(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line


@pytest.fixture(scope="module")
def server():
    with run_server(Desk) as server:
        yield server


def test_describe_reads_like_the_authors_code(server, monkeypatch, capsys):
    monkeypatch.setenv("MODELKIT_ADDRESS", server.address)
    assert main(["describe"]) == 0
    printed = capsys.readouterr().out
    assert printed.partition("\n")[0].startswith("test  (ready, modelkit ")
    assert (
        printed.partition("\n\n")[2]
        == """\
greet(person: Person, times: int [>=2]) -> str
    person  {name: str, languages: list[str]}
    $ modelkit predict --method greet -i 'person={"name": "Hello", "languages": ["Hello"]}' -i times=2

look(image: Image, caption: str = '') -> str
    $ modelkit predict --method look -i image=@image.png

predict(prompt: str, temperature: float | None = None) -> str
    Answer.

    At once.
    prompt  what to say
    $ modelkit predict Hello

talk(lines: Iterator[str]) -> Iterator[str]
    $ printf 'Hello\\n' | modelkit predict --method talk
"""
    )


@pytest.mark.parametrize("name", ["greet", "predict"])
def test_the_examples_work(server, capsys, name):
    main(["describe", "--address", server.address])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("$ modelkit")]
    example = next(
        line for line in lines if f"--method {name}" in line or (name == "predict" and "--method" not in line)
    )
    assert main(shlex.split(example.lstrip(" $"))[1:]) == 0
    assert capsys.readouterr().out in {"HelloHello\n", "Hello!\n"}


def test_describe_as_json(server, capsys):
    assert main(["describe", "--address", server.address, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["model_id"], described["state"], described["ready"]) == ("test", "ready", True)
    predict = next(method for method in described["methods"] if method["name"] == "predict")
    assert predict["signature"] == "predict(prompt: str, temperature: float | None = None) -> str"
    assert predict["example"] == "modelkit predict Hello"
    assert predict["arguments"][0] == {
        "name": "prompt",
        "type": {"kind": "string"},
        "description": "what to say",
        "required": True,
    }
    assert predict["arguments"][1]["default"] is None


def test_describe_without_a_server(capsys):
    assert main(["describe", "--address", "localhost:1"]) == 1
    assert "modelkit serve PATH --local" in capsys.readouterr().err
