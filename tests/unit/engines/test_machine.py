"""GPUs, as several kinds of nvidia-smi tell them."""

import pytest

from modelkit.engines.machine import Gpu, has_nvidia_gpu, nvidia_gpus


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Return a function that puts an nvidia-smi in place."""

    def put(text: str, code: int = 0) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        tool.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return put


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        (
            "0, GPU-5f2c, NVIDIA H200, 143771, 580.65.06, 4",
            0,
            [Gpu("NVIDIA H200", 143771 * 1024**2, "580.65.06", 4 * 1024**2)],
        ),
        ("0, GPU-a, A, 1, 5, 0\n1, GPU-b, A, 1, 5, 0", 0, [Gpu("A", 1024**2, "5")] * 2),
        ("0, GPU-a, NVIDIA GB10, [N/A], 580.95.05, [N/A]", 0, [Gpu("NVIDIA GB10", 0, "580.95.05")]),
        ("No devices were found", 0, []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, []),
    ],
)
def test_gpus(smi, text, code, expected):
    smi(text, code)
    assert nvidia_gpus() == tuple(expected)
    assert not expected or has_nvidia_gpu()


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("2", ["C"]),
        ("2, 0", ["A", "C"]),
        ("GPU-b", ["B"]),
        ("GPU-c0ffee,1", ["B", "C"]),
        ("1,-1,2", ["B"]),
        ("", []),
        ("NoDevFiles", []),
        ("MIG-1b2c", ["A", "B", "C"]),
    ],
)
def test_only_the_gpus_that_are_visible(smi, monkeypatch, visible, names):
    smi("0, GPU-aaaa, A, 1, 5, 0\n1, GPU-bbbb, B, 1, 5, 0\n2, GPU-c0ffee11, C, 1, 5, 0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in nvidia_gpus()] == names
    assert has_nvidia_gpu() == bool(names)


def test_no_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpus() == ()


def test_a_tool_that_cannot_be_run(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_bytes(b"\x00")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpus() == ()
