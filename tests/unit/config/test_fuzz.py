"""Whatever is in the file, the loader answers with problems: it never raises anything else."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkit.cli import console
from modelkit.config import check_config
from paths import ROOT

MODELS = ROOT / "tests" / "data" / "models"
# On a busy machine an example may take long, which is no fault.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXTS = [
    (MODELS / name / "config.yaml").read_text()
    for name in ("every-key", "clarifai", "anchors", "clarifai-instance")
]
PIECES = st.sampled_from(
    [
        "\t",
        "\n",
        "  ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!!str ",
        "!x ",
        "> ",
        "'",
        '"',
        "#",
        "%",
        "@",
        "---\n",
        "...\n",
        "null",
        "~",
        "3.10",
        "1e999",
        "\u2028",
        "\x85",
        "😀",
        "\ufeff",
        "\x00",
        "\x07",
        "\\U11000000",
        "<<: ",
        "? ",
        "0o7",
        ".inf",
        "-1",
        "\r",
        "model",
        "engine",
        "compute",
        "secrets",
    ]
)


def check(data: bytes, overrides=()):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_bytes(data)
        config, problems = check_config(Path(folder), overrides=overrides)
    has_errors = any(problem.severity == "error" for problem in problems)
    assert (config is None) == has_errors
    for problem in problems:
        assert problem.message
        # The renderers take whatever was found.
        console._as_text(problem)
        console._as_github(problem)
        if problem.line is not None:
            assert problem.line >= 1
            assert 1 <= problem.column < problem.end_column
            assert problem.column <= len(problem.source) + 1


@st.composite
def mutations(draw):
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(st.one_of(PIECES, st.just(""), st.text(max_size=4))) + text[end:]
    return text


@given(st.binary(max_size=200))
@CALM
def test_random_bytes(data):
    check(data)


@given(st.text(max_size=200))
@CALM
def test_random_text(text):
    check(text.encode("utf-8", "surrogatepass"))


@given(mutations())
@settings(CALM, max_examples=300)
def test_mutated_configs(text):
    check(text.encode("utf-8", "surrogatepass"))


@given(
    st.one_of(
        st.text(max_size=40), st.builds("{}={}".format, PIECES, PIECES), mutations().map(lambda t: t[:60])
    )
)
@CALM
def test_random_settings(override):
    check(TEXTS[0].encode(), overrides=[override])


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["model", "engine", "compute", "checkpoints", "secrets", "concepts", "num_threads", "build", "deployment"]
)
BELOW = st.dictionaries(
    st.sampled_from(
        ["id", "name", "type", "args", "instance", "min_replicas", "mode", "env_var", "value", "cpu_memory"]
    ),
    JSON,
)


@given(st.dictionaries(KEYS, st.one_of(JSON, BELOW, st.lists(BELOW, max_size=3))))
@settings(CALM, max_examples=200)
def test_any_value_anywhere(data):
    import json

    check(json.dumps(data).encode())
