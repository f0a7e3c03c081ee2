import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers")

from modelkit.engines.detokenize import FastDetokenizer, SlowDetokenizer  # noqa: E402

SPECIAL = "<|end|>"


def byte_level_tokenizer():
    """One token per byte and a few merges: every character outside of ASCII takes several tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[SPECIAL],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox the quick brown fox"], trainer)
    return tokenizer


TOKENIZER = byte_level_tokenizer()


class PlainDecode:
    """What a slow tokenizer offers."""

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        return TOKENIZER.decode(ids, skip_special_tokens=skip_special_tokens)


KINDS = {"fast": lambda: FastDetokenizer(TOKENIZER), "slow": lambda: SlowDetokenizer(PlainDecode())}
# Surrogates are no text, and the replacement character is what an incomplete one looks like.
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # a busy machine is no fault
@given(text=any_text)
def test_pieces_join_to_the_text_and_no_character_is_split(kind: str, text: str):
    detokenizer = KINDS[kind]()
    pieces = [detokenizer.feed(token_id) for token_id in TOKENIZER.encode(text).ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_comes_with_its_last_token(kind: str):
    detokenizer = KINDS[kind]()
    ids = TOKENIZER.encode("あ🚀").ids
    assert [detokenizer.feed(token_id) for token_id in ids] == ["", "", "あ", "", "", "", "🚀"]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_no_text(kind: str):
    detokenizer = KINDS[kind]()
    ids = [*TOKENIZER.encode("the").ids, TOKENIZER.token_to_id(SPECIAL), *TOKENIZER.encode(" fox").ids]
    assert "".join([detokenizer.feed(token_id) for token_id in ids]) == "the fox"
