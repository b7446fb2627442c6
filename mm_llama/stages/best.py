"""Which checkpoints of a run are its best, by one figure of its evaluations: they outlive the newest ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Best:
    """The `keep` best evaluations so far by `metric`; a leading minus says that less is better ("-eval.mel_distance").

    With `keep` 0 nothing is best. `found` is what `to_json` gave when the run was saved.
    """

    def __init__(self, metric: str, keep: int, found: Sequence[Sequence[float]] = ()) -> None:
        if keep < 0 or bool(keep) != bool(metric):
            raise ValueError(
                f"stage.keep_best={keep} and stage.best={metric!r}: to keep the best checkpoints say how many and "
                "by what, such as stage.keep_best=1 stage.best=eval.answers (-eval.mel_distance: less is better)"
            )
        self.key, self.sign, self.keep = metric.removeprefix("-"), -1 if metric.startswith("-") else 1, keep
        self._found = [(int(step), float(value)) for step, value in found]

    @property
    def steps(self) -> list[int]:
        """Return the steps of the best evaluations, best first; of equal ones the earlier."""
        ranked = sorted(self._found, key=lambda one: (-self.sign * one[1], one[0]))
        return [step for step, _ in ranked[: self.keep]]

    def meet(self, record: Mapping[str, Any]) -> bool:
        """Take the record of a step; return whether it is among the best. Raises ValueError for a figure it lacks."""
        evaluated = [key for key in record if key.startswith("eval.")]
        if not self.keep or not evaluated:
            return False
        if self.key not in record:
            raise ValueError(
                f"stage.best={self.key}: the evaluation has no such figure; it has {', '.join(evaluated)}"
            )
        self._found = [one for one in self._found if one[0] in self.steps]
        self._found.append((record["step"], float(record[self.key])))
        return record["step"] in self.steps

    def to_json(self) -> list[tuple[int, float]]:
        """Return the best evaluations as JSON data."""
        return [one for one in self._found if one[0] in self.steps]
