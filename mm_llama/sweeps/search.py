"""A search with Optuna in place of a grid. The ledger is its memory: a repeated search asks the same and is told."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override

from mm_llama.sweeps.ledger import FAILED, FINISHED

if TYPE_CHECKING:
    from mm_llama.sweeps.sweep import Sweep


def search(sweep: Sweep, given: Sequence[Override], num_trials: int, seed: int) -> int:
    """Run `num_trials` points that a seeded tree-structured Parzen estimator proposes; returns the exit code.

    As many are proposed at a time as run side by side. What is minimised is `StageResult.objective`: wrong answers
    where a stage is evaluated, else the loss. A failed job tells the search nothing.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(
            "sweep.trials searches with Optuna, which is not installed: pip install 'mm_llama[sweep]'"
        )
    import optuna
    from optuna.trial import TrialState

    fixed = [
        f"{one.get_key_element()}={one.get_value_element_as_str()}"
        for one in given
        if not one.is_sweep_override()
    ]
    space = {one.get_key_element(): distribution(one) for one in given if one.is_sweep_override()}
    if not space:
        raise ValueError(
            "sweep.trials finds nothing to search: give keys choices or ranges, optim.lr='interval(1e-4,1e-2)'"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    together = sweep.cfg.hydra.sweeper.get("max_batch_size") or sweep.side_by_side
    for first in range(0, num_trials, together):
        trials = [study.ask(space) for _ in range(min(together, num_trials - first))]
        grid = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
        entries = sweep.run(grid, list(space))
        if any(entry.status not in (FINISHED, FAILED) for entry in entries):
            break  # without its result the next proposal would be another than in an unbroken search
        for trial, entry in zip(trials, entries, strict=True):
            if entry.objective is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, entry.objective)
    return sweep.end()


def distribution(override: Override) -> Any:
    """Return what Optuna draws a key from: interval(a,b), int(interval(a,b)), tag(log,...) of these, or choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(value.start, value.end, log=log)
    return CategoricalDistribution(list(override.sweep_string_iterator()))
