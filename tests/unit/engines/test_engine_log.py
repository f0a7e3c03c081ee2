"""The file that keeps what an engine prints."""

import asyncio
import re
import stat

from modelkit.engines.engine_log import Deviation, EngineLog


async def keep(path, text, **settings):
    stream = asyncio.StreamReader()
    stream.feed_data(text)
    stream.feed_eof()
    log = EngineLog(path, (), lambda _: None, **settings)
    await log.read(stream)
    return log


async def test_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "modelkit" / "logs" / "chat.log"
    path.parent.mkdir(parents=True, mode=0o755)  # made by an earlier version
    await keep(path, b"what somebody asked\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_the_engines_key_is_in_no_log(tmp_path, caplog):
    caplog.set_level("DEBUG", "modelkit.engine")
    log = await keep(tmp_path / "a" / "chat.log", b"server_args(api_key='s3cret')\nfine\n", secret="s3cret")
    assert list(log.tail) == ["server_args(api_key='***')", "fine"]
    assert log.path.read_text() == "server_args(api_key='***')\nfine\n"
    assert "s3cret" not in caplog.text


async def test_a_deviation_is_heard_once(tmp_path):
    slower, other = (
        Deviation(pattern=re.compile(word), message=word, cure="", is_fatal=False)
        for word in ("slower", "other")
    )
    heard = []
    await keep(
        tmp_path / "chat.log",
        b"taking the slower one\nfine\ntaking the slower one\nan other model\n",
        deviations=(slower, other),
        on_deviation=lambda deviation, line: heard.append((deviation, line)),
    )
    assert heard == [(slower, "taking the slower one"), (other, "an other model")]


async def test_what_is_printed_after_the_start_is_no_deviation(tmp_path):
    heard = []
    stream = asyncio.StreamReader()
    log = EngineLog(
        tmp_path / "chat.log",
        (),
        lambda _: None,
        deviations=(Deviation(pattern=re.compile("slower"), message="", cure="", is_fatal=True),),
        on_deviation=lambda *said: heard.append(said),
    )
    log.start_is_over()
    stream.feed_data(b"what somebody asked: is it slower?\n")
    stream.feed_eof()
    await log.read(stream)
    assert heard == []
