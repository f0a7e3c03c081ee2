"""Each folder in tests/data/models/broken has one kind of fault: every problem is found in one run, at its place."""

import re
from pathlib import Path

import pytest

from modelkit.cli import console
from modelkit.config import check_config, load_config
from modelkit.errors import ConfigError, Problem
from paths import ROOT

MODELS = ROOT / "tests" / "data" / "models"
BROKEN = MODELS / "broken"

# Line, column, end column and message of each problem. The cures are in the snapshots.
EXPECTED = {
    "a-word": [
        (1, 1, 15, "the file holds a single value, not sections"),
    ],
    "alias-bomb": [
        (6, 21, 22, "more than 50,000 values, counting each alias"),
    ],
    "at-sign": [
        (3, 16, 17, "a value cannot start with @"),
    ],
    "bad-indentation": [
        (3, 2, 3, "this line's indentation fits no line above"),
    ],
    "both-spellings": [
        (
            5,
            1,
            23,
            "'inference_compute_info' and 'compute' mean the same; the other is on line 3 of config.yaml",
        ),
        (
            7,
            1,
            12,
            "'num_threads' and 'server.max_concurrency' mean the same; the other is on line 9 of config.yaml",
        ),
    ],
    "colon-in-value": [
        (3, 20, 21, "a ':' where no key can be"),
    ],
    "config-and-model": [
        (3, 3, 13, "unknown key 'descripton' in 'model'"),
    ],
    "config-yml": [
        (None, None, None, "there is no config.yaml, but there is a config.yml"),
    ],
    "custom-tag": [
        (3, 16, 56, "the tag '!!python/object/apply:os.system' is not supported"),
    ],
    "duplicate-keys": [
        (3, 3, 5, "'id' is given twice; the first is on line 2"),
        (5, 1, 6, "'model' is given twice; the first is on line 1"),
    ],
    "empty": [
        (1, 1, 2, "the file is empty"),
    ],
    "engine-without-weights": [
        (4, 9, 13, "vllm runs on accelerators, and compute.num_accelerators is 0"),
        (4, 9, 13, "the engine 'vllm' runs a checkpoint, and there is no 'checkpoints' section"),
        (6, 21, 33, "compute.accelerator_type has no effect without num_accelerators"),
    ],
    "list-at-the-top": [
        (1, 1, 9, "the file holds a list, not sections"),
    ],
    "missing": [
        (1, 1, 30, "there is no 'model'"),
        (1, 1, 12, "unknown key 'description' at the top level"),
        (2, 1, 7, "'engine' has no 'name'"),
        (4, 1, 12, "'checkpoints' has no 'type'"),
        (7, 5, 25, "'secrets[0]' has no 'env_var'"),
        (9, 4, 5, "concepts[0] must have keys of its own, not be empty"),
    ],
    "no-colon": [
        (3, 1, 2, "this line has no ':'"),
    ],
    "no-id": [
        (2, 3, 5, "model.id has no value"),
    ],
    "only-comments": [
        (1, 1, 2, "the file is empty"),
    ],
    "out-of-range": [
        (2, 7, 12, "model.id cannot be '-bad-'"),
        (4, 9, 12, "engine.name cannot be 'vlm'"),
        (5, 18, 19, "engine.max_model_len must be at least 1, not 0"),
        (6, 10, 16, "engine.dtype cannot be 'float8'"),
        (7, 27, 30, "engine.gpu_memory_utilization must be at most 1.0, not 1.5"),
        (9, 21, 23, "compute.num_accelerators must be at least 0, not -1"),
        (10, 14, 15, "compute.cpu_limit must be more than 0, not 0"),
        (11, 15, 17, "compute.cpu_memory must be at least 1Mi, not 16"),
        (13, 17, 18, "deployment.max_replicas must be at least 1, not 0"),
        (15, 22, 25, "server.max_message_bytes must be at most 1Gi, not 4Gi"),
        (17, 14, 20, "secrets[0].env_var is not the name of an environment variable"),
    ],
    "recursive-alias": [
        (5, 9, 11, "this anchor contains an alias of itself"),
    ],
    "rules": [
        (
            5,
            25,
            26,
            "engine.tensor_parallel_size is 4, and a replica has 2 accelerators (compute.num_accelerators)",
        ),
        (6, 27, 30, "'--max-model-len' has a key of its own in 'engine'"),
        (8, 21, 22, "the engine 'echo' uses no accelerators, and compute asks for 2"),
        (10, 9, 14, "a checkpoint of type local needs 'path'"),
        (11, 12, 20, "checkpoints.repo_id has no meaning for the type local"),
        (
            12,
            14,
            37,
            "checkpoints.token_env is the name of an environment variable, and this looks like a token itself",
        ),
        (15, 17, 18, "deployment.min_replicas is 5, more than max_replicas, which is 2"),
        (17, 24, 26, "scale_to_zero_after has no effect while min_replicas is 5"),
        (
            18,
            23,
            26,
            "target_concurrency is 256, and a replica works on 128 calls at most (server.max_concurrency)",
        ),
        (21, 14, 15, "the secret A is named twice"),
    ],
    "secrets-inside": [
        (6, 13, 46, "an access token does not belong in a file: it would be shipped with the model"),
        (10, 12, 41, "a secret's value does not belong in a file: it would be shipped with the model"),
    ],
    "tab": [
        (3, 1, 2, "a tab in the indentation"),
    ],
    "two-documents": [
        (4, 1, 7, "a second document starts above this line"),
    ],
    "typos": [
        (3, 3, 13, "unknown key 'descripton' in 'model'"),
        (4, 1, 6, "unknown key 'engin' at the top level"),
        (7, 3, 18, "unknown key 'num_acelerators' in 'compute'"),
        (8, 3, 15, "unknown key 'min_replicas' in 'compute'"),
        (9, 1, 11, "unknown key 'cpu_memory' at the top level"),
    ],
    "unclosed-bracket": [
        (4, 20, 21, "this bracket is not closed where it should be"),
    ],
    "unclosed-quote": [
        (3, 16, 17, "this quote is never closed"),
    ],
    "undefined-alias": [
        (3, 16, 17, "there is no anchor '&nothing' above this alias"),
    ],
    "units": [
        (5, 18, 21, "engine.start_timeout must be a duration with a unit, not '300'"),
        (7, 14, 17, "compute.cpu_limit must be a number of CPU cores, not 'two'"),
        (8, 15, 22, "compute.cpu_memory must be an amount of memory, not '16 gigs'"),
        (9, 23, 29, "compute.accelerator_memory must be an amount of memory, not a list"),
        (11, 18, 28, "server.drain_timeout must be a duration, not '30 seconds'"),
        (12, 22, 26, "server.max_message_bytes must be an amount of memory, not 'true'"),
    ],
    "wide-characters": [
        (1, 34, 44, "unknown key 'descripton' in 'model'"),
    ],
    "wrong-types": [
        (2, 7, 11, "model.id must be text, and YAML reads 2024 as a number"),
        (3, 16, 22, "model.description must be text, not a list"),
        (6, 18, 24, "engine.max_model_len must be a whole number, not text"),
        (7, 22, 25, "engine.trust_remote_code must be true or false; YAML 1.2 reads yes as text"),
        (8, 27, 31, "engine.gpu_memory_utilization must be a number, not text"),
        (9, 9, 13, "engine.args must have keys of its own, not be text"),
        (11, 21, 24, "compute.num_accelerators must be a whole number, not 1.5"),
        (12, 21, 32, "compute.accelerator_type must be a list, not text"),
        (13, 14, 22, "checkpoints must have keys of its own, not be text"),
        (15, 19, 23, "build.python_version must be text, and YAML reads 3.10 as the number 3.1"),
        (16, 26, 27, "build.system_packages[1] must be text, and YAML reads 7 as a number"),
        (18, 5, 19, "secrets[0] must have keys of its own, not be text"),
        (19, 11, 14, "concepts must be a list, not text"),
    ],
}

# Folders whose fault is in model.py; their config.yaml is fine.
MODEL_FAULTS = {"llm-without-engine", "no-model-py", "wrong-signature"}


def place(problem: Problem) -> tuple[int | None, int | None, int | None, str]:
    return problem.line, problem.column, problem.end_column, problem.message


@pytest.mark.parametrize("name", EXPECTED)
def test_every_problem_is_found_at_its_place(name):
    config, problems = check_config(BROKEN / name)
    assert config is None
    assert [place(problem) for problem in problems] == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_problems_as_a_person_sees_them(name, snapshot, capsys, monkeypatch):
    monkeypatch.chdir(BROKEN)
    console.problems(check_config(Path(name))[1])
    assert capsys.readouterr().err == snapshot


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_loading_raises_with_all_problems(name):
    with pytest.raises(ConfigError) as caught:
        load_config(BROKEN / name)
    assert [place(problem) for problem in caught.value.problems] == EXPECTED[name]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_problem_has_a_cure(name):
    assert [problem.message for problem in check_config(BROKEN / name)[1] if not problem.cure] == []


def test_every_folder_is_listed():
    names = {path.name for path in BROKEN.iterdir() if path.is_dir()}
    assert names == set(EXPECTED) | MODEL_FAULTS


@pytest.mark.parametrize("name", sorted(MODEL_FAULTS))
def test_faults_of_model_py_are_no_faults_of_the_config(name):
    config, problems = check_config(BROKEN / name)
    assert config is not None
    assert problems == []


def test_secrets_are_masked_wherever_they_are_shown(capsys):
    _, problems = check_config(BROKEN / "secrets-inside")
    _, rules = check_config(BROKEN / "rules")
    for output_format in ("text", "json", "github"):
        console.problems([*problems, *rules], output_format)
    shown = "".join(capsys.readouterr()) + repr([*problems, *rules])
    assert not re.search("notAReal|not-a-real|aaaabbbb", shown)


def test_a_python_file_is_no_config():
    _, problems = check_config(MODELS / "minimal" / "model.py")
    assert [each.message for each in problems] == [
        f"{MODELS / 'minimal' / 'model.py'} is Python, and no config.yaml"
    ]
    assert problems[0].cure == f"give the folder: {MODELS / 'minimal'}"
