"""What the README tells a person to type is run, or checked as far as a test of seconds can go."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_llama.cli import VERBS, main
from mm_llama.data.sources import parse_row

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[list[str]]:
    """Every command line of the shell blocks, split as a shell would."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


def test_every_shell_line_is_a_make_target_or_a_verb() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert commands()
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets
        else:
            assert words[0] == ".venv/bin/mm-llama" and words[1] in VERBS, words


@pytest.mark.parametrize(
    "argv", [words[2:] for words in commands() if words[1:2] == ["train"]], ids=lambda argv: " ".join(argv)
)
def test_train_commands_compose(
    argv: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *argv, "--cfg", "job"]) == 0
    assert "num_steps" in capfd.readouterr().out


@pytest.mark.slow
def test_the_text_question_is_answered(
    asset_dir: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("smollm2_135m", "hibari_tts"):
        asset_dir(name)
    monkeypatch.chdir(tmp_path)  # where there is no runs/demo
    asked = [
        words
        for words in commands()
        if words[1:2] == ["ask"] and not {"PICTURE", "CLIP", "RECORDING"} & set(words)
    ]
    assert asked
    for words in asked:
        assert main(words[1:]) == 0
        assert "Paris" in capsys.readouterr().out
        assert "--speak" not in words or (tmp_path / "answer.wav").stat().st_size > 20_000
    for words in (words for words in commands() if words[1:2] == ["say"]):
        assert main(words[1:]) == 0
        assert (tmp_path / "out.wav").stat().st_size > 50_000


def test_the_python_snippet_is_code_and_names_what_exists() -> None:
    import mm_llama
    from mm_llama.assistant import Assistant

    (snippet,) = blocks("python")
    compile(snippet, "README.md", "exec")
    assert "from mm_llama import load" in snippet and callable(mm_llama.load)
    assert "model.chat(" in snippet and callable(Assistant.chat)


def test_the_data_example_is_a_valid_row(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (line,) = blocks("json")
    json.loads(line)
    row = parse_row(line.strip().encode(), "README.md:1", tmp_path)
    assert [message.role for message in row.messages] == ["user", "assistant"]


def test_no_figure_is_left_open() -> None:
    assert not re.findall(r"@[A-Z_]+@", TEXT)
