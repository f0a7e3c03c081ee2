import base64
import io
import json
import random
from itertools import pairwise

import pytest
from PIL import Image

from modelkit.benchmark.lengths import parse_lengths
from modelkit.benchmark.random_weights import read_config, write_checkpoint
from modelkit.benchmark.tokens import TokenizerTexts, WordTexts, open_texts
from modelkit.benchmark.workload import (
    Workload,
    fingerprint,
    make_conversations,
    poisson_offsets,
    read_trace,
    shortened,
)
from modelkit.errors import UsageError

CHAT = (("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The tokenizer of a random checkpoint: trained now, on the standard library."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_checkpoint(folder, read_config("tiny"), weights=False)
    return open_texts(folder)


def workload(**changes):
    lengths = {"input_tokens": parse_lengths("200", "-"), "output_tokens": parse_lengths("20-40", "-")}
    return Workload(**(lengths | changes))


def test_prompts_have_the_exact_number_of_tokens_and_begin_differently(texts):
    made = make_conversations(workload(), texts, 30)
    prompts = [one.turns[0].content for one in made]
    assert {texts.count(prompt) for prompt in prompts} == {200}
    assert {one.turns[0].expected_prompt_tokens for one in made} == {200}
    assert len({prompt[:60] for prompt in prompts}) == 30
    assert all(20 <= one.turns[0].output_tokens <= 40 for one in made)


def test_what_a_template_adds_is_taken_off(texts):
    (one,) = make_conversations(workload(), texts, 1, overhead_tokens=12)
    assert texts.count(one.turns[0].content) == 188
    assert one.turns[0].expected_prompt_tokens == 200


def test_a_seed_and_a_stream_decide_everything(texts):
    def ask(seed, stream):
        return fingerprint(make_conversations(workload(seed=seed), texts, 5, stream=stream))

    assert ask(1, "a") == ask(1, "a")
    assert len({ask(1, "a"), ask(2, "a"), ask(1, "b")}) == 3


def test_shared_prefixes(texts):
    made = make_conversations(workload(shared_prefix_tokens=50, num_prefixes=2), texts, 6)
    prompts = [one.turns[0].content for one in made]
    assert len({prompt[:100] for prompt in prompts}) == 2
    assert len(set(prompts)) == 6
    assert {texts.count(prompt) for prompt in prompts} == {200}


def test_turns_and_images(texts):
    both = workload(num_turns=3, num_images=2, image_size=(8, 4))
    assert both.needs_chat
    (one,) = make_conversations(both, texts, 1)
    assert len(one.turns) == 3
    *images, text = one.turns[0].content
    assert text["type"] == "text"
    urls = [image["image_url"]["url"] for image in images]
    assert len(set(urls)) == 2
    picture = Image.open(io.BytesIO(base64.b64decode(urls[0].partition(",")[2])))
    assert picture.size == (8, 4)
    picture.load()


def test_words_are_calibrated_by_what_the_server_counts():
    texts = WordTexts()
    # A server that counts two tokens a word, and ten for its template.
    texts.calibrate([(24, 58), (240, 490)])
    text, count = texts.make(110, random.Random(0))
    assert len(text.split()) == 50
    assert count == 0


def test_ramps_are_shorter():
    made = make_conversations(workload(), WordTexts(), 20)
    ramp = shortened(made, random.Random(0))
    assert all(
        1 <= one.turns[0].output_tokens <= made[n].turns[0].output_tokens for n, one in enumerate(ramp)
    )
    assert len({one.turns[0].output_tokens for one in ramp}) > 5


def test_poisson_arrivals_have_the_rate():
    offsets = poisson_offsets(50, 5000, "seed")
    assert offsets == sorted(offsets)
    assert offsets[-1] == pytest.approx(100, rel=0.1)
    gaps = [after - before for before, after in pairwise(offsets)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)  # an exponential's


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("lines.txt", "one\n\ntwo\n", [("", ["one"]), ("", ["two"])]),
        ("lines.jsonl", '{"prompt": "one"}\n', [("", ["one"])]),
        (
            "chat.jsonl",
            json.dumps({"messages": [{"role": role, "content": text} for role, text in CHAT]}),
            [("s", ["u", "v"])],
        ),
        (
            "sharegpt.json",
            json.dumps([{"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}]),
            [("", ["u"])],
        ),
    ],
)
def test_prompts_of_a_file(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    made = make_conversations(workload(prompts_path=path, num_turns=99), WordTexts(), len(said))
    assert [(one.system, [turn.content for turn in one.turns]) for one in made] == said


@pytest.mark.parametrize("content", ['{"nothing": 1}\n', '{"prompt": \n', ""])
def test_a_file_without_prompts_says_so(tmp_path, content):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        make_conversations(workload(prompts_path=path), WordTexts(), 1)
    assert str(path) in caught.value.message
    assert caught.value.cure


def test_a_trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [(27000, 5, 6), (25000, 3, 4)]
    path.write_text(
        "".join(
            json.dumps({"timestamp": at, "input_length": i, "output_length": o}) + "\n" for at, i, o in rows
        )
    )
    trace = read_trace(path)
    assert trace.offsets_s == (0.0, 2.0)
    assert trace.input_tokens == (3, 5)
    made = make_conversations(workload(), WordTexts(), 2, trace=trace)
    assert [one.turns[0].output_tokens for one in made] == [4, 6]
    path.write_text('{"timestamp": 1}\n')
    with pytest.raises(UsageError, match="line 1"):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "mean"), [("10", 10), ("10-20", 15), ("normal:100,10", 100), ("lognormal:100,0.5", 113.3)]
)
def test_lengths_are_drawn_around_their_mean(text, mean):
    lengths = parse_lengths(text, "-")
    assert lengths.mean == pytest.approx(mean, rel=0.01)
    generator = random.Random(0)
    drawn = [lengths.draw(generator) for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.05)
    assert min(drawn) >= 1
    assert parse_lengths(str(lengths), "-") == lengths


@pytest.mark.parametrize("text", ["", "x", "0", "20-10", "normal:5", "pareto:1,2", "-5"])
def test_lengths_that_are_none(text):
    with pytest.raises(UsageError, match="--input-tokens") as caught:
        parse_lengths(text, "--input-tokens")
    assert "normal:MEAN,DEVIATION" in caught.value.cure


def test_a_tokenizer_that_is_none(tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*tokenizer.json"):
        open_texts(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="is no tokenizer"):
        open_texts(tmp_path)


def test_every_id_of_a_random_checkpoint_is_text(texts):
    assert isinstance(texts, TokenizerTexts)
    tokenizer = texts._tokenizer
    assert tokenizer.get_vocab_size() == 8192
    assert all(tokenizer.decode([number]) for number in range(3, 8192, 97))


def test_random_weights_are_a_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors import safe_open

    config = read_config("tiny") | {"model_type": "llama", "vocab_size": 600, "num_hidden_layers": 1}
    write_checkpoint(tmp_path, config, weights=True)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model-00000.safetensors"}
    with safe_open(tmp_path / "model-00000.safetensors", "pt") as file:
        up = file.get_tensor("model.layers.0.mlp.up_proj.weight").float()
        norm = file.get_tensor("model.norm.weight").float()
    assert up.shape == (512, 256)
    assert float(up.std()) == pytest.approx(0.02, rel=0.02)
    assert float(up.mean()) == pytest.approx(0, abs=1e-3)
    assert bool((norm == 1).all())
    # No row repeats another, or is made of others.
    assert int(torch.linalg.matrix_rank(up)) == 256


def test_an_architecture_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'qwen2-7b'"):
        read_config("qwen-7b")
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "mamba"}')
    with pytest.raises(UsageError, match="is a mamba"):
        read_config(str(path))
    path.write_text(json.dumps(read_config("tiny")))
    assert read_config(str(tmp_path))["hidden_size"] == 256
