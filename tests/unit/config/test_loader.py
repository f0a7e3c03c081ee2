"""Good folders load, layers lie on top of each other, and what is no readable config is named for what it is."""

import os

import pytest

from modelkit.config import Config, check_config, find_config, load_config
from modelkit.config.models import Section
from modelkit.errors import ConfigError
from paths import ROOT

MODELS = ROOT / "tests" / "data" / "models"


def messages(path, **options):
    config, problems = check_config(path, **options)
    assert config is None
    return [problem.message for problem in problems]


def folder(tmp_path, content):
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "config.yaml").write_bytes(data)
    return tmp_path


def test_a_minimal_config_has_every_default():
    config = load_config(MODELS / "minimal")
    assert config == Config.model_validate({"model": {"id": "minimal"}})
    assert config.engine is None
    assert config.checkpoints is None
    assert config.server.max_concurrency == 128
    assert config.server.max_queue == 1024
    assert config.server.max_message_bytes == 64 * 1024**2
    assert config.server.drain_timeout_s == 30.0
    assert config.deployment.min_replicas == 1
    assert config.compute.num_accelerators == 0


def test_every_key_can_be_given(snapshot):
    config, problems = check_config(MODELS / "every-key")
    assert problems == []
    assert config == snapshot


def test_every_key_is_in_the_folder_of_every_key():
    text = (MODELS / "every-key" / "config.yaml").read_text()
    for section in (Config, *Section.__subclasses__()):
        # 'path' excludes 'repo_id'.
        assert [key for key in section.yaml_keys() if f"{key}:" not in text and key != "path"] == []


def test_the_path_may_be_the_file():
    assert load_config(MODELS / "minimal" / "config.yaml").model.id == "minimal"
    assert find_config(MODELS / "minimal") == MODELS / "minimal" / "config.yaml"


def test_anchors_work():
    config = load_config(MODELS / "anchors")
    assert config.compute.cpu_memory_bytes == config.compute.cpu_memory_request_bytes == 4 * 1024**3
    assert config.checkpoints.allowed_file_patterns == config.checkpoints.ignored_file_patterns == ("*.json",)


def test_an_overlay_lies_on_top():
    plain, prod = load_config(MODELS / "overlay"), load_config(MODELS / "overlay", environment="prod")
    assert (plain.server.max_queue, plain.server.max_concurrency) == (8, 128)
    assert (prod.server.max_queue, prod.server.max_concurrency) == (8, 4)
    assert prod.compute.cpu_memory_bytes == 16 * 1024**3


def test_the_environment_variable_chooses_an_overlay(monkeypatch):
    monkeypatch.setenv("MODELKIT_ENV", "prod")
    assert load_config(MODELS / "overlay").server.max_concurrency == 4
    assert load_config(MODELS / "overlay", environment="").server.max_concurrency == 128


def test_problems_in_an_overlay_are_in_its_own_file():
    _, problems = check_config(MODELS / "overlay", environment="broken")
    assert [(p.path.name, p.line, p.column, p.message) for p in problems] == [
        ("config.broken.yaml", 2, 14, "server.max_queue must be a whole number, not text"),
        ("config.broken.yaml", 3, 3, "unknown key 'max_concurency' in 'server'"),
    ]


@pytest.mark.parametrize(
    ("environment", "cure"),
    [
        ("prd", "did you mean 'prod'?"),
        ("staging", "the environments here are: broken, prod"),
        ("../x", "the environments here are: broken, prod"),
    ],
)
def test_an_unknown_environment_is_named(environment, cure):
    _, problems = check_config(MODELS / "overlay", environment=environment)
    assert [(p.message, p.cure) for p in problems] == [(f"there is no environment '{environment}'", cure)]


def test_an_environment_in_a_folder_without_overlays():
    _, problems = check_config(MODELS / "minimal", environment="prod")
    assert problems[0].cure == "write config.prod.yaml with the keys that differ, or leave --env out"
    _, problems = check_config(MODELS / "minimal", environment="a b")
    assert problems[0].cure == "an environment's name has letters, digits, '-' and '_'"


def test_null_in_an_overlay_brings_the_default_back(tmp_path):
    folder(tmp_path, "model: {id: x}\nengine: {name: echo}\nserver: {max_queue: 3}\n")
    (tmp_path / "config.plain.yaml").write_text("engine:\nserver:\n  max_queue:\n")
    config = load_config(tmp_path, environment="plain")
    assert config.engine is None
    assert config.server.max_queue == 1024


@pytest.mark.parametrize("content", ["compute:\nmodel:\n  id: x\n", "model:\n  id: x\ncompute: ~\n"])
def test_a_section_without_keys_is_no_problem(tmp_path, content):
    assert load_config(folder(tmp_path, content)).compute.num_accelerators == 0


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffmodel:\n  id: x\n",
        "model:\r\n  id: x\r\n",
        "model:\r  id: x\r",
        "---\nmodel:\n  id: x\n...\n",
        "%YAML 1.2\n---\nmodel: {id: x}\n",
        '{"model": {"id": "x"}}',
    ],
)
def test_every_legal_way_to_write_a_file_loads(tmp_path, content):
    assert load_config(folder(tmp_path, content)).model.id == "x"


@pytest.mark.parametrize(
    ("content", "line", "column"),
    [
        ("\ufeffmodel:\n  id: x\n  nope: 1\n", 3, 3),
        ("model:\r\n  id: x\r\n  nope: 1\r\n", 3, 3),
        ("model: {id: x, description: '😀', nope: 1}", 1, 34),
        ("model:\n  id: x # e\u0301\n  nope: 1\n", 3, 3),
    ],
)
def test_places_are_right_after_what_editors_hide(tmp_path, content, line, column):
    _, problems = check_config(folder(tmp_path, content))
    assert [(p.line, p.column, p.message) for p in problems] == [
        (line, column, "unknown key 'nope' in 'model'")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model:\n  id: caf\xe9\n", "config.yaml is not UTF-8: byte 0xe9 cannot be read"),
        ("model:\n".encode("utf-16"), "config.yaml is UTF-16, not UTF-8"),
        (b"\x7fELF\0\0\0", "config.yaml is a binary file, not text"),
        (b"model:\n  id: a\x07b\n", "the control character U+0007 is not allowed in YAML"),
        (b"#" * 10_000_000, "config.yaml is larger than 256 KiB"),
        (b"a: " + b"[" * 100, "nested deeper than 32 levels"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    assert messages(folder(tmp_path, content)) == [message]


def test_the_byte_that_is_not_utf8_is_pointed_at(tmp_path):
    _, [problem] = check_config(folder(tmp_path, b"model:\n  id: caf\xe9\n"))
    assert (problem.line, problem.column, problem.end_column) == (2, 10, 11)


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    assert messages(tmp_path) == ["config.yaml is a folder, not a file"]


def test_a_named_pipe_in_the_place_of_the_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    assert messages(tmp_path) == ["config.yaml is not a file"]


def test_links_that_lead_nowhere_or_in_circles(tmp_path):
    (tmp_path / "config.yaml").symlink_to("config.yaml")
    assert messages(tmp_path) == ["config.yaml cannot be read: Too many levels of symbolic links"]
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").symlink_to("elsewhere")
    assert messages(tmp_path) == ["there is no config.yaml"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    folder(tmp_path, "model: {id: x}\n")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("modelkit.config.source.os.open", refuse)  # root may read everything
    _, [problem] = check_config(tmp_path)
    assert problem.message == "config.yaml cannot be read: permission denied"
    assert problem.cure == f"chmod u+r {tmp_path / 'config.yaml'}"


def test_no_config_at_all(tmp_path):
    _, [problem] = check_config(tmp_path)
    assert problem.message == f"there is no config.yaml in {tmp_path}"
    assert f"modelkit init {tmp_path}" in problem.cure


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "nul\0byte"])
def test_a_path_that_is_not_there(tmp_path, name):
    assert len(messages(tmp_path / name)) == 1


def test_an_error_of_one_problem_says_it(tmp_path):
    with pytest.raises(ConfigError, match="the file is empty"):
        load_config(folder(tmp_path, ""))


def test_warnings_do_not_stop_loading(tmp_path):
    folder(tmp_path, "model: {id: x}\ncompute: {region: here}\n")
    config, problems = check_config(tmp_path)
    assert config is not None
    assert [problem.severity for problem in problems] == ["warning"]
    assert load_config(tmp_path) == config


def test_a_long_list_of_problems_is_cut(tmp_path):
    _, problems = check_config(folder(tmp_path, "model: {id: x}\nsecrets:\n" + "- {env_var: 3}\n" * 500))
    assert len(problems) == 101
    assert problems[-1].message == "400 more problems with keys and values"
