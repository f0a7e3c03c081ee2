"""The page at / in a real browser."""

from collections.abc import Iterator
from enum import Enum

import pytest

from browser import CHROMIUM, open_page
from modelkit import Field, Image, method
from modelkit.config import Config
from modelkit.engines.llm import LLM
from modelkit.server import ServerOptions
from modelkit.testing import run_server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

ECHO = Config.model_validate({"model": {"id": "echo-chat"}, "engine": {"name": "echo"}})


class Tone(Enum):
    WARM = "warm"
    COLD = "cold"


class Chat(LLM):
    @method
    def reverse(self, text: str, times: int = Field(1, ge=1), tone: Tone = Tone.WARM) -> str:
        """Turn a text round."""
        return f"{text[::-1]} x{times} {tone.value}"

    @method
    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    @method
    def fail(self) -> Image:
        raise ValueError("no luck")


def script(form, **fields):
    """Fill a method's form in, in the order of its fields, and send it."""
    filled = "".join(f"inputs[{index}].value = {value!r};" for index, value in fields.items())
    return f"""(() => {{
        [...document.querySelectorAll("nav button")].find(tab => tab.textContent === "{form}").click();
        const inputs = document.querySelectorAll("form.card:not([hidden]) label :is(input, textarea, select)");
        {filled}
        document.querySelector("#view form").requestSubmit();
    }})()"""


async def test_it_chats_and_calls_methods(tmp_path):
    options = ServerOptions(port=0, http_port=0, api_key="secret")
    with run_server(Chat, config=ECHO, options=options) as server:
        async with open_page(server.http_url, tmp_path) as page:
            await page.wait("document.querySelector('#key-form')?.hidden === false")
            await page.run("document.querySelector('#key').value = 'secret'")
            await page.run("document.querySelector('#key-form').requestSubmit()")
            await page.wait("document.querySelector('#say') !== null")
            assert await page.run("document.querySelector('h1').textContent") == "echo-chat"
            page.problems.clear()  # the refused call before there was a key

            await page.run("document.querySelector('#say').value = 'the quick <b>brown</b> fox'")
            await page.run("document.querySelector('#view form').requestSubmit()")
            await page.wait(
                "/^5 tokens, first after/.test(document.querySelector('#chat small')?.textContent)"
            )
            answer = "document.querySelector('.turn.assistant').textContent"
            assert await page.run(answer) == "the quick <b>brown</b> fox"

            await page.run(script("reverse", **{"0": "abc", "1": "2", "2": '"cold"'}))
            assert await page.wait("document.querySelector('#output').textContent") == "cba x2 cold"
            await page.run(script("count", **{"0": "3"}))
            await page.wait("document.querySelector('#output').textContent === '0\\n1\\n2\\n'")
            await page.run(script("fail"))
            await page.wait(
                "document.querySelector('#output.bad')?.textContent.includes('raised ValueError')"
            )

            assert await page.run("document.querySelector('#state').textContent") == "ready"
            await page.run("document.querySelector('#theme').click()")
            assert await page.run("document.documentElement.dataset.theme") == "dark"
            refused = [problem for problem in page.problems if "500" not in problem]
            assert refused == []
