"""Game dialogues: what the scripts hold, and their splits."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch

from mm_llama.data.fillets import read_lines, split_of, write_jsonl
from mm_llama.data.sources import JsonlChat
from mm_llama.data.spoken_rows import SPLITS

SCRIPT = """
dialogId("a-one", "font_small", "Where is \\"my\\" hat?")
dialogStr("Kde je \\"můj\\" klobouk?")

dialogId("a-two", "font_big", "Never said.")

dialogId("a-three", "font_big", "No recording.")
dialogStr("Beze zvuku.")
"""


@pytest.fixture
def packages(tmp_path: Path) -> tuple[Path, dict[str, str | Path]]:
    """A level as the packages lay it out."""
    script = tmp_path / "data" / "script" / "wreck"
    sound = tmp_path / "cs" / "sound" / "wreck" / "cs"
    for folder in (script, sound):
        folder.mkdir(parents=True)
    (script / "dialogs_cs.lua").write_text(SCRIPT, "utf-8")
    noise = 0.1 * torch.randn(22050, generator=torch.Generator().manual_seed(0))
    for name in ("a-one", "a-two"):
        soundfile.write(sound / f"{name}.ogg", noise.numpy(), 22050, format="OGG", subtype="VORBIS")
    return tmp_path / "data", {"cs": tmp_path / "cs"}


def test_lines_have_a_text_and_a_recording(packages: tuple[Path, dict[str, str | Path]]) -> None:
    (line,) = read_lines(*packages)
    assert (line.level, line.name, line.code) == ("wreck", "a-one", "cs")
    assert (line.text, line.english) == ('Kde je "můj" klobouk?', 'Where is "my" hat?')


def test_each_line_is_two_rows(packages: tuple[Path, dict[str, str | Path]], tmp_path: Path) -> None:
    files = write_jsonl(*packages, tmp_path / "out")
    assert {split for split in SPLITS if files[split].read_text()} == {split_of("wreck")}
    source = JsonlChat(files[split_of("wreck")])
    systems = [source.row(n).messages[0].parts[0].text for n in range(len(source))]  # type: ignore[union-attr]
    assert systems == [
        "Repeat after me in Czech:",
        "Translate the following sentence into English:",
    ]
    assert source.row(1).extra["source_language"] == "Czech"


def test_packages_that_are_not_there(tmp_path: Path, packages: tuple[Path, dict[str, str | Path]]) -> None:
    with pytest.raises(FileNotFoundError, match="fetch fillets_data"):
        read_lines(tmp_path / "none", packages[1])
    with pytest.raises(FileNotFoundError, match="no Dutch recordings; mm-llama assets fetch fillets_nl"):
        read_lines(packages[0], {"nl": tmp_path / "none"})
