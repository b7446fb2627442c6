"""`mm-llama bench packing`: one model, the same documents in several layouts, the same loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mm_llama.bench.packing import main
from mm_llama.cli import main as cli


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty rows of 60 to 340 tokens; two of three show one of four pictures."""
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    lines = []
    for number in range(40):
        content = [{"type": "text", "text": "What is it? " + "word " * (number % 8) ** 2}]
        if number % 3:
            picture = tmp_path / f"{number % 4}.png"
            Image.new("RGB", (20, 20), (60 * (number % 4), 90, 10)).save(picture)
            content.insert(0, {"type": "image", "path": picture.name})
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a thing"}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(lines), "utf-8")
    return path


def options(chats: Path) -> list[str]:
    return [
        "core=tiny",
        "modality/image=tiny",
        "data=jsonl",
        f"data.train.0.source.path={chats}",
        "dtype=float32",
        "--batch-tokens",
        "1024",
        "--pack-tokens",
        "256,512,1024",
        "--json",
    ]


def test_layouts_differ_in_padding_and_not_in_loss(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options(chats), "--repeats", "1"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert "no rows of 256: the longest document has" in printed.err
    names = [entry["layout"].split(",")[0] for entry in facts["layouts"]]
    assert names == ["rows as they come", "sorted", "packed to 512", "packed to 1024"]
    padding = [entry["padding"] for entry in facts["layouts"]]
    assert padding[2] < padding[1] < padding[0]
    for entry in facts["layouts"]:
        assert entry["loss"] == pytest.approx(facts["layouts"][0]["loss"], rel=1e-6)
        assert entry["tokens_per_s"] == pytest.approx(facts["tokens"] / entry["seconds"])
        assert entry["padding"] == pytest.approx(1 - facts["tokens"] / entry["positions"])
        assert facts["tokens"] <= entry["positions"] <= 1024 * entry["batches"]


def test_waste_alone_runs_no_step_and_takes_the_documents_asked_for(
    chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options(chats), "--waste-only", "--documents", "12"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["documents"] == 12
    assert all(entry["seconds"] is None and entry["loss"] is None for entry in facts["layouts"])


def test_the_table_names_every_layout(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in options(chats) if word != "--json"]
    assert cli(["bench", "packing", *words, "--waste-only"]) == 0
    shown = capsys.readouterr().out
    assert "40 documents" in shown and "rows as they come" in shown and "packed to 1024" in shown


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nothing"], "there is no `mm-llama bench nothing`; there are "),
        (["packin"], "did you mean packing|packing"),
        (["packing", "--pack-tokens", "12,x"], "--pack-tokens takes whole numbers from 1, not 'x'"),
        (["packing", "--documents", "0"], "--documents takes whole numbers from 1, not 0"),
        (
            ["packing", "--pack-tokens", "4096"],
            "--pack-tokens 4096 does not fit in a batch of --batch-tokens 2048",
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and any(part in error for part in what.split("|"))


def test_a_document_longer_than_a_batch_is_an_error(chats: Path) -> None:
    words = [*options(chats), "--waste-only"]
    words[words.index("1024")] = "200"
    words[words.index("256,512,1024")] = "128"
    with pytest.raises(ValueError, match="a document has .* tokens, more than --batch-tokens 200"):
        main(words)


def test_help_lists_the_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["bench", "--help"]) == 0
    assert "packing" in capsys.readouterr().out
