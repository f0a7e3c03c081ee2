"""Each rule across keys: what it refuses, and what it must leave alone."""

from typing import get_args

import pytest

from modelkit.checkpoints import SOURCES
from modelkit.config import CheckpointSourceConfig, check_config
from modelkit.config.rules import RULES


def problems_of(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    return [(p.severity, p.line, p.message) for p in check_config(tmp_path)[1]]


HUB = "checkpoints: {type: huggingface, repo_id: org/name}\n"
ID = "model: {id: x}\n"


@pytest.mark.parametrize(
    "text",
    [
        # Accelerators without an engine: the model uses them itself.
        "compute: {num_accelerators: 2, accelerator_type: [NVIDIA-L4]}",
        HUB + "engine: {name: transformers}\ncompute: {num_accelerators: 1}",
        HUB + "engine: {name: transformers}",
        HUB + "engine: {name: vllm, tensor_parallel_size: 2}\ncompute: {num_accelerators: 4}",
        HUB + "engine: {name: transformers, tensor_parallel_size: 1}",
        "engine: {name: echo}",
        "engine: {name: openai, args: {base_url: http://127.0.0.1:8000}}",
        # An overlay for a laptop sets the number to 0 and leaves the kind.
        "compute: {num_accelerators: 0, accelerator_type: [NVIDIA-L4]}",
        "deployment: {min_replicas: 2}",
        "deployment: {mode: serverless}",
        "deployment: {mode: serverless, min_replicas: 1, max_replicas: 1}",
        "deployment: {mode: serverless, scale_to_zero_after: 5m}",
        "server: {max_concurrency: 1}",
        "checkpoints: {type: local, path: .}",
        "checkpoints: {type: huggingface, repo_id: gpt2}",
        "secrets: [{env_var: A}, {env_var: B}]",
    ],
)
def test_what_fits_together_is_left_alone(tmp_path, text):
    assert problems_of(tmp_path, ID + text) == []


@pytest.mark.parametrize(
    ("text", "severity", "message"),
    [
        (
            HUB + "engine: {name: sglang}",
            "warning",
            "sglang runs on accelerators, and compute.num_accelerators is 0",
        ),
        (
            "engine: {name: openai}\ncompute: {num_accelerators: 1}",
            "error",
            "the engine 'openai' uses no accelerators, and compute asks for 1",
        ),
        (
            "compute: {accelerator_memory: 8Gi}",
            "error",
            "compute.accelerator_memory has no effect without num_accelerators",
        ),
        (
            HUB + "engine: {name: transformers, tensor_parallel_size: 2}",
            "error",
            "engine.tensor_parallel_size is 2, and a replica has 0 accelerators (compute.num_accelerators)",
        ),
        ("engine: {name: echo, args: {dtype: x}}", "error", "'dtype' has a key of its own in 'engine'"),
        (
            "engine: {name: echo, args: {--api-key: sk-0123}}",
            "error",
            "the value of '--api-key' does not belong in a file: it would be shipped with the model",
        ),
        (
            "engine: {name: transformers}",
            "error",
            "the engine 'transformers' runs a checkpoint, and there is no 'checkpoints' section",
        ),
        ("checkpoints: {type: huggingface}", "error", "a checkpoint of type huggingface needs 'repo_id'"),
        ("checkpoints: {type: huggingface, repo_id: ./here}", "error", "'./here' is no repository id"),
        ("checkpoints: {type: huggingface, repo_id: a/b/c}", "error", "'a/b/c' is no repository id"),
        ("checkpoints: {type: local, path: weights}", "warning", "there is no folder 'weights' yet"),
        (
            "checkpoints: {type: local, path: " + "x" * 300 + "}",
            "warning",
            f"there is no folder '{'x' * 300}' yet",
        ),
        (
            "deployment: {min_replicas: 0}",
            "error",
            "a dedicated deployment always runs a replica, and min_replicas is 0",
        ),
        (
            "deployment: {scale_to_zero_after: 5m}",
            "warning",
            "scale_to_zero_after has no effect while min_replicas is 1",
        ),
        ("secrets: [{env_var: A}, {env_var: A}, {env_var: A}]", "error", "the secret A is named twice"),
    ],
)
def test_what_does_not_fit_together_is_found(tmp_path, text, severity, message):
    assert [(found[0], found[2]) for found in problems_of(tmp_path, ID + text)] == [(severity, message)]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("type: s3", "a checkpoint of type s3 needs 'path'"),
        ("type: s3, path: bucket", "'bucket' is no S3 address"),
        ("type: oci", "a checkpoint of type oci needs 'repo_id'"),
    ],
)
def test_where_it_is_has_to_be_right_all_the_same(tmp_path, place, message):
    found = problems_of(tmp_path, ID + "checkpoints: {" + place + "}")
    assert ("error", message) in [(severity, text) for severity, _, text in found]


FILE = "{url: https://x.org/a.bin, sha256: SUM}"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("type: http", "a checkpoint of type http needs 'files'"),
        ("type: http, path: x, files: [FILE]", "checkpoints.path has no meaning for the type http"),
        ("type: local, path: ., files: [FILE]", "checkpoints.files has no meaning for the type local"),
        ("type: http, files: [FILE, FILE]", "two files would be called 'a.bin'"),
        ("type: http, files: [{url: https://x.org/, sha256: SUM}]", "is no address of a file"),
        ("type: http, files: [{url: https://x.org/a/, sha256: SUM}]", "'' is no name of a file"),
        (
            "type: http, files: [{url: https://x.org/a, sha256: SUM, path: ../a}]",
            "'../a' is no name of a file",
        ),
        ("type: http, files: [{url: https://x.org/a, sha256: abc}]", "is no SHA-256"),
        ("type: http, files: [{url: 'https://x.org/a?token=1', sha256: SUM}]", "does not belong in a URL"),
        ("type: local, path: ., additional: {default: {type: local, path: .}}", "'default' is the name of"),
        (
            "type: local, path: ., additional: {a/b: {type: local, path: .}}",
            "'a/b' is no name of a checkpoint",
        ),
        ("type: local, path: ., additional: {a: {type: s3}}", "a checkpoint of type s3 needs 'path'"),
        ("type: local, path: ., additional: {a: {type: local, path: ., wen: build}}", "unknown key 'wen'"),
        (
            "type: local, path: ., additional: {a: {type: local, path: ., repo_id: x}}",
            "additional.a.repo_id has no",
        ),
    ],
)
def test_files_and_further_checkpoints_have_rules_too(tmp_path, place, message):
    text = place.replace("FILE", FILE).replace("SUM", "a" * 64)
    found = problems_of(tmp_path, ID + "checkpoints: {" + text + "}")
    assert [text for severity, _, text in found if severity == "error" and message in text]


def test_an_adapter_may_be_a_checkpoint_and_the_nearest_name_is_suggested(tmp_path):
    text = ID + (
        "compute: {num_accelerators: 1}\n"
        "checkpoints: {type: local, path: ., additional: {support: {type: local, path: .}}}\n"
        "engine: {name: vllm, lora_modules: {a: NAME}}\n"
    )
    assert problems_of(tmp_path, text.replace("NAME", "support")) == []
    assert [found[0] for found in problems_of(tmp_path, text.replace("NAME", "suport"))] == ["warning"]


def test_there_is_a_source_for_every_type():
    kinds = CheckpointSourceConfig.model_fields["type"].annotation
    assert set(SOURCES) == set(get_args(kinds))


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        # A rule is silent about what rests on a value that is wrong itself, ...
        (
            "deployment: {min_replicas: 5, max_replicas: many}",
            ["deployment.max_replicas must be a whole number, not text"],
        ),
        (
            "checkpoint: {type: local}\nengine: {name: transformers}",
            ["unknown key 'checkpoint' at the top level"],
        ),
        (
            "compute: {num_acelerators: 1, accelerator_type: [a]}",
            ["unknown key 'num_acelerators' in 'compute'"],
        ),
        # ... and speaks about the rest.
        (
            "engine: {name: echo, max_model_len: x}\ncompute: {num_accelerators: 1}",
            [
                "engine.max_model_len must be a whole number, not text",
                "the engine 'echo' uses no accelerators, and compute asks for 1",
            ],
        ),
        (
            "secrets: [{env_var: A}, 7, {env_var: A}, {id: x}]",
            ["secrets[1] must have keys of its own, not be a number", "'secrets[3]' has no 'env_var'"],
        ),
    ],
)
def test_rules_and_single_values_are_checked_in_one_run(tmp_path, text, messages):
    assert [found[2] for found in problems_of(tmp_path, ID + text)] == messages


def test_rules_run_without_a_valid_model(tmp_path):
    found = problems_of(tmp_path, "deployment: {min_replicas: 3, max_replicas: 2}\n")
    assert [message for _, _, message in found] == [
        "there is no 'model'",
        "deployment.min_replicas is 3, more than max_replicas, which is 2",
    ]


def test_every_rule_says_what_it_holds():
    assert [rule.__name__ for rule in RULES if not rule.__doc__] == []
