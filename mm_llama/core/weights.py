"""Load a core from whatever form its checkpoint has: a Hugging Face folder, Meta's folder, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mm_llama.core.digest import digest_tensors
from mm_llama.core.identity import remembered
from mm_llama.core.llama import Llama
from mm_llama.core.stored import Checkpoint, filled_core, listed

if TYPE_CHECKING:
    from mm_llama.core.tokenizer import Tokenizer


@dataclass
class LoadedCore:
    """A core with what it needs to talk; the tokenizer is None where the checkpoint has none."""

    core: Llama
    tokenizer: Tokenizer | None
    chat: str  # "llama3", "chatml" or "plain"


def load_core(
    path: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    tokenizer_path: str | Path | None = None,
) -> LoadedCore:
    """Load a checkpoint of any of the three forms in `dtype` (None: as stored), tensor by tensor.

    `core.digest` is that of the tensors as stored, so it does not depend on `dtype`. Raises FileNotFoundError
    where there is nothing, ValueError where it is no checkpoint of the architecture, naming what differs.
    """
    checkpoint = open_checkpoint(path, tokenizer_path=tokenizer_path)
    tokenizer = load_vocabulary(checkpoint)
    core = filled_core(checkpoint.config, checkpoint.tensors, dtype=dtype, device=device)
    core.digest = digest_of(checkpoint)
    return LoadedCore(core, tokenizer, checkpoint.chat)


def open_checkpoint(path: str | Path, *, tokenizer_path: str | Path | None = None) -> Checkpoint:
    """Find out which form a checkpoint has, check it, and return it unread; errors as in `load_core`."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder; a checkpoint was expected")
    if path.is_file():
        checkpoint = _open_file(path)
    elif (path / "config.json").is_file() and not _only_meta(path):
        from mm_llama.core.huggingface import open_huggingface

        checkpoint = open_huggingface(path)
    elif (path / "params.json").is_file():
        from mm_llama.core.meta import open_meta

        checkpoint = open_meta(path)
    else:
        checkpoint = _open_file(_only_gguf(path))
    if tokenizer_path is not None:
        checkpoint = replace(checkpoint, tokenizer_path=Path(tokenizer_path).expanduser())
    return checkpoint


def load_vocabulary(checkpoint: Checkpoint) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint, or None; ValueError if the core lacks rows for its ids."""
    if checkpoint.tokenizer_path is None:
        return None
    from mm_llama.core.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer_path)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise ValueError(
            f"{checkpoint.tokenizer_path}: the tokenizer has {tokenizer.vocab_size} ids, but the core's "
            f"table has {checkpoint.config.vocab_size} rows; this is the tokenizer of another model"
        )
    return tokenizer


def digest_of(checkpoint: Checkpoint) -> str:
    """Return the digest of the tensors as stored, under the core's names; NaN or infinity is refused.

    Remembered by the files' paths, sizes and times, so that a large checkpoint is hashed once.
    """
    if checkpoint.digest:
        return checkpoint.digest
    return remembered("core digest 1", checkpoint.files, lambda: digest_tensors(checkpoint.tensors.finite()))


def _open_file(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        from mm_llama.core.gguf import open_gguf

        return open_gguf(path)
    if path.suffix in (".safetensors", ".pth", ".json"):
        raise ValueError(f"{path}: name the folder that holds it, {path.parent}, not one file of it")
    raise ValueError(f"{path}: not a GGUF file; a checkpoint is a .gguf file or a folder")


def _only_meta(folder: Path) -> bool:
    """True for Meta's files beside a config.json that has no weights of its own form."""
    return (
        (folder / "params.json").is_file()
        and any(folder.glob("consolidated*.pth"))
        and not any(folder.glob("*.safetensors"))
    )


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(
            f"{folder}: {len(files)} GGUF files ({listed(file.name for file in files)}); name one of them"
        )
    seen = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    raise ValueError(
        f"{folder}: no checkpoint: expected config.json with safetensors (Hugging Face), params.json with "
        f"consolidated.NN.pth (Meta) or one .gguf file; it holds {listed(seen, 8) or 'nothing'}"
    )
