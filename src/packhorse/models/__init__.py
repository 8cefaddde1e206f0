"""From what a person calls a model to a verified folder that an engine can load.

prepare              resolve a name, fetch, convert, cache, verify
model_facts          context, end tokens and sizes of what was prepared
cached_models        what lies in the cache
"""

from packhorse.models.cache import CachedModel, cached_models
from packhorse.models.catalog import CATALOG, CatalogEntry
from packhorse.models.facts import ModelFacts, model_facts
from packhorse.models.prepare import (
    prepare,
    prepare_embedding_model,
    resolve_quantization,
    torch_device,
)
from packhorse.models.prepared import PreparedModel
from packhorse.models.resolve import resolve_engine
from packhorse.models.storage import cache_root

__all__ = [
    "CATALOG",
    "CachedModel",
    "CatalogEntry",
    "ModelFacts",
    "PreparedModel",
    "cache_root",
    "cached_models",
    "model_facts",
    "prepare",
    "prepare_embedding_model",
    "resolve_engine",
    "resolve_quantization",
    "torch_device",
]
