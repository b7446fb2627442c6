"""Writing Hugging Face folders: bit for bit, in whole or not at all, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mm_llama.cli import main
from mm_llama.core.chat import Message, Text, chat_format
from mm_llama.core.digest import digest_tensors
from mm_llama.core.export import export_hf, staged_folder
from mm_llama.core.llama import Llama, LlamaConfig, RopeScaling
from mm_llama.core.weights import load_core
from mm_llama.model import MultimodalLlama
from mm_llama.stages.checkpoint import save_checkpoint
from mm_llama.stages.checkpoint_files import find_checkpoint
from mm_llama.stages.freeze import freeze
from mm_llama.stages.identity import identity
from mm_llama.stages.optim import adamw
from mm_llama.testing.bytes_tokenizer import BytesTokenizer

pytestmark = pytest.mark.usefixtures("own_cache")

CONFIG = LlamaConfig(
    64, 3, 4, 2, 160, 272, rope_scaling=RopeScaling(8.0, original_context=64), max_context=512
)


def random_core(config: LlamaConfig = CONFIG, seed: int = 0) -> Llama:
    core = Llama(config)
    core.init_weights(seed)
    core.digest = digest_tensors(core.state_dict())
    return core


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("family", ["llama3", "llama3_1", "llama3_2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_there_and_back_is_bit_equal(
    family: str, dtype: torch.dtype, transformers_llama: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    transformers_llama(family).to(dtype).save_pretrained(tmp_path / "theirs")
    loaded = load_core(tmp_path / "theirs", dtype=None)
    export_hf(loaded.core, None, tmp_path / "ours")
    theirs, ours = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == dtype for name in ours)
    assert load_core(tmp_path / "ours").core.digest == loaded.core.digest
    assert load_core(tmp_path / "ours").core.config == loaded.core.config
    before, after = (
        LlamaForCausalLM.from_pretrained(tmp_path / side, attn_implementation="eager").eval()
        for side in ("theirs", "ours")
    )
    assert before.dtype == after.dtype == dtype
    tokens_BS = torch.arange(200)[None]
    assert torch.equal(after(tokens_BS).logits, before(tokens_BS).logits)


def test_shards_hold_every_tensor_once_and_load_everywhere(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    core = random_core()
    export_hf(core, None, tmp_path / "out", shard_bytes=100_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert [file.name for file in files][0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 100_000 for file in files)
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in core.parameters())
    names = [name for file in files for name in load_file(file)]
    assert sorted(names) == sorted(index["weight_map"])
    assert all(name in load_file(tmp_path / "out" / file) for name, file in index["weight_map"].items())
    again = load_core(tmp_path / "out").core
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), core.parameters(), strict=True))
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs.lm_head.weight, core.head.weight)


def test_a_tied_core_has_no_head_in_its_folder(tmp_path: Path) -> None:
    export_hf(random_core(LlamaConfig(64, 2, 4, 2, 160, 272, tied=True)), None, tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_the_card_names_the_digest_that_adapters_name(tmp_path: Path) -> None:
    core = random_core()
    export_hf(core, None, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`{core.digest}`" in card
    assert "library_name: transformers" in card


def test_others_may_read_what_the_folder_shows(tmp_path: Path) -> None:
    export_hf(random_core(), None, tmp_path / "out")
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("chat", ["llama3", "chatml"])
def test_template_and_chat_format_give_the_same_tokens(chat: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = BytesTokenizer()
    export_hf(random_core(), ours, tmp_path / "out", chat=chat)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    dialog = [
        ("system", "Be brief."),
        ("user", "What is 2 + 2?\n\nAnd 3?"),
        ("assistant", "Let me look."),
        ("ipython", "4"),
        ("assistant", "4"),
        ("user", "Thanks, été 👋"),
    ]
    rendered = chat_format(chat, ours).render(
        [Message(role, (Text(text),)) for role, text in dialog], open_assistant=True
    )
    rows = [{"role": role, "content": text} for role, text in dialog]
    ids = theirs.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    assert list(ids) == rendered.tokens
    assert load_core(tmp_path / "out").chat == chat


def test_generation_stops_where_the_chat_format_stops(tmp_path: Path) -> None:
    tokenizer = BytesTokenizer()
    for chat in ("llama3", "chatml", "plain"):
        export_hf(random_core(), tokenizer, tmp_path / chat, chat=chat)
        settings = json.loads((tmp_path / chat / "generation_config.json").read_text())
        ends = settings["eos_token_id"]
        assert set(ends if isinstance(ends, list) else [ends]) == chat_format(chat, tokenizer).stop
        assert settings["bos_token_id"] == tokenizer.specials["<|begin_of_text|>"]


def test_a_folder_in_use_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="out: already there and not an empty folder; name another place"):
        export_hf(random_core(), None, tmp_path / "out")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "thesis.txt"]
    with pytest.raises(ValueError, match="thesis.txt: already there"):
        export_hf(random_core(), None, tmp_path / "out" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    export_hf(random_core(), None, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_export_that_fails_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    class Failing(BytesTokenizer):
        def save(self, folder: str | Path, *, chat_template: str | None = None) -> None:
            raise error("disk full")

    with pytest.raises(error, match="disk full"):
        export_hf(random_core(), Failing(), tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_staged_folder_appears_only_when_done(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


# The command line


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("form", ["Hugging Face", "Meta", "GGUF"])
def test_import_turns_every_form_into_the_same_folder(
    form: str,
    transformers_llama: Callable[..., Any],
    as_meta: Callable[..., Path],
    as_gguf: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = transformers_llama()
    model.save_pretrained(tmp_path / "hf")
    source = tmp_path / "hf"
    if form == "Meta":
        source = as_meta(model, tmp_path / "meta", 2)
    if form == "GGUF":
        source = as_gguf(tmp_path / "m.gguf", model)
    code, out, _ = run(capsys, "import", str(source), str(tmp_path / "out"), "--json")
    report = json.loads(out)
    assert code == 0
    assert report["form"] == form
    assert (
        report["digest"] == load_core(tmp_path / "hf").core.digest == load_core(tmp_path / "out").core.digest
    )
    assert report["dtypes"] == ["float32"] and report["tokenizer"] is False
    assert report["parameters"] == sum(weight.numel() for weight in model.parameters())
    theirs, ours = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "out")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_import_takes_a_tokenizer_and_a_chat_format_from_elsewhere(
    transformers_llama: Callable[..., Any],
    as_meta: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    BytesTokenizer().save(tmp_path / "vocabulary")
    source = as_meta(transformers_llama(), tmp_path / "meta")
    extra = ["--tokenizer", str(tmp_path / "vocabulary"), "--chat", "llama3", "--dtype", "bfloat16"]
    code, out, _ = run(capsys, "import", str(source), str(tmp_path / "out"), *extra)
    assert code == 0
    assert "from a Meta checkpoint" in out and "bfloat16" in out and "chat format llama3" in out
    loaded = load_core(tmp_path / "out", dtype=None)
    assert loaded.chat == "llama3" and loaded.tokenizer is not None
    assert loaded.core.embedding.weight.dtype == torch.bfloat16


def test_export_by_path_in_shards(
    hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, "export", str(hf_folder), str(tmp_path / "out"), "--shard-gb", "0.0002", "--json"
    )
    assert code == 0
    assert json.loads(out)["weight_files"] == len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert load_core(tmp_path / "out").core.digest == load_core(hf_folder).core.digest


def saved_run(core: Llama, folder: Path) -> Path:
    """A run folder with one real checkpoint of a stage on `core`."""
    model = MultimodalLlama(core)
    table = freeze(model, ["core.norm"])
    optimizer = adamw({"core.norm.weight": model.core.norm.weight}, lr=1e-3)
    state = {"stage": "trial", "step": 7, "train": list(table.train), "lineage": []}
    save_checkpoint(folder, model, optimizer, table, state | identity(model, table.train), {})
    return folder


def test_adapters_of_this_core_travel_with_it(
    hf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = saved_run(load_core(hf_folder).core, tmp_path / "runs" / "image")
    source, out = str(hf_folder), tmp_path / "out"
    code, text, _ = run(capsys, "export", source, str(out), "--adapters", str(run_folder))
    assert code == 0 and "adapter   adapters/image" in text
    assert find_checkpoint(out / "adapters" / "image").name == "step_00000007"
    assert load_core(out).core.digest == load_core(hf_folder).core.digest
    twice = ["--adapters", str(run_folder)] * 2
    code, _, error = run(capsys, "export", source, str(tmp_path / "other"), *twice)
    assert code == 2 and "there is already one named image" in error
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("cause", ["another core", "another dtype"])
def test_adapters_of_another_core_are_refused_with_both_digests(
    cause: str,
    transformers_llama: Callable[..., Any],
    hf_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained_on = load_core(hf_folder).core
    run_folder = saved_run(trained_on, tmp_path / "runs" / "image")
    source, extra = hf_folder, ["--dtype", "bfloat16"]
    if cause == "another core":
        source, extra = tmp_path / "second", []
        transformers_llama(seed=5).save_pretrained(source)
    code, _, error = run(
        capsys, "export", str(source), str(tmp_path / "out"), "--adapters", str(run_folder), *extra
    )
    assert code == 2
    assert f"trained on the core {trained_on.digest}, but this core is sha256:" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["export", "smollm2", "out"],
            r"core 'smollm2' is neither an existing path nor a known name \(.*tiny",
        ),
        (["export", "llama3_8b", "out"], "core 'llama3_8b' is numbers only, with no checkpoint to export"),
        (["export", "tiny", "out"], "core 'tiny' is random weights, with no checkpoint to export"),
        (["import", "nothing", "out"], "nothing: there is no such file or folder"),
        (["import", ".", "out"], "no checkpoint: expected config.json"),
        (["import", ".", "out", "--shard-gb", "0"], "--shard-gb is 0.0; expected a size above 0"),
        (["export", "hf", "out", "--adapters", "runs/none"], "runs/none does not exist"),
    ],
)
def test_mistakes_end_in_one_error_line(
    argv: list[str],
    message: str,
    hf_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(hf_folder.parent if "hf" in argv else tmp_path / "bare")
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)
    assert not Path("out").exists()
    assert not list(Path().glob(".*"))
