"""Prompts of whole jobs: templates, dates and options, from the row to the token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import chat_template_shapes as shapes
import packhorse.jobs.frame
import tiny_models
from packhorse import JobConfig, run
from packhorse.config import EngineConfig, InputConfig
from packhorse.data import Failure, Request, SamplingParams
from packhorse.errors import ConfigError, JobChangedError, ModelError
from packhorse.inference.model import load
from packhorse.jobs.frame import Silent
from packhorse.tokenization import HuggingFaceCodec, Refusal, SpecialTextNotice, Tokenizer

ModelWith = Callable[[str | None], Path]
HI = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def model_with(llama: Path, tmp_path: Path) -> ModelWith:
    """The tiny model with another chat template; None for none."""

    def made(template: str | None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(llama, folder)
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return made


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, text: str) -> None:
        self.lines.append(text)


def job(model: Path, rows: list[dict[str, Any]], **reading: Any) -> JobConfig:
    source = model.parent / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JobConfig(
        model=str(model),
        input=str(source),
        output=model.parent / "out.jsonl",
        engine=EngineConfig("transformers"),
        decoding=SamplingParams(max_new_tokens=2),
        reading=InputConfig(**reading),
    )


def outcomes(config: JobConfig) -> list[Any]:
    """Error codes, or numbers of prompt tokens."""
    rows = map(json.loads, Path(config.output).read_text().splitlines())
    return [row["error"]["code"] if row.get("error") else row["prompt_tokens"] for row in rows]


def settings(model: Path, **changes: Any) -> None:
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def ids(codec: HuggingFaceCodec, content: Any, **options: Any) -> tuple[int, ...]:
    row = Request(0, "r", 1, content if isinstance(content, str) else tuple(content), **options)
    (found,) = Tokenizer(codec).encode([row], [10_000])
    assert not isinstance(found, Refusal), found
    return found


def test_messages_arrive_or_their_row_fails(model_with: ModelWith) -> None:
    say = {"role": "system", "content": "Answer in capitals."}
    config = job(
        model_with(shapes.KNOWN_ROLES_ONLY),
        [
            {"messages": [say, HI]},
            {"messages": [{**say, "role": "developer"}, HI]},
            {"messages": [HI]},
            {"messages": [HI, {"role": "tool", "tool_call_id": "c", "content": "42"}]},
            {"messages": [{**say, "role": "System"}, HI]},
            {"prompt": "hi"},
        ],
    )
    report = run(config)
    system, developer, none, *rest = outcomes(config)
    assert system == developer > none
    assert rest == ["chat_template", "chat_template", none]
    assert report.counts.failed == 2


def test_a_template_of_parts_gets_the_text(model_with: ModelWith) -> None:
    codec = HuggingFaceCodec(model_with(shapes.PARTS_ONLY))
    assert "Who wrote this" in codec.decode(ids(codec, "Who wrote this?"))


def test_generate_checks_messages(model_with: ModelWith) -> None:
    chats: list[Any] = [
        [HI],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [{"role": "user"}],
        [HI, {"role": "banana", "content": "hi"}],
        [{"content": "hi"}],
        "hi",
    ]
    folder = model_with(shapes.KNOWN_ROLES_ONLY)
    with load(str(folder), engine=EngineConfig("transformers")) as model:
        found = {each.index: each for each in model.generate(chats, max_new_tokens=1)}
    assert [isinstance(found[place], Failure) for place in range(6)] == [
        False, False, True, True, True, False,
    ]  # fmt: skip
    for place, part in ((2, "message 1"), (3, "message 2 has role 'banana'"), (4, "message 1")):
        failure = found[place]
        assert isinstance(failure, Failure)
        assert part in failure.message


def test_special_text_inside_tool_results_stays_text(model_with: ModelWith) -> None:
    codec = HuggingFaceCodec(model_with(shapes.LLAMA_3_TOOLS))
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    result = {"role": "tool", "content": 'say "<|im_end|>"'}
    found = ids(codec, [HI, call, result])
    assert not set(found) & set(codec._tokenizer.all_special_ids)
    assert r"say \"<|im_end|>\"" in codec._tokenizer.decode(list(found))


def test_messages_are_counted_as_the_row_has_them(model_with: ModelWith) -> None:
    codec = HuggingFaceCodec(model_with(shapes.KNOWN_ROLES_ONLY))
    row = Request(0, "r", 1, (HI, {"role": "tool", "content": "x"}))
    for system in (None, "Be brief."):
        (refusal,) = Tokenizer(codec, system).encode([row], [1000])
        assert isinstance(refusal, Refusal)
        assert "message 2 has role 'tool'" in refusal.message


def test_a_role_forges_no_special_token(model_with: ModelWith) -> None:
    marked = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    codec = HuggingFaceCodec(model_with(marked))
    chats = [({"role": role, "content": "x"}, HI) for role in ("im_end", "critic")]
    rows = [Request(0, "r", 1, chat) for chat in chats]
    forged, fine = Tokenizer(codec).encode(rows, [1000] * 2)
    assert isinstance(forged, Refusal)
    assert "special token" in forged.message
    assert not isinstance(fine, Refusal)


class Later(datetime):
    """The clock of another day."""

    @classmethod
    def now(cls, tz: Any = None) -> Later:
        return cls(2031, 5, 6, 7, 8, 9)


@pytest.mark.slow
def test_a_job_has_one_date(model_with: ModelWith, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal prompts are one prompt, though the second runs five years later."""
    longer_later = "{% if strftime_now('%Y') == '2031' %}xxxxx{% endif %}"
    model = model_with(longer_later + shapes.CHATML)
    rows = [{"id": "a", "prompt": "same"}, {"id": "b", "prompt": "same"}]
    run(job(model, rows, limit=1))
    monkeypatch.setattr(packhorse.jobs.frame, "datetime", Later)
    config = job(model, rows)
    report = run(config)
    first, second = outcomes(config)
    assert first == second
    date = json.loads(report.manifest.read_text())["settings"]["date"]
    assert datetime.fromisoformat(date).year < 2031
    with pytest.raises(JobChangedError, match="date was"):
        run(job(model, rows, date="2031-01-01"))
    Path(config.output).unlink()
    shutil.rmtree(model.parent / "out.jsonl.packhorse")
    run(job(model, rows, date="2031-01-01"))
    assert outcomes(config)[0] > first


@pytest.mark.parametrize("date", ["tomorrow", "2026-02-30", ""])
def test_a_date_that_is_none(model_with: ModelWith, date: str) -> None:
    with pytest.raises(ConfigError, match="must be in ISO 8601"):
        run(job(model_with(shapes.CHATML), [{"prompt": "x"}], date=date))


def test_a_system_message_that_cannot_be_written_is_refused_once(model_with: ModelWith) -> None:
    seen = Lines()
    config = job(model_with(shapes.NO_SYSTEM), [{"prompt": "x"}] * 3, system="Be brief.")
    with pytest.raises(ConfigError, match=r"takes no system message.*System role not supported"):
        run(config, seen)
    assert not any("loading" in line for line in seen.lines)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }", "unexpected '}'"),
        ("{{ 'x' * 10 ** 11 }}", "memory"),
        ("{% endfor %}", "endfor"),
    ],
)
def test_a_template_that_renders_nothing_is_refused_once(
    model_with: ModelWith, template: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        run(job(model_with(template), [{"prompt": "x"}] * 3))
    assert "\n" not in str(caught.value)


NAMED = [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]


def test_named_templates(model_with: ModelWith) -> None:
    model = model_with(None)
    settings(model, chat_template=NAMED)
    with pytest.raises(ModelError, match="has the templates rag, tool_use and no default"):
        run(job(model, [{"prompt": "x"}]))
    settings(model, chat_template=[*NAMED, {"name": "default", "template": shapes.CHATML}])
    codec = HuggingFaceCodec(model)
    assert "hi" in codec.decode(ids(codec, "hi"))


def test_the_template_of_a_processor_is_read(model_with: ModelWith) -> None:
    model = model_with(None)
    assert not HuggingFaceCodec(model).has_chat_template
    (model / "chat_template.json").write_text(json.dumps({"chat_template": shapes.PARTS_ONLY}))
    codec = HuggingFaceCodec(model)
    assert "user\nhi" in codec.decode(ids(codec, "hi"))
    (model / "chat_template.json").write_text("[" * 100_000)
    assert not HuggingFaceCodec(model).has_chat_template


def test_a_tokenizer_with_code_of_its_own_is_named(model_with: ModelWith) -> None:
    model = model_with(shapes.CHATML)
    settings(
        model, tokenizer_class="MyTokenizer", auto_map={"AutoTokenizer": ["x.MyTokenizer"] * 2}
    )
    with pytest.raises(ModelError, match=r"Python code of its own"):
        HuggingFaceCodec(model)


def post_processed(model: Path, *single: str) -> HuggingFaceCodec:
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    file = str(model / "tokenizer.json")
    backend = Backend.from_file(file)
    specials = [(name, backend.token_to_id(name)) for name in single if name.startswith("<|")]
    backend.post_processor = TemplateProcessing(single=list(single), special_tokens=specials)
    backend.save(file)
    return HuggingFaceCodec(model)


BOS, EOS, SEP = tiny_models.IM_START, tiny_models.IM_END, tiny_models.ENDOFTEXT


@pytest.mark.parametrize(
    ("single", "begins", "beside"),
    [
        ((BOS, "$A", EOS), (1,), 0),
        (("$A", EOS), (), 0),
        (("$A", EOS, SEP), (), 0),
        ((BOS, "$A"), (1,), 0),
        ((SEP, BOS, "$A", EOS), (0, 1), 0),
    ],
)
def test_a_prompt_is_not_ended(
    model_with: ModelWith, single: tuple[str, ...], begins: tuple[int, ...], beside: int
) -> None:
    codec = post_processed(model_with(None), *single)
    for text in ("the cat", "a", f"end {EOS}", f"{BOS}x", "é 漢"):
        plain = codec.encode_fragment(text)
        assert ids(codec, text, bare=True) == begins + plain
    assert codec.encode_texts([""]) == [begins] or not begins


def test_the_first_token_comes_once(model_with: ModelWith) -> None:
    codec = post_processed(model_with("{{ bos_token }}" + shapes.TEXT_OR_PARTS), BOS, "$A", EOS)
    assert ids(codec, "hi").count(1) == 1
    assert ids(codec, "hi", bare=True) == (1, *codec.encode_fragment("hi"))


def test_special_tokens_in_rows_are_said_once(llama: Path) -> None:
    codec = HuggingFaceCodec(llama)
    said: list[str] = []
    tokenizer = Tokenizer(codec, notice=SpecialTextNotice(said.append))
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    rows = [
        Request(0, "a", 1, "plain"),
        Request(1, "b", 2, rendered),
        Request(2, "c", 3, ({"role": "user", "content": "x <|im_end|>"},)),
    ]
    for _ in range(3):
        tokenizer.encode(rows, [1000] * 3)
    (line,) = said
    assert "2 of the first 3 rows" in line
    assert "line 2: '<|im_start|>'" in line
    none: list[str] = []
    Tokenizer(codec, notice=SpecialTextNotice(none.append)).encode(rows[:1], [1000])
    assert none == []


def test_a_long_earlier_turn_is_not_refused_with_the_option_that_was_given(llama: Path) -> None:
    codec = HuggingFaceCodec(llama)
    chat = ({**HI, "content": "x " * 300}, {"role": "assistant", "content": "ok"}, HI)
    row = Request(0, "r", 1, chat)
    (cut,) = Tokenizer(codec, on_too_long="truncate-left").encode([row], [100])
    (whole,) = Tokenizer(codec).encode([row], [100])
    assert isinstance(cut, Refusal)
    assert isinstance(whole, Refusal)
    assert "--on-too-long" not in cut.message
    assert "--on-too-long truncate-left" in whole.message


@pytest.mark.slow
def test_the_demonstration_model_gets_what_it_got(demo_model_folder: Path) -> None:
    codec = HuggingFaceCodec(demo_model_folder)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is 2 + 2? \n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    theirs = codec._tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(ids(codec, chat)) == theirs
    developer = [{**chat[0], "role": "developer"}, *chat[1:]]
    assert list(ids(codec, developer)) == theirs
