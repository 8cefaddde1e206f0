"""`packhorse quantize`: search for the best int8 recipe, convert, and measure the gain."""

from packhorse.quantize.accuracy import Accuracy
from packhorse.quantize.job import QuantizeConfig, QuantizeReport, quantize

__all__ = ["Accuracy", "QuantizeConfig", "QuantizeReport", "quantize"]
