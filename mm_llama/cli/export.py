"""`mm-llama export CORE OUT`: a core, and adapters if asked, as one Hugging Face folder."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_llama.cli.parser import Parser
from mm_llama.released.detect import is_vision

if TYPE_CHECKING:
    from mm_llama.core.stored import StoredTensors

DTYPES = ("stored", "float32", "bfloat16", "float16")


def main(argv: list[str]) -> int:
    """Parse the arguments, write the folder, say what is in it."""
    parser = Parser(
        prog="mm-llama export",
        description="Write a core, or a vision checkpoint whole, as a Hugging Face folder that transformers and "
        "mm-llama load.",
    )
    parser.add_argument("core", metavar="CORE", help="a core's name (smollm2_135m) or a checkpoint's path")
    parser.add_argument(
        "--adapters",
        metavar="RUN",
        action="append",
        default=[],
        help="also put this run's newest checkpoint into OUT/adapters; may be given again",
    )
    add_arguments(parser)
    options = parser.parse_args(argv)
    source = core_path(options.core)
    return write(source, options, adapters=options.adapters)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what exporting and importing share."""
    parser.add_argument("out", metavar="OUT", type=Path, help="a new or empty folder")
    parser.add_argument("--dtype", choices=DTYPES, default="stored", help="default: as stored")
    parser.add_argument("--shard-gb", type=float, default=5.0, metavar="GB", help="largest file (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def core_path(name: str) -> Path:
    """Return the checkpoint that a core's config names, or the path itself."""
    from mm_llama.paths import conf_dir

    path = Path(name).expanduser()
    config = conf_dir() / "core" / f"{name}.yaml"
    if path.exists() or not config.is_file():
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in config.parent.glob("*.yaml")))
            raise ValueError(f"core {name!r} is neither an existing path nor a known name ({known})")
        return path
    from omegaconf import OmegaConf

    from mm_llama.build import resolve_source

    source = OmegaConf.select(OmegaConf.load(config), "source")
    if source is None or source == "random":
        what = "numbers only" if source is None else "random weights"
        raise ValueError(f"core {name!r} is {what}, with no checkpoint to export; name a checkpoint's path")
    return resolve_source(str(source))


def write(
    source: str | Path,
    options: argparse.Namespace,
    *,
    adapters: Sequence[str] = (),
    tokenizer: str | None = None,
    chat: str | None = None,
) -> int:
    """Write `source` as a Hugging Face folder at `options.out`, whole or not at all."""
    if not options.shard_gb > 0:
        raise ValueError(f"--shard-gb is {options.shard_gb}; expected a size above 0")
    import torch

    from mm_llama.core.export import staged_folder

    opened: _Text | _Vision = (_Vision if is_vision(source) else _Text)(source, tokenizer)
    checkpoint = opened.checkpoint
    tensors = checkpoint.tensors.finite()
    if options.dtype != "stored":
        tensors = tensors.cast(getattr(torch, options.dtype))
    with staged_folder(options.out) as folder:
        digest = opened.write(
            tensors, folder, chat=chat or checkpoint.chat, shard_bytes=int(options.shard_gb * 1e9)
        )
        names = [_copy_adapter(run, folder, digest) for run in adapters]
        files = list(folder.glob("*.safetensors"))
        report: dict[str, Any] = {
            "source": str(source),
            "form": checkpoint.form,
            "out": str(options.out),
            "parameters": sum(math.prod(entry.shape) for entry in tensors.entries.values()),
            "dtypes": sorted({str(e.dtype).removeprefix("torch.") for e in tensors.entries.values()}),
            "weight_files": len(files),
            "weight_bytes": sum(file.stat().st_size for file in files),
            "tokenizer": (folder / "tokenizer.json").is_file(),
            "chat": chat or checkpoint.chat,
            "digest": digest,
            "adapters": names,
        }
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    size = f"{report['weight_bytes'] / 1e6:.0f} MB in {len(files)} file{'s' * (len(files) != 1)}"
    print(f"{options.out}: {report['parameters'] / 1e6:.1f}M parameters from a {checkpoint.form} checkpoint")
    print(f"weights   {' and '.join(report['dtypes'])}, {size}")
    print(f"tokenizer {'written' if report['tokenizer'] else 'none'}; chat format {report['chat']}")
    print(f"digest    {digest}")
    for name in names:
        print(f"adapter   {name}")
    return 0


class _Text:
    """A plain checkpoint on its way to a folder."""

    def __init__(self, source: str | Path, tokenizer: str | None) -> None:
        from mm_llama.core.weights import load_vocabulary, open_checkpoint

        self.checkpoint = open_checkpoint(source, tokenizer_path=tokenizer)
        self.tokenizer = load_vocabulary(self.checkpoint)

    def write(self, tensors: StoredTensors, folder: Path, **options: Any) -> str:
        from mm_llama.core.export import write_huggingface

        return write_huggingface(self.checkpoint.config, tensors, self.tokenizer, folder, **options)


class _Vision:
    """A vision checkpoint on its way to a folder, whole."""

    def __init__(self, source: str | Path, tokenizer: str | None) -> None:
        from mm_llama.released.load import open_vision, vision_vocabulary

        self.checkpoint = open_vision(source, tokenizer_path=tokenizer)
        self.tokenizer = vision_vocabulary(self.checkpoint)

    def write(self, tensors: StoredTensors, folder: Path, **options: Any) -> str:
        from mm_llama.released.export import write_vision

        return write_vision(replace(self.checkpoint, tensors=tensors), self.tokenizer, folder, **options)


def _copy_adapter(run: str, folder: Path, digest: str) -> str:
    """Copy a run's newest checkpoint to `folder`/adapters and return its name there."""
    from mm_llama.core.documents import read_json
    from mm_llama.stages.checkpoint_files import find_checkpoint, read_state

    found = find_checkpoint(run)
    core = read_state(found)["core"]
    if core != digest:
        raise ValueError(
            f"--adapters {run}: trained on the core {core}, but this core is {digest}; export the core it "
            "was trained on, with --dtype stored"
        )
    target = folder / "adapters" / Path(run).resolve().name
    if target.exists():
        raise ValueError(
            f"--adapters {run}: there is already one named {target.name}; rename one of the runs"
        )
    # What the manifest lists and no more: a link among them is its writer's choice of what of yours is handed on.
    into = target / "checkpoints" / found.name
    into.mkdir(parents=True)
    for name in (*read_json(found / "MANIFEST.json")["files"], "MANIFEST.json"):
        if Path(name).name != name:
            raise ValueError(
                f"--adapters {run}: its manifest lists {name!r}, which is no file of that folder"
            )
        shutil.copyfile(found / name, into / name)
    return f"adapters/{target.name}"
