"""Hugging Face folders, and finding out what a path is: what loads, what it equals, what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm_llama.core.digest import digest_tensors
from mm_llama.core.huggingface import config_from_json, config_to_json
from mm_llama.core.identity import cache_folder, remembered
from mm_llama.core.llama import Llama, LlamaConfig, RopeScaling
from mm_llama.core.weights import load_core, open_checkpoint
from mm_llama.paths import cache_dir

pytestmark = pytest.mark.usefixtures("own_cache")


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def edit_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({key: v for key, v in {**data, **changes}.items() if v is not ...}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_old_and_new_form_of_rotary_settings_mean_the_same(hf_folder: Path) -> None:
    new = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    new["original_max_position_embeddings"] = 64
    edit_json(hf_folder / "config.json", rope_parameters={**new, "rope_theta": 250000.0})
    in_new_form = load_core(hf_folder).core.config
    edit_json(hf_folder / "config.json", rope_parameters=..., rope_theta=250000.0, rope_scaling=new)
    assert load_core(hf_folder).core.config == in_new_form
    assert in_new_form.rope_base == 250000.0
    assert in_new_form.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)


def test_old_spelling_of_the_rope_type_is_read(hf_folder: Path) -> None:
    scaling = {"type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    edit_json(hf_folder / "config.json", rope_parameters=..., rope_scaling=scaling)
    config = load_core(hf_folder).core.config
    # What is left out falls back as it does in transformers: base 10,000 and the context itself.
    assert (config.rope_base, config.rope_scaling) == (10000.0, RopeScaling(32.0, 1.0, 4.0, 512))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_in_the_dtype_asked_for(hf_folder: Path, dtype: torch.dtype) -> None:
    stored = load_file(hf_folder / "model.safetensors")
    core = load_core(hf_folder, dtype=dtype).core
    assert {weight.dtype for weight in core.parameters()} == {dtype}
    assert torch.equal(core.head.weight, stored["lm_head.weight"].to(dtype))
    assert torch.equal(
        core.layers[1].feed_forward.down.weight, stored["model.layers.1.mlp.down_proj.weight"].to(dtype)
    )


def test_stored_dtype_is_kept_when_none_is_asked_for(hf_folder: Path) -> None:
    edit_weights(hf_folder, lambda w: w.update({"lm_head.weight": w["lm_head.weight"].bfloat16()}))
    core = load_core(hf_folder, dtype=None).core
    assert core.head.weight.dtype == torch.bfloat16
    assert core.embedding.weight.dtype == torch.float32


def test_digest_is_of_the_tensors_as_stored_whatever_the_dtype(hf_folder: Path) -> None:
    core = load_core(hf_folder).core
    assert core.digest == digest_tensors(core.state_dict())
    assert load_core(hf_folder, dtype=torch.bfloat16).core.digest == core.digest
    edit_weights(hf_folder, lambda w: w["model.norm.weight"][3].add_(1e-6))
    assert load_core(hf_folder).core.digest != core.digest


def test_digest_is_remembered_until_a_file_changes(hf_folder: Path, own_cache: Path) -> None:
    digest = load_core(hf_folder).core.digest
    (record,) = (own_cache / "digests").iterdir()
    record.write_text(json.dumps({"value": "sha256:from the record"}))
    assert load_core(hf_folder).core.digest == "sha256:from the record"
    (hf_folder / "config.json").touch()
    assert load_core(hf_folder).core.digest == digest
    for record in (own_cache / "digests").iterdir():
        record.write_text("{")
    assert load_core(hf_folder).core.digest == digest


def test_a_cache_that_cannot_be_written_costs_only_time(
    hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "file" / "cache"))
    assert load_core(hf_folder).core.digest.startswith("sha256:")


def test_cache_folder_is_the_one_of_the_rest_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache_dir()
    for value in ("", "~/elsewhere"):
        monkeypatch.setenv("MM_LLAMA_CACHE", value)
        assert cache_folder() == cache_dir()


def test_remembered_asks_once(tmp_path: Path) -> None:
    asked = []
    (tmp_path / "a").write_text("a")

    def compute() -> str:
        asked.append(1)
        return f"answer {len(asked)}"

    assert [remembered("x", [tmp_path / "a"], compute) for _ in range(3)] == ["answer 1"] * 3
    assert remembered("y", [tmp_path / "a"], compute) == "answer 2"
    (tmp_path / "a").write_text("ab")
    assert remembered("x", [tmp_path / "a"], compute) == "answer 3"


def test_sharded_folder_equals_the_single_file(
    transformers_llama: Callable[..., Any], hf_folder: Path, tmp_path: Path
) -> None:
    transformers_llama("llama3").save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    single, sharded = load_core(hf_folder).core, load_core(tmp_path / "sharded").core
    assert same(single.state_dict(), sharded.state_dict())
    assert single.digest == sharded.digest


def test_mistral_without_a_window_is_the_same_network(hf_folder: Path) -> None:
    ours = load_core(hf_folder).core
    edit_json(
        hf_folder / "config.json",
        model_type="mistral",
        architectures=["MistralForCausalLM"],
        sliding_window=None,
    )
    assert same(load_core(hf_folder).core.state_dict(), ours.state_dict())
    edit_json(hf_folder / "config.json", sliding_window=...)
    with pytest.raises(ValueError, match="sliding_window is missing; model_type 'mistral'"):
        load_core(hf_folder)


def test_inverse_frequencies_of_old_folders_are_left_out(hf_folder: Path) -> None:
    before = load_core(hf_folder).core
    edit_weights(
        hf_folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    after = load_core(hf_folder).core
    assert same(before.state_dict(), after.state_dict())
    assert before.digest == after.digest


def test_a_tied_folder_may_repeat_its_head_but_not_change_it(
    transformers_llama: Callable[..., Any], tmp_path: Path
) -> None:
    transformers_llama("llama3_2").save_pretrained(tmp_path)
    digest = load_core(tmp_path).core.digest
    edit_weights(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert load_core(tmp_path).core.digest == digest
    edit_weights(tmp_path, lambda w: w["lm_head.weight"][0, 0].add_(1))
    with pytest.raises(ValueError, match="says tie_word_embeddings, but lm_head.weight differs from"):
        load_core(tmp_path)


def drop_layer(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if ".layers.2." in name]:
        del weights[name]


BROKEN_WEIGHTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda w: w.pop("model.norm.weight"), "1 tensor is missing: model.norm.weight$"),
    "many missing": (drop_layer, r"9 tensors are missing: model\.layers\.2\..*(, .*){4} and 4 more$"),
    "unknown": (
        lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
        "1 tensor is unknown: model.layers.0.self_attn.q_proj.bias$",
    ),
    "wrong shape": (
        lambda w: w.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(159, 64)}),
        r"1 tensor is of the wrong shape: model.layers.1.mlp.up_proj.weight is \[159, 64\] where config.json "
        r"asks for \[160, 64\]$",
    ),
    "quantised": (
        lambda w: w.update({"lm_head.weight": w["lm_head.weight"].to(torch.float8_e4m3fn)}),
        r"1 tensor is not stored as float32, .* read as GGUF only\): lm_head.weight \(float8_e4m3fn\)$",
    ),
    "not finite": (
        lambda w: w["model.norm.weight"][0].fill_(float("nan")),
        "model.norm.weight holds NaN or infinity: the checkpoint is damaged",
    ),
}


@pytest.mark.parametrize("case", BROKEN_WEIGHTS)
def test_broken_weights_are_named(case: str, hf_folder: Path) -> None:
    edit, message = BROKEN_WEIGHTS[case]
    edit_weights(hf_folder, edit)
    with pytest.raises(ValueError, match=message):
        load_core(hf_folder)


def test_one_error_names_every_difference(hf_folder: Path) -> None:
    def edit(weights: dict[str, Tensor]) -> None:
        weights["model.extra"] = torch.zeros(1)
        weights["lm_head.weight"] = torch.zeros(2, 2)
        del weights["model.norm.weight"]

    edit_weights(hf_folder, edit)
    with pytest.raises(
        ValueError, match="missing: .*; 1 tensor is unknown: .*; 1 tensor is of the wrong shape: "
    ):
        load_core(hf_folder)


def test_a_tensor_in_two_shards_is_named(transformers_llama: Callable[..., Any], tmp_path: Path) -> None:
    transformers_llama("llama3").save_pretrained(tmp_path, max_shard_size="100KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    save_file({**load_file(second), name: load_file(first)[name]}, second)
    with pytest.raises(
        ValueError, match=rf"1 tensor is in more than one file: {name} \({first.name}, {second.name}\)"
    ):
        load_core(tmp_path)


def test_an_absent_shard_is_named(transformers_llama: Callable[..., Any], tmp_path: Path) -> None:
    transformers_llama("llama3").save_pretrained(tmp_path, max_shard_size="100KB")
    first = min(tmp_path.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(ValueError, match=f"lists 1 file that is not there: {first.name}"):
        load_core(tmp_path)


def test_an_index_cannot_point_outside_its_folder(hf_folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../hf/model.safetensors"}}
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="weight_map points outside the folder: ../hf/model.safetensors"):
        load_core(hf_folder)
    (hf_folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json: no weight_map in it"):
        load_core(hf_folder)


def test_a_truncated_file_is_named(hf_folder: Path) -> None:
    weights = hf_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
        load_core(hf_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused_unopened(hf_folder: Path, name: str) -> None:
    (hf_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor model.safetensors.index.json"):
        load_core(hf_folder)
    (hf_folder / name).write_bytes(b"never read")
    with pytest.raises(
        ValueError, match=rf"only pickled weights \({name}\), .* refused; .*safe_serialization=True"
    ):
        load_core(hf_folder)


BROKEN_CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        r"model_type is 'qwen3' \(Qwen3ForCausalLM\); the core reads the Llama architecture",
    ),
    "no type": ({"model_type": ...}, "model_type is None"),
    "attention bias": (
        {"attention_bias": True},
        "attention_bias is True.*the Llama architecture has no biases",
    ),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias is True.*no biases"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*SwiGLU"),
    "window": (
        {"sliding_window": 4096},
        "sliding_window is 4096.*every position attends to all earlier ones",
    ),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config is .*read as GGUF only"),
    "rope type": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'.*'default' and 'llama3'"),
    "rope keys": (
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        "rope_type 'llama3' needs low_freq_factor, high_freq_factor beside it",
    ),
    "partial rope": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is 0.5, which the core does not have: rotary positions cover the whole head",
    ),
    "missing": ({"hidden_size": ...}, "config.json: hidden_size is missing"),
    "not a number": (
        {"num_hidden_layers": "3"},
        "num_hidden_layers is '3'; expected a positive whole number",
    ),
    "heads": ({"num_key_value_heads": 3}, "core.num_heads is 4, which core.num_kv_heads=3 does not divide"),
}


@pytest.mark.parametrize("case", BROKEN_CONFIG)
def test_configs_that_the_core_cannot_be_are_named(case: str, hf_folder: Path) -> None:
    changes, message = BROKEN_CONFIG[case]
    edit_json(hf_folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load_core(hf_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": 1,\n}', r"config.json:3: not JSON"),
        ("[1]", "config.json: expected a JSON object, found list"),
        (b"\xff\xfe", "config.json: not JSON: not UTF-8 text"),
    ],
)
def test_json_that_is_none_names_file_and_line(text: str | bytes, message: str, hf_folder: Path) -> None:
    (hf_folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        load_core(hf_folder)


def test_config_survives_both_directions() -> None:
    config = LlamaConfig(
        64,
        3,
        4,
        2,
        160,
        272,
        head_dim=24,
        norm_eps=1e-6,
        rope_base=1e4,
        rope_scaling=RopeScaling(32.0),
        tied=True,
    )
    assert config_from_json(config_to_json(config), where="here") == config


# Finding out what a path is


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: there is no such file or folder"):
        load_core(tmp_path / "absent")


def test_a_folder_that_is_no_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint: expected config.json .*; it holds nothing"):
        load_core(tmp_path)
    (tmp_path / "original").mkdir()
    for number in range(8):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ValueError, match=re.escape("it holds 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt")):
        load_core(tmp_path)


def test_a_folder_with_one_gguf_file_is_that_file(
    transformers_llama: Callable[..., Any], as_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    digest = load_core(as_gguf(folder / "a.gguf", transformers_llama())).core.digest
    assert load_core(folder).core.digest == digest
    (folder / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"2 GGUF files \(a.gguf, b.gguf\); name one of them"):
        load_core(folder)


def test_a_single_file_of_a_folder_names_the_folder(hf_folder: Path) -> None:
    with pytest.raises(ValueError, match=f"name the folder that holds it, {hf_folder}"):
        load_core(hf_folder / "model.safetensors")
    (hf_folder / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="notes.txt: not a GGUF file"):
        load_core(hf_folder / "notes.txt")


def test_meta_files_beside_a_bare_config_are_read_as_metas(
    transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    folder = as_meta(transformers_llama(), tmp_path / "meta")
    (folder / "config.json").write_text("{}")
    assert open_checkpoint(folder).form == "Meta"


def test_a_tokenizer_with_more_ids_than_rows_is_refused(hf_folder: Path) -> None:
    from mm_llama.testing.bytes_tokenizer import BytesTokenizer

    BytesTokenizer().save(hf_folder)
    loaded = load_core(hf_folder)
    assert loaded.tokenizer is not None and loaded.tokenizer.encode("abc") == [97, 98, 99]
    other = hf_folder.parent / "other"
    other.mkdir()
    (other / "tokenizer.json").write_bytes((hf_folder / "tokenizer.json").read_bytes())
    edit_json(hf_folder / "config.json", vocab_size=200)
    edit_weights(
        hf_folder,
        lambda w: w.update({n: w[n][:200].clone() for n in ("lm_head.weight", "model.embed_tokens.weight")}),
    )
    with pytest.raises(ValueError, match="the tokenizer has 265 ids, but the core's table has 200 rows"):
        load_core(hf_folder)
    with pytest.raises(ValueError, match="other: the tokenizer has 265 ids"):
        load_core(hf_folder, tokenizer_path=other)


# The high-water mark of this program alone: what getrusage reports also covers the one that started it.
MEASURE = """
import sys, torch
torch.set_num_threads(1)
from mm_llama.core import gguf, huggingface, meta, weights
def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
before = peak()
core = weights.load_core(sys.argv[1], dtype=getattr(torch, sys.argv[2])).core
size = sum(weight.nbytes for weight in core.parameters())
print((peak() - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
@pytest.mark.parametrize("form", ["Hugging Face", "Meta"])
def test_peak_memory_stays_near_the_models_own_size(
    form: str,
    transformers_llama: Callable[..., Any],
    as_meta: Callable[..., Path],
    tmp_path: Path,
    own_cache: Path,
) -> None:
    wide = {"hidden_size": 1024, "intermediate_size": 2720, "num_attention_heads": 16}
    model = transformers_llama(num_hidden_layers=20, vocab_size=4096, **wide)  # 1 GB
    if form == "Meta":
        path = as_meta(model, tmp_path / "meta", 2, ffn_dim_multiplier=0.99)
    else:
        path = tmp_path / "hf"
        model.save_pretrained(path)
    del model
    for dtype, most in (("float32", 1.35), ("bfloat16", 1.45)):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), dtype], capture_output=True, text=True, check=True
        )
        assert 1.0 <= float(done.stdout) < most, f"{form} as {dtype}"


def test_a_core_built_for_loading_imports_no_compiler(hf_folder: Path) -> None:
    code = (
        "import sys\nfrom mm_llama.core.weights import load_core\n"
        f"load_core({str(hf_folder)!r})\nassert 'torch._dynamo' not in sys.modules, 'compiler imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loaded_core_computes(hf_folder: Path) -> None:
    core = load_core(hf_folder).core
    assert isinstance(core, Llama)
    core(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(weight.grad is not None for weight in core.parameters())
