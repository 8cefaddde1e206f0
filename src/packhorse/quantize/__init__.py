"""`packhorse quantize`: prompts, answers, search, conversion, and what it gained."""

from packhorse.quantize.accuracy import Accuracy
from packhorse.quantize.job import QuantizeConfig, QuantizeReport, quantize

__all__ = ["Accuracy", "QuantizeConfig", "QuantizeReport", "quantize"]
