"""Read a model's config as transformers resolves it, without loading transformers each time.

transformers fills in the defaults of a family and derives values from others. Its config classes
load torch, which takes seconds; so all public values of a resolved config are kept in the cache
folder, under a digest of config.json.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from packhorse.decoders.families import changed_settings
from packhorse.errors import model_errors
from packhorse.models.config_checks import refuse_kernels
from packhorse.models.quiet import quiet_transformers
from packhorse.storage.atomic_files import write_json
from packhorse.storage.cache_folder import derived_folder, fill_derived, is_complete
from packhorse.storage.json_files import read_object

_AGAIN = "copy or fetch the model again"
_VALUES = "values.json"
_INNER = "inner config"
_CHANGED = "changed settings"
_TEXT = "text config"
_OPAQUE = "values of other types"
_LEFT_OUT = ("torch_dtype", "use_return_dict", "name_or_path")


class ResolvedConfig:
    """The public values of a transformers config, as attributes; read only.

    A value that transformers' config does not have is an AttributeError, and one of another type
    than those of JSON is a ValueError: transformers' functions for rotary positions then take
    `per_layer_config`, which is such a value, for that of all layers.

    Attributes:
        changed_settings: See `packhorse.decoders.families.changed_settings`.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        inner = dict(values)
        self.changed_settings: list[str] = inner.pop(_CHANGED)
        self._text, self._opaque = inner.pop(_TEXT), frozenset(inner.pop(_OPAQUE))
        self._values = {name: _restored(value) for name, value in inner.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            if name in self._opaque:
                raise ValueError(f"only a config that `load_config` returned has {name}")
            raise AttributeError(f"the config has no {name}")
        return self._values[name]

    def get_text_config(self) -> Any:
        """Return the config of the language model; the config itself if it has no parts."""
        return self._values[self._text] if self._text else self

    def standardize_rope_params(self) -> None:
        """Do nothing: transformers' functions for rotary positions call it, and it was done."""


def load_config(folder: Path) -> Any:
    """Return the transformers config of a folder, to be passed to `from_pretrained`.

    transformers chooses the implementation of attention and experts, never the config: a config may
    name code to fetch, or a library that is not installed.

    Raises:
        ModelError: The config asks for code to fetch, or transformers refuses it.
    """
    import transformers

    refuse_kernels(folder, read_object(folder / "config.json"))
    with model_errors(f"{folder}/config.json cannot be used", _AGAIN), quiet_transformers():
        config: Any = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    config._attn_implementation = None  # noqa: SLF001 - there is no public way
    config._experts_implementation = None  # noqa: SLF001
    return config


def read_config(folder: Path) -> Any:
    """Return the values of the config of a Hugging Face folder.

    They are the attributes of a `ResolvedConfig`, or of transformers' own config if it holds more
    than values. `load_config` returns the one to build a model from.

    Raises:
        ModelError: The config asks for code to fetch, or transformers refuses it.
    """
    file = folder / "config.json"
    with suppress(OSError, RecursionError):
        kept = derived_folder("configs", [file], ("transformers",))
        if is_complete(kept):
            refuse_kernels(folder, read_object(file))
            return ResolvedConfig(read_object(kept / _VALUES))
        config = load_config(folder)
        fill_derived(kept, lambda target: _write(config, target))
        return config
    return load_config(folder)


def _write(config: Any, target: Path) -> bool:
    try:
        with quiet_transformers():
            values = _values_of(config)
        write_json(target / _VALUES, values)
    except ValueError:
        return False
    return True


def _values_of(config: Any) -> dict[str, Any]:
    """Return all public values of a config, those of properties and other names included."""
    from transformers import PreTrainedConfig

    kind, text = type(config), config.get_text_config()
    others = [name for name in dir(kind) if not callable(getattr(kind, name))]
    values: dict[str, Any] = {_TEXT: "", _OPAQUE: [], _CHANGED: changed_settings(config)}
    for name in dict.fromkeys([*config.to_dict(), *config.attribute_map, *others]):
        if name.startswith("_") or name in _LEFT_OUT or not hasattr(config, name):
            continue
        value = getattr(config, name)
        if isinstance(value, PreTrainedConfig):
            if value is text:
                values[_TEXT] = name
            value = {_INNER: _values_of(value)}
        if _is_json(value):
            values[name] = value
        else:
            values[_OPAQUE].append(name)
    if text is not config and not values[_TEXT]:
        raise ValueError("the text config is no attribute")
    return values


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == _with_lists(value))
    except (TypeError, ValueError):
        return False


def _with_lists(value: Any) -> Any:
    """Return a value with its tuples as lists, which JSON makes of them."""
    if isinstance(value, list | tuple):
        return [_with_lists(each) for each in value]
    if isinstance(value, dict):
        return {key: _with_lists(each) for key, each in value.items()}
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and _INNER in value:
        return ResolvedConfig(value[_INNER])
    return value
