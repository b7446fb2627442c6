"""Meta's folders: shards joined, KV heads kept once, pickles refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_llama.core.llama import RopeScaling
from mm_llama.core.meta import config_from_params, ffn_width
from mm_llama.core.weights import load_core

pytestmark = pytest.mark.usefixtures("own_cache")


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama3", "llama3_1", "llama3_2"])
def test_meta_shards_equal_the_hugging_face_folder(
    family: str,
    num_shards: int,
    transformers_llama: Callable[..., Any],
    as_meta: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = transformers_llama(family, num_key_value_heads=4)
    model.save_pretrained(tmp_path / "hf")
    theirs = load_core(tmp_path / "hf").core
    ours = load_core(as_meta(model, tmp_path / "meta", num_shards)).core
    assert same(ours.state_dict(), theirs.state_dict())
    assert ours.digest == theirs.digest
    assert ours.config.tied == theirs.config.tied
    assert (ours.config.rope_scaling is None) == (theirs.config.rope_scaling is None)


@pytest.mark.parametrize("counted", [False, True], ids=["params_count_heads", "params_count_copies"])
def test_kv_heads_repeated_over_ranks_are_kept_once(
    counted: bool, transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    # As the 405B in 16 files: 8 ranks, 2 KV heads, each stored four times.
    model = transformers_llama(num_attention_heads=8, num_key_value_heads=2)
    model.save_pretrained(tmp_path / "hf")
    folder = as_meta(model, tmp_path / "meta", 8, **({"n_kv_heads": 8} if counted else {}))
    theirs, ours = load_core(tmp_path / "hf").core, load_core(folder).core
    assert ours.config.num_kv_heads == 2
    assert same(ours.state_dict(), theirs.state_dict())
    assert ours.digest == theirs.digest


def test_eight_ranks_with_a_kv_head_each_keep_all(
    transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    model = transformers_llama(num_attention_heads=8, num_key_value_heads=8)
    model.save_pretrained(tmp_path / "hf")
    ours = load_core(as_meta(model, tmp_path / "meta", 8)).core
    assert ours.config.num_kv_heads == 8
    assert same(ours.state_dict(), load_core(tmp_path / "hf").core.state_dict())


def test_copies_of_a_kv_head_that_differ_are_an_error(
    transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    model = transformers_llama(num_attention_heads=8, num_key_value_heads=2)
    folder = as_meta(model, tmp_path / "meta", 8)
    shard = torch.load(folder / "consolidated.05.pth", weights_only=True)
    shard["layers.1.attention.wv.weight"][0, 0] += 1
    torch.save(shard, folder / "consolidated.05.pth")
    with pytest.raises(
        ValueError, match="layers.1.attention.wv.weight: the 4 stored copies of a KV head differ"
    ):
        load_core(folder)


def test_a_head_equal_to_the_embedding_is_tied(
    transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    model = transformers_llama("llama3_2")
    folder = as_meta(model, tmp_path / "meta", 2)
    without = load_core(folder).core
    for file in folder.glob("*.pth"):
        shard = torch.load(file, weights_only=True)
        shard["output.weight"] = shard["tok_embeddings.weight"].clone()
        torch.save(shard, file)
    tied = load_core(folder).core
    assert tied.config.tied and tied.head is None
    assert tied.digest == without.digest
    shard["output.weight"][-1, -1] += 1
    torch.save(shard, file)
    assert not load_core(folder).core.config.tied


PARAMS = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "norm_eps": 1e-5}
PARAMS |= {"rope_theta": 500000.0}


@pytest.mark.parametrize(
    ("dim", "layers", "multiplier", "multiple", "width", "factor"),
    [
        (4096, 32, 1.3, 1024, 14336, 8.0),
        (8192, 80, 1.3, 4096, 28672, 8.0),
        (16384, 126, 1.2, 4096, 53248, 8.0),
        (2048, 16, 1.5, 256, 8192, 32.0),
        (3072, 28, 1.0, 256, 8192, 32.0),
    ],
)
def test_published_params_give_width_and_rope_factor(
    dim: int, layers: int, multiplier: float, multiple: int, width: int, factor: float
) -> None:
    params = {**PARAMS, "dim": dim, "n_layers": layers, "n_heads": dim // 64}
    params |= {"ffn_dim_multiplier": multiplier, "multiple_of": multiple, "use_scaled_rope": True}
    config = config_from_params(params, tied=False, where="params.json")
    assert config.ffn_dim == width
    assert config.rope_scaling == RopeScaling(factor=factor)
    assert config.max_context == 131072
    first = config_from_params({**params, "use_scaled_rope": False}, tied=False, where="params.json")
    assert (first.rope_scaling, first.max_context) == (None, 8192)


def test_ffn_width_without_a_multiplier_is_rounded_up() -> None:
    assert ffn_width(4096, None, 256) == 11008


BROKEN_PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"rope_theta": None}, "params.json: rope_theta missing; add what the model was trained with"),
    "not a number": ({"dim": "64"}, "dim is '64'; expected a positive whole number"),
    "quantised": ({"quantization_args": {"group_size": 32}}, "quantization_args is .* read as GGUF only"),
    "vision": ({"vision_chunk_size": 560}, "vision_chunk_size is 560: this is a vision checkpoint"),
    "width": (
        {"multiple_of": 256},
        r"9 tensors are of the wrong shape: .*w1.weight is \[160, 64\] where params.json",
    ),
    "layers": ({"n_layers": 4}, "9 tensors are missing: layers.3.attention_norm.weight"),
    "fewer layers": ({"n_layers": 2}, "9 tensors are unknown: layers.2."),
}


@pytest.mark.parametrize("case", BROKEN_PARAMS)
def test_params_that_do_not_fit_are_named(
    case: str, transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    changes, message = BROKEN_PARAMS[case]
    folder = as_meta(transformers_llama(), tmp_path / "meta", 2, **changes)
    with pytest.raises(ValueError, match=message):
        load_core(folder)


class Payload:
    """What a hostile pickle looks like: opening it would call a function."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched by a pickle"),))


def test_a_pickle_that_is_not_plain_tensors_is_refused(
    transformers_llama: Callable[..., Any],
    as_meta: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = as_meta(transformers_llama(), tmp_path / "meta")
    file = folder / "consolidated.00.pth"
    torch.save({"tok_embeddings.weight": Payload()}, file)
    with pytest.raises(
        ValueError, match="consolidated.00.pth: not a file of plain tensors that can be opened safely"
    ):
        load_core(folder)
    assert not (tmp_path / "touched by a pickle").exists()
    torch.save({"tok_embeddings.weight": "text"}, file)
    with pytest.raises(ValueError, match="1 entry is no tensor: tok_embeddings.weight"):
        load_core(folder)
    torch.save([torch.ones(1)], file)
    with pytest.raises(ValueError, match="expected a table of tensors, found list"):
        load_core(folder)
    file.write_bytes(b"PK not really")
    with pytest.raises(ValueError, match="consolidated.00.pth: not a file of plain tensors"):
        load_core(folder)


def test_absent_and_uneven_shards_are_named(
    transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    folder = as_meta(transformers_llama(num_key_value_heads=4), tmp_path / "meta", 4)
    shard = torch.load(folder / "consolidated.02.pth", weights_only=True)
    del shard["layers.0.attention.wo.weight"]
    torch.save(shard, folder / "consolidated.02.pth")
    with pytest.raises(
        ValueError, match="02.pth: lacks 1 tensor that its siblings have: layers.0.attention.wo.weight"
    ):
        load_core(folder)
    shard["layers.0.attention.wo.weight"] = torch.zeros(3, 16)
    torch.save(shard, folder / "consolidated.02.pth")
    with pytest.raises(
        ValueError, match=r"wo.weight: its pieces do not fit together: \[64, 16\], .*\[3, 16\]"
    ):
        load_core(folder)
    (folder / "consolidated.02.pth").unlink()
    with pytest.raises(ValueError, match="1 of 4 shards are not there: consolidated.02.pth"):
        load_core(folder)
    for file in folder.glob("*.pth"):
        file.unlink()
    with pytest.raises(ValueError, match="has params.json but no consolidated.NN.pth"):
        load_core(folder)


def test_metas_chat_models_are_known_by_their_name(
    transformers_llama: Callable[..., Any], as_meta: Callable[..., Path], tmp_path: Path
) -> None:
    assert load_core(as_meta(transformers_llama(), tmp_path / "Llama3.1-8B")).chat == "plain"
    assert load_core(as_meta(transformers_llama(), tmp_path / "Llama3.1-8B-Instruct")).chat == "llama3"
