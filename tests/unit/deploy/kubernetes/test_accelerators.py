"""Kinds of cards become resources and node labels."""

import pytest

from modelkit.config import ComputeConfig
from modelkit.deploy.kubernetes.accelerators import gpu_affinity, gpu_resource, gpu_tolerations
from modelkit.errors import UsageError


def compute(*kinds, **fields):
    return ComputeConfig(**{"num_accelerators": 1, "accelerator_type": kinds, **fields})


def required(found):
    (term,) = found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return {each["key"]: (each["operator"], each["values"]) for each in term["matchExpressions"]}


def test_no_cards_ask_for_nothing():
    none = ComputeConfig()
    assert gpu_resource(none) is None
    assert gpu_affinity(none) is None
    assert gpu_tolerations(none) == []


def test_any_card_needs_no_label():
    assert gpu_resource(compute()) == "nvidia.com/gpu"
    assert gpu_affinity(compute()) is None
    assert gpu_affinity(compute("NVIDIA-*")) is None


def test_names_become_the_operator_s_labels_best_first():
    found = gpu_affinity(compute("NVIDIA-H200", "NVIDIA-H100"))
    operator, values = required(found)["nvidia.com/gpu.product"]
    assert operator == "In"
    assert values[0] == "NVIDIA-H200"
    assert "NVIDIA-H100-80GB-HBM3" in values
    preferred = found["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [each["weight"] for each in preferred] == [100, 90]


def test_one_entry_that_stands_for_all_only_prefers_the_others():
    found = gpu_affinity(compute("NVIDIA-H200", "NVIDIA-*"))
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in found["nodeAffinity"]
    assert len(found["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]) == 1


@pytest.mark.parametrize(("gib", "card_mib"), [(80, 81_559), (24, 23_028), (40, 40_960)])
def test_a_card_of_a_nominal_size_is_large_enough(gib, card_mib):
    found = gpu_affinity(compute(accelerator_memory_bytes=gib * 1024**3))
    operator, (least,) = required(found)["nvidia.com/gpu.memory"]
    assert operator == "Gt"
    assert int(least) < card_mib


def test_a_card_that_no_table_has_is_its_own_label():
    assert required(gpu_affinity(compute("NVIDIA-X9000")))["nvidia.com/gpu.product"] == (
        "In",
        ["NVIDIA-X9000"],
    )


def test_cards_of_two_vendors_are_refused():
    assert gpu_resource(compute("AMD-MI300X")) == "amd.com/gpu"
    with pytest.raises(UsageError, match="several vendors"):
        gpu_resource(compute("AMD-MI300X", "NVIDIA-H200"))
