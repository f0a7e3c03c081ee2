import io
import json
import logging
import os

import pytest

from modelkit.model import REQUEST, Request
from modelkit.server.logs import KeptWarnings, configure_logging, new_request_id


@pytest.fixture
def logs(tmp_path):
    """Configure logging into a buffer; everything is put back afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("modelkit")
    before = (root.handlers[:], root.level, ours.level)
    stream = io.StringIO()

    def configure(style="text", level=logging.INFO, author_dir=tmp_path):
        configure_logging(level, style, stream, author_dir)
        return stream

    yield configure
    root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def log_from(path, name, level=logging.INFO):
    logging.getLogger(name).handle(logging.LogRecord(name, level, str(path), 1, "said %s", ("it",), None))


def test_lines_carry_the_request_id(logs):
    stream = logs()
    token = REQUEST.set(Request("abc"))
    logging.getLogger("modelkit.server").info("hello")
    REQUEST.reset(token)
    logging.getLogger("modelkit.server").info("later")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("info [abc] hello")
    assert second.endswith("info later")


def test_warnings_are_kept_until_the_start_is_over(logs):
    logs()
    kept = KeptWarnings()
    logger = logging.getLogger("an.engine")
    for _ in range(2):
        logger.warning("runs on %s", "something else")
    logger.info("starting")
    logger.warning("%d", "no number")
    assert kept.end() == ["runs on something else"]
    logger.warning("of a call")
    assert kept.end() == ["runs on something else"]


def test_no_more_warnings_are_kept_than_a_line_takes(logs):
    logs()
    kept = KeptWarnings()
    for number in range(100):
        logging.getLogger("x").warning("%d%s", number, "\N{PERFORMING ARTS}" * 10_000)
    assert len(json.dumps(kept.end())) < 64 * 1024


def test_json_lines_parse_whatever_is_logged(logs):
    stream = logs("json")
    fields = {"method": "generate", "code": "OK", "odd": object()}
    logging.getLogger("modelkit.server").info('a "b"\nc', extra={"fields": fields})
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("modelkit.server").exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["message"], first["method"], first["level"]) == ('a "b"\nc', "generate", "info")
    assert "ValueError: x" in second["exception"]


def test_the_authors_lines_are_seen_and_other_libraries_warnings(logs, tmp_path):
    stream = logs()
    log_from(tmp_path / "model.py", "anything")
    log_from(tmp_path / "helpers" / "more.py", "root")
    log_from("/elsewhere/lib.py", "noisy")
    log_from("/elsewhere/lib.py", "noisy", logging.WARNING)
    words = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert words == ["info", "info", "warning"]
    assert "noisy" not in stream.getvalue()


def test_request_ids_differ():
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(request_id) == 16 and int(request_id, 16) >= 0 for request_id in ids)


def test_a_log_that_nobody_reads_stops_nothing_and_says_later_what_is_missing(logs):
    logs()
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as stream:
        configure_logging(logging.INFO, "json", stream)
        log = logging.getLogger("modelkit.server")
        for number in range(2000):
            log.info("line %d of many", number)
        log.info("%s", "é" * 10_000)
        os.set_blocking(reading, False)
        lines = reader.read(2**20).splitlines()
        log.info("somebody is back")
        notice, last = reader.read(2**20).splitlines()
    assert [json.loads(line)["message"] for line in lines] == [
        f"line {number} of many" for number in range(len(lines))
    ]
    assert notice.decode() == f"{2001 - len(lines)} lines of the log left out: nobody read them"
    assert json.loads(last)["message"] == "somebody is back"
