"""A published checkpoint under the core's own tensor names; a tensor is read only when it is asked for.

Each format (Hugging Face, Meta, GGUF) says where its tensors lie. Here their names, shapes and dtypes are
held against the core, every difference in one error, and then copied one by one into a core that was built on
the meta device: peak memory is the model itself and one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mm_llama.core.llama import Llama, LlamaConfig

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its published name, what it is, and how to read it."""

    published: str
    shape: Shape
    dtype: torch.dtype
    read: Callable[[], Tensor]
    file: Path | None = None  # where it is whole in one


class StoredTensors(Mapping[str, Tensor]):
    """The core's tensor names mapped to the tensors as stored; every access reads the file anew."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def finite(self) -> StoredTensors:
        """Return the same tensors, each refused when it is read and holds NaN or infinity."""
        return StoredTensors(
            {name: replace(entry, read=partial(_finite, entry)) for name, entry in self.entries.items()}
        )

    def cast(self, dtype: torch.dtype) -> StoredTensors:
        """Return the same tensors in another dtype."""
        return StoredTensors(
            {
                name: replace(entry, dtype=dtype, read=partial(_cast, entry, dtype))
                for name, entry in self.entries.items()
            }
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has passed its checks, nothing of it read yet."""

    form: str  # "Hugging Face", "Meta" or "GGUF"
    config: LlamaConfig
    tensors: StoredTensors
    files: tuple[Path, ...]  # what its digest depends on
    chat: str  # "llama3", "chatml" or "plain"
    tokenizer_path: Path | None
    digest: str = ""  # where it is already known


@dataclass(frozen=True)
class Names:
    """What a format calls the core's tensors."""

    layers: str  # what stands before the layer number
    parts: Mapping[str, str]  # the core's name without "layers.N." and ".weight" -> theirs

    def of(self, name: str) -> str:
        """Return the published name of a tensor of the core."""
        stem = name.removesuffix(".weight")
        if not stem.startswith("layers."):
            return f"{self.parts[stem]}.weight"
        _, index, part = stem.split(".", 2)
        return f"{self.layers}{index}.{self.parts[part]}.weight"


@contextmanager
def blank() -> Iterator[None]:
    """Build modules on the meta device: every shape, nothing allocated, nothing drawn."""
    try:
        with torch.device("meta"), _NoInitialisation():
            yield
    except (RuntimeError, OverflowError) as error:  # a tensor of more elements than there are numbers for
        raise ValueError(f"there can be no model of these sizes: {str(error).splitlines()[0]}") from None


def blank_core(config: LlamaConfig) -> Llama:
    """Return a core on the meta device."""
    with blank():
        return Llama(config)


def core_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """Return the name and shape of every tensor of a core."""
    return {name: tuple(weight.shape) for name, weight in blank_core(config).named_parameters()}


def check_depth(config: LlamaConfig, found: Sized, where: Path | str) -> None:
    """Raise ValueError for more layers than there are tensors, before a module is made for each of them."""
    if config.num_layers > len(found):
        raise ValueError(
            f"{where}: asks for {config.num_layers:,} layers, but the checkpoint holds {len(found):,} tensors"
        )


def check_tensors(
    where: str,
    *,
    expected: Mapping[str, Shape],
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, torch.dtype],
    asked_by: str,
) -> None:
    """Raise one ValueError that names every missing, unknown, mis-shaped or non-float tensor.

    All names are the published ones; `asked_by` is the file that the expected shapes come from.
    """
    problems = []
    missing = [name for name in expected if name not in shapes]
    if missing:
        problems.append(f"{counted(missing, 'tensor is', 'tensors are')} missing: {listed(missing)}")
    unknown = [name for name in shapes if name not in expected]
    if unknown:
        problems.append(f"{counted(unknown, 'tensor is', 'tensors are')} unknown: {listed(unknown)}")
    wrong = [
        f"{name} is {list(shapes[name])} where {asked_by} asks for {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != tuple(shape)
    ]
    if wrong:
        problems.append(f"{counted(wrong, 'tensor is', 'tensors are')} of the wrong shape: {listed(wrong)}")
    quantised = [
        f"{name} ({str(dtypes[name]).removeprefix('torch.')})"
        for name in expected
        if name in dtypes and dtypes[name] not in FLOATS
    ]
    if quantised:
        problems.append(
            f"{counted(quantised, 'tensor is', 'tensors are')} not stored as float32, bfloat16, float16 or float64 "
            f"(quantised checkpoints are read as GGUF only): {listed(quantised)}"
        )
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return up to `most` names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(things: Sized, one: str, many: str) -> str:
    """Return how many there are, in words that agree with the number."""
    return f"{len(things)} {one if len(things) == 1 else many}"


def filled_core(
    config: LlamaConfig,
    tensors: StoredTensors,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> Llama:
    """Return a core that holds `tensors` in `dtype` (None: each as stored), read one at a time."""
    core = blank_core(config)
    fill(core, tensors, dtype=dtype, device=device)
    return core


def fill(
    module: nn.Module,
    tensors: StoredTensors,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Put `tensors`, which are all that a blank module lacks, into it in `dtype` (None: each as stored)."""
    # All are allocated before one is read: what reading needs for a moment would lie between them otherwise,
    # and leave holes half the size of the model.
    for name, entry in tensors.entries.items():
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        empty = torch.empty(entry.shape, dtype=dtype or entry.dtype, device=device)
        setattr(part, leaf, empty if leaf in part._buffers else nn.Parameter(empty))
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            tensor.copy_(tensors[name])


def half_split(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder q or k rows from interleaved rotary pairs (2i, 2i+1) to half-split pairs (i, i + d/2)."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _finite(entry: Entry) -> Tensor:
    tensor = entry.read()
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{entry.published} holds NaN or infinity: the checkpoint is damaged")
    return tensor


def _cast(entry: Entry, dtype: torch.dtype) -> Tensor:
    return entry.read().to(dtype)


class _NoInitialisation(TorchFunctionMode):
    """Leave out `torch.nn.init`: on the meta device it draws nothing but imports torch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
