"""Which tokens belong to a completion, where they begin, and how they are shown."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from packhorse.data import TokenLogProbs
from packhorse.inference.generation import cut_at_stop
from packhorse.inference.log_probs import IncrementalLogProbs, placed
from packhorse.openai_format.log_probs import MIN_LOG_PROB, log_probs_document
from packhorse.tokenization import ByteCodec, HuggingFaceCodec
from tiny_models import tiny_llama

CODEC = ByteCodec()


def tokens_of(ids: list[int]) -> list[TokenLogProbs]:
    return [TokenLogProbs(each, -0.5, ((each, -0.5), (65, -2.0))) for each in ids]


@given(
    st.text(max_size=30),
    st.sampled_from(["", "a", "ab", "é", "aab", "\N{REPLACEMENT CHARACTER}"]),
    st.binary(max_size=6),
)
def test_tokens_are_those_of_the_text(text: str, stop: str, rubbish: bytes) -> None:
    """Every token that begins before the end of the text and no other, in pieces or at once."""
    ids = list(text.encode() + rubbish + text.encode())
    stops = (stop,) if stop else ()
    growing, written, given_tokens = IncrementalLogProbs(CODEC, stops), "", []
    for token in tokens_of(ids):
        piece, found = growing.add(token)
        written += piece
        given_tokens += found
        assert all(offset < len(written) for offset, _ in given_tokens)
    rest, last, _ = growing.finish()
    whole, was_cut = cut_at_stop(CODEC.decode(ids), stops)
    assert written + rest == whole
    every = given_tokens + last
    assert every == placed(CODEC, stops, tokens_of(ids))
    assert [token.token_id for _, token in every] == ids[: len(every)]
    assert was_cut or len(every) == len(ids)
    assert [offset for offset, _ in every] == sorted(offset for offset, _ in every)
    for place, (offset, _) in enumerate(every):
        before = CODEC.decode(ids[:place])
        assert before[:offset] == whole[:offset]
        assert len(before) - offset <= 1


def test_a_stop_string_inside_a_token(tmp_path: Path) -> None:
    codec = HuggingFaceCodec(tiny_llama(tmp_path))
    text = "the packhorse carries"
    ids = codec.encode_fragment(text)
    starts = [len(codec.decode(ids[:place])) for place in range(len(ids))]
    insides = [
        (place, text[start + 1 :])
        for place, (start, end) in enumerate(pairwise(starts))
        if end - start > 1
    ]
    assert insides
    for place, stop in insides:
        found = placed(codec, (stop,), tokens_of(list(ids)))
        assert [token.token_id for _, token in found] == list(ids[: place + 1])


def test_shapes() -> None:
    tokens = [
        (0, TokenLogProbs(97, -0.25, ((97, -0.25), (98, -math.inf)))),
        (1, TokenLogProbs(0xE2, -3.0, ((99, -0.5), (0xF0, -1.0)))),
    ]
    assert log_probs_document(CODEC, tokens, is_chat=True) == {
        "content": [
            {
                "token": "a",
                "logprob": -0.25,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.25, "bytes": [97]},
                    {"token": "b", "logprob": MIN_LOG_PROB, "bytes": [98]},
                ],
            },
            {
                "token": "\\xe2",
                "logprob": -3.0,
                "bytes": [0xE2],
                "top_logprobs": [
                    {"token": "c", "logprob": -0.5, "bytes": [99]},
                    {"token": "\\xf0", "logprob": -1.0, "bytes": [0xF0]},
                ],
            },
        ],
        "refusal": None,
    }
    assert log_probs_document(CODEC, tokens, is_chat=False) == {
        "tokens": ["a", "bytes:\\xe2"],
        "token_logprobs": [-0.25, -3.0],
        "top_logprobs": [
            {"a": -0.25, "b": MIN_LOG_PROB},
            {"c": -0.5, "bytes:\\xf0": -1.0, "bytes:\\xe2": -3.0},
        ],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize("text", ["plain words", "naïve 日本語 🦄\n\t\x00", "<|im_end|>"])
def test_byte_level_tokens_are_the_texts_bytes(tmp_path: Path, text: str) -> None:
    codec = HuggingFaceCodec(tiny_llama(tmp_path))
    written = [codec.token_bytes(each) for each in codec.encode_fragment(text)]
    assert b"".join(each or b"" for each in written) == text.encode()


def test_special_tokens_have_a_name_and_no_bytes(tmp_path: Path) -> None:
    codec = HuggingFaceCodec(tiny_llama(tmp_path))
    assert [codec.token_bytes(each) for each in (0, 2, 5_000)] == [None, None, None]
    assert [codec.token_name(each) for each in (2, 5_000)] == ["<|im_end|>", ""]
    special = [(0, TokenLogProbs(2, -1.0, ()))]
    (shown,) = log_probs_document(codec, special, is_chat=True)["content"]
    assert (shown["token"], shown["bytes"]) == ("<|im_end|>", None)


def sentencepiece_like(folder: Path) -> HuggingFaceCodec:
    """Spaces as ▁ and bytes as <0x..>, as in Llama 2's tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "o", "▁h", "▁ho"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "h"), ("▁h", "o")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)  # noqa: S106
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")  # type: ignore[no-untyped-call]  # noqa: S106
    wrapped.save_pretrained(folder)
    return HuggingFaceCodec(folder)


def test_byte_fallback_tokens_are_the_texts_bytes(tmp_path: Path) -> None:
    codec = sentencepiece_like(tmp_path)
    text = " ho ho 🦄"
    ids = codec.encode_fragment(text)
    assert len(ids) < len(text.encode())
    assert b"".join(codec.token_bytes(each) or b"" for each in ids) == text.encode()
    assert codec.token_bytes(ids[0]) == b" ho"
