"""The page: offline, allowed by its own policy, alive in a browser where there is one."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files

import pytest

from packhorse.serve.page import content_security_policy
from servers import Served

pytestmark = pytest.mark.browser

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
def test_the_page_works_from_the_keyboard_and_on_a_phone(fake_server: Served) -> None:
    """A prompt is typed, sent with Ctrl+Enter and answered; nothing is refused by the policy."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(fake_server.address)
        page.get_by_text("ready", exact=True).wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type("user typed this")
        page.keyboard.press("Control+Enter")
        page.get_by_text("tokens in").wait_for()
        with fake_server.client() as client:
            messages = [{"role": "user", "content": "user typed this"}]
            body = {"model": "fake", "messages": messages, "max_tokens": 64}
            answer = client.post("/v1/chat/completions", json=body).json()
        assert page.locator("#answer").inner_text() == answer["choices"][0]["message"]["content"]
        page.wait_for_function("document.querySelectorAll('#batches span').length > 0")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert [line for line in said if "favicon" not in line] == []
        browser.close()
