"""Makes a timm model and fills it from a file: timm's own names, or a published layout through its reader."""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from encoders.weight_files import read_tensors

# Readers of published weight files; each module offers read_weights(path, model), MEAN and STD, and where tensors
# depend on the picture's size fit(state, model), which resizes them.
READERS = {"efficientnet_lite0": "encoders.efficientnet_lite0", "dinov2_onnx": "encoders.vit_s14_focus"}


def load_timm(
    name: str, weights: str | Path | None, weights_format: str, image_size: tuple[int, int], seed: int
) -> tuple[Any, Any, dict[str, Tensor]]:
    """The timm model at `image_size` with its weights, the reader module they needed (None: timm's), and tables.

    The tables are position embeddings that had to be resized for `image_size`, by name, as they were before.
    """
    if ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"timm {timm.__version__} has no model {name!r}; near matches: {', '.join(near) or 'none'}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = timm.create_model(name, pretrained=weights == "pretrained")
        except RuntimeError as error:
            raise ValueError(f"timm cannot make {name}: {error}") from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"{name} offers no intermediate layers in timm {timm.__version__}: choose another model"
        )
    if weights is None or weights == "pretrained":
        return model, None, _set_input_size(model, name, image_size)
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights of the image encoder {name} at {path}")
    if weights_format == "timm":
        # In the file's own resolution first: position embeddings are then resized from the trained values.
        _fill(model, read_tensors(path), path)
        return model, None, _set_input_size(model, name, image_size)
    reader = importlib.import_module(READERS[weights_format])
    state = reader.read_weights(path, model)
    _set_input_size(model, name, image_size)
    fitted = reader.fit(state, model) if hasattr(reader, "fit") else state
    _fill(model, fitted, path)
    return model, reader, {key: state[key] for key in state if state[key].shape != fitted[key].shape}


def _fill(model: Any, state: Mapping[str, Tensor], path: Path) -> None:
    """Load every tensor, or say which are missing, unknown or mis-shaped; only the classifier may differ."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    wanted = model.state_dict()
    body = {key for key in wanted if not key.startswith(heads)}
    given = {key for key in state if not key.startswith(heads)}
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in sorted(body & given)
        if state[key].shape != wanted[key].shape
    ]
    problems = [
        *([f"missing {len(body - given)}: {sorted(body - given)[:3]}"] if body - given else []),
        *([f"unknown {len(given - body)}: {sorted(given - body)[:3]}"] if given - body else []),
        *([f"of another shape {len(shapes)}: {'; '.join(shapes[:3])}"] if shapes else []),
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit {model.pretrained_cfg['architecture']}: {', '.join(problems)}; "
            "check the encoder's name and weights_format"
        )
    model.load_state_dict({key: state[key] for key in body}, strict=False)


def _set_input_size(model: Any, name: str, image_size: tuple[int, int]) -> dict[str, Tensor]:
    """Put the model to another picture size; returns the tables that were resized, as they were before."""
    if not hasattr(model, "set_input_size"):
        return {}
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise ValueError(
            f"image_size {image_size} is no multiple of the {patch[0]}x{patch[1]} patches of {name}"
        )
    before = model.state_dict()
    model.set_input_size(img_size=image_size)
    after = model.state_dict()
    return {key: before[key] for key in before if key in after and before[key].shape != after[key].shape}
