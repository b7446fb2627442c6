"""From the base core to the instruct core (paper section 7.5): refused unless declared, told when done, recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from mm_llama.build import compose_config, core_config, resolve
from mm_llama.cli import main
from mm_llama.core.digest import digest_tensors
from mm_llama.core.export import export_hf
from mm_llama.core.llama import Llama
from mm_llama.stages.checkpoint_files import find_checkpoint, read_state
from mm_llama.testing.bytes_tokenizer import BytesTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two cores of one architecture as Hugging Face folders, and pictures in two colours."""
    folder = tmp_path_factory.mktemp("swap")
    numbers = core_config(resolve(compose_config("train", ["core=tiny", "stage=none"]))["core"]["numbers"])
    for seed, name in enumerate(("base", "instruct")):
        core = Llama(numbers)
        core.init_weights(seed)
        export_hf(core, BytesTokenizer(), folder / name, chat="llama3")
    rows = []
    for number, colour in enumerate(((220, 20, 20), (20, 20, 220))):
        Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
        content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "Which colour?"}]
        answer = {"role": "assistant", "content": ("red", "blue")[number]}
        rows.append({"messages": [{"role": "user", "content": content}, answer]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM_LLAMA_CACHE", str(folder / "cache"))
        assert main(command(folder, "image_pretrain", "base", "stage.num_steps=2")) == 0
        yield folder
    torch.set_num_threads(threads)


def command(folder: Path, stage: str, core: str, *overrides: str) -> list[str]:
    return [
        "train",
        f"stage={stage}",
        "core=tiny",
        f"core.source={folder / core}",
        "core.tokenizer=null",
        "modality/image=tiny",
        "data=jsonl",
        f"data.train.0.source.path={folder / 'rows.jsonl'}",
        f"runs={folder / 'runs'}",
        "dtype=float32",
        "threads=1",
        "stage.num_steps=20",
        "optim.lr=3e-3",
        "optim.warmup_steps=5",
        "optim.gate_lr_multiple=10.0",
        "loader.batch_size=2",
        *overrides,
    ]


def digests(folder: Path) -> tuple[str, str]:
    from mm_llama.core.weights import load_core

    base, instruct = (load_core(folder / name, dtype=torch.float32).core for name in ("base", "instruct"))
    assert base.digest != instruct.digest == digest_tensors(instruct.state_dict())
    return base.digest, instruct.digest


def sft(folder: Path, core: str, *overrides: str) -> list[str]:
    return command(
        folder, "image_sft", core, f"stage.init.image={folder / 'runs/image_pretrain'}", *overrides
    )


def test_a_swap_that_is_not_declared_is_refused_with_both_digests(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(sft(folder, "instruct", "name=undeclared")) == 2
    error = capsys.readouterr().err
    base, instruct = digests(folder)
    assert f"was trained on the core {base}, but this core is {instruct}" in error
    assert "stage.allow_core_swap=true" in error
    assert not (folder / "runs/undeclared/checkpoints").exists()


def test_without_a_swap_nothing_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(sft(folder, "base", "name=same", "stage.allow_core_swap=true", "stage.num_steps=1")) == 0
    assert "core swap" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def swapped(folder: Path) -> Path:
    assert main(sft(folder, "instruct", "stage.allow_core_swap=true", "stage.num_steps=30")) == 0
    return folder / "runs/image_sft"


def test_a_declared_swap_trains_is_told_and_recorded(
    folder: Path, swapped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, instruct = digests(folder)
    state = read_state(find_checkpoint(swapped))
    assert [(entry["stage"], entry["core"]) for entry in state["lineage"]] == [
        ("image_pretrain", base),
        ("image_sft", instruct),
    ]
    summary = json.loads((swapped / "summary.json").read_text("utf-8"))
    (core,) = (row for row in summary["freeze"] if row["group"] == "core")
    assert summary["core"] == instruct and core["unchanged"] and not core["trained"]
    # The same command goes on, on the instruct core, and tells of the swap again.
    assert main(sft(folder, "instruct", "stage.allow_core_swap=true", "stage.num_steps=31")) == 0
    told = capsys.readouterr().err
    run = folder / "runs/image_pretrain"
    assert f"core swap, as declared: {run} was trained on the core {base} and goes on on {instruct}" in told
    assert "continuing after step 30 of 31" in told
    assert len(read_state(find_checkpoint(swapped))["lineage"]) == 2


def test_the_finetuned_adapter_answers_on_the_instruct_core_only(
    folder: Path, swapped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, instruct = digests(folder)
    asked = ["ask", "--adapter", str(swapped), "--dtype", "float32", "--max-new-tokens", "5"]
    for number, colour in enumerate(("red", "blue")):
        question = [str(folder / f"{number}.png"), "Which colour?"]
        assert main([*asked, "--core", str(folder / "instruct"), *question]) == 0
        assert capsys.readouterr().out.strip() == colour
        assert main([*asked, "--core", str(folder / "base"), *question]) == 2
        error = capsys.readouterr().err
        assert f"was trained on the core {instruct}, but this core is {base}" in error


def test_it_is_continued_on_the_instruct_core_only(
    folder: Path, swapped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, instruct = digests(folder)
    declared = ("stage.allow_core_swap=true", "stage.num_steps=32")
    assert main(sft(folder, "base", *declared)) == 2
    assert "was begun with another config: core.source=" in capsys.readouterr().err
    # Not even a declared swap lets a run go on in its middle on another core.
    assert main(sft(folder, "base", *declared, f"stage.resume={swapped}", "name=elsewhere")) == 2
    error = capsys.readouterr().err
    assert f"was trained on the core {instruct}, but this core is {base}" in error
