import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkit import Image, Model, Tensor, Text, method
from modelkit.cli import console
from modelkit.cli import predict as predict_module
from modelkit.cli.app import main
from modelkit.cli.arguments import parse_pairs, parse_value
from modelkit.cli.predict import choose_method
from modelkit.client import ArgumentDescription, MethodDescription, ModelDescription, TypeDescription, Usage
from modelkit.errors import UsageError
from modelkit.testing import run_server

STR, INT, FLOAT, BOOL, NULL = (TypeDescription(kind) for kind in ("string", "int", "float", "bool", "null"))


@dataclass
class Person:
    name: str
    age: int = 0


class Zoo(Model):
    """One method for each thing the command line must carry."""

    @method
    def predict(self, prompt: str, times: int = 1) -> str:
        """Repeat a prompt."""
        self.report_usage(prompt_tokens=1, output_tokens=times)
        return prompt * times

    @method
    def generate(self, prompt: str, times: int = 3, system: str = "") -> Iterator[str]:
        """Repeat a prompt piece by piece."""
        for number in range(times):
            self.report_usage(prompt_tokens=2, output_tokens=number + 1)
            yield f"{system}{prompt} "
            time.sleep(0.01)
        self.request.response_metadata["seen"] = "all"
        self.request.finish_reason = "length"

    @method
    def tokens(self, prompt: str) -> Iterator[Text]:
        for word in prompt.split():
            yield Text(word, (1,))

    @method
    def numbers(self, n: int) -> Iterator[dict[str, int]]:
        for number in range(n):
            yield {"n": number}

    @method
    def slow(self, marker: str) -> Iterator[str]:
        try:
            for number in range(10_000):
                yield f"{number}\n"
                time.sleep(0.01)
        finally:
            Path(marker).touch()

    @method
    async def shout(self, lines: AsyncIterator[str], mark: str = "!") -> AsyncIterator[str]:
        async for line in lines:
            yield line.upper() + mark

    @method
    def strange(self) -> list[float]:
        return [1.5, float("nan"), float("inf"), -float("inf")]

    @method
    def openai_stream_transport(self, msg: str) -> Iterator[str]:
        for number in range(2):
            yield f'{{"{msg}": {number}}}'

    @method
    async def double(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield number * 2

    @method
    def types(
        self, anything: Any = None, flags: list[bool] | None = None, person: Person | None = None
    ) -> dict[str, Any]:
        return {"anything": anything, "flags": flags, "person": None if person is None else person.name}

    @method
    def picture(self, image: Image | None = None) -> Image:
        return image or Image(b"\x89PNG\x00", "image/png")

    @method
    def array(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def server():
    with run_server(Zoo) as server:
        yield server


@pytest.fixture
def predict(server, monkeypatch, capsys):
    """Run `modelkit predict` in this process; returns exit code, stdout, stderr."""

    def run(*arguments, stdin=None):
        class Stdin(io.TextIOWrapper):
            def isatty(self):
                return stdin is None

        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        monkeypatch.setattr("sys.stdin", Stdin(io.BytesIO(data)))
        code = main(["predict", "--address", server.address, *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_text_streams_from_generate(predict):
    code, out, err = predict("ab")
    assert (code, out) == (0, "ab ab ab \n")
    assert err.startswith("3 tokens · TTFT ")
    assert "tokens/s" in err
    assert " · finish: length" in err


def test_without_streaming_predict_answers(predict):
    code, out, err = predict("ab", "--no-stream", "-i", "times=2")
    assert (code, out) == (0, "abab\n")
    assert err.startswith("2 tokens · ")


def test_quiet_prints_the_answer_only(predict):
    assert predict("ab", "-q") == (0, "ab ab ab \n", "")


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_text_comes_from_a_pipe(predict, arguments):
    assert predict(*arguments, "-m", "tokens", stdin="to be\n")[:2] == (0, "tobe\n")


def test_a_dash_reads_stdin_beside_other_arguments(predict):
    assert predict("-", "-i", "times=1", stdin="to be\n")[1] == "to be \n"


def test_stdin_is_left_alone_where_arguments_are_given(predict):
    assert predict("-i", "prompt=x", "-i", "times=1", stdin="not this")[1] == "x \n"


def test_all_arguments_as_json(predict, tmp_path):
    (tmp_path / "arguments.json").write_text('{"prompt": "x", "times": 1}')
    for source, stdin in [('{"prompt": "x", "times": 1}', None), (f"@{tmp_path}/arguments.json", None), ("@-", '{"prompt": "x", "times": 1}')]:  # fmt: skip
        assert predict("--json", source, stdin=stdin)[1] == "x \n"
    assert predict("--json", '{"prompt": "x"}', "-i", "times=2")[1] == "x x \n"  # -i wins


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_json_that_is_not_arguments(predict, text):
    code, _, err = predict("--json", text)
    assert code == 2
    assert "write --json '{" in err


def test_items_that_are_not_text_are_json_lines(predict):
    code, out, err = predict("-m", "numbers", "-i", "n=2")
    assert [json.loads(line) for line in out.replace("}\n{", "}\n\n{").split("\n\n")] == [{"n": 0}, {"n": 1}]
    assert err.startswith("2 items · first after ")
    assert code == 0


def test_the_answer_as_json(predict):
    code, out, err = predict("ab", "-o", "json")
    answer = json.loads(out)
    assert code == 0
    assert err == ""
    assert answer["result"] == "ab ab ab "
    assert answer["usage"] == {"prompt_tokens": 2, "output_tokens": 3, "cached_tokens": 0}
    assert len(answer["request_id"]) == 32
    assert (answer["finish_reason"], answer["metadata"]) == ("length", {"seen": "all"})
    assert 0 < answer["timing"]["ttft_ms"] <= answer["timing"]["total_ms"]
    assert answer["timing"]["output_tokens_per_s"] > 0


def test_lines_of_stdin_are_the_items_of_a_bidirectional_method(predict):
    assert predict("-m", "shout", stdin="a\nb\n")[:2] == (0, "A!\nB!\n")
    assert predict("hello", "-m", "shout", "-i", "mark=?")[1] == "HELLO?\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"x", "numbers: 'x' is not a whole number"),
        (b"9" * 30, "64 bits"),
        (b"\xff", "stdin is not UTF-8 text"),
    ],
)
def test_the_answers_before_a_bad_line_are_printed(predict, line, message):
    code, out, err = predict("-m", "double", stdin=b"1\n2\n" + line + b"\n3\n")
    assert (code, out) == (2, "2\n4\n" if line != b"\xff" else out)
    assert message in err


def test_json_has_null_for_what_it_lacks(predict):
    def refuse(name):
        raise AssertionError(name)

    for words in (["-o", "json"], []):
        code, out, _ = predict("-m", "strange", *words)
        answer = json.loads(out, parse_constant=refuse)
        assert (code, answer["result"] if words else answer) == (0, [1.5, None, None, None])


def test_chunks_of_an_openai_answer_are_lines(predict):
    words = ["-m", "openai_stream_transport", "-i", "msg=n"]
    assert predict(*words)[1] == '{"n": 0}\n{"n": 1}\n'
    assert json.loads(predict(*words, "-o", "json")[1])["result"] == ['{"n": 0}', '{"n": 1}']


def test_control_characters_do_not_reach_a_terminal(predict, monkeypatch):
    text = "a\x1b[2Jb\x00c\x9bd\te\nf"
    words = [text, "-m", "predict"]
    assert predict(*words)[1] == text + "\n"
    monkeypatch.setattr(console, "_is_terminal", lambda _: True)
    assert "a\ufffd[2Jb\ufffdc\ufffdd\te\nf\n" in predict(*words, "-q")[1]


@pytest.mark.parametrize(("window_s", "rate", "text"), [(0.0004, 16.0, "16.0 tokens/s overall"), (0.25, 28.0, "28.0 tokens/s")])  # fmt: skip
def test_a_rate_needs_a_time_to_measure(window_s, rate, text):
    described = MethodDescription("generate", "server_stream", (), STR)
    answer = predict_module._Answer(described, stream=False, save=None, items=["a", "b"])
    answer.usage, answer.first_tokens = Usage(1, 8, 0), 1
    answer.started_at, answer.arrivals, answer.ended_at = 0.0, [0.2, 0.2 + window_s], 0.5
    assert answer.timing()["output_tokens_per_s"] == rate
    assert (answer.timing()["chunks_per_s"] is None) == (window_s < 0.05)
    assert answer.summary().endswith(f"TTFT 200 ms · {text}")


def test_values_of_many_types(predict):
    code, out, _ = predict(
        "-m", "types", "-i", 'anything={"a": [1, 2.5]}', "-i", "flags=yes", "-i", "flags=0", "-i", 'person={"name": "Ada"}'
    )  # fmt: skip
    assert code == 0
    assert json.loads(out) == {"anything": {"a": [1, 2.5]}, "flags": [True, False], "person": "Ada"}


def test_an_image_goes_out_and_comes_back(predict, tmp_path):
    (tmp_path / "in.png").write_bytes(b"\x89PNG\x01")
    code, out, err = predict(
        "-m", "picture", "-i", f"image=@{tmp_path}/in.png", "--save", f"{tmp_path}/out.png"
    )
    assert (code, out) == (0, "")
    assert f"wrote {tmp_path}/out.png" in err
    assert (tmp_path / "out.png").read_bytes() == b"\x89PNG\x01"


def test_bytes_never_reach_the_terminal(predict):
    assert predict("-m", "picture")[1] == "<image/png, 5 bytes; --save FILE writes it to a file>\n"
    answer = json.loads(predict("-m", "picture", "-o", "json")[1])
    assert base64.b64decode(answer["result"]["base64"]) == b"\x89PNG\x00"


def test_an_array_goes_out_and_comes_back(predict, tmp_path):
    np.save(tmp_path / "in.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    assert predict("-m", "array", "-i", f"x=@{tmp_path}/in.npy", "--save", f"{tmp_path}/out.npy")[0] == 0
    assert np.load(tmp_path / "out.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert "tensor of float32, shape (2, 3)" in predict("-m", "array", "-i", f"x=@{tmp_path}/in.npy")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "pedict"], "did you mean 'predict'?"),
        (["x", "-i", "tims=1"], "generate has no argument 'tims'; did you mean 'times'?"),
        (["x", "-i", "times=many"], "times: 'many' is not a whole number"),
        (["x", "-i", "times"], "'-i times' has no value"),
        (["x", "-i", "times=1", "-i", "times=2"], "times is given 2 times"),
        (["-m", "picture", "-i", "image=cat.png"], "write @cat.png to read one"),
        (["-m", "picture", "-i", "image=@/nonexistent"], "cannot read '/nonexistent': No such file"),
        (["-m", "array", "-i", f"x=@{__file__}"], "is not a .npy file"),
        (["x", "-m", "numbers"], "numbers has no argument for a text"),
        (["-m", "numbers"], "'n' is missing"),
        (["-m", "numbers", "-i", f"n={10**30}"], "64 bits"),
        (["hi", "--json", '{"prompt": "x"}'], "prompt is given twice"),
        (["hi", "-i", "prompt=x"], "prompt is given twice"),
        (["--json", ""], "--json is not JSON"),
        (["-m", "types", "-i", "flags=maybe"], "'maybe' is none of true, yes"),
        (["x", "--save", "/nonexistent/file"], "cannot write '/nonexistent/file'"),
        (["x", "--api-key-env", "NO_SUCH_KEY"], "'NO_SUCH_KEY' has no API key"),
        (["x", "--timeout", "-1"], "--timeout"),
        (["x", "--timeout", "nan"], "--timeout"),
        (["x", "--ca", "/nonexistent"], "cannot read the CA file"),
    ],
)
def test_mistakes_are_explained_before_anything_is_sent(predict, arguments, message):
    code, out, err = predict(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "help: " in err


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--json", "@-"], b"\xff\x00", "stdin is not UTF-8 text: byte 0xff"),
        (["-"], b"a\xff", "stdin is not UTF-8 text: byte 0xff"),
        (["--json", "[" * 100_000], None, "--json is nested too deep"),
        (["-m", "types", "-i", "anything=" + "[" * 100_000], None, "nested too deep"),
        (["-m", "picture", "-i", "image=@~nobody-here/x"], None, "there is no such user"),
        (["-i", "prompt=@{folder}/binary"], None, "is not UTF-8 text"),
        (["--json", "@{folder}/binary"], None, "is not UTF-8 text"),
    ],
)
def test_unreadable_input_is_exit_code_2(predict, tmp_path, arguments, stdin, message):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    code, out, err = predict(*(word.replace("{folder}", str(tmp_path)) for word in arguments), stdin=stdin)
    assert (code, out) == (2, "")
    assert message in err
    assert "unexpected" not in err


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "message"),
    [
        (["predict"], "<&-", 2, "'prompt' is missing"),
        (["predict", "-"], "<&-", 2, "stdin is closed"),
        (["predict", "hi"], ">&-", 1, "cannot write the result: stdout is closed"),
        (["predict", "hi"], ">/dev/full", 1, "cannot write the result: No space left"),
        (["describe"], ">/dev/full", 1, "cannot write the result: No space left"),
    ],
)
def test_streams_that_cannot_be_used(server, arguments, redirection, code, message):
    words = [sys.executable, "-m", "modelkit", *arguments, "--address", server.address]
    process = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *words], stderr=subprocess.PIPE, text=True, check=False
    )
    assert process.returncode == code
    assert message in process.stderr
    assert process.stderr.count("error: ") == 1
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", ">&- 2>&-"])
def test_help_that_cannot_be_written_is_no_bug(redirection):
    words = [sys.executable, "-m", "modelkit", "--help"]
    process = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *words], stderr=subprocess.PIPE, text=True, check=False
    )
    assert process.returncode in {0, 1}
    assert "Traceback" not in process.stderr
    assert "bug" not in process.stderr


def test_no_server_is_exit_code_1(capsys):
    assert main(["predict", "hi", "--address", "localhost:1"]) == 1
    assert capsys.readouterr().err == (
        "error: cannot connect to localhost:1: no server listens there\n"
        "  help: start a server with `modelkit serve PATH --local`, or name another with --address or MODELKIT_ADDRESS\n"
    )


def test_a_timeout_is_exit_code_1(predict, tmp_path):
    code, out, err = predict("-m", "slow", "-i", f"marker={tmp_path}/closed", "--timeout", "1.5")
    assert code == 1
    assert out.startswith("0\n1\n")
    assert "within 1.5 s" in err


def test_waiting_for_a_model_that_is_ready_is_short(predict):
    assert predict("x", "-i", "times=1", "--wait", "5")[1] == "x \n"


def test_ctrl_c_reaches_the_model(server, tmp_path):
    marker = tmp_path / "closed"
    words = ["predict", "-m", "slow", "-i", f"marker={marker}", "--address", server.address]
    with subprocess.Popen(
        [sys.executable, "-m", "modelkit", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\n"  # printed while the model is still at work
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b""
    wait_for(marker)


def test_a_closed_pipe_reaches_the_model(server, tmp_path):
    marker = tmp_path / "closed"
    words = ["predict", "-m", "slow", "-i", f"marker={marker}", "--address", server.address]
    with subprocess.Popen(
        [sys.executable, "-m", "modelkit", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.wait(10) == 1
        assert process.stderr.read() == b""
    wait_for(marker)


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, "the model was not stopped"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------- without a server


def model(*names):
    return ModelDescription(
        "m", "", tuple(MethodDescription(name, "unary", (), STR) for name in names), "ready", "", ""
    )


@pytest.mark.parametrize(
    ("names", "stream", "chosen"),
    [
        (("generate", "predict"), True, "generate"),
        (("generate", "predict"), False, "predict"),
        (("generate", "other"), False, "generate"),
        (("other", "predict"), True, "predict"),
        (("other",), True, "other"),
    ],
)
def test_the_method_most_callers_mean(names, stream, chosen):
    assert choose_method(model(*names), None, stream=stream).name == chosen


def test_several_methods_are_listed():
    with pytest.raises(UsageError, match="several methods") as raised:
        choose_method(model("a", "b"), None, stream=True)
    assert raised.value.cure == "add --method a or --method b"
    with pytest.raises(UsageError, match="no methods yet"):
        choose_method(model(), None, stream=True)


def union(*members):
    return TypeDescription("union", members)


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [
        (STR, "1", "1"),
        (STR, "@@home", "@home"),
        (INT, "-3", -3),
        (FLOAT, "1e-3", 0.001),
        (FLOAT, "2", 2.0),
        (BOOL, "No", False),
        (union(STR, NULL), "null", None),
        (union(STR, NULL), "x", "x"),
        (union(STR, INT), "5", 5),
        (union(INT, FLOAT), "1.5", 1.5),
        (TypeDescription("choice", choices=("a", 2)), "2", 2),
        (TypeDescription("bytes"), "é", b"\xc3\xa9"),
        (TypeDescription("map"), '{"a": 1}', {"a": 1}),
        (TypeDescription("any"), "plain words", "plain words"),
        (TypeDescription("any"), "[1]", [1]),
        (TypeDescription("list", (INT,)), "[1, 2]", [1, 2]),
    ],
)
def test_text_becomes_what_the_type_asks_for(wanted, text, value):
    parsed = parse_value(ArgumentDescription("a", wanted), text)
    assert (parsed, type(parsed)) == (value, type(value))


def test_files_are_read_by_type(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    for wanted, value in [(STR, "words"), (TypeDescription("bytes"), b"words"), (union(TypeDescription("image"), NULL), Image(b"words", "text/plain"))]:  # fmt: skip
        assert parse_value(ArgumentDescription("a", wanted), f"@{tmp_path}/a.txt") == value


def test_a_list_may_be_given_item_by_item():
    described = MethodDescription("m", "unary", (ArgumentDescription("stop", union(TypeDescription("list", (STR,)), NULL)),), STR)  # fmt: skip
    assert parse_pairs(described, ["stop=a", "stop=b"]) == {"stop": ["a", "b"]}
    assert parse_pairs(described, ["stop=a"]) == {"stop": ["a"]}
    assert parse_pairs(described, ['stop=["a", "b"]']) == {"stop": ["a", "b"]}


def test_a_near_choice_is_suggested():
    argument = ArgumentDescription("color", TypeDescription("choice", choices=("red", "green")))
    with pytest.raises(UsageError, match="color: 'gren' is none of red, green; did you mean 'green'"):
        parse_value(argument, "gren")


def test_the_command_line_names_its_own_cure_for_a_key_in_the_open(capsys, monkeypatch):
    monkeypatch.setenv("KEY", "sk-1")
    assert main(["predict", "x", "--address", "models.example.com:1", "--api-key-env", "KEY"]) == 2
    error = capsys.readouterr().err
    assert "in plain text" in error
    assert "--tls" in error
    assert "allow_plaintext_api_key" not in error


def test_a_text_that_is_not_utf8_is_exit_code_2(predict):
    for words in (["\udcff"], ["--json", '{"prompt": "\\ud800"}'], ["-m", "shout", "\udcff"]):
        code, out, err = predict(*words)
        assert (code, out) == (2, "")
        assert "unexpected" not in err


def test_stdout_that_lacks_a_character_gets_another(server):
    words = [sys.executable, "-m", "modelkit", "predict", "né", "-m", "predict", "--address", server.address]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = subprocess.run(words, capture_output=True, check=False, env=environment)
    assert (process.returncode, process.stdout) == (0, b"n?\n")
