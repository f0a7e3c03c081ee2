import pytest

from modelkit.config.models import ComputeConfig
from modelkit.deploy.docker.gpus import Gpu, assign, parse_gpus, suitable
from modelkit.errors import DeployError, UsageError

GIB = 1024**3
H100S = [Gpu(f"GPU-{number}", "NVIDIA-H100", 80 * GIB) for number in range(4)]


def wanted(**keys):
    return ComputeConfig.model_validate({"num_accelerators": 1, **keys})


def test_what_nvidia_smi_says():
    text = "GPU-1f, NVIDIA H200, 143771\nGPU-2f, Quadro, RTX 9, 1024\nNVIDIA-SMI has failed\n\n"
    first, second = parse_gpus(text)
    assert (first.id, first.kind, first.memory_bytes) == ("GPU-1f", "NVIDIA-H200", 143771 * 1024**2)
    assert (second.id, second.kind) == ("GPU-2f", "Quadro,-RTX-9")


def test_the_kind_that_is_named_first_is_taken_first():
    gpus = [
        Gpu("a", "NVIDIA-A100", 40 * GIB),
        Gpu("b", "NVIDIA-H200", 141 * GIB),
        Gpu("c", "NVIDIA-L4", 24 * GIB),
    ]
    found = suitable(gpus, wanted(accelerator_type=["NVIDIA-H200", "NVIDIA-*"], accelerator_memory="30Gi"))
    assert [gpu.id for gpu in found] == ["b", "a"]
    assert suitable(gpus, wanted(accelerator_type=["AMD-*"])) == []


def test_replicas_get_free_ones_of_their_own():
    found = assign(wanted(), 2, H100S, ["GPU-1"], [], may_wait=False)
    assert found == [("GPU-0",), ("GPU-2",)]
    assert assign(wanted(num_accelerators=2), 1, H100S, [], [], may_wait=False) == [("GPU-0", "GPU-1")]
    assert assign(ComputeConfig(), 2, [], [], [], may_wait=False) == [(), ()]


def test_replacements_take_those_of_the_replicas_that_go():
    found = assign(
        wanted(), 3, H100S, ["GPU-0", "GPU-1", "GPU-2"], [("GPU-0",), ("GPU-1",), ("GPU-2",)], may_wait=False
    )
    assert found == [("GPU-3",), ("GPU-0",), ("GPU-1",)]


def test_a_full_host_replaces_in_place_only_where_that_was_asked_for():
    going = [(gpu.id,) for gpu in H100S]
    taken = [gpu.id for gpu in H100S]
    with pytest.raises(DeployError, match="no GPU is free for a new replica") as caught:
        assign(wanted(), 4, H100S, taken, going, may_wait=False)
    assert "max_surge_percent=0" in caught.value.cure
    assert assign(wanted(), 4, H100S, taken, going, may_wait=True) == going


def test_too_few_gpus():
    with pytest.raises(UsageError, match=r"needs 8 GPUs of kind NVIDIA-H100, and the host has 4 NVIDIA-H100"):
        assign(wanted(num_accelerators=8, accelerator_type=["NVIDIA-H100"]), 1, H100S, [], [], may_wait=True)
    with pytest.raises(DeployError, match="3 replicas need 3 GPUs, and 1 are free for them"):
        assign(wanted(), 3, H100S, ["GPU-0", "GPU-1", "GPU-2"], [], may_wait=False)
