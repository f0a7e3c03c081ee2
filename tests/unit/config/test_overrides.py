"""`--set path=value`: values are YAML, paths reach into lists, and mistakes are pointed at in the option itself."""

import pytest

from modelkit.config import check_config, load_config
from paths import ROOT

MODELS = ROOT / "tests" / "data" / "models"


def test_the_quotes_that_a_text_needs_survive_the_shell():
    _, problems = check_config(MODELS / "minimal", overrides=["build.python_version=3.11"])
    assert [each.cure for each in problems] == [
        "put it in quotes, and in others for the shell: 'KEY=\"3.11\"'"
    ]


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("compute.num_accelerators=2", lambda c: c.compute.num_accelerators, 2),
        ("compute.cpu_memory=2Gi", lambda c: c.compute.cpu_memory_bytes, 2 * 1024**3),
        ("model.description=a=b", lambda c: c.model.description, "a=b"),
        ('model.description="3.10"', lambda c: c.model.description, "3.10"),
        ("model.description=no", lambda c: c.model.description, "no"),
        ("model.description=", lambda c: c.model.description, ""),
        ("engine={name: echo}", lambda c: c.engine.name, "echo"),
        ("engine.name=echo", lambda c: c.engine.name, "echo"),
        ("secrets=[{env_var: A}]", lambda c: c.secrets[0].env_var, "A"),
        ("num_threads=3", lambda c: c.server.max_concurrency, 3),
        ("inference_compute_info.num_accelerators=3", lambda c: c.compute.num_accelerators, 3),
        ("checkpoints={type: local, path: .}", lambda c: c.checkpoints.path, "."),
    ],
)
def test_a_value_is_set(override, read, expected):
    assert read(load_config(MODELS / "minimal", overrides=[override])) == expected


def test_later_settings_win_and_all_lie_over_the_overlay():
    overrides = ["server.max_concurrency=7", "server.max_queue=1", "server.max_queue=2"]
    config = load_config(MODELS / "overlay", environment="prod", overrides=overrides)
    assert (config.server.max_concurrency, config.server.max_queue) == (7, 2)


@pytest.mark.parametrize("path", ["secrets[0].env_var", "secrets.0.env_var"])
def test_an_item_of_a_list_is_set(path):
    config = load_config(MODELS / "every-key", overrides=[f"{path}=OTHER"])
    assert config.secrets[0].env_var == "OTHER"
    assert config.secrets[0].id == "openai"


@pytest.mark.parametrize("path", ["secrets[0].env_var", "secrets[0]"])
def test_an_index_makes_the_list(tmp_path, path):
    """As docs/config.md has it, also where `secrets:` stands there without a value."""
    for text in ("model: {id: x}\n", "model: {id: x}\nsecrets:\n"):
        (tmp_path / "config.yaml").write_text(text)
        first = f"{path}=API_KEY" if path.endswith("env_var") else f"{path}={{env_var: API_KEY}}"
        config = load_config(tmp_path, overrides=[first, "secrets[1].env_var=OTHER"])
        assert [secret.env_var for secret in config.secrets] == ["API_KEY", "OTHER"]


def test_the_first_item_of_a_list_that_is_not_there_is_0():
    _, [problem] = check_config(MODELS / "minimal", overrides=["secrets[1].env_var=A"])
    assert (problem.message, problem.column) == ("'1' is no item of this list of 0", 15)
    assert problem.cure == "write 0, which adds the first item"


def test_the_number_after_the_last_adds_an_item():
    config = load_config(MODELS / "every-key", overrides=["secrets[1]={env_var: B}"])
    assert [secret.env_var for secret in config.secrets] == ["OPENAI_API_KEY", "B"]


@pytest.mark.parametrize(
    ("override", "column", "end_column", "message", "cure"),
    [
        (
            "compute.num_acelerators=2",
            15,
            30,
            "unknown key 'num_acelerators' in 'compute'",
            "did you mean 'num_accelerators'?",
        ),
        (
            "compte.num_accelerators=2",
            7,
            13,
            "unknown key 'compte' at the top level",
            "did you mean 'compute'?",
        ),
        (
            "compute.num_accelerators=two",
            32,
            35,
            "compute.num_accelerators must be a whole number, not text",
            "write a whole number without quotes",
        ),
        (
            "compute.num_accelerators",
            7,
            31,
            "a setting is a path, '=' and a value",
            "such as compute.num_accelerators=2",
        ),
        ("=2", 7, 9, "a setting is a path, '=' and a value", "such as compute.num_accelerators=2"),
        (
            "model.id.x=1",
            16,
            17,
            "there is no 'x' here: what is set above it is a single value",
            "shorten the path",
        ),
        (
            "secrets[5].env_var=A",
            15,
            16,
            "'5' is no item of this list of 1",
            "write a number from 0 to 1; 1 adds an item",
        ),
        (
            "secrets.first.env_var=A",
            15,
            20,
            "'first' is no item of this list of 1",
            "write a number from 0 to 1; 1 adds an item",
        ),
        (
            "model.description=[a",
            25,
            26,
            "this bracket is not closed where it should be",
            "close it, and separate the items with commas",
        ),
    ],
)
def test_a_mistake_is_pointed_at_in_the_option(override, column, end_column, message, cure):
    config, problems = check_config(MODELS / "every-key", overrides=[override])
    assert config is None
    found = [(p.path, p.line, p.column, p.end_column, p.source, p.message, p.cure) for p in problems]
    assert found == [(None, 1, column, end_column, f"--set {override}", message, cure)]


def test_settings_are_checked_even_where_the_file_is_broken():
    _, problems = check_config(MODELS / "broken" / "tab", overrides=["nonsense"])
    assert [problem.path is None for problem in problems] == [False, True]


def test_a_token_is_masked():
    _, [problem] = check_config(MODELS / "every-key", overrides=["checkpoints.hf_token=very-secret"])
    assert "very-secret" not in repr(problem)


@pytest.mark.parametrize("name", ['"v1.5"', "'v1.5'"])
def test_a_name_with_dots_stands_in_quotes(name):
    overrides = [
        "checkpoints={type: local, path: .}",
        f"checkpoints.additional.{name}.type=local",
        f"checkpoints.additional.{name}.path=a.b",
    ]
    config = load_config(MODELS / "minimal", overrides=overrides)
    assert config.checkpoints.additional["v1.5"].path == "a.b"
