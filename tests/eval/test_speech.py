"""`mm-llama eval speech`: what each side hears, worst first, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from mm_llama.batch import Batch
from mm_llama.build import compose_config, load_model
from mm_llama.cli import main
from mm_llama.core.messages import MediaPart, Message
from mm_llama.data.sources import ChatRows, JsonlChat
from mm_llama.data.spoken_rows import dialogue, recognition, translation, write_rows
from mm_llama.eval.speech import evaluate_speech, read_asked
from mm_llama.stage_run import run_stage


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a readout on the tiny core, beside rows of three tasks."""
    folder = tmp_path_factory.mktemp("speech")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(4):
        samples = 0.1 * torch.randn(12_000 + 4_000 * number, generator=generator)
        soundfile.write(folder / f"{number}.flac", samples.numpy(), 16_000)
        about = {"id": f"clip {number}", "seconds": len(samples) / 16_000}
        rows.append(recognition(f"{number}.flac", f"word {number} said", **about))
        rows.append(translation(f"{number}.flac", "slovo", f"word {number} said", "German", **about))
    rows.append(dialogue("0.flac", "who is there", "nobody"))
    write_rows(folder, {"rows": rows})
    result = run_stage(
        compose_config(
            "train",
            [
                "stage=speech_sft",
                "core=tiny",
                "modality/speech=tiny",
                "modality.speech.adapter.emit=tokens",
                "modality.speech.adapter.num_pieces=256",
                "data=jsonl",
                f"data.train.0.source.path={folder / 'rows.jsonl'}",
                f"runs={folder}",
                "stage.num_steps=2",
                "stage.train=[modality.speech.adapter.begin,modality.speech.adapter.end]",
                "stage.eval_every=0",
                "dtype=float32",
            ],
        )
    )
    return result.run_dir


def test_every_side_of_every_task(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speech.json"
    command = ["eval", "speech", "--core", "tiny", "--adapter", str(run), "--dtype", "float32", "--other"]
    assert (
        main([*command, "--told", "--beam", "4", "--data", str(run.parent / "rows.jsonl"), "--out", str(out)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "through the core" in printed and "with a search" in printed and "said   " in printed
    found = json.loads(out.read_text("utf-8"))
    tasks = {(row["task"], row["language"]): row for row in found["tasks"]}
    assert set(tasks) == {("recognition", "English"), ("translation", "German"), ("dialogue", "English")}
    heard = tasks["recognition", "English"]
    assert heard["rows"] == 4 and heard["sides"]["model"]["length"] == 12
    assert set(heard["sides"]) == {"model", "searched", "readout", "told", "other"}
    assert 0 < heard["p_against_other"] <= 1
    assert set(tasks["translation", "German"]["sides"]["model"]) >= {"bleu", "chrf"}
    rows = [json.loads(line) for line in (tmp_path / "speech_answers.jsonl").read_text().splitlines()]
    rates = [row["errors"] / max(1, row["length"]) for row in rows]
    assert len(rows) == 9 and rates == sorted(rates, reverse=True)
    assert Path(rows[0]["audio"]).is_file()


def test_told_the_core_is_given_the_transcript(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, chat = load_model("tiny", [run])
    rows = [row for row in read_asked(JsonlChat(run.parent / "rows.jsonl")) if row.task == "recognition"]
    adapter, table_VD = model.modality["speech"].adapter, model.core.embedding.weight
    given: list[torch.Tensor] = []
    prepare = model.prepare

    def watched(batch: Batch, embeddings: Any = None) -> Any:
        given.extend((embeddings or {}).get("speech", ()))
        return prepare(batch, embeddings)

    monkeypatch.setattr(model, "prepare", watched)
    evaluate_speech(
        model,
        tokenizer,
        chat,
        rows,
        load_media={"speech": lambda ref: torch.randn(40, adapter.encoder_dim)},
        encoded=("speech",),
        sides=("told",),
    )
    expected = [
        torch.cat((adapter.begin, table_VD[tokenizer.encode(row.truth)], adapter.end)) for row in rows
    ]
    assert len(given) == len(rows) == 4 and all(map(torch.equal, given, expected))
    rows[0] = replace(rows[0], row=replace(rows[0].row, messages=without_transcript(rows[0].row.messages)))
    with pytest.raises(ValueError, match="has no transcript .* but what is said is needed here"):
        evaluate_speech(
            model,
            tokenizer,
            chat,
            rows[:1],
            load_media={"speech": lambda ref: torch.randn(40, adapter.encoder_dim)},
            encoded=("speech",),
            sides=("told",),
        )


def without_transcript(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(
        replace(
            message,
            parts=tuple(
                replace(part, transcript=None) if isinstance(part, MediaPart) else part
                for part in message.parts
            ),
        )
        for message in messages
    )


def test_a_plain_core_cannot_hear(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "speech", "--core", "tiny"]) == 2
    assert (
        "eval speech needs an adapter: --adapter RUN, for example runs/demo/speech" in capsys.readouterr().err
    )


def test_a_row_without_a_recording_is_named() -> None:
    row = [{"role": "user", "content": "hum"}, {"role": "assistant", "content": "mm"}]
    with pytest.raises(ValueError, match="text rows:1: there is no recording in what is asked"):
        read_asked(ChatRows([row], name="text rows"))
