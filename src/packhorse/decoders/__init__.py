"""Decoder families as data: one description per model for engines and int8 preparation."""

from packhorse.decoders.description import GPT2_NAMES, LLAMA_NAMES, Decoder, Names
from packhorse.decoders.families import FAMILIES, describe, refusal

__all__ = ("FAMILIES", "GPT2_NAMES", "LLAMA_NAMES", "Decoder", "Names", "describe", "refusal")
