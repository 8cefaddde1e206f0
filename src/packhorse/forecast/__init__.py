"""What a job would take, before anything long runs.

forecast   rows, tokens, seconds and memory of every technique that could serve, and which to use
"""

from packhorse.forecast.forecast import Forecast, ForecastConfig, forecast
from packhorse.forecast.predict import Prediction

__all__ = ["Forecast", "ForecastConfig", "Prediction", "forecast"]
