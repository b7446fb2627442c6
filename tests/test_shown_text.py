"""What is shown to a person: nothing that a terminal obeys, nothing that a browser runs."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.cli import main
from mm_llama.cli.ask import _print
from mm_llama.data.sources import JsonlChat
from mm_llama.report.markup import element
from mm_llama.report.preference import write_preference_page
from mm_llama.stages.yaml_file import check_yaml, read_yaml
from mm_llama.terminal import plain, visible

EVIL = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b1m \x08\x7f\r\x00end\ttab\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters_and_a_file_gets_the_text() -> None:
    assert plain(EVIL) == "]0;title[2J[31mred1m end\ttab\n"
    assert visible(EVIL, Terminal()) == plain(EVIL) and visible(EVIL, io.StringIO()) == EVIL
    assert plain("\u00e9\u4e2d\U0001f600 \u0627") == "\u00e9\u4e2d\U0001f600 \u0627"


def test_an_answer_and_an_error_come_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    _print(EVIL)
    assert terminal.getvalue() == plain(EVIL)
    monkeypatch.undo()
    assert main(["transcribe", "gone\x1b[2J\x9b.wav"]) == 2
    assert capsys.readouterr().err == "error: there is no file gone[2J.wav\n"


def test_rows_are_inspected_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"messages": [{"role": "user", "content": "q\x1b[2J"}, {"role": "assistant", "content": "a\x9b"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["data", "inspect", str(tmp_path / "rows.jsonl")]) == 0
    assert "q[2J" in terminal.getvalue() and not re.search(r"[\x1b\x9b]", terminal.getvalue())


# --- pages


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [key for key, _ in attrs if key.startswith("on")]


SCRIPT = '</script><script>alert(1)</script><!--<script>"><img src=x onerror=alert(1)>'


def test_markup_escapes_children_and_attributes() -> None:
    parser = Tags()
    parser.feed(element("p", SCRIPT, title=SCRIPT, href=f'"{SCRIPT}'))
    assert parser.tags == ["p"] and not parser.handlers


def test_the_page_of_two_voices_holds_texts_as_data(tmp_path: Path) -> None:
    sound: Any = torch.zeros(100)
    path = write_preference_page(tmp_path / "p.html", {"a": SCRIPT, "b": "b"}, [(SCRIPT, sound, sound)], 8000)
    page = path.read_text("utf-8")
    assert page.count("<script") == 2 and page.count("</script") == 2 and "<!--" not in page[100:]
    (held,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert json.loads(held)["pairs"][0]["text"] == SCRIPT
    assert "default-src 'none'" in page and "innerHTML" not in page


# --- files that are more than they look


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}, *a{n}]\n" for n in range(30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "aliases would become"),
        ("a: &a\n  b: *a\n", "names what is not there before it"),
        ("[" * 100 + "]" * 100, "nested more than 50 deep"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "nested more than 50 deep"),
        ("a: !!python/object/apply:os.system [touch never]", "could not determine a constructor"),
        ("a: [1", "is no config"),
        ("- 1\n", "holds a list"),
        ("a: \x01", "is no config"),
    ],
)  # fmt: skip
def test_yaml_that_no_reader_survives_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)
    assert main(["train", "--config-dir", str(tmp_path), "stage=image_sft", "core=gone"]) == 2


def test_yaml_with_a_few_aliases_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: &a {b: 1e-3, c: '${x}'}\nd: *a\n")
    check_yaml(tmp_path / "config.yaml")
    assert read_yaml(tmp_path / "config.yaml")["d"] == {"b": 0.001, "c": "${x}"}


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    with open(tmp_path / "rows.jsonl", "wb") as file:
        file.write(b'{"messages": []}\n')
        file.truncate(1 << 33)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: a line of more than 268,435,456 bytes"):
        JsonlChat(tmp_path / "rows.jsonl")


def test_media_outside_of_a_data_folder_are_named_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "own.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "mine.png")
    places = ["own.png", "../mine.png", str(tmp_path / "mine.png"), "link.png"]
    asked = [{"role": "user", "content": [{"type": "image", "path": place}]} for place in places]
    rows = [{"messages": [one, {"role": "assistant", "content": "a"}]} for one in asked]
    file = tmp_path / "data" / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "validate", str(file)]) == 0
    capsys.readouterr()
    assert main(["data", "validate", "--inside", str(file)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in said] == [f"{file}:{n}" for n in (2, 3, 4)]
    assert all("lies outside of" in line for line in said)
