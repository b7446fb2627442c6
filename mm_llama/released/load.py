"""Load a released vision checkpoint: the whole model, or its text core alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mm_llama.core.llama import Llama
from mm_llama.core.stored import StoredTensors, fill, filled_core
from mm_llama.core.weights import LoadedCore, digest_of
from mm_llama.modality import CrossAttended
from mm_llama.released.checkpoint import TOWER_KEYS, VisionCheckpoint, blank_model, part_of
from mm_llama.released.detect import vision_form
from mm_llama.released.names import ADAPTER, CORE, ENCODER, EXTRA_ROWS

if TYPE_CHECKING:
    from mm_llama.core.tokenizer import Tokenizer


def open_vision(path: str | Path, *, tokenizer_path: str | Path | None = None) -> VisionCheckpoint:
    """Check a vision checkpoint of either form and return it unread; ValueError where it is none."""
    folder = Path(path).expanduser()
    form = vision_form(folder)
    if form == "Hugging Face":
        from mm_llama.released.huggingface import open_vision_huggingface

        checkpoint = open_vision_huggingface(folder)
    elif form == "Meta":
        from mm_llama.released.meta import open_vision_meta

        checkpoint = open_vision_meta(folder)
    else:
        raise ValueError(
            f"{folder}: no vision checkpoint: expected config.json of model_type 'mllama' with safetensors (Hugging "
            "Face), or params.json with vision_chunk_size and consolidated.NN.pth (Meta)"
        )
    if tokenizer_path is not None:
        checkpoint = replace(checkpoint, tokenizer_path=Path(tokenizer_path).expanduser())
    return checkpoint


def load_vision(
    path: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    tokenizer_path: str | Path | None = None,
) -> tuple[LoadedCore, CrossAttended]:
    """Load a vision checkpoint in `dtype` (None: as stored), tensor by tensor: its core, and its image modality.

    The digests of core and tower are those of the tensors as stored, whatever `dtype` and form: the core's is that
    of the same weights in a plain checkpoint. Errors as in `open_vision`.
    """
    checkpoint = open_vision(path, tokenizer_path=tokenizer_path)
    tokenizer = vision_vocabulary(checkpoint)
    model = blank_model(checkpoint.sizes)
    modality: CrossAttended = model.modality["image"]
    fill(model.core, StoredTensors(part_of(checkpoint.tensors, CORE)), dtype=dtype, device=device)
    _fill_modality(modality, checkpoint, dtype, device)
    model.core.digest = digest_of(checkpoint.text())
    return LoadedCore(model.core, tokenizer, checkpoint.chat), modality


def load_text_core(
    path: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    tokenizer_path: str | Path | None = None,
) -> LoadedCore:
    """Load the text core of a vision checkpoint alone, as `load_core` loads a plain one."""
    checkpoint = open_vision(path, tokenizer_path=tokenizer_path)
    tokenizer = vision_vocabulary(checkpoint)
    text = checkpoint.text()
    core = filled_core(text.config, text.tensors, dtype=dtype, device=device)
    core.digest = digest_of(text)
    return LoadedCore(core, tokenizer, checkpoint.chat)


def vision_vocabulary(checkpoint: VisionCheckpoint) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint, or None; ValueError if the core lacks rows for its ids.

    The hub's tokenizers name the picture's placeholder, which stands behind the core's rows; no text encodes to it.
    """
    if checkpoint.tokenizer_path is None:
        return None
    from mm_llama.core.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer_path)
    rows = checkpoint.sizes.core.vocab_size
    behind = set(range(rows, tokenizer.vocab_size)) - set(tokenizer.specials.values())
    if tokenizer.vocab_size > rows + EXTRA_ROWS or behind:
        raise ValueError(
            f"{checkpoint.tokenizer_path}: the tokenizer has {tokenizer.vocab_size} ids, but the core's table has "
            f"{rows} rows and {EXTRA_ROWS} for pictures; this is the tokenizer of another model"
        )
    return tokenizer


def load_modality(
    path: str | Path,
    core: Llama,
    *,
    encoder: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    allow_core_swap: bool = False,
) -> CrossAttended:
    """Load the image modality of a vision checkpoint for a core that is there already.

    Raises ValueError for a core of other weights, naming both digests, unless `allow_core_swap`; and where the
    checkpoint's numbers are not those of `encoder`, a config.
    """
    checkpoint = open_vision(path)
    sizes = checkpoint.sizes
    differing = [
        f"{key}={encoder[key]} (checkpoint: {sizes.tower[key]})"
        for key in TOWER_KEYS
        if encoder is not None and key in encoder and _plain(encoder[key]) != _plain(sizes.tower[key])
    ]
    if differing:
        raise ValueError(f"modality.image.encoder does not describe {path}: {', '.join(differing)}")
    if sizes.core.dim != core.config.dim or sizes.core.num_layers != core.config.num_layers:
        raise ValueError(
            f"{path} is for a core of {sizes.core.num_layers} layers of width {sizes.core.dim}, but this core has "
            f"{core.config.num_layers} of width {core.config.dim}"
        )
    own = digest_of(checkpoint.text())
    if own != core.digest and not allow_core_swap:
        raise ValueError(
            f"{path} was trained on the core {own}, but this core is {core.digest}: load the core it was trained on, "
            "or declare the swap with stage.allow_core_swap=true"
        )
    modality: CrossAttended = blank_model(sizes).modality["image"]
    _fill_modality(modality, checkpoint, dtype, device)
    return modality


def _fill_modality(
    modality: CrossAttended,
    checkpoint: VisionCheckpoint,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    checked = checkpoint.tensors.finite()
    fill(modality.adapter, StoredTensors(part_of(checked, ADAPTER)), dtype=dtype, device=device)
    # As stored first: the tower's digest is of these, and a cast does not change it.
    fill(modality.encoder, StoredTensors(part_of(checked, ENCODER)), dtype=None, device=device)
    modality.encoder.digest  # noqa: B018
    if dtype is not None:
        modality.encoder.to(dtype)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
