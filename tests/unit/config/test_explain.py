"""What a wrong value is told, for the kinds that the broken folders do not have."""

import pytest

from modelkit.config import check_config


def problem_of(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    _, [problem] = check_config(tmp_path)
    return problem.message, problem.cure


ID = "model: {id: x}\n"


@pytest.mark.parametrize(
    ("text", "message", "cure"),
    [
        (
            ID + "engine: {name: echo, trust_remote_code: on}",
            "engine.trust_remote_code must be true or false; YAML 1.2 reads on as text",
            "write true",
        ),
        (
            ID + "engine: {name: echo, trust_remote_code: 1}",
            "engine.trust_remote_code must be true or false, not a number",
            "write true or false, without quotes",
        ),
        (
            ID + "engine: {name: [echo]}",
            "engine.name must be one word, not a list",
            "write one of: vllm, sglang, lmdeploy, tgi, transformers, openai, echo",
        ),
        (
            ID + "build: {python_version: 3.12}",
            "build.python_version must be text, and YAML reads 3.12 as a number",
            'put it in quotes: "3.12"',
        ),
        (
            "model: {id: True}",
            "model.id must be text, and YAML reads True as a yes or no",
            'put it in quotes: "True"',
        ),
        (
            "model: {id: 0x10}",
            "model.id must be text, and YAML reads 0x10 as the number 16",
            'put it in quotes: "0x10"',
        ),
        (
            ID + "engine: {name: echo, python: ''}",
            "engine.python must not be empty",
            "write a value, or remove 'engine.python'",
        ),
        (
            ID + "server: {max_concurrency: 99999999999999999999999}",
            "server.max_concurrency must be at most 100000, not 99999999999999999999999",
            "write a number that is at most 100000, or leave 'max_concurrency' out for the default",
        ),
        (
            ID + "server: {drain_timeout: 10000000000000h}",
            "server.drain_timeout must be at most 1d, not 10000000000000h",
            "write a number that is at most 1d, or leave 'drain_timeout' out for the default",
        ),
        (
            ID + "engine: {name: echo, start_timeout: 0s}",
            "engine.start_timeout must be more than 0, not 0s",
            "write a number that is more than 0, or leave 'start_timeout' out for the default",
        ),
        (
            ID + "server: {drain_timeout: 1e400}",
            "server.drain_timeout must be a duration with a unit, not '1e400'",
            "write a number and a unit (ms, s, m, h, d), such as 30s, 5m or 1h30m",
        ),
        (
            ID + "server: {max_message_bytes: 1e400}",
            "server.max_message_bytes must be an amount of memory with a unit, not '1e400'",
            "write a number and a unit, such as 16Gi or 500M",
        ),
        (
            'model: {id: "é"}',
            "model.id cannot be 'é'",
            "use ASCII letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
        ),
        (
            f"model: {{id: {'x' * 65}}}",
            "model.id is longer than 64 characters",
            "shorten it",
        ),
        (
            ID + "server: {max_message_bytes: 1000}",
            "server.max_message_bytes must be at least 1Ki, not 1000",
            "add a unit: 1000Mi, 1000Gi",
        ),
        (
            ID + "compute: {cpu_memory: 1.5}",
            "compute.cpu_memory must be an amount of memory with a unit, not '1.5'",
            "write the unit, such as 1.5Gi",
        ),
        (
            ID + "compute: {cpu_limit: .inf}",
            "compute.cpu_limit must be a number, not .inf",
            "write a number without quotes",
        ),
        (
            ID
            + "build: {system_packages: [git, ]}\ncheckpoints: {type: local, path: ., allowed_file_patterns: {a: b}}",
            "checkpoints.allowed_file_patterns must be a list, not a mapping",
            "put '- ' before each item",
        ),
        (
            ID + "zzz: 1",
            "unknown key 'zzz' at the top level",
            "the keys here are: model, engine, compute, checkpoints, build, deployment, server, secrets, concepts",
        ),
        (
            ID + "max_conc: 1",
            "unknown key 'max_conc' at the top level",
            "did you mean 'max_concurrency' under 'server'?",
        ),
        (
            ID + "server: {id: x}",
            "unknown key 'id' in 'server'",
            "'id' belongs under 'model' or 'secrets' or 'concepts'",
        ),
        (
            ID + "build_infos: {}",
            "unknown key 'build_infos' at the top level",
            "did you mean 'build_info'?",
        ),
        ("model: {}", "'model' has no 'id'", "add 'id: tiny-chat'"),
        (
            "model: x",
            "model must have keys of its own, not be text",
            "write them on lines below, such as 'id: tiny-chat'",
        ),
    ],
)
def test_messages(tmp_path, text, message, cure):
    assert problem_of(tmp_path, text) == (message, cure)


def test_a_pasted_token_is_not_repeated(tmp_path):
    token = "github-pat_0123456789abcdef"
    (tmp_path / "config.yaml").write_text(ID + f"checkpoints: {{type: local, path: ., token_env: {token}}}")
    _, [problem] = check_config(tmp_path)
    assert problem.message == "checkpoints.token_env is not the name of an environment variable"
    assert token not in repr(problem)
