"""Incremental detokenization: every piece is final, and all add up to the decoded text."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from packhorse.inference.detokenizer import REPLACEMENT, IncrementalDetokenizer
from packhorse.inference.generation import cut_at_stop
from packhorse.tokenization import ByteCodec, Codec, HuggingFaceCodec


def grown(codec: Codec, steps: list[list[int]], stop: tuple[str, ...] = ()) -> list[str]:
    text = IncrementalDetokenizer(codec, stop)
    pieces = [text.add(step) for step in steps]
    return [*pieces, text.finish()[0]]


def bytewise(text: str) -> list[list[int]]:
    return [[byte] for byte in text.encode()]


def test_a_character_comes_with_its_last_byte() -> None:
    assert grown(ByteCodec(), bytewise("a€😀")) == ["a", "", "", "€", "", "", "", "😀", ""]


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("one END", ("END",), ["o", "n", "e", " ", "", "", "", ""]),
        ("EEND", ("END",), ["", "E", "", "", ""]),
        ("so EN", ("END",), ["s", "o", " ", "", "", "EN"]),
        ("abc", ("abd", "c"), ["", "", "ab", ""]),
    ],
)
def test_what_may_become_a_stop_string_is_held(
    text: str, stop: tuple[str, ...], pieces: list[str]
) -> None:
    assert grown(ByteCodec(), bytewise(text), stop) == pieces


@given(
    st.text(max_size=40),
    st.lists(st.integers(1, 5), min_size=1),
    st.sampled_from(["", "a", "ab", "é", "aab"]),
)
def test_pieces_are_the_text(text: str, lengths: list[int], stop: str) -> None:
    stops = (stop,) if stop else ()
    ids = list(text.encode())
    steps: list[list[int]] = []
    start = 0
    while start < len(ids):
        length = lengths[len(steps) % len(lengths)]
        steps.append(ids[start : start + length])
        start += length
    assert "".join(grown(ByteCodec(), steps, stops)) == cut_at_stop(text, stops)[0]


@given(st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_end_as_they_do_at_once(ids: list[int]) -> None:
    codec = ByteCodec()
    assert "".join(grown(codec, [[each] for each in ids])) == codec.decode(ids)


def test_a_real_tokenizer_splits_characters_and_none_breaks(demo_model_folder: Path) -> None:
    codec = HuggingFaceCodec(demo_model_folder)
    text = " naïve 日本語テスト 🦄👩‍👩‍👧‍👦 Ελληνικά \n\tdone"
    ids = codec.encode_fragment(text)
    assert len(ids) > len(text.split())
    pieces = grown(codec, [[each] for each in ids])
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "" in pieces[:-1]
