"""What a checkpoint depends on beside its own tensors: the core, and the encoders as far as they did not train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_llama.core.digest import digest_tensors
from mm_llama.model import MultimodalLlama
from mm_llama.spoken import Spoken
from mm_llama.stages.freeze import stored_tensors, under


def identity(model: MultimodalLlama, train: tuple[str, ...]) -> dict[str, Any]:
    """Return the digests an adapter depends on: the core's and those of encoders that do not train."""
    if not model.core.digest:
        raise ValueError(
            "the core carries no digest, so an adapter trained on it could not name it: set core.digest"
        )
    encoders = {}
    for kind, modality in model.modality.items():
        if modality.reads or isinstance(modality, Spoken):
            continue  # that encoder is in the table under its own modality, or is the core
        encoder = modality.get_submodule("encoder")
        frozen = {
            name: tensor
            for name, tensor in stored_tensors(encoder).items()
            if not under(f"modality.{kind}.encoder.{name}", train)
        }
        if not any(under(f"modality.{kind}.encoder.{name}", train) for name, _ in encoder.named_parameters()):
            encoders[kind] = getattr(encoder, "digest", None) or digest_tensors(encoder.state_dict())
        elif frozen:  # one that trains in part: what it was trained on top of
            stored = encoder.as_stored() if hasattr(encoder, "as_stored") else {}
            encoders[kind] = digest_tensors({name: stored.get(name, frozen[name]) for name in frozen})
    return {"core": model.core.digest, "encoders": encoders}


def check_identity(
    model: MultimodalLlama, path: Path, state: Mapping[str, Any], allow_core_swap: bool
) -> None:
    """Raise ValueError, with both digests, when a checkpoint was made on another core or frozen encoder."""
    here = identity(model, tuple(state["train"]))
    if here["core"] != state["core"] and not allow_core_swap:
        raise ValueError(
            f"{path} was trained on the core {state['core']}, but this core is {here['core']}: load the "
            "core it was trained on, or declare the swap with stage.allow_core_swap=true"
        )
    for kind, wanted in state["encoders"].items():
        if kind in here["encoders"] and here["encoders"][kind] != wanted:
            raise ValueError(
                f"{path} was trained with the {kind} encoder {wanted}, but this encoder is "
                f"{here['encoders'][kind]}: give modality.{kind}.encoder the weights it was trained with"
            )


def is_encoder(prefix: str) -> bool:
    """Say whether a dotted prefix names an encoder or a part of one."""
    return prefix.split(".")[0] == "modality" and prefix.split(".")[2:3] == ["encoder"]
