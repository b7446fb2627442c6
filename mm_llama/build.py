"""From config to objects: the only place where DictConfig ends and `_target_` is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

import mm_llama
from mm_llama import schema
from mm_llama.core.chat import ChatFormat, chat_format
from mm_llama.core.digest import digest_tensors
from mm_llama.core.llama import Llama, LlamaConfig, RopeScaling
from mm_llama.core.pieces import respelled
from mm_llama.core.tokenizer import Tokenizer
from mm_llama.dtypes import choose_dtype, dtype_name
from mm_llama.modality import CrossAttended
from mm_llama.model import Modality, MultimodalLlama
from mm_llama.paths import below, cache_dir, conf_dir, voices_dir
from mm_llama.released.detect import is_vision
from mm_llama.run_parts import modalities_of_runs
from mm_llama.splice import Spliced
from mm_llama.spoken import Spoken
from mm_llama.targets import call

if TYPE_CHECKING:
    from mm_llama.core.weights import LoadedCore


# In a config: ${shipped:english/tts_prosody}, the folder of a voice that is shipped.
OmegaConf.register_new_resolver(
    "shipped", lambda name: str(below(voices_dir(), str(name), f"${{shipped:{name}}}")), replace=True
)


def compose_config(name: str, overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """Compose one root config of the package as `mm-llama` would, without starting a job, or inside of one.

    `with_hydra` keeps the node that says how jobs are started.
    """
    schema.register()
    state = GlobalHydra.instance()
    outer = state.hydra  # of the job that asks, where a source of its data loads a core of its own
    state.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(name, overrides=list(overrides), return_hydra_config=with_hydra)
    finally:
        if outer is not None:
            state = GlobalHydra.instance()
            state.clear()
            state.initialize(outer)


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain data, `dtype: auto` as what this machine computes in.

    `hydra` and `sweep` are left out: how jobs are started is not what they compute. A missing or dangling value is
    a ValueError that names its key.
    """
    for name, parts in (cfg.get("modality") or {}).items():
        if parts and parts.get("reads"):
            check_reads(name, parts["reads"], cfg.modality)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(
            f"the config leaves {', '.join(missing)} open: give a value, for example {missing[0]}=..."
        )
    try:
        data = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    except Exception as error:  # OmegaConf has one family for interpolation, one for types
        raise ValueError(f"the config does not resolve: {str(error).splitlines()[0]}") from error
    assert isinstance(data, dict)
    if data.get("dtype") == "auto":
        data["dtype"] = dtype_name(choose_dtype("auto", data.get("device", "cpu")))
    return {str(key): value for key, value in data.items() if key not in ("hydra", "sweep")}


def build(node: Any, where: str = "", **extra: Any) -> Any:
    """Call the `_target_` of a config node, after every `_target_` in it has passed the allowlist.

    Errors name keys below `where`.
    """
    check_neighbours()
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True)
    return call(_resolve_assets(node), where, **extra)


def check_neighbours() -> None:
    """Raise ValueError when `encoders` or `adapters` is another distribution's package, naming it."""
    home = Path(mm_llama.__file__).resolve().parent.parent
    for name in ("encoders", "adapters"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ValueError(
                f"the package `{name}` was found at {found}, but mm_llama needs its own beside {home}: uninstall the "
                f"other distribution (`pip uninstall {name}`) and install mm_llama again"
            )


def resolve_source(source: str) -> Path:
    """Return the path that a config names: `asset:NAME/PATTERN` (fetched if need be), `cache:PATH`, or plain."""
    if source.startswith("cache:"):
        return below(cache_dir(), source.removeprefix("cache:"), source)
    if source.startswith("asset:"):
        from mm_llama.assets import asset, asset_file

        name, _, pattern = source.removeprefix("asset:").partition("/")
        return asset_file(name, pattern) if pattern else asset(name)
    return Path(source).expanduser()


def _resolve_assets(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _resolve_assets(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve_assets(value) for value in node]
    return (
        str(resolve_source(node)) if isinstance(node, str) and node.startswith(("asset:", "cache:")) else node
    )


def core_config(numbers: Mapping[str, Any]) -> LlamaConfig:
    """Return the core's numbers as its config."""
    values = dict(numbers)
    scaling = values.pop("rope_scaling", None)
    return LlamaConfig(**values, rope_scaling=None if scaling is None else RopeScaling(**scaling))


def build_core(cfg: Mapping[str, Any], dtype: torch.dtype = torch.float32, device: str = "cpu") -> LoadedCore:
    """Build or load a core with its tokenizer; the checkpoint's numbers must be the config's."""
    from mm_llama.core.weights import LoadedCore, load_core

    source = cfg["source"]
    config = core_config(cfg["numbers"])
    if source is None:
        raise ValueError(
            f"core={cfg['name']} is numbers only: set core.source to a Hugging Face folder, a Meta folder "
            "(consolidated.*.pth + params.json) or a GGUF file, or to `random` for random weights"
        )
    if source == "random":
        core = Llama(config)
        core.init_weights(cfg.get("seed", 0))
        core.digest = digest_tensors(core.state_dict())
        return LoadedCore(core.to(device, dtype), _tokenizer(cfg, config), cfg["chat"])
    tokenizer = None if cfg.get("tokenizer") is None else resolve_source(cfg["tokenizer"])
    path = resolve_source(source)
    if not path.exists():
        raise FileNotFoundError(
            f"core.source={source}: there is no such file or folder; name a checkpoint, or choose core=NAME"
        )
    load: Callable[..., LoadedCore] = load_core
    if is_vision(path):
        from mm_llama.released.load import load_text_core

        load = load_text_core
    loaded = load(path, dtype=dtype, device=device, tokenizer_path=tokenizer)
    differing = [
        f"{key}={getattr(config, key)} (checkpoint: {getattr(loaded.core.config, key)})"
        for key in (
            "dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "ffn_dim",
            "vocab_size",
            "tied",
        )
        if getattr(config, key) != getattr(loaded.core.config, key)
    ]
    if differing:
        raise ValueError(
            f"core.numbers does not describe {source}: {', '.join(differing)}; choose the core=... that fits it"
        )
    loaded.chat = cfg["chat"]
    return loaded


def _tokenizer(cfg: Mapping[str, Any], config: LlamaConfig) -> Tokenizer:
    from mm_llama.core.tokenizer import load_tokenizer
    from mm_llama.testing.bytes_tokenizer import BytesTokenizer

    name = cfg.get("tokenizer") or "bytes"
    tokenizer: Tokenizer = BytesTokenizer() if name == "bytes" else load_tokenizer(resolve_source(name))
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"core.tokenizer={name} has {tokenizer.vocab_size} tokens, more than "
            f"core.numbers.vocab_size={config.vocab_size}"
        )
    return tokenizer


def build_modalities(
    cfg: Mapping[str, Any],
    core: LlamaConfig,
    device: str = "cpu",
    released: Mapping[str, CrossAttended] | None = None,
) -> dict[str, Modality]:
    """Build every modality that the config holds; an empty one (`none`) is left out.

    One with `reads` uses the encoder of the modality it names, which must be there too. One with a `source` is not
    built: it is in `released`.
    """
    modalities: dict[str, Modality] = dict(released or {})
    for name, parts in cfg.items():
        if not parts or (parts.get("source") and name in modalities):
            continue
        width = parts["adapter"].get("dim", core.dim)
        if width != core.dim:
            raise ValueError(f"modality.{name}.adapter.dim is {width}, but the core is {core.dim} wide")
        reads = parts.get("reads") or ""
        if reads and not cfg.get(reads) and reads not in modalities:
            raise ValueError(
                f"modality/{name} reads the {reads} encoder, but there is none: choose modality/{reads}=NAME as well"
            )
        port = parts.get("port") or "cross_attended"
        encoder: nn.Module | None = (
            None if reads or port == "spoken" else build(parts["encoder"], f"modality.{name}.encoder")
        )
        adapter: nn.Module = build(parts["adapter"], f"modality.{name}.adapter")
        modality: Modality
        if port == "spoken" and not reads:
            modality = Spoken(adapter, parts.get("layer") or 0)
        elif port == "spliced" and encoder is not None:
            modality = Spliced(encoder, adapter)
        elif port == "cross_attended":
            modality = CrossAttended(encoder, adapter, reads=reads, num_frames=parts.get("num_frames") or 0)
        else:
            raise ValueError(
                f"modality.{name}.port is {port!r}{' with reads' if reads else ''}; expected cross_attended, "
                "spliced with an encoder of its own, or spoken without one"
            )
        modalities[name] = modality.to(device)
    return modalities


def _released(
    cfg: Mapping[str, Any],
    core: Llama,
    dtype: torch.dtype,
    device: str,
    *,
    allow_core_swap: bool = False,
) -> dict[str, CrossAttended]:
    """Load the modalities whose config names a released checkpoint as their `source`."""
    modalities = {}
    for name, parts in cfg.items():
        if not parts or not parts.get("source"):
            continue
        from mm_llama.released.load import load_modality

        modalities[name] = load_modality(
            resolve_source(str(parts["source"])),
            core,
            encoder=parts.get("encoder"),
            dtype=dtype,
            device=device,
            allow_core_swap=allow_core_swap,
        )
    return modalities


def check_reads(name: str, reads: str, modalities: Mapping[str, Any]) -> None:
    """Raise ValueError when a modality reads the encoder of one that is not there."""
    if not modalities.get(reads):
        raise ValueError(
            f"modality/{name} reads the {reads} encoder, but there is none: choose modality/{reads}=NAME as well"
        )


def build_model(
    cfg: Mapping[str, Any], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[MultimodalLlama, Tokenizer, ChatFormat]:
    """Build the model of a resolved train config: core in `dtype`, everything of it frozen, adapters float32."""
    loaded = build_core(cfg["core"], dtype, device)
    assert loaded.tokenizer is not None
    parts = cfg.get("modality", {})
    swap = bool(cfg.get("stage", {}).get("allow_core_swap"))
    released = _released(parts, loaded.core, torch.float32, device, allow_core_swap=swap)
    model = MultimodalLlama(loaded.core, build_modalities(parts, loaded.core.config, device, released))
    model.requires_grad_(False).eval()
    return model, loaded.tokenizer, chat_format(loaded.chat, loaded.tokenizer)


def load_model(
    core: str = "smollm2_135m",
    adapters: Sequence[str | Path] = (),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[MultimodalLlama, Tokenizer, ChatFormat]:
    """Build a core by config name or checkpoint path and attach trained adapters by their run folders.

    A vision checkpoint brings its own image adapter; one that is given as an adapter lends its own to a plain core
    of the same weights. A run's own config is read as data: what it may build is limited to this package's encoders
    and adapters.
    """
    from mm_llama.stages.checkpoint import load_adapter

    runs, parts = modalities_of_runs(adapters)
    if is_vision(core):
        from mm_llama.released.load import load_vision

        loaded, image = load_vision(core, dtype=dtype, device=device)
        released = {"image": image}
    else:
        loaded = _core_by_name(core, dtype, device)
        released = _released(parts, loaded.core, dtype, device)
    if loaded.tokenizer is None:
        raise ValueError(
            f"{core} holds no tokenizer, so nothing can be said to it: put its tokenizer files there"
        )
    model = MultimodalLlama(loaded.core, build_modalities(parts, loaded.core.config, device, released))
    model.requires_grad_(False).eval()
    for run, prefix in runs:
        load_adapter(model, run, prefix=prefix)
    for modality in model.modality.values():
        adapter: Any = getattr(modality, "adapter", None)
        if getattr(adapter, "spell", False) and adapter.emit == "tokens":
            spell = partial(respelled, tokenizer=loaded.tokenizer)
            adapter.read = methodcaller("spelled", spell)
        # Inference computes in one dtype; float32 masters are only needed where something trains. What is spoken is
        # small, and nothing of it enters the core.
        if not isinstance(modality, Spoken):
            modality.to(dtype)
    return model, loaded.tokenizer, chat_format(loaded.chat, loaded.tokenizer)


def _core_by_name(core: str, dtype: torch.dtype, device: str) -> LoadedCore:
    from mm_llama.core.weights import load_core

    if (conf_dir() / "core" / f"{core}.yaml").is_file():
        cfg = compose_config("train", [f"core={core}", "stage=none"])
        resolved = OmegaConf.to_container(cfg.core, resolve=True)
        assert isinstance(resolved, dict)
        return build_core({str(key): value for key, value in resolved.items()}, dtype, device)
    path = Path(core).expanduser()
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in (conf_dir() / "core").glob("*.yaml")))
        raise ValueError(f"core {core!r} is neither a known name ({names}) nor an existing path")
    return load_core(path, dtype=dtype, device=device)
