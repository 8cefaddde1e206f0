"""The page: offline, allowed by its own policy, alive in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from packhorse.serve.page import content_security_policy
from servers import Served

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_the_page_uses_nothing_from_elsewhere(fake_server: Served) -> None:
    with fake_server.client() as client:
        answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy == content_security_policy(answer.text)
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"""(src|href)\s*=|https?://|style\s*=\s*["']|@import""", answer.text)


def test_every_field_has_a_label() -> None:
    html = files("packhorse.serve").joinpath("page.html").read_text(encoding="utf-8")
    fields = re.findall(r"<(?:input|textarea)[^>]* id=\"(\w+)\"", html)
    fields += re.findall(r"<(?:input|textarea) id=\"(\w+)\"", html)
    assert set(fields) == {"prompt", "tokens", "temperature", "key"}
    for field in fields:
        assert f'<label for="{field}">' in html


def test_status_tells_what_the_server_does(fake_server: Served) -> None:
    with fake_server.client() as client:
        body = {"model": "fake", "prompt": "status", "max_tokens": 3}
        assert client.post("/v1/completions", json=body).status_code == 200
        status = client.get("/status").json()
    assert (status["state"], status["waiting_rows"], status["running_rows"]) == ("ready", 0, 0)
    assert status["batch_rows"][-1] == 1
    assert status["generated_tokens"] >= 3
    assert 0 < status["first_seconds"]["p50"] <= status["row_seconds"]["p95"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_lives_in_a_browser(fake_server: Served, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--timeout=20000",
        f"--user-data-dir={tmp_path}", "--virtual-time-budget=4000", "--dump-dom",
        fake_server.address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert 'id="state" role="status">ready<' in done.stdout, done.stderr
    assert re.search(r'id="waiting_rows">0<', done.stdout)
