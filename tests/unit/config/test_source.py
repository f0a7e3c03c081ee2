"""Secrets are masked in every line that is shown, and columns stay where they are."""

import pytest

from modelkit.config.source import Source, mask_secrets


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("  hf_token: hf_abc", "  hf_token: ******"),
        ('{hf_token: "hf_abc"}', "{hf_token: ********}"),
        ("  value: two words # note", "  value: **********# note"),
        ("- {env_var: A, value: 'x y'}", "- {env_var: A, value: *****}"),
        ("--set checkpoints.hf_token=abc", "--set checkpoints.hf_token=***"),
        ("args: {api-key: abc, x: 1}", "args: {api-key: *********}"),
        ("OPENAI_API_KEY=abc", "OPENAI_API_KEY=***"),
        ("description: sk-0123456789abcdef0", "description: ********************"),
        ("token_env: github-pat_0123456789abcdef", "token_env: ***************************"),
        ('hf_token: "never closed', "hf_token: *************"),
    ],
)
def test_secrets_are_masked(line, masked):
    assert mask_secrets(line) == masked
    assert len(masked) == len(line)


@pytest.mark.parametrize(
    "line",
    [
        "  - env_var: OPENAI_API_KEY",
        "token_env: HF_TOKEN",
        "  - env_var: MY-KEY",
        "  value: |",
        "values: [1, 2]",
        "max_num_batched_tokens: 512",
        "- {id: secret, env_var: A}",
    ],
)
def test_what_is_no_secret_is_shown(line):
    assert mask_secrets(line) == line


def test_a_problem_at_the_end_of_a_text_has_a_place():
    problem = Source("a: 1").span(4).problem("")
    assert (problem.line, problem.column, problem.end_column) == (1, 5, 6)


def test_a_problem_over_several_lines_is_shown_on_the_first():
    problem = Source("a:\n  b: 1\n").span(0, 9).problem("")
    assert (problem.line, problem.column, problem.end_column) == (1, 1, 3)
