"""What the tests of the page share: a strict parser, hostile text, and the accuracies of an evaluation."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from mm_llama.eval.statistics import Accuracy

VOID = {"meta", "img", "input", "br", "hr"}
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'
DIGEST = "sha256:" + 8 * "0123abcd"


class Page(HTMLParser):
    """Parses strictly: every element closed in order; collects what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.section = ""
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        found = dict(attrs).get("id")
        if found:
            self.ids.append(found)
        if tag == "section":
            self.section = found or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            self.texts.setdefault(self.section, []).append(data)

    def text(self, section: str | None = None) -> str:
        return " ".join(" ".join(self.words if section is None else self.texts.get(section, [])).split())


def accuracy(correct: int, total: int) -> dict[str, Any]:
    return Accuracy(correct, total).to_json()
