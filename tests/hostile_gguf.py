"""GGUF files that lie: changes of the bytes of a tiny one after which it may not be used.

CASES: name -> (change of the file's bytes, what the message must say).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

Change = Callable[[bytes], bytes]
U32, TEXT, ARRAY = 4, 8, 9
PADDING = bytes(64)
"""Keeps the data within a file whose header has another length."""
_DAMAGED = "is truncated or damaged"


def at(place: int, form: str, value: int) -> Change:
    """Overwrite a number at a place."""
    data = struct.pack(form, value)
    return lambda file: file[:place] + data + file[place + len(data) :]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def after(name: str, skip: int, data: bytes) -> Change:
    """Overwrite what stands `skip` bytes behind a name: 0 is its type (u32), 4 its value."""

    def apply(file: bytes) -> bytes:
        place = file.index(text(name)) + len(text(name)) + skip
        return file[:place] + data + file[place + len(data) :]

    return apply


def number(name: str, value: int) -> Change:
    """Change a metadata entry that is a u32."""
    return after(name, 4, struct.pack("<I", value & 0xFFFFFFFF))


def entry(name: str, kind: int, payload: bytes) -> Change:
    """Add a metadata entry in front of the others."""

    def apply(file: bytes) -> bytes:
        (count,) = struct.unpack("<Q", file[16:24])
        added = text(name) + struct.pack("<I", kind) + payload
        return file[:16] + struct.pack("<Q", count + 1) + added + file[24:] + PADDING

    return apply


def renamed(architecture: str) -> Change:
    """Change general.architecture, its length too."""

    def apply(file: bytes) -> bytes:
        name = text("general.architecture") + struct.pack("<I", TEXT)
        return file.replace(name + text("llama"), name + text(architecture), 1) + PADDING

    return apply


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


TENSOR = "token_embd.weight"
HUGE = 0xFFFFFFFF
NESTED = b"".join(struct.pack("<IQ", ARRAY, 1) for _ in range(50_000)) + struct.pack("<IQ", 0, 0)
CASES: dict[str, tuple[Change, str]] = {
    "version 0": (at(4, "<I", 0), "GGUF of version 0"),
    "version 1": (at(4, "<I", 1), "GGUF of version 1"),
    "version 4": (at(4, "<I", 4), "GGUF of version 4"),
    "version huge": (at(4, "<I", 0x7FFF0001), "GGUF of version"),
    "big-endian": (at(4, ">I", 3), "big-endian"),
    "tensors huge": (at(8, "<Q", 4 * 10**9), _DAMAGED),
    "tensors most": (at(8, "<Q", 2**64 - 1), _DAMAGED),
    "tensors none": (at(8, "<Q", 0), "a vocabulary without weights"),
    "tensors more": (at(8, "<Q", 40), _DAMAGED),
    "tensors fewer": (at(8, "<Q", 3), "."),
    "entries huge": (at(16, "<Q", 4 * 10**9), _DAMAGED),
    "entries most": (at(16, "<Q", 2**64 - 1), _DAMAGED),
    "entries more": (at(16, "<Q", 99), _DAMAGED),
    "entries none": (at(16, "<Q", 0), "."),
    "key length": (at(24, "<Q", 2**63), _DAMAGED),
    "key length long": (at(24, "<Q", 10**6), _DAMAGED),
    "blocks huge": (number("llama.block_count", HUGE), "block_count must be .* from 1 to 21"),
    "blocks none": (number("llama.block_count", 0), "block_count must be"),
    "blocks more": (number("llama.block_count", 22), "block_count must be"),
    "blocks three": (number("llama.block_count", 3), "missing|another shape"),
    "width huge": (number("llama.embedding_length", HUGE), "embedding_length must be"),
    "width none": (number("llama.embedding_length", 0), "embedding_length must be"),
    "width other": (number("llama.embedding_length", 128), "."),
    "context huge": (number("llama.context_length", HUGE), "context_length must be"),
    "context none": (number("llama.context_length", 0), "context_length must be"),
    "inner huge": (number("llama.feed_forward_length", HUGE), "feed_forward_length must be"),
    "inner many": (number("llama.feed_forward_length", 99_000), "."),
    "heads huge": (number("llama.attention.head_count", HUGE), "head_count must be"),
    "heads none": (number("llama.attention.head_count", 0), "."),
    "heads three": (number("llama.attention.head_count", 3), "."),
    "kv heads huge": (number("llama.attention.head_count_kv", HUGE), "head_count_kv must be"),
    "vocabulary huge": (number("llama.vocab_size", HUGE), "vocab_size must be"),
    "vocabulary none": (number("llama.vocab_size", 0), "vocab_size must be"),
    "blocks as float": (after("llama.block_count", 0, u32(6)), "block_count must be"),
    "blocks as number below": (after("llama.block_count", 0, u32(5) + u32(HUGE)), "got -1"),
    "type none": (after("llama.block_count", 0, u32(13)), "no type of metadata 13"),
    "type most": (after("llama.block_count", 0, u32(HUGE)), "no type of metadata"),
    "type text": (after("llama.block_count", 0, u32(TEXT)), _DAMAGED),
    "type array": (after("llama.block_count", 0, u32(ARRAY)), _DAMAGED),
    "architecture long": (
        after("general.architecture", 4, struct.pack("<Q", 2**40)),
        _DAMAGED,
    ),
    "architecture number": (
        after("general.architecture", 0, u32(U32)),
        f"must be a text|{_DAMAGED}",
    ),
    "architecture binary": (after("general.architecture", 12, b"\xff\xfe"), "is not UTF-8"),
    "architecture none": (renamed(""), "no general.architecture"),
    "architecture unknown": (renamed("homemade"), "homemade"),
    "architecture path": (renamed("../../etc"), "."),
    "architecture encoder": (renamed("bert"), "an encoder, which makes embeddings"),
    "architecture nomic": (renamed("nomic-bert"), "an encoder, which makes embeddings"),
    "architecture vision": (renamed("clip"), "the vision or audio part of a model"),
    "architecture translator": (renamed("t5"), "an encoder-decoder model"),
    "architecture images": (renamed("flux"), "makes images"),
    "architecture sound": (renamed("wavtokenizer-dec"), "a model for sound"),
    "kind adapter": (entry("general.type", TEXT, text("adapter")), "a LoRA adapter"),
    "kind vision": (entry("general.type", TEXT, text("mmproj")), "the vision or audio part"),
    "kind matrix": (entry("general.type", TEXT, text("imatrix")), "an importance matrix"),
    "kind number": (entry("general.type", U32, u32(7)), "general.type must be a text"),
    "part 1": (entry("split.count", 2, b"\2\0"), "is part 1 of 2 of a GGUF model"),
    "part text": (entry("split.count", TEXT, text("2")), "split.count must be"),
    "tokens huge": (
        after("tokenizer.ggml.tokens", 8, struct.pack("<Q", 2**40)),
        _DAMAGED,
    ),
    "tokens fewer": (after("tokenizer.ggml.tokens", 8, struct.pack("<Q", 3)), _DAMAGED),
    "tokens of arrays": (after("tokenizer.ggml.tokens", 4, u32(ARRAY)), "arrays in arrays"),
    "tokens of nothing": (after("tokenizer.ggml.tokens", 4, u32(77)), "no type of metadata 77"),
    "token long": (
        after("tokenizer.ggml.tokens", 16, struct.pack("<Q", 2**50)),
        _DAMAGED,
    ),
    "end token": (number("tokenizer.ggml.eos_token_id", HUGE), "."),
    "nested": (entry("deep", ARRAY, NESTED), "arrays in arrays"),
    "array long": (entry("a", ARRAY, struct.pack("<IQ", 0, 2**62)), _DAMAGED),
    "array of numbers": (entry("a", ARRAY, struct.pack("<IQ", 12, 2**61)), _DAMAGED),
    "text long": (entry("a", TEXT, struct.pack("<Q", 2**63)), _DAMAGED),
    "twice": (entry("general.architecture", TEXT, text("gpt2")), "twice"),
    "alignment none": (entry("general.alignment", U32, u32(0)), "no power of two"),
    "alignment odd": (entry("general.alignment", U32, u32(3)), "no power of two"),
    "alignment huge": (entry("general.alignment", U32, u32(2**31)), _DAMAGED),
    "alignment text": (entry("general.alignment", TEXT, text("32")), "no power of two"),
    "dimensions five": (after(TENSOR, 0, u32(5)), "has 5 dimensions"),
    "dimensions huge": (after(TENSOR, 0, u32(HUGE)), "dimensions"),
    "dimensions none": (after(TENSOR, 0, u32(0)), "."),
    "dimension none": (after(TENSOR, 4, struct.pack("<Q", 0)), "has the shape"),
    "dimension huge": (after(TENSOR, 4, struct.pack("<Q", 2**63)), "has the shape"),
    "dimensions overflow": (after(TENSOR, 4, struct.pack("<QQ", 2**33, 2**33)), "has the shape"),
    "dimension larger": (after(TENSOR, 4, struct.pack("<Q", 65)), "."),
    "format removed": (after(TENSOR, 20, u32(4)), "unknown number format 4"),
    "format unknown": (after(TENSOR, 20, u32(99)), "unknown number format 99"),
    "format larger": (after(TENSOR, 20, u32(28)), "."),
    "offset beyond": (after(TENSOR, 24, struct.pack("<Q", 2**40)), "ends at byte"),
    "offset most": (after(TENSOR, 24, struct.pack("<Q", 2**64 - 32)), "ends at byte"),
    "offset odd": (after(TENSOR, 24, struct.pack("<Q", 7)), "lies at 7"),
    "template binary": (after("tokenizer.chat_template", 12, b"\xff"), "is not UTF-8"),
    "no data": (lambda file: file[:7500], _DAMAGED),
    "only magic": (lambda file: file[:4], _DAMAGED),
}
