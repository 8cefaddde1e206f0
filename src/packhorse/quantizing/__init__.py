"""`packhorse quantize`: prompts, answers, search, conversion, and what it gained."""

from packhorse.quantizing.accuracy import Accuracy
from packhorse.quantizing.job import QuantizeConfig, QuantizeReport, quantize

__all__ = ["Accuracy", "QuantizeConfig", "QuantizeReport", "quantize"]
