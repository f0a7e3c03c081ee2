"""The file that keeps what an engine prints."""

import asyncio
import stat

from modelkit.engines.engine_log import EngineLog


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
