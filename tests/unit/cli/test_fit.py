"""`modelkit fit`, and the gate in validate and serve: what is printed, and the exit codes."""

import json
import re

import pytest

from modelkit.cli import serve
from modelkit.cli.app import main
from modelkit.config import BENCH_RECORD
from modelkit.fit import Device, config_hash, device_by_name
from unit.fit import checkpoints as ck

MODEL = "from modelkit import LLM\n\n\nclass Big(LLM):\n    pass\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model folder for vLLM on an L4 with the config.json of Qwen2-7B and a safetensors file of its size."""
    from modelkit.fit import read_architecture
    from modelkit.fit.weights import expected_tensors

    (tmp_path / "config.yaml").write_text(
        "model:\n  id: big\nengine:\n  name: vllm\n  max_model_len: 32768\n"
        "compute:\n  num_accelerators: 1\n  accelerator_type: [NVIDIA-T4]\n"
        "checkpoints:\n  type: local\n  path: checkpoint\n"
    )
    (tmp_path / "model.py").write_text(MODEL)
    ck.write_config(tmp_path / "checkpoint", ck.QWEN2_7B)
    tensors = {t.name: (t.dtype, t.shape) for t in expected_tensors(read_architecture(ck.QWEN2_7B))}
    ck.write_safetensors(tmp_path / "checkpoint" / "model.safetensors", tensors)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_fits_reads_like_this(folder, capsys, snapshot):
    arguments = ["--gpu", "H200", "--concurrency", "32", "--max-model-len", "8192"]
    assert main(["fit", *arguments]) == 0
    assert capsys.readouterr().out == snapshot


def test_what_does_not_fit_reads_like_this(folder, capsys, snapshot):
    assert main(["fit", "--gpu", "A10G", "--concurrency", "8"]) == 1
    assert capsys.readouterr().out == snapshot


def test_what_bench_saw_is_counted_and_told(folder, capsys):
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 81559 * 2**20}
    subject = {"name": "big", "engine": "vllm", "engine_version": "0.26.0", "tensor_parallel_size": 1}
    level = {"subject": "big", "load": "c=100", "gpu_memory_bytes_max": 77 * 2**30}
    subject |= {"engine_args": {}, "config_hash": config_hash(ck.QWEN2_7B)}
    record = {"run_id": "r1", "gpus": [gpu], "subjects": [subject], "levels": [level]}
    path = folder / BENCH_RECORD
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    assert main(["fit", "--gpu", "H200", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["beyond_bytes"] == told["measured"]["peak_bytes"] - told["measured"]["expected_bytes"] > 0
    assert main(["fit", "--gpu", "H200"]) == 0
    text = capsys.readouterr().out
    assert "more than that, as bench saw" in text
    assert "note: bench saw 77.00 GiB in use at c=100 by vllm 0.26.0 on NVIDIA-H100, " in text
    assert main(["fit", "--gpu", "H200", "--engine", "sglang"]) == 0
    assert "bench saw" not in capsys.readouterr().out


def test_the_folder_of_a_checkpoint_will_do(folder, capsys):
    assert main(["fit", "checkpoint", "--memory", "24GiB", "--engine", "sglang", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["engine"], printed["device"]["name"], printed["fits"]) == (
        "sglang",
        "a GPU with 24 GiB",
        True,
    )
    assert printed["weights_bytes"] == 15_231_233_024
    assert not printed["weights_are_an_estimate"]
    assert printed["num_parameters"] == 7_615_616_512


def test_the_card_is_the_one_that_config_yaml_asks_for(folder, capsys):
    assert main(["fit", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["device"]["name"] == "NVIDIA-T4"
    assert printed["missing_bytes"] > 0
    assert printed["suggestions"]


def test_each_suggestion_does_what_it_says(folder, capsys):
    assert main(["fit", "--gpu", "A10G", "--concurrency", "8", "--json"]) == 1
    tried = [
        change["options"]
        for change in json.loads(capsys.readouterr().out)["suggestions"]
        if change["options"]
    ]
    assert tried
    for options in tried:
        sets = [argument for option in options for argument in ("--set", option)]
        assert main(["fit", "--gpu", "A10G", "--concurrency", "8", *sets]) == 0, options


def test_tensor_parallelism_and_other_engines(folder, capsys):
    assert main(["fit", "--gpu", "A10G", "--tp", "2", "--json"]) == 0
    two = json.loads(capsys.readouterr().out)
    assert two["tensor_parallel_size"] == 2
    assert two["weights_bytes"] == pytest.approx(15_231_233_024 / 2, rel=0.001)
    assert main(["fit", "--gpu", "g5.12xlarge", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensor_parallel_size"] == 4
    assert main(["fit", "--gpu", "H200", "--engine", "lmdeploy:pytorch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "pytorch"


@pytest.fixture
def tiny(tmp_path):
    """The folder of a checkpoint of half a million parameters."""
    from modelkit.fit import read_architecture
    from modelkit.fit.weights import expected_tensors

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
    config = ck.QWEN2_7B | small | {"num_attention_heads": 4, "num_key_value_heads": 4}
    ck.write_config(tmp_path / "tiny", config)
    tensors = {t.name: (t.dtype, t.shape) for t in expected_tensors(read_architecture(config))}
    ck.write_safetensors(tmp_path / "tiny" / "model.safetensors", tensors)
    return str(tmp_path / "tiny")


def test_a_small_model_is_not_rounded_away(tiny, capsys):
    assert main(["fit", tiny, "--memory", "512MiB", "--engine", "transformers"]) == 1
    printed = capsys.readouterr().out
    assert "on a GPU with 512 MiB, 0.50 GiB usable" in printed
    assert re.search(r"weights \(0\.21 M in bfloat16\) +0\.4\d MiB", printed)
    assert "0.00 GiB" not in printed


def test_too_many_sequences_leave_room_for_fewer_and_the_columns_straight(tiny, capsys):
    asked = ["--concurrency", "99999999999999999999", "--engine", "transformers", "--max-model-len", "2048"]
    assert main(["fit", tiny, "--gpu", "H200", *asked]) == 1
    printed = capsys.readouterr().out
    assert "no room" not in printed
    assert "there is room for 64 of 2,048 tokens" in printed
    table = [line for line in printed.splitlines() if line.startswith("  ") and line.endswith("iB")]
    assert len({len(line) for line in table}) == 1


def test_transformers_takes_one_card_of_a_machine(tiny, capsys):
    assert main(["fit", tiny, "--gpu", "g5.12xlarge", "--engine", "transformers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensor_parallel_size"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--engine", "transformers", "--tp", "2"],
            "transformers runs on one GPU, and 2 are to share the model",
        ),
        (["--engine", "vllm", "--tp", "3"], "3 GPUs cannot share the 4 attention heads"),
    ],
)
def test_cards_that_no_engine_would_share_are_refused(tiny, capsys, arguments, words):
    assert main(["fit", tiny, "--gpu", "A10G", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpu", "H2000"], 2, "did you mean 'H200'"),
        (["--memory", "much"], 2, "write it with its unit, like 24GiB"),
        (["--gpu", "H200", "--memory", "24GiB"], 2, "give one of them"),
        (["--concurrency", "0"], 2, "greater than or equal to 1"),
        (["checkpoint", "--set", "engine.name=vllm"], 2, "is a checkpoint, not a model folder"),
        (["--engine", "vlm"], 2, "there is no engine 'vlm'"),
        (["checkpoint", "--engine", "vlm"], 2, "is no engine that loads weights here"),
        (["--set", "checkpoints.path=none"], 1, "there is no checkpoint folder"),
        (["checkpoint", "--engine", "sglang"], 2, "this machine has no GPU, and sglang runs on nothing else"),
        (["--gpu", "t3a.large"], 2, "is not known here"),
        (["plain"], 2, "has no checkpoint that an engine loads"),
        (["nowhere"], 2, "there is no nowhere"),
    ],
)
def test_what_cannot_be_counted_says_why(folder, capsys, monkeypatch, arguments, code, words):
    monkeypatch.setattr("modelkit.fit.hardware.nvidia_gpus", tuple)
    (folder / "plain").mkdir()
    (folder / "plain" / "config.yaml").write_text("model: {id: plain}\n")
    assert main(["fit", *arguments]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # Qwen2-7B has 28 heads and 4 of keys and values: vLLM would refuse 7
        (
            ["--gpu", "H100", "--tp", "7"],
            "7 GPUs cannot share the 28 attention heads and 4 of keys and values",
        ),
        (["--gpu", "g5.xlarge", "--tp", "4"], "4 GPUs are to share the model, and there is 1 of NVIDIA-A10G"),
        (["--memory", "24"], "write it with its unit, like 24GiB"),
    ],
)
def test_what_is_not_there_is_not_counted(folder, capsys, arguments, words):
    assert main(["fit", *arguments]) != 0
    assert words in capsys.readouterr().err


def test_this_machine_has_no_more_gpus_than_it_has(folder, capsys, monkeypatch):
    config = folder / "config.yaml"
    config.write_text(
        config.read_text().replace("  accelerator_type: [NVIDIA-T4]\n", "").replace("s: 1", "s: 0")
    )
    monkeypatch.setattr("modelkit.fit.this_machine", lambda: device_by_name("H100"))
    assert main(["fit", "--tp", "2"]) != 0
    assert "2 GPUs are to share the model, and there is 1 of NVIDIA-H100" in capsys.readouterr().err
    memory = Device("main memory", 2**35, 2**35, "cpu")
    monkeypatch.setattr("modelkit.fit.this_machine", lambda: memory)
    assert main(["fit", "--tp", "2"]) != 0
    assert "and there is no GPU" in capsys.readouterr().err


def test_more_sequences_than_the_engine_answers_wait(folder, capsys):
    assert main(["fit", "--gpu", "H200", "--concurrency", "100000", "--max-model-len", "512"]) == 1
    out = capsys.readouterr().out
    assert "note: vllm answers 1,024 at the same time; the others wait" in out
    assert "answer 1024 at the same time instead of 100000" in out


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"num_hidden_layers": 1e30}, {"num_hidden_layers": "two"}]
)
def test_a_config_that_cannot_be_says_which_key(folder, capsys, change):
    ck.write_config(folder / "checkpoint", {**ck.QWEN2_7B, **change})
    assert main(["fit", "--gpu", "H200"]) == 1
    assert f"config.json says {next(iter(change))}: " in capsys.readouterr().err


def test_damaged_weights_are_not_called_missing(folder, capsys):
    (folder / "checkpoint" / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    main(["fit", "--gpu", "H200"])
    out = capsys.readouterr().out
    assert "note: model.safetensors" in out
    assert "not all here" not in out


def test_validate_points_at_the_key(folder, capsys):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("32768", "200000"))
    assert main(["validate", "--format", "json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)
    assert (problem["severity"], problem["line"], problem["column"]) == ("error", 5, 18)
    assert "one sequence of 200,000 tokens" in problem["message"]
    assert problem["cure"].endswith("--skip-fit leaves this check out")
    assert main(["validate", "--skip-fit"]) == 0


def test_validate_without_a_card_checks_nothing(folder, capsys):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("  accelerator_type: [NVIDIA-T4]\n", ""))
    assert main(["validate"]) == 0


def test_serve_refuses_what_cannot_fit_before_anything_starts(folder, capsys, monkeypatch):
    served = []
    monkeypatch.setattr(serve, "_run", lambda *_: served.append(1) or 0)
    monkeypatch.setattr(serve, "_configure_logging", lambda *_: None)
    small = Device("NVIDIA T4", 15 * 2**30, 12 * 2**30)
    monkeypatch.setattr("modelkit.fit.this_machine", lambda: small)
    assert main(["serve", "--port", "0"]) == 1
    printed = capsys.readouterr().err
    assert "error: big does not fit: the weights alone, 14.19 GiB" in printed
    assert "--skip-fit starts it all the same" in printed
    assert not served
    assert main(["serve", "--port", "0", "--skip-fit"]) == 0
    assert served


def test_serve_warns_of_what_may_not_fit(folder, capsys, monkeypatch):
    monkeypatch.setattr(serve, "_run", lambda *_: 0)
    monkeypatch.setattr(serve, "_configure_logging", lambda *_: None)
    tight = Device("a card", 18 * 2**30, int(17.5 * 2**30))
    monkeypatch.setattr("modelkit.fit.this_machine", lambda: tight)
    assert main(["serve", "--port", "0"]) == 0
    assert "warning: big may not fit" in capsys.readouterr().err
