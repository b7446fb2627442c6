"""What a `_target_` may name, and how it is called: classes and functions of our own and of torch's layers, no more.

A config that a person composed may name what `TARGETS` lists. One that was found in a run's folder may be anybody's:
it is data, and may name encoders and adapters, or what a shipped config names (`check_run_parts`, `check_run_rows`).
In either the object is judged and not only its name: a dotted path does not lead through one module into another.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from torch import nn

from mm_llama.core.messages import near
from mm_llama.paths import conf_dir

# Hydra's own blocklist lets loaders of pickles through; an allowlist does not.
TARGETS = (
    "encoders.",
    "adapters.",
    "mm_llama.data.",
    "mm_llama.stages.",
    "mm_llama.dialogue_rows.",
    "mm_llama.recorded_rows.",
    "torch.nn.",
    "torch.optim.",
    "timm.create_model",
)
PARTS = ("encoders.", "adapters.")  # what a run's folder may name for its modalities
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+")
# An address, or a model's name by which timm fetches or opens something else.
_ADDRESS = re.compile(r"(hf[-_]hub|local[-_]dir):|[A-Za-z][A-Za-z0-9+.-]*://")


def check_targets(node: Any, path: str = "", allowed: tuple[str, ...] = TARGETS) -> None:
    """Raise ValueError, naming its key, for a `_target_` in plain data that may not be called.

    An entry of `allowed` that ends in a dot is a package or module, another is one name.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            locate(node["_target_"], path, allowed)
        for key, value in node.items():
            own = f"{path}.{key}" if path else str(key)
            if str(key) in ("_args_", "_convert_", "_recursive_"):
                raise ValueError(f"{own} is not read here: give arguments by their names")
            if key == "_partial_" and not isinstance(value, bool):
                raise ValueError(f"{own} is {value!r}, expected true or false")
            check_targets(value, own, allowed)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            check_targets(value, f"{path}[{index}]", allowed)


def locate(target: Any, path: str = "", allowed: tuple[str, ...] = TARGETS) -> Callable[..., Any]:
    """Return the class or function that a `_target_` names. Raises ValueError, naming its key, for what is not allowed.

    It must stand in the module that the name says, or in one of the same packages that handed it on.
    """
    where = f"{path}._target_" if path else "_target_"
    refused = ValueError(
        f"{where} names {target!r}, which may not be called; allowed are {', '.join(allowed)}"
    )
    if not isinstance(target, str) or not _NAME.fullmatch(target) or not _allows(target, allowed):
        raise refused
    home, _, name = target.rpartition(".")
    try:
        # Only modules are walked through: what a module has imported is not reached by its name.
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name and (home == error.name or home.startswith(f"{error.name}.")):
            raise refused from None
        raise ValueError(f"{where} names {target}, which needs {error.name}: install it") from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ValueError(
            f"{where} names {target!r}, which may not be called: {home} has no class or function {name}"
            f"{near(name, known)}"
        )
    exact = target in allowed and found.__module__.startswith(f"{home}.")
    defined = f"{found.__module__}.{found.__qualname__}"
    if not exact and (not _NAME.fullmatch(defined) or not _allows(defined, allowed)):
        raise refused
    return found


def _allows(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name.startswith(one) if one.endswith(".") else name == one for one in allowed)


def call(node: Any, where: str = "", **extra: Any) -> Any:
    """Build plain data: every mapping with a `_target_` becomes what that returns, from the inside out.

    `_partial_: true` gives the function with its arguments, uncalled. `extra` are arguments of the outermost. Nothing
    in it is interpolated. Raises ValueError for a target that may not be called and for an argument that it lacks.
    """
    check_targets(node, where)
    return _call(node, where, extra)


def _call(node: Any, path: str, extra: Mapping[str, Any]) -> Any:
    if isinstance(node, list | tuple):
        return [_call(value, f"{path}[{index}]", {}) for index, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    values = {
        str(key): _call(value, f"{path}.{key}" if path else str(key), {})
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    if "_target_" not in node:
        return values
    target = locate(node["_target_"], path)
    arguments = {**values, **extra}
    _check_arguments(target, arguments, path, bool(node.get("_partial_")))
    return partial(target, **arguments) if node.get("_partial_") else target(**arguments)


def arguments_of(target: Callable[..., Any]) -> list[str]:
    """Return the names of what a class or function takes."""
    return [name for name, one in inspect.signature(target).parameters.items() if one.kind != one.VAR_KEYWORD]


def _check_arguments(
    target: Callable[..., Any], arguments: Mapping[str, Any], path: str, partly: bool
) -> None:
    signature = inspect.signature(target)
    what = f"{target.__module__}.{target.__qualname__}"
    if not any(one.kind == one.VAR_KEYWORD for one in signature.parameters.values()):
        known = arguments_of(target)
        for name in arguments:
            if name not in known:
                key = f"{path}.{name}" if path else name
                raise ValueError(
                    f"unknown key {key}{near(name, known)}; {what} takes {', '.join(known) or 'nothing'}"
                )
    try:
        (signature.bind_partial if partly else signature.bind)(**arguments)
    except TypeError as error:
        raise ValueError(f"{path or what}: {error}; {what} needs it") from None


# --- what was found in a run's folder


def check_run_parts(parts: Any, where: str) -> None:
    """Raise ValueError unless the modality of a run's config names modules of our own and is data otherwise."""
    _check_data(parts, where)
    for name, piece in _named(parts, where):
        try:
            found = locate(piece, name, PARTS)
        except ValueError:
            found = None
        if not inspect.isclass(found) or not issubclass(found, nn.Module):
            raise ValueError(
                f"{name}._target_ names {piece!r}, which a run may not build: of a run's config only encoders "
                "and adapters are (modules below encoders. and adapters.)"
            )


def check_run_rows(node: Any, where: str) -> None:
    """Raise ValueError unless data or a step of a run's config names what a shipped config names, and writes to caches.

    These do more than modules: they read folders and make files, in `out`.
    """
    _check_data(node, where)
    for name, piece in _named(node, where):
        if piece not in shipped_targets():
            raise ValueError(
                f"{name}._target_ names {piece!r}, which no shipped config names, so a run's folder may not call it; "
                "if the run is yours, add a file to conf/data that names it"
            )
        locate(piece, name)


@cache
def shipped_targets() -> frozenset[str]:
    """Return every `_target_` that a file of conf/ names."""
    return frozenset(
        found
        for file in conf_dir().rglob("*.yaml")
        for found in re.findall(r"_target_:\s*([\w.]+)", file.read_text("utf-8"))
    )


def _named(node: Any, path: str) -> list[tuple[str, Any]]:
    """Return every `_target_` in plain data with the key of its mapping."""
    found = [(path, node["_target_"])] if isinstance(node, Mapping) and "_target_" in node else []
    entries: Any = node.items() if isinstance(node, Mapping) else ()
    if isinstance(node, list | tuple):
        entries = enumerate(node)
    for key, value in entries:
        found += _named(value, f"{path}.{key}")
    return found


def _check_data(node: Any, path: str) -> None:
    """Raise ValueError for a text that would be more than data to somebody."""
    if isinstance(node, Mapping | list | tuple):
        entries: Any = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in entries:
            _check_data(value, f"{path}.{key}")
            if key == "out" and not (isinstance(value, str) and value.startswith("cache:")):
                raise ValueError(
                    f"{path}.{key} is {value!r}: files that a run's config makes go to the cache (cache:...)"
                )
    elif isinstance(node, str) and ("${" in node or _ADDRESS.match(node)):
        raise ValueError(
            f"{path} is {node[:80]!r}: a run's config is data, without interpolations and addresses"
        )


def check_run_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless all that evaluating a run builds by its own config may be built by it."""
    for name, parts in (config.get("modality") or {}).items():
        if parts:
            check_run_parts(parts, f"{where}: modality.{name}")
    check_run_rows((config.get("data") or {}).get("eval"), f"{where}: data.eval")
    check_run_rows((config.get("stage") or {}).get("step"), f"{where}: stage.step")
