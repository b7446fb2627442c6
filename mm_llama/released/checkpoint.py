"""A vision checkpoint that has passed its checks, and the model it fills.

What the model is made of says `conf/modality/image/llama3_2_vision.yaml`; the checkpoint's numbers replace those
of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mm_llama.build import build
from mm_llama.core.llama import LlamaConfig
from mm_llama.core.stored import Checkpoint, Entry, Shape, StoredTensors, blank, blank_core, check_depth
from mm_llama.modality import CrossAttended
from mm_llama.model import MultimodalLlama
from mm_llama.paths import conf_dir
from mm_llama.released.names import CORE, EXTRA_ROWS

# The encoder's arguments that a checkpoint decides.
TOWER_KEYS = (
    "tile_size",
    "patch_size",
    "max_tiles",
    "width",
    "num_layers",
    "num_global_layers",
    "num_heads",
    "ffn_dim",
    "taps",
    "norm_eps",
    "mean",
    "std",
)

MAX_TILES = 100  # the released ones have 4


@dataclass(frozen=True)
class Sizes:
    """The numbers of a vision model: its core, the core's layers with a block before them, its tower's arguments."""

    core: LlamaConfig
    layers: tuple[int, ...]
    tower: Mapping[str, Any]

    def check_depth(self, found: Sized, where: Path | str) -> None:
        """Raise ValueError for more layers than there are tensors, before a module is made for each of them."""
        check_depth(self.core, found, where)
        num_layers = self.tower["num_layers"] + self.tower["num_global_layers"]
        if num_layers > len(found) or self.tower["max_tiles"] > MAX_TILES:
            raise ValueError(
                f"{where}: asks for {num_layers:,} layers of pictures and {self.tower['max_tiles']:,} tiles, but the "
                f"checkpoint holds {len(found):,} tensors, and a picture has at most {MAX_TILES} tiles"
            )

    @property
    def feature_dim(self) -> int:
        """Return the width of the tower's features: the last states beside those of every tap."""
        return int(self.tower["width"]) * (1 + len(self.tower["taps"]))


@dataclass(frozen=True)
class VisionCheckpoint:
    """A vision checkpoint, nothing of its weights read yet."""

    form: str  # "Hugging Face" or "Meta"
    sizes: Sizes
    tensors: StoredTensors  # under the names of the whole model
    files: tuple[Path, ...]  # what its digests depend on
    chat: str  # "llama3" or "plain"
    tokenizer_path: Path | None
    template: str = ""  # its own Jinja chat template
    generation: Mapping[str, Any] = field(default_factory=dict)  # how its makers sample from it

    def text(self) -> Checkpoint:
        """Return its text core, which is a checkpoint of its own: same names and bytes, so the same digest."""
        return Checkpoint(
            form=self.form,
            config=self.sizes.core,
            tensors=StoredTensors(part_of(self.tensors, CORE)),
            files=self.files,
            chat=self.chat,
            tokenizer_path=self.tokenizer_path,
        )


def part_of(tensors: StoredTensors, prefix: str) -> dict[str, Entry]:
    """Return the tensors below a prefix, which their names lose."""
    return {
        name.removeprefix(prefix): entry for name, entry in tensors.entries.items() if name.startswith(prefix)
    }


def modality_config() -> dict[str, Any]:
    """Return the shipped config of the released image modality, its interpolations unresolved."""
    loaded = OmegaConf.load(conf_dir() / "modality" / "image" / "llama3_2_vision.yaml")
    config = OmegaConf.to_container(loaded, resolve=False)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def released_tower() -> dict[str, Any]:
    """Return the arguments of the tower that every released checkpoint has, but for its tile size."""
    encoder = modality_config()["encoder"]
    return {key: encoder[key] for key in TOWER_KEYS}


def sized_config(sizes: Sizes) -> dict[str, Any]:
    """Return the config of the image modality with the numbers of a checkpoint in it."""
    parts = modality_config()
    parts["encoder"] |= {key: sizes.tower[key] for key in TOWER_KEYS}
    parts["encoder"]["dim"] = sizes.feature_dim
    parts["adapter"] |= {"every": None, "layers": list(sizes.layers), "num_reserved": EXTRA_ROWS - 1}
    whole = {"core": {"numbers": asdict(sizes.core)}, "modality": {"image": parts}, "seed": 0}
    image = OmegaConf.create(whole).modality.image
    resolved = OmegaConf.to_container(image, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def blank_model(sizes: Sizes) -> MultimodalLlama:
    """Return the whole model on the meta device."""
    parts = sized_config(sizes)
    with blank():
        modality = CrossAttended(build(parts["encoder"]), build(parts["adapter"]))
    return MultimodalLlama(blank_core(sizes.core), {"image": modality})


def shapes_of(sizes: Sizes) -> dict[str, Shape]:
    """Return the name and shape of every tensor of the whole model."""
    return {name: tuple(tensor.shape) for name, tensor in blank_model(sizes).state_dict().items()}
