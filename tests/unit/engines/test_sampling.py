import pytest

from modelkit.engines import SamplingParams
from modelkit.engines.sampling import read_generation_config, sampling_defaults
from modelkit.errors import InvalidArgumentError, LoadError


@pytest.mark.parametrize(
    ("generation_config", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.7}, 0.7),
    ],
)
def test_temperature_follows_the_checkpoint_when_the_request_has_none(generation_config, temperature):
    assert SamplingParams().resolve(sampling_defaults(generation_config)).temperature == temperature
    assert SamplingParams(temperature=0.3).resolve(sampling_defaults(generation_config)).temperature == 0.3


def test_other_defaults_of_the_checkpoint_hold_unless_the_request_says_otherwise():
    defaults = sampling_defaults({"do_sample": True, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05})
    sampling = SamplingParams(top_p=0.5).resolve(defaults)
    assert (sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (0.5, 20, 1.05)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"stop": ("a", "")}, "stop"),
        ({"stop": ("a",) * 65}, "stop"),
        ({"stop": ("a" * 1025,)}, "stop"),
        ({"seed": 10**400}, "seed"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_values_out_of_range_are_refused_by_name(params, field):
    with pytest.raises(InvalidArgumentError) as caught:
        SamplingParams(**params).resolve({})
    assert [violation.field for violation in caught.value.violations] == [field]


def test_every_fault_is_named_at_once():
    with pytest.raises(InvalidArgumentError) as caught:
        SamplingParams(top_p=2, temperature=-1).resolve({})
    assert {violation.field for violation in caught.value.violations} == {"top_p", "temperature"}


def test_a_checkpoint_without_generation_config_has_none(tmp_path):
    assert read_generation_config(tmp_path) == {}
    assert read_generation_config(None) == {}


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_generation_config_is_a_load_error_that_names_the_file(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(LoadError, match=r"generation_config\.json"):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    ("temperature", "greedy"), [(0, True), (5e-324, True), (9.9e-5, True), (1e-4, False)]
)
def test_a_temperature_next_to_nothing_is_greedy(temperature, greedy):
    assert SamplingParams(temperature=temperature).resolve({}).greedy is greedy
