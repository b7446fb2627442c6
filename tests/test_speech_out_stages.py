"""The stages of the voice take their steps on a tiny core, and what they leave reads text without moving the core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mm_llama.assistant import load
from mm_llama.build import build, compose_config, resolve
from mm_llama.cli import main
from mm_llama.data.normalization import rows as written_rows
from mm_llama.data.spoken_rows import write_rows
from mm_llama.paths import conf_dir
from mm_llama.stage_run import run_stage
from mm_llama.targets import check_targets
from mm_llama.voice.rules import NAMES
from mm_llama.voice.tagging import owners_of, read
from mm_llama.voice.written import split

NORMALIZER = "modality.tts_normalization.adapter"


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml") if file.stem != "none")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    sentences = ["It is so.", "Nobody came.", "They laughed again."]
    return write_rows(tmp_path, {"texts": written_rows("train", 40, sentences)})["texts"]


def tiny(texts: Path, *overrides: str) -> list[str]:
    return [
        "stage=tts_normalization",
        "core=tiny",
        "modality/tts_normalization=tiny",
        "data=jsonl",
        f"data.train.0.source.path={texts}",
        f"runs={texts.parent / 'runs'}",
        "stage.num_steps=2",
        "loader.batch_size=8",
        "dtype=float32",
        *overrides,
    ]


def run(*overrides: str) -> Any:
    result = run_stage(compose_config("train", list(overrides)))
    assert result.exit_code == 0
    return result


@pytest.mark.parametrize("name", choices("modality/tts_normalization"))
def test_normalizer_builds_for_the_rules_that_there_are(name: str) -> None:
    data = resolve(compose_config("train", [f"modality/tts_normalization={name}", "stage=none"]))
    part = data["modality"]["tts_normalization"]
    assert part["port"] == "spoken"
    check_targets(part)
    assert build(part["adapter"]).num_rules == len(NAMES)


@pytest.mark.parametrize(
    "options",
    [[], [f"{NORMALIZER}.uses_core=false"], [f"{NORMALIZER}.uses_core=false", f"{NORMALIZER}.whole=true"]],
)
def test_normalization_trains_the_normaliser_alone(texts: Path, options: list[str]) -> None:
    evaluated = f"data.eval=[{{_target_: mm_llama.data.sources.JsonlChat, path: {texts}}}]"
    result = run(*tiny(texts, evaluated, *options))
    summary = json.loads((result.run_dir / "summary.json").read_text("utf-8"))
    assert {(row["group"], row["trained"]) for row in summary["freeze"]} == {
        ("core", False),
        (NORMALIZER, True),
    }
    assert 0 <= result.final["eval.answers"] <= result.final["eval.rules"] <= 1


def test_a_text_is_read_and_text_of_the_core_is_unchanged(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Long enough for a rule that is not the commonest.
    result = run(*tiny(texts, "stage.num_steps=120", "optim.lr=1e-2", f"{NORMALIZER}.hide=0"))
    found = load("tiny", [result.run_dir], dtype="float32")
    lines = [json.loads(line) for line in texts.read_text("utf-8").splitlines()]
    asked = [line["messages"][1]["content"] for line in lines]
    readings = read(found.model, found.tokenizer, found.chat_format, [*asked, "", " \n"])
    right = [
        list(one.rules) == row["extra"]["labels"]["rules"].split()
        for one, row in zip(readings, lines, strict=False)
    ]
    assert sum(right) > 20 and readings[-1].text() == readings[-2].text() == ""
    # One by one as together: no text is padded into another's rules.
    alone = [read(found.model, found.tokenizer, found.chat_format, [text])[0].rules for text in asked[:8]]
    assert [list(one) for one in alone] == [list(one.rules) for one in readings[:8]]
    plain = load("tiny", dtype="float32")
    tokens_BS = torch.tensor([found.tokenizer.encode("There are 12 people here.")])
    with torch.inference_mode():
        assert torch.equal(found.model(tokens_BS), plain.model(tokens_BS))
    out = texts.parent / "found.json"
    command = [
        "eval",
        "normalization",
        "--core",
        "tiny",
        "--dtype",
        "float32",
        "--adapter",
        str(result.run_dir),
    ]
    assert main([*command, "--data", str(texts), "--out", str(out)]) == 0
    numbers = json.loads(out.read_text("utf-8"))
    assert numbers["texts"] == 40 and numbers["accuracy"]["correct"] == sum(right)
    assert numbers["spoken"]["correct"] >= numbers["accuracy"]["correct"]
    assert sum(one["total"] for one in numbers["classes"].values()) == 40
    records = [
        json.loads(line) for line in (texts.parent / "found_answers.jsonl").read_text("utf-8").splitlines()
    ]
    assert [one["right"] for one in records] == sorted(one["right"] for one in records)
    assert "in the true words" in capsys.readouterr().out


def test_training_goes_on_where_it_was(texts: Path) -> None:
    losses = []
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for count in steps:
            # The schedule knows the number of steps; a constant one makes both runs the same.
            found = run(*tiny(texts, f"name={name}", f"stage.num_steps={count}", "optim.schedule=constant"))
        lines = (found.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_each_core_token_belongs_to_the_written_token_in_which_it_ends() -> None:
    class Spelled:
        def token_bytes(self, id: int) -> bytes:
            return [b"It", b" co", b"sts", b" $1", b"2.5", "0 — ".encode(), b"na", "ï".encode(), b"ve"][id]

    text = "It costs $12.50 — naïve"
    tokens = split(text)
    names = [tokens[place].text for place in owners_of(text, tokens, range(9), Spelled())]  # type: ignore[arg-type]
    assert names == ["It", "costs", "costs", "12", "50", "naïve", "naïve", "naïve", "naïve"]


WRONG = {
    "no rules": ({"labels": {}}, "the row has no rules"),
    "too few": ({"labels": {"rules": "PLAIN"}}, "1 rules do not fit the 4 tokens of 'I ate 5.'"),
    "an unknown rule": ({"labels": {"rules": "PLAIN PLAIN NUMBER PLAIN"}}, "there is no rule 'NUMBER'"),
    "no object": ({"labels": "PLAIN"}, "'extra.labels' must be an object, not str"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_labels_name_their_row(tmp_path: Path, name: str) -> None:
    extra, message = WRONG[name]
    row = {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "I ate 5."}],
        "extra": extra,
    }
    file = write_rows(tmp_path, {"wrong": [row]})["wrong"]
    with pytest.raises(ValueError, match=message) as raised:
        run(*tiny(file))
    assert "wrong.jsonl:1" in str(raised.value)


def test_a_stage_without_a_normaliser_and_a_model_without_one(texts: Path) -> None:
    with pytest.raises(ValueError, match="there is no tts_normalization here: train one with"):
        run(
            *tiny(
                texts,
                "modality/tts_normalization=none",
                "modality/image=tiny",
                "stage.train=[modality.image.adapter]",
            )
        )
    plain = load("tiny", dtype="float32")
    with pytest.raises(ValueError, match="there is no tts_normalization here"):
        read(plain.model, plain.tokenizer, plain.chat_format, ["5"])
    with pytest.raises(ValueError, match="num_rules is 5, but there are"):
        run(*tiny(texts, f"{NORMALIZER}.num_rules=5"))


@pytest.mark.parametrize("kind", ["tts_prosody", "tts_acoustic", "tts_vocoder", "tts_aligner"])
def test_every_part_of_a_voice_builds_and_learns_from_one_step(kind: str) -> None:
    """Each published size: built beside its core's numbers, it takes a step on one utterance."""
    for name in choices(f"modality/{kind}"):
        core = "llama3_8b" if name == "paper" else "tiny"
        data = resolve(compose_config("train", [f"modality/{kind}={name}", f"core={core}", "stage=none"]))
        part = data["modality"][kind]
        check_targets(part)
        adapter = build(part["adapter"])
        phones = torch.randint(1, 79, (7,), generator=torch.Generator().manual_seed(0))
        if kind == "tts_prosody":
            states = torch.randn(4, data["core"]["numbers"]["dim"])
            owners = torch.tensor([0, 0, 1, 1, 2, 3, 3])
            (found,) = adapter([phones], [torch.zeros(7, 4)], [states], [owners])
        elif kind == "tts_acoustic":
            (found,) = adapter([(phones, torch.full((7,), 3), torch.zeros(7, 3))])
        elif kind == "tts_aligner":
            (found,) = adapter([adapter.features(torch.randn(4000))])
        else:
            (found,) = adapter([torch.rand(9, 80)])
        found.square().mean().backward()
        weights = dict(adapter.named_parameters())
        assert all(weight.grad is not None for weight in weights.values()), name
        count = sum(weight.numel() for weight in weights.values())
        assert not (kind == "tts_vocoder" and name == "large") or 12e6 < count < 15e6
        if name == "paper":
            assert adapter.layers[0].self_attention.num_heads == 6 and part["layer"] == 16
            assert adapter.layers[0].forwards[0].up.out_features == 864
