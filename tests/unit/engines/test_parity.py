import json

import pytest

from modelkit.cli.app import main
from modelkit.config import Config, EngineConfig
from modelkit.engines import create
from modelkit.engines.parity import Run, answer_all, compare, read_prompts
from modelkit.engines.switching import switch_engine
from modelkit.errors import UsageError


def chat(text):
    return ({"role": "user", "content": text},)


def test_prompts_are_lines_json_lines_or_a_list(tmp_path):
    lines = tmp_path / "a.txt"
    lines.write_text('Hello\n\n{"prompt": "Hi"}\n{"messages": [{"role": "system", "content": "s"}]}\n')
    assert read_prompts(lines, None) == [chat("Hello"), chat("Hi"), [{"role": "system", "content": "s"}]]
    whole = tmp_path / "qa.json"
    whole.write_text('[{"messages": [{"role": "user", "content": "Q"}], "answer": "A"}]')
    assert read_prompts(whole, None) == read_prompts(None, tmp_path) == [[{"role": "user", "content": "Q"}]]
    assert len(read_prompts(None, tmp_path / "none")) >= 5


@pytest.mark.parametrize("content", ["", "\n", '{"text": "x"}', "{broken"])
def test_a_file_without_prompts_is_refused(tmp_path, content):
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(UsageError, match=r"p\.txt"):
        read_prompts(tmp_path / "p.txt", None)
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts(tmp_path / "no.txt", None)


def test_the_first_difference_is_where_it_is():
    prompts = [chat("a"), chat("b"), chat("c"), chat("d")]
    reference = Run("one", ("same", "abcd", "abc", ""), 4, 2.0)
    found = compare(reference, Run("two", ("same", "abXd", "ab", ""), 4, 1.0), prompts)
    assert found.num_exact == 2
    assert [one.position for one in found.divergences] == [2, 2]
    assert found.agreement == pytest.approx((1 + 2 / 4 + 2 / 3 + 1) / 4)
    assert reference.tokens_per_s == 2.0
    assert compare(reference, reference, prompts).agreement == 1


async def test_an_engine_answers_all_prompts_in_order():
    engine = create(EngineConfig(name="echo"), None, "m")
    await engine.start()
    run = await answer_all("echo", engine, [chat(f"word {n}") for n in range(9)], max_tokens=9, concurrency=3)
    await engine.close()
    assert run.answers == tuple(f"word {n}" for n in range(9))
    assert run.num_output_tokens == 27


def test_what_is_spelled_for_another_engine_is_left_out():
    engine = {"name": "vllm", "python": "/p", "max_model_len": 9, "args": {"enforce-eager": True}}
    config = Config.model_validate({"model": {"id": "m"}, "engine": engine})
    switched, left_out = switch_engine(config, "transformers")
    assert switched.engine == EngineConfig(name="transformers", max_model_len=9)
    assert left_out == ("args", "python")
    assert switch_engine(config, "vllm") == (config, ())
    assert switch_engine(config, "lmdeploy:pytorch")[0].engine.args == {"backend": "pytorch"}


@pytest.mark.parametrize("name", ["vlm", "vllm:pytorch", "lmdeploy:cuda", ""])
def test_an_engine_that_does_not_exist_is_refused(name):
    config = Config.model_validate({"model": {"id": "m"}, "engine": {"name": "echo"}})
    with pytest.raises(UsageError, match="there is no engine"):
        switch_engine(config, name)


def folder(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {id: m}\nengine: {name: echo}\n")
    (tmp_path / "model.py").write_text("from modelkit import LLM\n\n\nclass M(LLM):\n    pass\n")
    (tmp_path / "requirements.txt").touch()
    return str(tmp_path)


def test_an_engine_that_fails_is_a_row_and_an_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert main(["parity", folder(tmp_path), "--engines", "echo,openai", "--json"]) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["engines"][0] | {"tokens_per_s": 0} == {
        "engine": "echo", "num_exact": 8, "agreement": 1.0, "first_divergences": [], "tokens_per_s": 0,
        "num_output_tokens": result["engines"][0]["num_output_tokens"],
    }  # fmt: skip
    assert "needs the URL" in result["failed"]["openai"]
    assert "needs the URL" in err


@pytest.mark.parametrize("engines", ["echo", "echo,echo", ""])
def test_a_comparison_takes_two(tmp_path, engines):
    assert main(["parity", folder(tmp_path), "--engines", engines]) == 2
