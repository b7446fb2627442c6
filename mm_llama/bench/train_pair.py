"""One training step twice, ours and transformers': same weights, same frozen parts, same batch, same masks.

Shapes: B rows, S positions, N media tokens, E feature width.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_llama.batch import Batch, Media
from mm_llama.bench.vision_pair import random_model, same_in_transformers, scaled_sizes
from mm_llama.model import MultimodalLlama
from mm_llama.prefixes import Prefixes
from mm_llama.stages.steps import next_token

LEARNING_RATE = 1e-4
MAX_NORM = 1.0


def make_sides(args: argparse.Namespace, dtype: torch.dtype) -> tuple[Ours, list[Theirs]]:
    """Return both sides on the batch that the options describe: pictures first in their rows, targets last.

    The peer in the model's dtype throughout, and, where that is not float32, another with float32 masters of what
    trains under autocast, as ours has them.
    """
    model = random_model(scaled_sizes(args.size), dtype, seed=args.seed)
    peer = same_in_transformers(model)
    peer.set_attn_implementation(args.attention)
    generator = torch.Generator().manual_seed(args.seed)
    rows, length = args.rows, 1 + args.text_tokens
    tokens_BS = torch.randint(0, model.core.config.vocab_size, (rows, length), generator=generator)
    width = model.modality["image"].adapter.encoder_dim
    features_BNE = torch.randn(rows, args.media_tokens, width, generator=generator).to(dtype)
    targets_BS = torch.zeros(rows, length, dtype=torch.bool)
    targets_BS[:, -args.answer_tokens :] = True
    # The towers are not run: their features are given.
    model.modality["image"].encoder = nn.Identity()
    peer.model.vision_model = None
    parts = tokens_BS.to(args.device), features_BNE.to(args.device), targets_BS.to(args.device)
    theirs = [Theirs(peer.to(args.device), *parts)]
    if dtype != torch.float32:
        theirs.append(Theirs(copy.deepcopy(peer), *parts, masters=True))
    return Ours(model.to(args.device), *parts), theirs


class Ours:
    """Our step: the stage's own loss, float32 masters of what trains."""

    def __init__(
        self, model: MultimodalLlama, tokens_BS: Tensor, features_BNE: Tensor, targets_BS: Tensor
    ) -> None:
        self.model = model
        adapter: Any = model.modality["image"].adapter
        adapter.float()
        self.trained = [
            weight.requires_grad_() for name, weight in adapter.named_parameters() if name != "placeholder"
        ]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, fused=True)
        self.memory = Prefixes()
        rows = torch.arange(len(tokens_BS))
        self.batch = Batch(
            tokens_BS,
            torch.full((len(tokens_BS),), tokens_BS.shape[1], device=tokens_BS.device),
            media={"image": Media(list(features_BNE), rows, torch.zeros_like(rows), rows, encoded=True)},
            targets_BS=targets_BS,
        )

    def step(self) -> float:
        """Do one step and return its loss."""
        output = next_token(self.model, self.batch)
        loss = output.loss_sum / output.num_targets
        loss.backward()
        return _updated(loss, self.trained, self.optimizer)

    def remembering(self) -> float:
        """Do one step with the states below the lowest block remembered from the step before."""
        self.model.prefixes = self.memory
        try:
            return self.step()
        finally:
            self.model.prefixes = None


class Theirs:
    """transformers' step: its language model and loss over the same features; what trains is of the model's dtype.

    With `masters` it is float32, and the step runs under autocast to the model's dtype.
    """

    def __init__(
        self,
        peer: Any,
        tokens_BS: Tensor,
        features_BNE: Tensor,
        targets_BS: Tensor,
        masters: bool = False,
    ) -> None:
        self.peer, self.masters, self.dtype = peer, masters, features_BNE.dtype
        layers = peer.model.language_model.layers
        parts = [peer.model.multi_modal_projector]
        parts += [layers[index] for index in peer.config.text_config.cross_attention_layers]
        self.trained = [
            weight.requires_grad_()
            for part in parts
            for weight in (part.float() if masters else part).parameters()
        ]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, fused=True)
        self.features_BNE = features_BNE
        self.ids_BS = tokens_BS.clone()
        self.ids_BS[:, 0] = peer.config.image_token_index
        self.labels_BS = torch.where(targets_BS, tokens_BS, -100)
        # As its whole model makes them of a picture that all of a row may see; without a mask it would see it causally.
        (B, S), N = tokens_BS.shape, features_BNE.shape[1]
        self.masks = {
            "cross_attention_mask": features_BNE.new_zeros(B, 1, S, N),
            "full_text_row_masked_out_mask": features_BNE.new_ones(B, 1, S, 1),
        }

    def step(self) -> float:
        """Do one step and return its loss."""
        with torch.autocast(self.ids_BS.device.type, dtype=self.dtype, enabled=self.masters):
            loss = self._loss()
        loss.backward()
        return _updated(loss, self.trained, self.optimizer)

    def _loss(self) -> Tensor:
        seen = self.peer.model.multi_modal_projector(self.features_BNE)
        out = self.peer.model.language_model(
            input_ids=self.ids_BS, cross_attention_states=seen, use_cache=False, **self.masks
        )
        logits = self.peer.lm_head(out.last_hidden_state).float()
        labels = self.labels_BS[:, 1:].flatten()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100)


def _updated(loss: Tensor, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> float:
    nn.utils.clip_grad_norm_(trained, MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
