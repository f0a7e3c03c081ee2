"""`modelkit compute`, and what the other verbs of deployments say before any compute is asked."""

import json

import pytest

from modelkit.cli.app import main


@pytest.fixture(autouse=True)
def own_config(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELKIT_CONFIG_DIR", str(tmp_path / "config"))


def add(*options):
    return main(["compute", "add", *options])


def test_adding_listing_and_removing(capsys):
    assert add("gpu", "--kind", "ray", "--address", "http://head:8265", "--token-env", "RAY_TOKEN") == 0
    assert add("edge", "--kind", "docker", "--address", "ssh://ada@edge") == 0
    assert main(["compute"]) == main(["compute", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:3] == [
        ["edge", "docker", "ssh://ada@edge", "-"],
        ["gpu", "ray", "http://head:8265", "RAY_TOKEN"],
    ]
    assert main(["compute", "remove", "edge"]) == 0
    capsys.readouterr()
    assert main(["compute", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == [{"name": "gpu", "kind": "ray", "address": "http://head:8265", "token_env": "RAY_TOKEN"}]


def test_changing_one_leaves_what_is_not_given(capsys):
    assert add("gpu", "--kind", "ray", "--address", "http://head:8265", "--token-env", "RAY_TOKEN") == 0
    assert add("gpu", "--registry", "registry.example.com/team") == 2  # without --replace it is a mistake
    assert add("gpu", "--replace", "--registry", "registry.example.com/team") == 0
    capsys.readouterr()
    assert main(["compute", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["token_env"], listed["registry"]) == ("RAY_TOKEN", "registry.example.com/team")


def test_a_password_in_an_address_is_refused_and_not_repeated(capsys):
    assert add("gpu", "--kind", "ray", "--address", "http://ada:s3cret@head:8265") == 2
    said = capsys.readouterr().err
    assert "--token-env" in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "gpu", "--kind", "ray"], "cannot be added without --address"),
        (["add", "local-ray", "--kind", "ray", "--address", "x"], "the private Ray of this machine"),
        (["add", "gpu", "--kind", "slurm", "--address", "x"], "no kind of compute"),
        (
            ["add", "gpu", "--kind", "ray", "--address", "x", "--namespace", "ml"],
            "belongs to --kind kubernetes",
        ),
        (
            ["add", "gpu", "--kind", "ray", "--address", "x", "--token-env", "a.b"],
            "named by its environment variable",
        ),
        (["remove", "gpu"], "no compute 'gpu'"),
        (["check", "gpu"], "no compute 'gpu'"),
    ],
)
def test_mistakes_have_exit_code_2_and_a_cure(arguments, message, capsys):
    assert main(["compute", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "help:" in said


def test_without_a_compute_there_is_nothing_to_list(capsys):
    assert main(["ps"]) == 0
    assert "`modelkit compute add`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "chat"], "no compute has a deployment 'chat'"),
        (["status", "gpu/chat"], "no compute 'gpu'"),
        (["status", "modelkit://gpu"], "names no deployment"),
        (["scale", "chat"], "wants a number, or bounds"),
        (["scale", "chat", "3", "--min", "1"], "wants a number, or bounds"),
        (["rollout", "chat"], "wants a version and its share"),
        (["rollout", "chat", "chat:v4"], "wants a version and its share"),
        (["rollout", "chat", "chat:v4", "--promote"], "wants a version and its share"),
        (["rollout", "chat", "--percent", "10"], "wants a version and its share"),
        (["serve", "x", "--mode", "serverless"], "--mode belongs to --compute"),
        (["serve", "x", "--plan", "--name", "a"], "--name, --plan belong to --compute"),
        (
            ["serve", "x", "--compute", "gpu", "--port", "1", "--reload"],
            "--port, --reload and --compute exclude",
        ),
        (["serve", "x", "--compute", "gpu"], "no compute 'gpu'"),
        (["serve", "x", "--compute", "local-ray"], "there is no"),  # said before Ray is started
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_asked(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
