import pytest

from modelkit.benchmark.presets import BLOG_MODELS
from modelkit.benchmark.random_weights import ARCHITECTURES, read_config
from modelkit.errors import UsageError


@pytest.mark.parametrize(("published", "architecture"), BLOG_MODELS.items())
def test_a_compared_model_is_known_by_the_name_it_is_published_under(published, architecture):
    assert read_config(published) == read_config(architecture) == ARCHITECTURES[architecture]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("qwen2-7", "qwen2-7b"), ("mistralai/Mistral-7B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3")],
)
def test_an_unknown_architecture_is_told_with_all_that_are_known(written, meant):
    with pytest.raises(UsageError, match=rf"did you mean '{meant}'\?") as caught:
        read_config(written)
    assert all(name in caught.value.cure for name in (*ARCHITECTURES, *BLOG_MODELS))
