"""The one table of accelerators: every row is whole, names are found as people write them."""

import pytest

from modelkit.config.accelerators import accelerator_by_name, accelerators, matching_accelerators, table
from modelkit.config.quantities import parse_memory


def test_every_row_is_plausible():
    for each in accelerators():
        assert 0.95 * each.memory_bytes < each.usable_bytes < each.memory_bytes, each.name
        # people say 80G for what nvidia-smi calls 81559 MiB
        label = parse_memory(table()["accelerators"][each.name]["memory"])
        assert label == pytest.approx(each.memory_bytes, rel=0.08), each.name
        assert 3e11 <= each.bandwidth_bytes_s <= 1e13
        assert (7, 0) <= each.compute_capability <= (12, 0)
        assert each.nvidia_smi_names


def test_no_name_stands_for_two():
    names = [name for each in accelerators() for name in (each.name, *each.nvidia_smi_names)]
    assert all(accelerator_by_name(name) is not None for name in names)
    assert len({accelerator_by_name(name).name for name in names}) == len(accelerators())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("H200", "NVIDIA-H200"),
        ("nvidia-h200", "NVIDIA-H200"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100"),
        ("a100 80gb", "NVIDIA-A100-80GB"),
        ("rtx4090", "NVIDIA-RTX-4090"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA-RTX-4090"),
        ("Tesla T4", "NVIDIA-T4"),
        ("", None),
        ("H2", None),
    ],
)
def test_names_as_people_write_them(name, found):
    accelerator = accelerator_by_name(name)
    assert (accelerator and accelerator.name) == found


def test_a_pattern_stands_for_several():
    assert {each.name for each in matching_accelerators("NVIDIA-A100-*")} == {
        "NVIDIA-A100-40GB",
        "NVIDIA-A100-80GB",
    }
    assert matching_accelerators("AMD-*") == ()
