import importlib
import inspect
import os
import resource
import signal
import subprocess
import sys

import pytest

from modelkit import __version__
from modelkit.cli import app, console
from modelkit.cli.app import VERBS, main
from modelkit.errors import CallError, UsageError


@pytest.fixture
def verb(monkeypatch):
    """Return a function that makes `modelkit version` do something else."""

    def replace(function):
        monkeypatch.setattr("modelkit.cli.version.command", function)

    return replace


@pytest.mark.parametrize("name", VERBS)
def test_the_table_says_what_each_verb_says_of_itself(name):
    function = importlib.import_module(VERBS[name].module).command
    assert VERBS[name].help == inspect.getdoc(function).partition("\n")[0]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_every_verb(capsys, arguments):
    assert main(arguments) == 0
    printed = capsys.readouterr()
    for name, verb in VERBS.items():
        assert f"  {name}" in printed.out
        assert verb.help in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("name", ["modelkit", *VERBS])
def test_help_reads_like_this(capsys, monkeypatch, snapshot, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"] if name == "modelkit" else [name, "--help"]) == 0
    assert capsys.readouterr().out == snapshot


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_and_the_global_options(capsys, name):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Usage: modelkit {name}")
    assert "--quiet" in printed


# Typer reads options with pydantic, so what is more than a request for help may load it.
HEAVY = {"grpc", "google.protobuf", "torch", "numpy", "rich", "yaml", "ray", "docker", "kubernetes", "httpx"}


@pytest.mark.parametrize(
    ("argument", "heavy"),
    [("--help", {*HEAVY, "pydantic"}), ("--version", {*HEAVY, "pydantic"}), ("nonsense", HEAVY)],
)
def test_help_and_typos_load_nothing_heavy(argument, heavy):
    program = "import sys; from modelkit.cli.app import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, argument], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & (heavy | {verb.module for verb in VERBS.values()})


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"modelkit {__version__}\n"


def test_a_typo_suggests_the_nearest_verb(capsys):
    assert main(["prdict", "hello"]) == 2
    assert (
        capsys.readouterr().err
        == "error: there is no command 'prdict'\n  help: did you mean `modelkit predict`?\n"
    )


def test_an_unknown_verb_points_at_the_list(capsys):
    assert main(["xyzzy"]) == 2
    assert "`modelkit --help` lists all commands" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["version", "--jsn"], ["version", "extra"], ["--nonsense"], ["predict", "--timeout", "x"]]
)
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "--help`" in printed


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("no", cure="do"), 2), (CallError("no", cure="do"), 1)]
)
def test_an_error_is_its_exit_code(capsys, verb, error, code):
    def command() -> None:
        raise error

    verb(command)
    assert main(["version"]) == code
    assert capsys.readouterr().err == "error: no\n  help: do\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_verb_may_return_its_exit_code(verb, returned, code):
    verb(lambda: returned)
    assert main(["version"]) == code


def _crash() -> None:
    raise KeyError("surprise")


def test_the_unexpected_is_one_line_and_what_a_report_needs(capsys, verb):
    verb(_crash)
    assert main(["version"]) == app.EXIT_UNEXPECTED == 70
    printed = capsys.readouterr().err
    assert printed == (
        "error: unexpected KeyError: 'surprise'\n"
        "  help: this is a bug in modelkit, not in your model; repeat with -v for the traceback, which a report needs\n"
    )


@pytest.mark.parametrize("how", ["before", "after", "environment"])
def test_the_traceback_is_there_when_asked_for(capsys, verb, monkeypatch, how):
    verb(_crash)
    if how == "environment":
        monkeypatch.setenv("MODELKIT_DEBUG", "1")
    main({"before": ["-v", "version"], "after": ["version", "-v"], "environment": ["version"]}[how])
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed
    assert "a report needs the traceback and `modelkit version`" in printed


@pytest.mark.parametrize("arguments", [["-q", "version"], ["version", "--quiet"]])
def test_quiet_stands_before_or_after_the_verb(verb, capsys, arguments):
    verb(lambda: console.info("progress"))
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    assert main(["version"]) == 0  # and ends with the command
    assert capsys.readouterr().err == "progress\n"


def test_ctrl_c_is_130_without_a_traceback():
    program = (
        "import sys, time, modelkit.cli.version as verb; from modelkit.cli.app import main\n"
        "def command() -> None:\n    print('up', flush=True); time.sleep(30)\n"
        "verb.command = command; sys.exit(main(['version']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b""


def test_a_pipe_that_is_closed_early_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "modelkit", "--help"], check=False, stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("words", "expected"), [("modelkit pr", "predict"), ("modelkit version --js", "--json")]
)
def test_completion(words, expected):
    environment = {
        **os.environ,
        "_MODELKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "modelkit"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [expected]


def test_help_is_quick():
    # The aim is 0.15 s on an idle machine. Processor time, the least of several: elapsed time measures the neighbours.
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "modelkit", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


def test_version_lists_what_is_installed(capsys):
    assert main(["version"]) == 0
    printed = capsys.readouterr().out
    for name in ("modelkit", "python", "grpcio", "protobuf", "engines"):
        assert name in printed


def test_version_as_json_imports_no_engine():
    program = "import sys; from modelkit.cli.app import main; main(['version', '--json']); sys.exit('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    import json

    found = json.loads(done.stdout)
    assert found["modelkit"] == __version__
    assert set(found) == {"modelkit", "python", "platform", "libraries", "engines"}
