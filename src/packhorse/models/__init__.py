"""Find, fetch, convert, verify and cache models.

prepare              return a verified folder that an engine can load, for the name of a model
model_facts          return context length, end tokens and sizes of a prepared model
cached_models        list the models in the cache
"""

from packhorse.models.cache import CachedModel, cached_models
from packhorse.models.catalog import CATALOG, CatalogEntry
from packhorse.models.facts import ModelFacts, model_facts
from packhorse.models.fetch import prepare_embedding_model
from packhorse.models.prepare import (
    prepare,
    resolve_quantization,
    torch_device,
)
from packhorse.models.prepared import PreparedModel
from packhorse.models.resolve import default_engine_of
from packhorse.storage.cache_folder import cache_root

__all__ = [
    "CATALOG",
    "CachedModel",
    "CatalogEntry",
    "ModelFacts",
    "PreparedModel",
    "cache_root",
    "cached_models",
    "default_engine_of",
    "model_facts",
    "prepare",
    "prepare_embedding_model",
    "resolve_quantization",
    "torch_device",
]
