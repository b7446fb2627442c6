"""What an encoder is: a digest of its weights, and an identity of all that changes its features."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor, nn


class Digest:
    """SHA-256 of a module's weights as loaded; computed again only when training or loading has changed them.

    Ask once when the weights are as their file holds them: a later cast does not change the answer.
    """

    def __init__(self, module: nn.Module, instead: Mapping[str, Tensor] | None = None) -> None:
        self._seen: tuple[object, str] | None = None
        if not any(parameter.is_meta for parameter in module.parameters()):
            self.of(module, instead)

    def of(self, module: nn.Module, instead: Mapping[str, Tensor] | None = None) -> str:
        """Return "sha256:<hex>" of the parameters and persistent buffers, some of them replaced by `instead`."""
        # Changes in place raise a tensor's version; a cast does not.
        key = tuple((id(parameter), parameter._version) for parameter in module.parameters())
        if self._seen is None or self._seen[0] != key:
            self._seen = (key, digest_state(module.state_dict() | dict(instead or {})))
        return self._seen[1]


def digest_state(state: Mapping[str, Tensor]) -> str:
    """Return "sha256:<hex>" over name, dtype, shape and raw bytes of each tensor, sorted by name."""
    total = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"


def identity_of(digest: str, **settings: object) -> str:
    """Return "sha256:<hex>" over the weights' digest and every setting that changes features: the key of a cache."""
    return "sha256:" + sha256(repr((digest, sorted(settings.items()))).encode()).hexdigest()
