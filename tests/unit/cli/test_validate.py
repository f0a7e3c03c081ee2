"""`modelkit validate`: both files in one run, three formats, and exit codes a script can rely on."""

import json
import shutil

import pytest

from modelkit.cli.app import main
from paths import ROOT

MODELS = ROOT / "tests" / "data" / "models"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A copy: importing a model.py leaves byte code beside it."""
    shutil.copytree(MODELS, tmp_path / "models")
    monkeypatch.chdir(tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("minimal", "✓ minimal is valid: no engine, method greet\n"),
        ("clarifai", "✓ Llama-3_2-3B is valid: no engine, method greet\n"),
        ("every-key", "✓ every-key is valid: engine vllm, method greet\n"),
        ("minimal/config.yaml", "✓ minimal is valid: no engine, method greet\n"),
    ],
)
def test_a_valid_folder_says_what_was_checked(models, capsys, name, summary):
    assert main(["validate", name]) == 0
    assert capsys.readouterr().err == summary


def test_the_folder_is_the_current_one_by_default(models, capsys, monkeypatch):
    monkeypatch.chdir(models / "minimal")
    assert main(["validate"]) == 0
    assert "minimal is valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("config-and-model", ["config.yaml:3:3", "model.py:4"]),
        ("wrong-signature", ["model.py:6:21"]),
        ("no-model-py", ["model.py"]),
        ("llm-without-engine", ["model.py"]),
    ],
)
def test_faults_of_both_files_in_one_run(models, capsys, name, places):
    assert main(["validate", f"broken/{name}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == len(places)
    for place in places:
        assert f"--> broken/{name}/{place}" in captured.err


def test_broken_python_is_pointed_at(models, capsys):
    (models / "minimal" / "model.py").write_text("class Hello(:\n    pass\n")
    assert main(["validate", "minimal"]) == 2
    assert "minimal/model.py:1:13\n" in capsys.readouterr().err


def test_warnings_fail_with_strict_only(models, capsys):
    assert main(["validate", "clarifai-instance"]) == 0
    assert "2 warnings found\n✓ on-an-instance is valid" in capsys.readouterr().err
    assert main(["validate", "clarifai-instance", "--strict"]) == 2
    assert "is valid" not in capsys.readouterr().err


def test_json_is_a_list_of_problems(models, capsys):
    assert main(["validate", "broken/config-and-model", "--format", "json"]) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [(p["path"].rpartition("/")[2], p["line"]) for p in found] == [("config.yaml", 3), ("model.py", 4)]
    assert captured.err == ""


def test_json_of_a_valid_folder(models, capsys):
    assert main(["validate", "minimal", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_github_annotations(models, capsys):
    assert main(["validate", "broken/wrong-types", "--format", "github"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "::error file=broken/wrong-types/config.yaml,line=2,col=7::model.id must be text"
    )


def test_environment_and_settings_reach_the_loader(models, capsys, monkeypatch):
    assert main(["validate", "overlay", "--env", "prod", "--set", "server.max_queue=0"]) == 0
    assert main(["validate", "overlay", "--env", "broken"]) == 2
    assert main(["validate", "overlay", "--set", "server.max_queue=-1", "--set", "model.id=a b"]) == 2
    assert "2 errors found" in capsys.readouterr().err
    monkeypatch.setenv("MODELKIT_ENV", "broken")
    assert main(["validate", "overlay"]) == 2


def test_a_folder_that_is_not_there(models, capsys):
    assert main(["validate", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no nowhere\n"
        " --> nowhere\n"
        "  = help: `modelkit init nowhere` makes a new model folder\n\n"
        "1 error found\n"
    )


@pytest.mark.parametrize("name", ["x" * 300, "minimal/config.yaml/x"])
def test_a_path_that_the_system_refuses(models, capsys, name):
    assert main(["validate", name]) == 2
    assert "1 error found" in capsys.readouterr().err


def test_an_unknown_format(models, capsys):
    assert main(["validate", "minimal", "--format", "xml"]) == 2
    assert "xml" in capsys.readouterr().err
