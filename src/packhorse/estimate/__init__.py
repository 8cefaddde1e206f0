"""What a job would take, before anything long runs.

forecast   rows, tokens, seconds and memory of every technique that could serve, and which to use
"""

from packhorse.estimate.job import EstimateConfig, JobEstimate, estimate
from packhorse.estimate.predict import Prediction

__all__ = ["EstimateConfig", "JobEstimate", "Prediction", "estimate"]
