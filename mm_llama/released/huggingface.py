"""The Hugging Face folder of a vision checkpoint: `config.json` in two halves, safetensors under old or new names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mm_llama.core.documents import decimal, mapping, named, read_json, whole_number
from mm_llama.core.huggingface import (
    chat_of_template,
    config_from_json,
    config_to_json,
    has_tokenizer,
    headers,
    read_rows,
    template_of,
    weight_files,
)
from mm_llama.core.stored import Entry, Shape, StoredTensors, check_tensors
from mm_llama.released.checkpoint import MAX_TILES, Sizes, VisionCheckpoint, released_tower, shapes_of
from mm_llama.released.names import (
    EXTRA_ROWS,
    PLACEHOLDER,
    RESERVED,
    TABLE,
    huggingface_name,
    new_name,
    old_name,
)

# What a key means where it is left out: files hold only what differs from the 11B base model.
_TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131_072,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
_VISION_DEFAULTS: Mapping[str, Any] = {
    "image_size": 448,
    "patch_size": 14,
    "max_num_tiles": 4,
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "intermediate_size": 5120,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "norm_eps": 1e-5,
    "hidden_act": "gelu",
    "num_channels": 3,
}
_PREPROCESSING: Mapping[str, tuple[Any, ...]] = {
    "do_convert_rgb": (True, None),
    "do_resize": (True, None),
    "do_rescale": (True, None),
    "do_normalize": (True, None),
    "do_pad": (True, None),
    "resample": (2, None),
    "rescale_factor": (1 / 255, None),
}
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


def open_vision_huggingface(folder: Path) -> VisionCheckpoint:
    """Check a folder against its config.json and return it unread.

    Raises ValueError for numbers that the model cannot have and for missing, unknown, repeated or mis-shaped tensors,
    all of them in one error, under the names that the files use.
    """
    config_path = folder / "config.json"
    with named(config_path):
        sizes = sizes_from_json(read_json(config_path), where=config_path)
    sizes = Sizes(sizes.core, sizes.layers, {**sizes.tower, **_preprocessing(folder, sizes.tower)})
    files = weight_files(folder)
    found = {
        name: entry for name, entry in headers(files).items() if not name.endswith(".rotary_emb.inv_freq")
    }
    sizes.check_depth(found, config_path)
    with named(config_path):
        shapes = shapes_of(sizes)
    new = any(name.startswith("model.language_model.") for name in found)
    spelling = new_name if new else old_name
    check_tensors(
        str(folder),
        expected={spelling(name): shape for name, shape in published_shapes(shapes, sizes).items()},
        shapes={name: entry.shape for name, entry in found.items()},
        dtypes={name: entry.dtype for name, entry in found.items()},
        asked_by=config_path.name,
    )
    entries = {
        name: _entry(name, shape, found[spelling(huggingface_name(name, sizes.layers))], sizes)
        for name, shape in shapes.items()
    }
    template = template_of(folder)
    sampling = folder / "generation_config.json"
    settings = read_json(sampling) if sampling.is_file() else {}
    return VisionCheckpoint(
        form="Hugging Face",
        sizes=sizes,
        tensors=StoredTensors(entries),
        files=(config_path, *files),
        chat=chat_of_template(template),
        tokenizer_path=folder if has_tokenizer(folder) else None,
        template=template,
        generation={key: settings[key] for key in _SAMPLING if settings.get(key) is not None},
    )


def published_shapes(shapes: Mapping[str, Shape], sizes: Sizes) -> dict[str, Shape]:
    """Return the name and shape of every tensor of the published layout, for ours."""
    published = {huggingface_name(name, sizes.layers): shape for name, shape in shapes.items()}
    rows, width = shapes[TABLE]
    published[huggingface_name(TABLE, sizes.layers)] = (rows + EXTRA_ROWS, width)
    return published


def table_rows(name: str, num_rows: int) -> tuple[int, int] | None:
    """Return which rows of the published embedding table one of our tensors is; None: it is no part of it."""
    return {
        TABLE: (0, num_rows),
        PLACEHOLDER: (num_rows, num_rows + 1),
        RESERVED: (num_rows + 1, num_rows + EXTRA_ROWS),
    }.get(name)


def sizes_from_json(data: Mapping[str, Any], *, where: Path | str) -> Sizes:
    """Translate config.json; ValueError for what the model cannot have, naming the key."""
    text = {**_TEXT_DEFAULTS, **mapping(data, "text_config", where)}
    vision = {**_VISION_DEFAULTS, **mapping(data, "vision_config", where)}
    text_where, vision_where = f"{where}: text_config", f"{where}: vision_config"
    num_layers = whole_number(text, "num_hidden_layers", text_where)
    places = text["cross_attention_layers"]
    apart = _are_places(places)
    layers = tuple(place - before for before, place in enumerate(places)) if apart else ()
    # Each block stands right before a layer of its own: two in a row, or one at the end, would not.
    if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0 or places[-1] >= num_layers - 1:
        raise ValueError(
            f"{text_where}: cross_attention_layers is {places!r}; expected rising places among "
            f"{num_layers} layers, each with a self-attention layer behind it"
        )
    core = config_from_json(
        # Its head is a tensor of its own, whatever this says: it has fewer rows than the table.
        {
            **text,
            "model_type": "llama",
            "num_hidden_layers": num_layers - len(layers),
            "tie_word_embeddings": False,
        },
        where=text_where,
    )
    image_id = data.get("image_token_index", data.get("image_token_id", 128_256))
    if image_id != core.vocab_size:
        raise ValueError(
            f"{where}: image_token_index is {image_id!r}; expected {core.vocab_size}, the first row of the embedding "
            "table behind the vocabulary"
        )
    return Sizes(core, layers, _tower_from_json(vision, vision_where))


def sizes_to_json(sizes: Sizes) -> dict[str, Any]:
    """Return the config.json of a vision model, without token ids."""
    core, tower = sizes.core, sizes.tower
    places = [layer + before for before, layer in enumerate(sizes.layers)]
    # That library derives the head's width; the released models leave it no choice.
    if core.head_dim * core.num_heads != core.dim:
        raise ValueError(f"core.head_dim {core.head_dim} is not the width over the heads: not exportable")
    text = config_to_json(core)
    for key in ("architectures", "head_dim", "attention_bias", "mlp_bias"):
        del text[key]
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": core.vocab_size,
        "text_config": text
        | {
            "model_type": "mllama_text_model",
            "num_hidden_layers": core.num_layers + len(places),
            "cross_attention_layers": places,
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "image_size": tower["tile_size"],
            "patch_size": tower["patch_size"],
            "max_num_tiles": tower["max_tiles"],
            "supported_aspect_ratios": tilings(tower["max_tiles"]),
            "hidden_size": tower["width"],
            "num_hidden_layers": tower["num_layers"],
            "num_global_layers": tower["num_global_layers"],
            "attention_heads": tower["num_heads"],
            "intermediate_size": tower["ffn_dim"],
            "intermediate_layers_indices": list(tower["taps"]),
            "vision_output_dim": sizes.feature_dim,
            "norm_eps": tower["norm_eps"],
            "hidden_act": "gelu",
            "num_channels": 3,
        },
    }


def preprocessing_to_json(sizes: Sizes) -> dict[str, Any]:
    """Return the preprocessor_config.json of a vision model."""
    side = sizes.tower["tile_size"]
    return {
        "image_processor_type": "MllamaImageProcessor",
        "processor_class": "MllamaProcessor",
        **{key: values[0] for key, values in _PREPROCESSING.items()},
        "size": {"height": side, "width": side},
        "max_image_tiles": sizes.tower["max_tiles"],
        "image_mean": list(sizes.tower["mean"]),
        "image_std": list(sizes.tower["std"]),
    }


def tilings(max_tiles: int) -> list[list[int]]:
    """Return the [rows, columns] of every tiling in the published order; a table's row 0 belongs to none of them."""
    sides = range(1, max_tiles + 1)
    return [[rows, columns] for rows in sides for columns in sides if rows * columns <= max_tiles]


def _are_places(found: Any) -> bool:
    return isinstance(found, list) and all(type(place) is int for place in found)


def _tower_from_json(vision: Mapping[str, Any], where: str) -> dict[str, Any]:
    taps = vision["intermediate_layers_indices"] or _VISION_DEFAULTS["intermediate_layers_indices"]
    if not _are_places(taps):  # what goes into a config that is built is a number, whatever the file holds
        raise ValueError(
            f"{where}: intermediate_layers_indices is {str(taps)[:80]}; expected a list of layers"
        )
    max_tiles = whole_number(vision, "max_num_tiles", where, most=MAX_TILES)
    width = whole_number(vision, "hidden_size", where)
    output = vision.get("vision_output_dim", 7680)
    for key, given, wanted in (
        ("hidden_act", vision["hidden_act"], "gelu"),
        ("num_channels", vision["num_channels"], 3),
        ("vision_output_dim", output, width * (1 + len(taps))),
        (
            "supported_aspect_ratios",
            vision.get("supported_aspect_ratios") or tilings(4),
            tilings(max_tiles),
        ),
    ):
        if given != wanted:
            raise ValueError(f"{where}: {key} is {given!r}; the tower has {wanted!r}")
    return released_tower() | {
        "tile_size": whole_number(vision, "image_size", where),
        "patch_size": whole_number(vision, "patch_size", where),
        "max_tiles": max_tiles,
        "width": width,
        "num_layers": whole_number(vision, "num_hidden_layers", where),
        "num_global_layers": whole_number(vision, "num_global_layers", where),
        "num_heads": whole_number(vision, "attention_heads", where),
        "ffn_dim": whole_number(vision, "intermediate_size", where),
        "taps": taps,
        "norm_eps": decimal(vision, "norm_eps", where),
    }


def _preprocessing(folder: Path, tower: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean and std where a folder names them; ValueError where it prepares pictures otherwise than the tower."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not settings and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"
        settings = read_json(path).get("image_processor") or {}
    side = tower["tile_size"]
    checks = {
        **_PREPROCESSING,
        "size": ({"height": side, "width": side}, None),
        "max_image_tiles": (tower["max_tiles"], None),
    }
    for key, allowed in checks.items():
        if settings.get(key) not in allowed:
            raise ValueError(f"{path}: {key} is {settings[key]!r}; the tower prepares with {allowed[0]!r}")
    return {
        ours: [float(value) for value in settings[theirs]]
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if settings.get(theirs) is not None
    }


def _entry(name: str, shape: Shape, stored: Entry, sizes: Sizes) -> Entry:
    rows = table_rows(name, sizes.core.vocab_size)
    if rows is None:
        return stored
    assert stored.file is not None
    read = partial(_read_part, stored.file, stored.published, rows, shape)
    return Entry(stored.published, shape, stored.dtype, read, stored.file)


def _read_part(file: Path, published: str, rows: tuple[int, int], shape: Shape) -> Tensor:
    return read_rows(file, published, *rows).reshape(shape)
