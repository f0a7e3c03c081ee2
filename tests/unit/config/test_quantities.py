"""Memory, CPU cores and durations, as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modelkit.config import ComputeConfig, EngineConfig, ServerConfig
from modelkit.config.quantities import parse_cpu, parse_duration, parse_memory

# On a busy machine an example may take long, which is no fault.
CALM = settings(deadline=None)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1024", 1024),
        ("1k", 1000),
        ("1K", 1000),
        ("1Ki", 1024),
        ("500M", 500_000_000),
        ("500MB", 500_000_000),
        ("16Gi", 16 * 1024**3),
        ("16 GiB", 16 * 1024**3),
        ("1.5Gi", 1536 * 1024**2),
        ("2Ti", 2 * 1024**4),
        ("999999999999999", 999999999999999),
    ],
)
def test_memory(text, num_bytes):
    assert parse_memory(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "Gi", "16g", "16ki", "-1Gi", "1e3", "16 gigs", "1,5Gi", "0x10", "١Gi", "16Gi ", "9" * 16]
)
def test_no_memory(text):
    assert parse_memory(text) is None


@pytest.mark.parametrize(("text", "cores"), [("4", 4.0), ("0.5", 0.5), ("500m", 0.5), ("1500m", 1.5)])
def test_cpu(text, cores):
    assert parse_cpu(text) == cores


@pytest.mark.parametrize("text", ["", "m", "two", "-1", "4 cores", "4M"])
def test_no_cpu(text):
    assert parse_cpu(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("1d", 86400.0),
    ],
)
def test_duration(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", "30sec", "-5m", "5m-", "1h 30m", "1w"])
def test_no_duration(text):
    assert parse_duration(text) is None


@given(st.text())
@CALM
def test_parsers_never_raise(text):
    for parse in (parse_memory, parse_cpu, parse_duration):
        assert parse(text) is None or parse(text) >= 0


@given(st.integers(0, 10**6), st.sampled_from(["Ki", "Mi", "Gi", "Ti"]))
@CALM
def test_binary_units_are_exact(number, unit):
    assert parse_memory(f"{number}{unit}") == number * 1024 ** ("KMGT".index(unit[0]) + 1)


def test_python_gives_numbers_by_attribute():
    assert ServerConfig(drain_timeout_s=0.2).drain_timeout_s == 0.2
    assert ServerConfig(max_message_bytes=1024).max_message_bytes == 1024
    assert ComputeConfig(cpu_limit_cores=2).cpu_limit_cores == 2.0
    assert EngineConfig(name="echo", start_timeout_s="5m").start_timeout_s == 300.0


@pytest.mark.parametrize("value", [True, None, [], float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValidationError):
        ServerConfig(drain_timeout_s=value if value is not None else {})
