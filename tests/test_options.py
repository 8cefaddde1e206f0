"""Options of the command line that are derived from the fields of configs."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from packhorse.assess.config import AssessConfig
from packhorse.cli import VERBS, options
from packhorse.compare.config import CompareConfig
from packhorse.config import EngineConfig, JobConfig
from packhorse.load_test.config import LoadTestConfig
from packhorse.quantize import QuantizeConfig
from packhorse.serve.config import ServeConfig


def parsed(verb: str, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    import_module(f"packhorse.cli.{verb}").add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("verb", "arguments", "config"),
    [
        ("run", ["m", "i", "-o", "o.csv"], JobConfig("m", "i", Path("o.csv"))),
        ("compare", ["m", "i"], CompareConfig("m", "i")),
        ("assess", ["m", "i"], AssessConfig("m", "i")),
        ("serve", ["m"], ServeConfig("m")),
        ("load_test", ["u", "i"], LoadTestConfig("u", Path("i"))),
        ("quantize", ["m"], QuantizeConfig("m")),
    ],
)
def test_without_options_a_config_has_its_own_defaults(
    verb: str, arguments: list[str], config: Any
) -> None:
    assert options.read(parsed(verb, *arguments), type(config)) == config


@pytest.mark.parametrize(
    ("verb", "given", "field", "value"),
    [
        ("run", ["--cache-gb", "1.5"], "engine.cache_bytes", 1_500_000_000),
        ("run", ["--no-deduplicate"], "batching.deduplicate", False),
        ("run", ["--stop", "a", "--stop", "b,c"], "decoding.stop", ("a", "b,c")),
        ("run", ["--on-too-long", "truncate-left"], "reading.on_too_long", "truncate-left"),
        ("run", ["--warm-up-rows", "3"], "warmup_rows", 3),
        ("compare", ["--warm-up-rows", "3"], "warmup_rows", 3),
        ("compare", ["--warmup-rows", "3"], "warmup_rows", 3),
        ("compare", ["--label-column", "y"], "labels", "y"),
        ("compare", ["--labels", "y"], "labels", "y"),
        ("compare", ["--engines", "fake, packed"], "engines", ("fake", "packed")),
        ("compare", ["--embeddings", "none"], "embeddings", None),
        ("compare", ["--max-p95", "2"], "limits.max_p95", 2.0),
        ("assess", ["--label-name", "a=b"], "label_names", ("a=b",)),
        ("serve", ["--name", "x"], "name", "x"),
        ("serve", ["--served-model-name", "x"], "name", "x"),
        ("serve", ["--max-delay-ms", "20"], "queue.max_delay_seconds", 0.02),
        ("load_test", ["--rate", "1", "inf"], "rates", (1.0, float("inf"))),
        ("load_test", ["--goal-answer-ms", "500"], "goals.answer", 0.5),
        ("quantize", ["--method", "plain"], "method", "plain"),
        ("quantize", ["--quantization-method", "plain"], "method", "plain"),
    ],
)
def test_an_option_sets_its_field(verb: str, given: list[str], field: str, value: Any) -> None:
    configs: dict[str, tuple[list[str], type[Any]]] = {
        "run": (["m", "i", "-o", "o.csv"], JobConfig),
        "compare": (["m", "i"], CompareConfig),
        "assess": (["m", "i"], AssessConfig),
        "serve": (["m"], ServeConfig),
        "load_test": (["u", "i"], LoadTestConfig),
        "quantize": (["m"], QuantizeConfig),
    }
    arguments, config = configs[verb]
    found: Any = options.read(parsed(verb, *arguments, *given), config)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


def test_fields_of_one_name_do_not_meet() -> None:
    parser = argparse.ArgumentParser()
    options.add(parser, EngineConfig, "engine")
    options.add(parser, JobConfig, "model", "input", "output")
    job = options.read(parser.parse_args(["m", "i", "-o", "o.csv", "--engine", "fake"]), JobConfig)
    assert job.engine == EngineConfig("fake")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_one_wording_for_json_and_hides_older_spellings(verb: str) -> None:
    parser = argparse.ArgumentParser()
    import_module(f"packhorse.cli.{verb.replace('-', '_')}").add_arguments(parser)
    shown = " ".join(parser.format_help().split())
    if "--json" in shown.split():
        assert "print the result as one JSON document on the last line" in shown
    assert not {"--warmup-rows", "--labels", "--name", "--method"} & set(shown.split())
