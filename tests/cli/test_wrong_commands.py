"""Wrong configs and command lines: each names what is wrong, what was expected and what to type, in a line or two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mm_llama.build import compose_config
from mm_llama.cli import main
from mm_llama.stage_run import run_stage

TINY = (
    "core=tiny", "modality/image=tiny", "data=jsonl", "data.train.0.source.path=rows.jsonl", "dtype=float32",
    "stage.num_steps=1", "loader.batch_size=1", "loader.cache_features=false",
)  # fmt: skip
TRAIN = ("train", "stage=image_sft", *TINY)
VQA = ("eval", "vqa", "--core", "tiny", "--data", "rows.jsonl", "--adapter", "runs/run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of a tiny adapter, a picture, rows and things that are none of these."""
    folder = tmp_path_factory.mktemp("wrong")
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    content = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "red?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "noise.wav").write_bytes(b"RIFF1234WAVEjunk")
    rows = f"data.train.0.source.path={folder / 'rows.jsonl'}"
    run_stage(
        compose_config("train", ["stage=image_sft", *TINY, rows, f"runs={folder / 'runs'}", "name=run"])
    )
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    yield


# What is typed, and what the answer must say.
WRONG: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "misspelt verb": (("tarin",), ("tarin", "did you mean `train`")),
    "misspelt key": ((*TRAIN, "optim.lrr=1"), ("optim.lrr", "did you mean optim.lr", "--cfg job")),
    "key of the class": (
        ("train", "stage=tts_acoustic", "stage.step.noise=0.3"),
        ("stage.step", "'noise'", "mm_llama.stages.voice.Acoustic", "+stage.step.noise=0.3"),
    ),
    "key of no class": (
        (*TRAIN, "+modality.image.adapter.gate_inti=1"),
        ("modality.image.adapter.gate_inti", "did you mean 'gate_init'", "takes"),
    ),
    "misspelt choice": (("train", "stage=image_sfd"), ("stage=image_sfd", "did you mean image_sft", "known are")),
    "wrong type": ((*TRAIN, "stage.num_steps=many"), ("stage.num_steps", "many", "Integer")),
    "empty value of a sweep": (("train", "-m", *TRAIN[1:], "optim.lr="), ("optim.lr", "Float")),
    "no stage": (("train", "core=tiny"), ("stage=NAME", "image_sft")),
    "no data": ((*TRAIN[:4], "data=none"), ("no training data", "data=NAME")),
    "missing data": ((*TRAIN, "data.train.0.source.path=gone.jsonl"), ("gone.jsonl", "does not exist", "path=FILE")),
    "a prefix of nothing": ((*TRAIN, "stage.train=[modality.imag]"), ("stage.train", "modality.imag'", "did you mean")),
    "trains nothing": ((*TRAIN, "stage.train=[]"), ("stage.train", "at least one", "[modality.image.adapter]")),
    "video without pictures": (
        ("train", "stage=video_sft", "core=tiny", "modality/video=tiny", "modality/image=none", *TRAIN[4:6]),
        ("modality/video", "modality/image=NAME"),
    ),
    "another width": ((*TRAIN, "modality.image.adapter.dim=32"), ("modality.image.adapter.dim", "32", "64")),
    "negative steps": ((*TRAIN, "stage.num_steps=-1"), ("stage.num_steps", "at least 1", "-1")),
    "negative batch": ((*TRAIN, "loader.batch_size=-2"), ("loader.batch_size", "at least 1", "-2")),
    "negative rate": ((*TRAIN, "optim.lr=-1"), ("optim.lr", "-1", "above 0")),
    "unknown dtype": ((*TRAIN, "dtype=int3"), ("dtype", "int3", "bfloat16")),
    "unknown device": ((*TRAIN, "device=gpux"), ("device", "gpux", "cuda:N")),
    "nothing to resume": ((*TRAIN, "name=new", "stage.resume=must"), ("stage.resume=must", "no valid checkpoint")),
    "no way to resume": ((*TRAIN, "name=new", "stage.resume=maybe"), ("stage.resume", "maybe", "auto, never, must")),
    "a start that is gone": (
        (*TRAIN, "name=new", "stage.init.image=runs/gone"),
        ("stage.init.image=runs/gone", "folder of a run"),
    ),
    "another config": ((*TRAIN, "name=run", "optim.lr=0.5"), ("optim.lr=0.5", "was 0.001", "name=...")),
    "a name outside": ((*TRAIN, "name=../../x"), ("name=../../x", "runs=DIR")),
    "runs in a file": ((*TRAIN, "runs=file"), ("file is no folder", "runs=DIR")),
    "core of numbers": (
        ("train", "stage=image_sft", "core=llama3_1_8b", *TRAIN[3:6]),
        ("core=llama3_1_8b", "core.source"),
    ),
    "a core that is gone": ((*TRAIN, "core.source=gone"), ("core.source=gone", "core=NAME")),
    "folder of configs": (
        ("train", "--config-dir", "gone", "stage=image_sft"),
        ("--config-dir gone", "data/NAME.yaml"),
    ),
    "eval of nothing": (("eval",), ("task", "--help")),
    "misspelt task": (("eval", "vqaa"), ("vqaa", "vqa", "--help")),
    "eval without a run": (("eval", "vqa"), ("--adapter RUN",)),
    "run that is gone": (("eval", "vqa", "--adapter", "gone"), ("gone", "folder of a finished stage")),
    "folder without a run": (("eval", "vqa", "--adapter", "empty"), ("empty", "no valid checkpoint", "mm-llama train")),
    "batches of nothing": ((*VQA, "--batch-size", "0"), ("--batch-size", "0", "at least 1")),
    "negative limit": ((*VQA, "--limit", "-3"), ("--limit", "-3", "0: all")),
    "data that is gone": ((*VQA[:4], "--data", "gone.jsonl", *VQA[6:]), ("gone.jsonl", "--data FILE")),
    "no question": (("ask",), ("no question", "mm-llama ask photo.jpg")),
    "picture that is gone": (("ask", "gone.jpg", "what?"), ("gone.jpg", "no file")),
    "adapter that is gone": (("ask", "--adapter", "gone", "a.png", "what?"), ("--adapter gone", "finished run")),
    "misspelt core": (("ask", "--core", "lama", "what?"), ("'lama'", "smollm2_135m", "existing path")),
    "unknown option": (("ask", "--cor", "tiny", "what?"), ("--cor", "--help")),
    "no tokens": (("ask", "--core", "tiny", "--max-new-tokens", "0", "what?"), ("--max-new-tokens", "at least 1")),
    "said to nobody": (("say", "hello"), ("--output", "--help")),
    "rate of speech": (("say", "hello", "-o", "x.wav", "--rate", "9"), ("--rate", "9", "0.5 to 2")),
    "voice that is gone": (("say", "hello", "-o", "x.wav", "--adapter", "gone"), ("gone", "stage=tts_vocoder")),
    "sound that is gone": (("transcribe", "gone.wav"), ("gone.wav", "no file")),
    "nothing to hear with": (("transcribe", "noise.wav"), ("runs/demo/speech", "--adapter RUN")),
    "language": (("transcribe", "noise.wav", "--language", "Klingon"), ("Klingon", "German")),
    "no language": (("translate", "noise.wav"), ("--to", "--help")),
    "misspelt data verb": (("data", "valid", "rows.jsonl"), ("valid", "inspect", "--help")),
    "data file": (("data", "stats", "gone.jsonl"), ("gone.jsonl", "does not exist")),
    "chat of no core": (("data", "stats", "rows.jsonl", "--chat", "llama3"), ("--chat", "--tokenizer PATH")),
    "export of numbers": (("export", "llama3_1_8b", "out"), ("llama3_1_8b", "numbers only", "checkpoint's path")),
    "shards of nothing": (("export", "smollm2_135m", "out", "--shard-gb", "0"), ("--shard-gb", "above 0")),
    "import of nothing": (("import", "gone", "out"), ("gone", "checkpoint was expected")),
    "report of nothing": (("report", "gone"), ("gone", "runs/demo")),
    "misspelt bench": (("bench", "imag"), ("imag", "did you mean 'image'")),
    "average of nothing": (("average", "gone", "--out", "avg"), ("gone", "finished runs")),
    "unknown metric": (("average", "runs/run", "--out", "avg"), ("eval.answers", "loss", "data.eval")),
    "top of nothing": (("average", "runs/run", "--out", "avg", "--top", "0"), ("--top", "from 1 on")),
    "release over a folder": (("release", "runs/run", "runs"), ("runs", "new folder")),
    "release in a dtype": (("release", "runs/run", "out", "--dtype", "int8"), ("--dtype", "int8", "float16")),
    "proof of nothing": (("proof",), ("--adapter", "--help")),
    "unknown asset": (("assets", "fetch", "gone"), ("gone", "easy_vqa")),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "words"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_said_with_what_to_type(
    argv: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(argv)) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} in {said}"
    assert "Traceback" not in said and len(said) < 900
    for leftover in ("avg", "out", "x.wav", "runs/new/checkpoints"):
        assert not Path(leftover).exists()
