"""The documentation is right: links resolve, commands parse and run, Python snippets run."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from docs_code import (
    PAGES,
    ROOT,
    anchors,
    code_blocks,
    inline_code,
    links,
    shell_commands,
    text_of,
)
from labelled import texts, write_csv
from packhorse.cli import VERBS, _parser, main
from servers import FAKE, Served, served

PLACEHOLDERS = ("…", "...", "[")
OTHER_OPTIONS = {
    "CHANGELOG.md",  # it names options that were renamed
}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            found = anchors(str(target.resolve().relative_to(ROOT.resolve())))
            assert anchor in found, f"{page} links to {link}; there are {sorted(found)}"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse's layout of help differs")
def test_generated_parts_are_current() -> None:
    pages = [page for page in PAGES if "[[[cog" in text_of(page)]
    check = [sys.executable, "-m", "cogapp", "--check", "--diff", *pages]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run make docs\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    for program, verb, *words in shell_commands(page, "packhorse"):
        command = " ".join([program, verb, *words])
        if not any(mark in command for mark in PLACEHOLDERS):
            try:
                _parser(verb).parse_args([verb, *words])
            except SystemExit:
                pytest.fail(f"{page} has a command that is refused: {command}")


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    inline = (code.split() for code in inline_code(page) if code.startswith("make "))
    for words in (*shell_commands(page, "make"), *inline):
        assert words[1] in targets, f"{page}: {' '.join(words)}"


def test_the_makefile_names_files_that_exist() -> None:
    for path in re.findall(r"\b(?:tests|docs|examples)/[\w./-]+", text_of("Makefile")):
        assert (ROOT / path).exists(), path


def scripts(page: str) -> list[list[str]]:
    """The commands of a page that run a script of this project."""
    inline = (code.split() for code in inline_code(page) if code.startswith("python "))
    return [words[1:] for words in (*shell_commands(page, "python"), *inline) if words[1:]]


def options_in(source: str) -> set[str]:
    return set(re.findall(r'"(--[a-z][a-z0-9-]*)"', source))


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_their_options_exist(page: str) -> None:
    for script, *words in scripts(page):
        own = list(itertools.takewhile(lambda word: word != "--", words))
        given = {word for word in own if word.startswith("--")}
        assert given <= options_in(text_of(script)), f"{page}: {script} {' '.join(words)}"


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of every verb, hidden aliases included."""
    return {
        option
        for verb in VERBS
        for action in subparser(verb)._actions
        for option in action.option_strings
    } | {"--version"}


def subparser(verb: str) -> argparse.ArgumentParser:
    (verbs,) = (
        action
        for action in _parser(verb)._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    parser = verbs.choices[verb]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OTHER_OPTIONS])
def test_options_and_verbs_exist(page: str, options: set[str]) -> None:
    """Pages that run a script may name its options, too."""
    known = options.union(*(options_in(text_of(script)) for script, *_ in scripts(page)))
    for code in inline_code(page):
        words = code.split()
        if words[0] == "packhorse" and len(words) > 1:
            assert words[1] in VERBS or words[1].startswith("-"), f"{page}: {code}"
        if words[0] == "packhorse" or words[0].startswith("--"):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code):
                assert option in known, f"{page}: {code}"


@pytest.fixture
def project(
    tmp_path: Path, tiny: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the files that README's commands read, as the current one."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {number} and {number}?"} for number in range(4)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_csv(Path("mails.csv"), texts(40, learnable=True))
    write_csv(Path("more-mails.csv"), texts(4, learnable=True))
    tiny("llama").rename("my-model")
    return tmp_path


SMALL = {
    "run": "--engine fake",
    "plan": "--engines fake",
    "compare": "--engines fake --quantizations float32 --batchings single,sorted --sample 2 "
    "--repeats 1 --max-new-tokens 4 --reference fake:float32 --embeddings none",
    "assess": "--engine fake --embeddings none",
    "load-test": "--requests 2 --max-new-tokens 2",
}
"""Options that are added to README's commands, so that each takes a second."""


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_the_readme_runs(fake_server: Served) -> None:
    done: dict[str, list[str]] = {}
    for _, verb, *words in shell_commands("README.md", "packhorse"):
        if words[0] == "…":
            words[:1] = done[verb]
        if verb == "serve":
            continue  # fake_server is this command with the fake engine
        words = [fake_server.address if word.startswith("http:") else word for word in words]
        assert main([verb, *words, *SMALL.get(verb, "").split()]) == 0, (verb, words)
        done[verb] = words
    assert done.keys() == {
        "run", "status", "export", "prepare", "compare", "assess", "classify", "plan", "load-test"
    }  # fmt: skip
    assert len(Path("answers.jsonl").read_text().splitlines()) == 4
    assert Path("report/report.html").is_file()
    assert len(Path("labels.jsonl").read_text().splitlines()) == 4


@pytest.mark.real_model
@pytest.mark.usefixtures("demo_model_folder")
def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", text_of("README.md"), re.M | re.S)
    exec(code, {})  # noqa: S102
    assert capsys.readouterr().out.startswith("0 ")


@pytest.mark.real_model
@pytest.mark.usefixtures("demo_model_folder")
def test_the_python_of_the_page_of_prompts_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = code_blocks("prompts.md", "python")
    exec(code, {})  # noqa: S102
    lines = sorted(line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit())
    assert "Paris" in lines[0]
    assert len(lines) >= 3


@pytest.mark.real_model
@pytest.mark.usefixtures("demo_model_folder")
def test_the_python_of_the_page_of_structured_output_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = code_blocks("structured-output.md", "python")
    exec(code, {})  # noqa: S102
    (line,) = (each for each in capsys.readouterr().out.splitlines() if each.startswith("{"))
    assert "'city': " in line
    assert line.endswith("} None")


@pytest.mark.slow
def test_the_client_of_the_serving_page_runs() -> None:
    code = "".join(code_blocks("serving.md", "python"))
    address = "http://127.0.0.1:8000"
    assert address in code
    with served(*FAKE, "--served-model-name", "smollm2-135m-instruct") as server:
        names: dict[str, object] = {}
        exec(code.replace(address, server.address), names)  # noqa: S102
    assert names["answer"].output_text  # type: ignore[attr-defined]


@pytest.mark.real_model
@pytest.mark.usefixtures("demo_model_folder")
def test_the_code_of_the_sampling_page_runs() -> None:
    (code,) = code_blocks("sampling.md", "python")
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102
    assert len(names["texts"]) == 3  # type: ignore[arg-type]


def test_every_python_block_is_run_by_a_test() -> None:
    """The how-to pages have tests of their own (test_add_an_engine.py and its like)."""
    pages = {page for page in PAGES if "```python\n" in text_of(page)}
    assert pages == {
        "README.md",
        "docs/dataframes.md",
        "docs/sampling.md",
        "docs/structured-output.md",
        "docs/prompts.md",
        "docs/serving.md",
        "docs/how-to/add-a-batching-policy.md",
        "docs/how-to/add-a-model-family.md",
        "docs/how-to/add-an-engine.md",
        "docs/how-to/add-an-input-format.md",
    }
