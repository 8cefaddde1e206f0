"""Time and memory estimates of a job, before anything long runs.

estimate   rows, tokens, seconds and memory of every candidate technique, and which one to use
"""

from packhorse.estimate.job import EstimateConfig, JobEstimate, estimate
from packhorse.estimate.predict import Prediction

__all__ = ["EstimateConfig", "JobEstimate", "Prediction", "estimate"]
