"""Frozen means checked: what trains is declared by prefix, and SHA-256 shows that nothing else moved.

A stage lists dotted prefixes (`modality.image.adapter`). Parameters below them train; every other parameter
is frozen and its module stays in `eval()`. Digests of all tensors are taken before the stage; afterwards the
frozen ones must be equal and every trainable one must differ.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mm_llama.core.digest import digest_tensors


class FrozenChanged(ValueError):
    """A frozen tensor changed, or a trainable one did not: the stage broke its declaration."""


@dataclass
class FreezeRow:
    """One group of tensors, the trained and the frozen part of a group on rows of their own."""

    group: str  # core, modality.image.encoder, modality.image.adapter
    trained: bool
    num_tensors: int
    num_parameters: int
    dtype: str
    before: str
    names: tuple[str, ...] = field(repr=False)
    after: str | None = None


@dataclass
class FreezeTable:
    """What a stage trains, and the digest of every tensor before it."""

    train: tuple[str, ...]  # the declared prefixes
    trainable: tuple[str, ...]  # parameter names, in the model's order
    before: dict[str, str]  # tensor name -> digest
    rows: list[FreezeRow] = field(default_factory=list)

    def start_from(self, before: Mapping[str, str]) -> None:
        """Judge change from the digests that a run began with, when it continues."""
        self.before = {name: before[name] for name in self.before}
        for row in self.rows:
            row.before = _digest_of(row.names, self.before)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows as plain dictionaries."""
        return [
            {key: value for key, value in vars(row).items() if key != "names"}
            | {"unchanged": None if row.after is None else row.after == row.before}
            for row in self.rows
        ]

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table as text cells, heading first."""
        heading = ("group", "tensors", "parameters", "trains", "dtype", "sha256 before", "sha256 after")
        body = [
            (
                row.group,
                f"{row.num_tensors:,}",
                f"{row.num_parameters:,}",
                "yes" if row.trained else "no",
                row.dtype,
                _short(row.before),
                ""
                if row.after is None
                else _short(row.after) + ("  equal" if row.after == row.before else "  changed"),
            )
            for row in self.rows
        ]
        return [heading, *body]

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
        )

    def __rich__(self) -> Any:
        from rich.table import Table

        heading, *body = self.cells()
        table = Table(title="what trains")
        for column, name in enumerate(heading):
            table.add_column(
                name, justify="right" if column in (1, 2) else "left", no_wrap=column in (0, 5, 6)
            )
        for row in body:
            table.add_row(*row, style="bold" if row[3] == "yes" else None)
        return table


def freeze(model: nn.Module, train: Sequence[str]) -> FreezeTable:
    """Let exactly the parameters under the dotted prefixes `train` require gradients; digest every tensor.

    Modules follow through `set_train_mode`. Raises ValueError when a prefix matches no parameter.
    """
    if isinstance(train, str) or not train:
        raise ValueError(
            "stage.train must list at least one prefix of parameter names, such as [modality.image.adapter]; "
            f"got {train!r}"
        )
    parameters = dict(model.named_parameters())
    for prefix in train:
        if not any(under(name, [prefix]) for name in parameters):
            raise ValueError(_no_match(prefix, parameters))
    for name, parameter in parameters.items():
        parameter.requires_grad_(under(name, train))
        if not parameter.requires_grad:
            parameter.grad = None
    trainable = tuple(name for name, parameter in parameters.items() if parameter.requires_grad)
    tensors = stored_tensors(model)
    before = digests(tensors)
    table = FreezeTable(tuple(train), trainable, before, _rows(tensors, before, train))
    set_train_mode(model, table)
    return table


def set_train_mode(model: nn.Module, table: FreezeTable) -> None:
    """Put the modules that train in `train()`, all others in `eval()`; call it instead of `model.train()`."""
    for name, module in model.named_modules():
        owned = [f"{name}.{own}" if name else own for own, _ in module.named_parameters(recurse=False)]
        module.training = under(name, table.train) or any(under(own, table.train) for own in owned)


def verify(model: nn.Module, table: FreezeTable, *, require_change: bool = True) -> None:
    """Compare with the digests taken before and fill in `after`; raises FrozenChanged naming the tensors.

    Frozen tensors (buffers too, such as batch-norm statistics) must be equal, and every trainable parameter
    must have changed, unless `require_change` is off.
    """
    after = digests(stored_tensors(model))
    assert after.keys() == table.before.keys()
    for row in table.rows:
        row.after = _digest_of(row.names, after)
    frozen = [name for name in after if not under(name, table.train) and after[name] != table.before[name]]
    if frozen:
        raise FrozenChanged(
            f"{len(frozen)} frozen tensors changed, which stage.train={list(table.train)} forbids: "
            f"{shorten(frozen)}; nothing is saved. Something wrote to them in place, or they are buffers of "
            "a module in train mode"
        )
    still = [name for name in table.trainable if after[name] == table.before[name]]
    if still and require_change:
        raise FrozenChanged(
            f"{len(still)} of {len(table.trainable)} trainable tensors did not change: {shorten(still)}; "
            "nothing is saved. They do not reach this stage's loss, or their rate is zero: leave them out of "
            "stage.train"
        )


def unreached(parameters: Mapping[str, nn.Parameter], names: Collection[str]) -> set[str]:
    """Return which of the trainable tensors `names` have no gradient now."""
    return {name for name in names if parameters[name].grad is None}


def warning_of(names: Collection[str], num_trainable: int, num_updates: int) -> str:
    """Say early what `verify` will refuse at the end, when nothing reaches these tensors until then."""
    return (
        f"warning: {len(names)} of {num_trainable} trainable tensors had no gradient in {num_updates} updates: "
        f"{shorten(sorted(names))}; if that stays so, nothing will be saved: stop, and leave them out of stage.train"
    )


def under(name: str, prefixes: Iterable[str]) -> bool:
    """Say whether a dotted name is one of the prefixes or lies below one (`a.b` is not above `a.b2`)."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and persistent buffers by name; what is not persistent is derived from them."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    stored = model.state_dict(keep_vars=True)
    tensors.update((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    return tensors


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a digest per tensor."""
    return {name: digest_tensors({name: tensor}) for name, tensor in tensors.items()}


def shorten(names: Sequence[str], most: int = 8) -> str:
    """Join names for a message, the first few of them."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _rows(tensors: Mapping[str, Tensor], found: Mapping[str, str], train: Sequence[str]) -> list[FreezeRow]:
    members: dict[tuple[str, bool], list[str]] = {}
    for name in tensors:
        members.setdefault((_group(name), under(name, train)), []).append(name)
    return [
        FreezeRow(
            group=group,
            trained=trained,
            num_tensors=len(names),
            num_parameters=sum(
                tensors[name].numel() for name in names if isinstance(tensors[name], nn.Parameter)
            ),
            dtype="/".join(sorted({str(tensors[name].dtype).removeprefix("torch.") for name in names})),
            before=_digest_of(names, found),
            names=tuple(names),
        )
        for (group, trained), names in members.items()
    ]


def _digest_of(names: Iterable[str], found: Mapping[str, str]) -> str:
    # A digest of digests, so that each tensor is read once for its own and its group's.
    lines = "".join(f"{name} {found[name]}\n" for name in sorted(names))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _group(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[0] == "modality" else parts[0]


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:16]


def _no_match(prefix: str, names: Iterable[str]) -> str:
    known: set[str] = set()
    groups: set[str] = set()
    for name in names:
        parts = name.split(".")
        known.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
        groups.add(_group(name))
    near = difflib.get_close_matches(prefix, sorted(known), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(sorted(groups))}"
    return f"stage.train prefix {prefix!r} matches no parameter: {hint}"
