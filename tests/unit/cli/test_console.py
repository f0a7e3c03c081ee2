import io
import json
from pathlib import Path

import pytest

from modelkit.cli import console
from modelkit.errors import CallError, ConfigError, InternalError, InvalidArgumentError, Problem, Violation

PATH = Path("chat/config.yaml")


@pytest.fixture(autouse=True)
def settings():
    console.configure(quiet=False, verbose=False)
    yield
    console.configure(quiet=False, verbose=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_problem_is_drawn_with_place_caret_and_cure(capsys):
    console.problems([Problem("unknown key 'modle'", "rename it to 'model'", PATH, 13, 3, 8, "  modle: x\n")])
    assert capsys.readouterr().err == (
        "error: unknown key 'modle'\n"
        "  --> chat/config.yaml:13:3\n"
        "   |\n"
        "13 |   modle: x\n"
        "   |   ^^^^^\n"
        "   = help: rename it to 'model'\n"
        "\n"
        "1 error found\n"
    )


@pytest.mark.parametrize(
    ("source", "column", "end_column", "shown", "carets"),
    [
        ("key: value", 6, 11, "key: value", "     ^^^^^"),
        ("key: value", 6, None, "key: value", "     ^"),
        ("\tkey: 1", 2, 5, "    key: 1", "    ^^^"),
        ("a\tb", 3, 4, "a    b", "     ^"),
        ("你好: x", 5, 6, "你好: x", "      ^"),
        ("你好: x", 1, 3, "你好: x", "^^^^"),
        ("🚀: x", 4, 5, "🚀: x", "    ^"),
        ("e\u0301: x", 5, 6, "e\u0301: x", "   ^"),
        ("key:", 5, 6, "key:", "    ^"),
        ("key:", 90, 95, "key:", "    ^"),
        ("", 1, 1, "", "^"),
        ("a\x1b[31mb", 7, 8, "a�[31mb", "      ^"),
    ],
)
def test_carets_stand_under_the_fault(capsys, source, column, end_column, shown, carets):
    console.problems([Problem("x", path=PATH, line=1, column=column, end_column=end_column, source=source)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[3] == f"1 | {shown}"
    assert lines[4] == f"  | {carets}"


def test_a_long_line_is_cut_around_the_fault(capsys):
    source = "x" * 5000 + "fault" + "y" * 5_000_000
    console.problems([Problem("x", path=PATH, line=1, column=5001, end_column=5006, source=source)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines[3]) < console.MAX_SOURCE_CELLS + 8
    start, end = lines[4].index("^"), lines[4].rindex("^") + 1
    assert lines[3][start:end] == "fault"


def test_a_problem_without_a_place(capsys):
    console.problems([Problem("no model.py", "write one", Path("chat"), severity="warning"), Problem("y")])
    assert capsys.readouterr().err == (
        "warning: no model.py\n --> chat\n  = help: write one\n\nerror: y\n\n1 error and 1 warning found\n"
    )


def test_no_problems_print_nothing(capsys):
    console.problems([])
    assert capsys.readouterr() == ("", "")


def test_problems_as_json(capsys):
    console.problems([Problem("m", "c", PATH, 1, 2, 3, "source")], "json")
    assert json.loads(capsys.readouterr().out) == [
        {
            "severity": "error",
            "message": "m",
            "cure": "c",
            "path": "chat/config.yaml",
            "line": 1,
            "column": 2,
            "end_column": 3,
        }
    ]
    console.problems([], "json")
    assert json.loads(capsys.readouterr().out) == []


def test_problems_as_github_annotations_are_escaped(capsys):
    found = [
        Problem("100%\nbad", path=Path("a,b:c.yaml"), line=1, column=2),
        Problem("w", "do", severity="warning"),
    ]
    console.problems(found, "github")
    assert capsys.readouterr().out == (
        "::error file=a%2Cb%3Ac.yaml,line=1,col=2::100%25%0Abad\n::warning::w (help: do)\n"
    )


def test_a_config_error_is_its_problems(capsys):
    console.error(ConfigError([Problem("a"), Problem("b")]))
    assert capsys.readouterr().err == "error: a\n\nerror: b\n\n2 errors found\n"


def test_a_call_error_shows_its_violations_once(capsys):
    console.error(
        InvalidArgumentError("bad", violations=[Violation("n", "is too big")], request_id="r", cure="do")
    )
    assert capsys.readouterr().err == "error: bad\n  n: is too big\n  help: do\n"
    console.error(InvalidArgumentError("n is too big", violations=[Violation("n", "is too big")]))
    assert capsys.readouterr().err == "error: n is too big\n"


def test_the_request_id_is_shown_where_the_server_knows_more(capsys):
    console.error(InternalError("the model failed", request_id="r-1"))
    assert capsys.readouterr().err == "error: the model failed\n  request id: r-1\n"
    console.configure(verbose=True)
    console.error(CallError("x", request_id="r-2"))
    assert "request id: r-2" in capsys.readouterr().err


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys):
    console.result("r")
    console.json({"é": 1})
    console.info("i")
    console.success("s")
    console.warning("w", cure="c")
    printed = capsys.readouterr()
    assert printed.out == 'r\n{\n  "é": 1\n}\n'
    assert printed.err == "i\n✓ s\nwarning: w\n  help: c\n"


def test_quiet_leaves_results_and_errors(capsys):
    console.configure(quiet=True)
    console.info("i")
    console.success("s")
    console.warning("w")
    with console.status("waiting"):
        console.result("r")
    console.error(CallError("e"))
    assert capsys.readouterr() == ("r\n", "error: e\n")


def test_status_is_a_line_where_there_is_no_terminal(capsys):
    with console.status("loading"):
        pass
    assert capsys.readouterr().err == "loading...\n"


def test_status_spins_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.status("loading [x]"):
        pass
    assert "loading [x]" in terminal.getvalue()
    assert "0 s" in terminal.getvalue()


@pytest.mark.parametrize(
    ("environment", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_color_is_for_terminals_that_want_it(monkeypatch, environment, colored):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert console.has_color(Terminal()) is colored
    assert not console.has_color(io.StringIO())


def transfer():
    with console.transfer("fetching") as progress:
        progress.begin(2, 3_000_000)
        progress.started("a", 2_000_000, 500_000)
        progress.advanced("a", 1_500_000)
        progress.finished("a")
        progress.started("b", 1_000_000)
        progress.advanced("b", 1_000_000)
        progress.finished("b")


def test_a_transfer_is_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("modelkit.cli.transfer.LINE_INTERVAL_S", 0)
    transfer()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fetching: 2 files, 3.0 MB"
    assert lines[1] == "  a goes on at 500.0 kB of 2.0 MB"
    assert lines[2].startswith("  1.5 MB of 3.0 MB, ")
    assert lines[2].endswith(" s left")
    assert lines[-1].startswith("✓ fetching: 2 files, 2.5 MB in ")


def test_a_transfer_is_bars_on_a_terminal_in_place_of_a_spinner(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.status("importing"):
        transfer()
    printed = terminal.getvalue()
    assert "importing" in printed
    assert "3.0/3.0 MB" in printed or "/3.0 MB" in printed
    assert "fetching: 2 files, 2.5 MB in" in printed


def test_a_transfer_of_nothing_prints_nothing(capsys):
    with console.transfer("fetching"):
        pass
    assert capsys.readouterr().err == ""


def test_a_transfer_that_fails_claims_no_success(capsys):
    transferring = console.transfer("fetching")
    progress = transferring.__enter__()
    progress.begin(1, 10)
    progress.started("a", 10)
    progress.finished("a")
    assert not transferring.__exit__(RuntimeError, RuntimeError(), None)
    assert "✓" not in capsys.readouterr().err


def test_a_transfer_is_quiet_where_that_was_asked_for(capsys):
    console.configure(quiet=True)
    transfer()
    assert capsys.readouterr().err == ""
