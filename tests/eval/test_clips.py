"""Evaluation of clips: every side is asked the same rows, frames are counted, what cannot be asked is said."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mm_llama.build import build_model, compose_config, resolve
from mm_llama.data.sources import ChatRows
from mm_llama.eval.clips import accuracy_by_frames, confusion, evaluate_clips, frames_of
from mm_llama.stage_run import prepared

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def rows(folder: Path, middle: bool = False, answers: tuple[str, ...] = ("left", "right")) -> ChatRows:
    """Six clips of plain colours, or their middle frames as pictures, with two answers."""
    chats: list[list[dict[str, Any]]] = []
    for number in range(6):
        frames = [Image.new("RGB", (40, 32), COLOURS[(number + step) % 6]) for step in range(8)]
        path = folder / f"{number}.{'png' if middle else 'gif'}"
        if middle:
            frames[4].save(path)
        else:
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
        part = {"type": "image" if middle else "video", "path": str(path)}
        content = [part, {"type": "text", "text": "which way?"}]
        answer = {"role": "assistant", "content": answers[number % 2]}
        chats.append([{"role": "user", "content": content}, answer])
    return ChatRows(chats)


@pytest.fixture
def talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """A tiny random model that sees pictures and clips, its tokenizer and its chat format."""
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    names = ["core=tiny", "modality/image=tiny", "modality/video=tiny", "stage=none"]
    return build_model(resolve(compose_config("train", names)))


def test_every_side_answers_the_same_rows(talking: tuple[Any, Any, Any], tmp_path: Path) -> None:
    clips, frames = rows(tmp_path), rows(tmp_path, middle=True)
    result = evaluate_clips(*talking, clips, partial(prepared, talking[0]), middle_frames=frames, train=clips)
    assert list(result.answers) == [
        "model",
        "majority_by_type",
        "wrong_picture",
        "one_frame",
        "middle_frame",
    ]
    assert all(len(answers) == 6 for answers in result.answers.values())
    assert result.accuracy("majority_by_type").score == 0.5
    assert set(result.answers["middle_frame"]) <= {"left", "right"}  # made to choose
    assert talking[0].modality["video"].num_frames == 4
    table = confusion(result, "all")
    assert set(table) == {"left", "right"} and sum(sum(row.values()) for row in table.values()) == 6


def test_accuracy_is_told_for_each_number_of_frames(talking: tuple[Any, Any, Any], tmp_path: Path) -> None:
    found = accuracy_by_frames(*talking, rows(tmp_path), partial(prepared, talking[0]), [2, 8])
    assert [row["frames"] for row in found] == [2, 8]
    assert all(row["total"] == 6 and row["answer_seconds"] > 0 for row in found)
    with pytest.raises(ValueError, match="12 frames makes 3 groups of 4"):
        accuracy_by_frames(*talking, rows(tmp_path), partial(prepared, talking[0]), [12])
    assert talking[0].modality["video"].num_frames == 4


def test_rows_of_other_clips_are_refused_as_a_side(talking: tuple[Any, Any, Any], tmp_path: Path) -> None:
    other = rows(tmp_path, middle=True, answers=("right", "left"))
    with pytest.raises(ValueError, match="middle_frame are not those of the clips"):
        evaluate_clips(
            *talking,
            rows(tmp_path),
            partial(prepared, talking[0]),
            middle_frames=other,
            wrong=False,
            one_frame=False,
        )


def test_a_model_without_clips_says_what_it_needs(talking: tuple[Any, Any, Any]) -> None:
    model = talking[0]
    del model.modality["video"]
    with pytest.raises(ValueError, match="no adapter that sees clips is attached"), frames_of(model, 2):
        pass
