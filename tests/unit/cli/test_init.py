"""`modelkit init`: a folder that is valid at once, written without touching what was there."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modelkit.cli import init
from modelkit.cli.app import main
from modelkit.config import load_config
from modelkit.resources import template_names
from paths import ROOT

FILES = {"config.yaml", "model.py", "requirements.txt", ".modelkit/config.schema.json"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("template", template_names())
def test_a_scaffold_is_valid_at_once(here, capsys, template, snapshot):
    assert main(["init", "demo", "--template", template]) == 0
    assert capsys.readouterr().err == snapshot
    assert written(here / "demo") == FILES
    assert main(["validate", "demo", "--strict"]) == 0
    assert "demo is valid" in capsys.readouterr().err


@pytest.mark.parametrize("template", template_names())
def test_the_config_of_a_scaffold(here, template, snapshot):
    main(["init", "demo", "--template", template])
    assert (here / "demo" / "config.yaml").read_text() == snapshot


@pytest.mark.parametrize("template", template_names())
def test_every_key_that_is_commented_out_is_valid_too(here, template):
    main(["init", "demo", "--template", template])
    path = here / "demo" / "config.yaml"
    lines = path.read_text().splitlines()
    # A comment whose first word is a key, or an item of a list, is a line to be switched on.
    switched_on = [
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") and is_yaml(line.lstrip()[2:]) else line
        for line in lines
    ]
    path.write_text("\n".join(switched_on))
    assert switched_on != lines
    load_config(here / "demo")


def is_yaml(text):
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return isinstance(value, dict | list) and "yaml-language-server" not in text


@pytest.mark.parametrize("template", template_names())
def test_editors_find_the_schema_beside_the_config(here, template):
    main(["init", "demo", "--template", template])
    first = (here / "demo" / "config.yaml").read_text().splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (here / "demo" / name).is_file()


def test_the_model_of_the_python_template_answers(here):
    main(["init", "demo"])
    code = (
        "import model; m = model.MyModel(); m.load(); "
        "print(m.predict('you'), ''.join(m.generate('you', times=2)), sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here / "demo", capture_output=True, text=True, check=True
    )
    assert done.stdout == "Hello, you!|Hello, you! Hello, you! \n"


def test_model_py_is_short():
    for path in (ROOT / "templates").glob("*/model.py"):
        assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 20, path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--template", "python"], None),
        (["--engine", "transformers"], ("huggingface", init.DEFAULT_MODEL, None)),
        (["--model", "org/name"], ("huggingface", "org/name", None)),
        (["--model", "gpt2"], ("huggingface", "gpt2", None)),
        (["--model", "./weights"], ("local", None, "../weights")),
        (["--model", "weights"], ("local", None, "../weights")),
    ],
)
def test_where_the_checkpoint_comes_from(here, arguments, expected):
    (here / "weights").mkdir()
    assert main(["init", "demo", *arguments]) == 0
    checkpoints = load_config(here / "demo").checkpoints
    assert (checkpoints and (checkpoints.type, checkpoints.repo_id, checkpoints.path)) == expected


def test_an_absolute_folder_stays_absolute(here):
    weights = here / "my weights: 1"
    weights.mkdir()
    assert main(["init", "demo", "--model", str(weights)]) == 0
    assert load_config(here / "demo").checkpoints.path == str(weights)


@pytest.mark.parametrize(
    ("folder", "model_id"),
    [
        ("chat", "chat"),
        ("My Model!", "My-Model"),
        ("a/b/c", "c"),
        ("123", "123"),
        ("true", "true"),
        ("1e3", "1e3"),
        ("...x", "x"),
        ("模型", "model"),
        ("x" * 100, "x" * 64),
    ],
)
def test_the_id_follows_the_folder(here, folder, model_id):
    assert main(["init", folder]) == 0
    assert load_config(here / folder).model.id == model_id


def test_the_current_folder(here, monkeypatch):
    (here / "here").mkdir()
    monkeypatch.chdir(here / "here")
    assert main(["init", "."]) == 0
    assert load_config(here / "here").model.id == "here"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(here, capsys, name):
    assert main(["init", name]) == 2
    assert "the folder's name is empty" in capsys.readouterr().err
    assert written(here) == set()


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_nothing_behind(here, capsys, monkeypatch, force):
    """The third file is where the disk is full; a folder to be replaced stays as it is."""
    if force:
        assert main(["init", "demo"]) == 0
        (here / "demo" / "config.yaml").write_text("mine")
    before = written(here)
    write_text, num = Path.write_text, 0

    def fill_up(self, *arguments, **options):
        nonlocal num
        num += 1
        if num == 3:
            write_text(self, "half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fill_up)
    assert main(["init", "demo", "--force"] if force else ["init", "demo"]) == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert written(here) == before
    if force:
        assert (here / "demo" / "config.yaml").read_text() == "mine"
    else:
        assert not (here / "demo").exists()


def test_nothing_is_overwritten(here, capsys):
    (here / "demo").mkdir()
    (here / "demo" / "model.py").write_text("mine")
    assert main(["init", "demo"]) == 2
    assert capsys.readouterr().err == (
        "error: demo already has model.py\n"
        "  help: choose another folder, or replace it with --force; nothing else in the folder is touched\n"
    )
    assert written(here / "demo") == {"model.py"}
    assert (here / "demo" / "model.py").read_text() == "mine"


def test_force_replaces_only_what_it_writes(here):
    (here / "demo").mkdir()
    (here / "outside.py").write_text("mine")
    (here / "demo" / "model.py").symlink_to("../outside.py")
    (here / "demo" / "notes.txt").write_text("mine")
    assert main(["init", "demo", "--force"]) == 0
    assert written(here / "demo") == FILES | {"notes.txt"}
    assert (here / "outside.py").read_text() == "mine"
    assert (here / "demo" / "notes.txt").read_text() == "mine"
    assert main(["validate", "demo"]) == 0


def test_other_files_are_not_in_the_way(here):
    (here / "demo").mkdir()
    (here / "demo" / "README.md").write_text("mine")
    assert main(["init", "demo"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message", "cure"),
    [
        (
            ["--engine", "tensorrt"],
            "no template for the engine 'tensorrt'",
            "there are: lmdeploy, openai, python",
        ),
        (
            ["--engine", "transformer"],
            "no template for the engine 'transformer'",
            "did you mean 'transformers'?",
        ),
        (
            ["--engine", "python"],
            "'python' is a template without an engine",
            "write --template python",
        ),
        (["--template", "pyton"], "no template for the name 'pyton'", "did you mean 'python'?"),
        (["--template", "../x"], "no template for the name '../x'", "there are: lmdeploy, openai, python"),
        (["--template", "python", "--engine", "transformers"], "are two templates", "give one of the two"),
        (
            ["--template", "python", "--model", "org/name"],
            "has no engine to run org/name",
            "--template transformers",
        ),
        (["--model", "./nowhere"], "there is no folder ./nowhere", "org/name on the Hub"),
        (["--model", "a b"], "'a b' is no checkpoint", "org/name on the Hub"),
    ],
)
def test_what_cannot_be_made_is_refused(here, capsys, arguments, message, cure):
    assert main(["init", "demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert cure in error
    assert not (here / "demo").exists()


def test_a_file_in_the_place_of_the_folder(here, capsys):
    (here / "demo").write_text("")
    assert main(["init", "demo"]) == 2
    assert "demo is a file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(here, capsys):
    (here / "file").write_text("")
    assert main(["init", "file/demo"]) == 2
    error = capsys.readouterr().err
    assert "cannot be written: Not a directory" in error
    assert "choose another folder" in error


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("arguments", "typed", "expected"),
    [
        ([], "\n", None),
        ([], "transformers\norg/name\n", "org/name"),
        (["--engine", "transformers"], "\n", init.DEFAULT_MODEL),
        (["--yes"], "", None),
        (["--engine", "transformers", "--yes"], "", init.DEFAULT_MODEL),
        (["--model", "org/name"], "", "org/name"),
    ],
)
def test_questions_are_asked_on_a_terminal_where_nothing_was_given(
    here, monkeypatch, arguments, typed, expected
):
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    monkeypatch.setattr("sys.stderr", Terminal())
    assert main(["init", "demo", *arguments]) == 0
    checkpoints = load_config(here / "demo").checkpoints
    assert (checkpoints and checkpoints.repo_id) == expected
    assert sys.stdin.read() == "", "every line typed was asked for"


def test_nothing_is_asked_without_a_terminal(here, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("transformers\n"))
    assert main(["init", "demo"]) == 0
    assert load_config(here / "demo").engine is None
