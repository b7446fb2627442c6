"""`mm-llama train`: one stage under Hydra. Overrides, `-m` sweeps, `--cfg job`; the same command again continues."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mm_llama import schema
from mm_llama.paths import conf_dir
from mm_llama.stages.yaml_file import check_yaml

_HELP = """usage: mm-llama train stage=NAME [KEY=VALUE ...] [-m] [--cfg job] [--config-dir DIR]

  stage=NAME                            which stage (conf/stage)
  experiment=NAME                       a recorded experiment (conf/experiment)
  core=NAME  modality/image=NAME  data=NAME  optim=NAME
  name=RUN                              the run's folder is runs/RUN; the same command again continues it
  -m optim.lr=1e-3,3e-3                 a sweep; the same command again skips what is finished and continues the rest
  hydra/launcher=joblib                 its jobs side by side (submitit_local, submitit_slurm: docs/sweeps.md)
  sweep=optuna  sweep.retry=true        a search in place of a grid; failed jobs once more
  --cfg job                             print the composed config and stop
"""


def main(argv: list[str]) -> int:
    """Compose, check and run; a misspelt key or group names itself and its near matches."""
    if not argv or "-h" in argv or "--help" in argv:
        print(_HELP + _groups())
        return 0
    schema.register()
    cfg, first, folders = _check(argv)
    shows = any(arg.split("=")[0] in ("--cfg", "-c", "--info", "-i", "--hydra-help") for arg in argv)
    multirun = any(arg in ("-m", "--multirun") for arg in argv) or cfg.hydra.mode == RunMode.MULTIRUN
    try:
        if multirun and not shows:
            from mm_llama.sweeps.sweep import run_sweep

            return run_sweep([*(arg for arg in argv if _is_override(arg)), *_searched(folders)])
        if multirun:  # the config of the first job
            flags = [arg for arg in argv if not _is_override(arg) and arg not in ("-m", "--multirun")]
            return _run([*flags, *first])
        return _run(argv)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error)) from error


def _run(argv: list[str]) -> int:
    """Run one stage, or show its config, as Hydra's own command line."""
    codes: list[int] = []
    errors: list[Exception] = []

    @hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")
    def job(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        from mm_llama.stage_run import run_stage

        try:
            result = run_stage(cfg, run_dir=HydraConfig.get().runtime.output_dir)
        except (ValueError, OSError) as error:  # told in our words, not with Hydra's trace
            if os.environ.get("MM_LLAMA_DEBUG"):
                raise
            errors.append(error)
        else:
            codes.append(result.exit_code)

    before = sys.argv
    sys.argv = ["mm-llama train", *_flags_first(argv)]
    try:
        job()
    finally:
        sys.argv = before
    if errors:
        raise errors[0]
    return max(codes, default=0)


def _flags_first(argv: list[str]) -> list[str]:
    """Put flags before overrides: Hydra's parser takes overrides from one place only."""
    takes_value = ("--config-dir", "-cd", "--cfg", "-c", "--info", "-i", "--package", "-p")
    flags: list[str] = []
    overrides: list[str] = []
    for index, arg in enumerate(argv):
        value = index > 0 and argv[index - 1] in takes_value
        (flags if value or arg.startswith("-") else overrides).append(arg)
    return [*flags, *overrides]


def _is_override(arg: str) -> bool:
    return "=" in arg and not arg.startswith("-")


def _searched(folders: list[str]) -> list[str]:
    """Return the override that finds configs in more folders."""
    places = ",".join("file://" + str(Path(folder).resolve()) for folder in folders)
    return [f"hydra.searchpath=[{places}]"] if folders else []


def _check(argv: list[str]) -> tuple[DictConfig, list[str], list[str]]:
    """Compose once without running, so that mistakes are told in our words; of a sweep, its first choices.

    Returns the config, Hydra's part included, its overrides, and the folders that the command adds to be searched.
    """
    overrides = [arg for arg in argv if _is_override(arg)]
    flags = [arg for arg in argv if arg.startswith("-")]
    folders = [str(Path(argv[i + 1])) for i, arg in enumerate(argv[:-1]) if arg in ("--config-dir", "-cd")]
    if any(flag.startswith("--config-dir=") for flag in flags):
        folders += [flag.partition("=")[2] for flag in flags if flag.startswith("--config-dir=")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ValueError(f"{str(error).splitlines()[0]}; write KEY=VALUE, lists as KEY=[a,b]") from error
    single = []
    for override in parsed:
        if override.is_sweep_override():
            value = override.value()
            first = (
                value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
            )
            single.append(f"{override.get_key_element()}={first}")
        else:
            single.append(str(override.input_line))
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(
                f"--config-dir {folder} is no folder: name one that holds groups, such as data/NAME.yaml"
            )
        for file in Path(folder).rglob("*.yaml"):
            check_yaml(file)
    single += _searched(folders)
    if not any(re.match(r"\+?stage=", override) for override in single):
        chosen = [override for override in single if re.match(r"\+?(experiment|sweep)=", override)]
        if not chosen:
            raise ValueError(
                f"say which stage: mm-llama train stage=NAME; stages are {', '.join(_options('stage'))}"
            )
    from mm_llama.build import compose_config

    try:
        cfg = compose_config("train", single, with_hydra=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_addable(single, str(error)) or _explain(error)) from error
    name = "" if OmegaConf.is_missing(cfg, "name") else str(OmegaConf.select(cfg, "name"))
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"name={name} leaves the folder of runs: give a name, and the folder with runs=DIR")
    _check_folder(Path(str(cfg.runs)).expanduser() / name)
    return cfg, single, folders


def _check_folder(run: Path) -> None:
    """Raise ValueError where no folder can be made for a run."""
    there = next(place for place in (run.absolute(), *run.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is no folder"
        raise ValueError(
            f"there can be no run at {run}, because {there} {what}: name another place with runs=DIR"
        )


def _addable(overrides: list[str], text: str) -> str:
    """Say how to add a key that a node lacks but its class takes, or nothing."""
    found = re.search(r"Could not override '([\w.]+)'", text)
    given = [one for one in overrides if found and one.partition("=")[0] == found[1]]
    if not found or not given:
        return ""
    from mm_llama.build import compose_config
    from mm_llama.targets import arguments_of, locate

    parent, _, key = found[1].rpartition(".")
    try:
        node = OmegaConf.select(
            compose_config("train", [one for one in overrides if one not in given]), parent
        )
        target = node.get("_target_")
        if key not in arguments_of(locate(target)):
            return ""
    except (HydraException, OmegaConfBaseException, ValueError, AttributeError):
        return ""  # something else is wrong as well, or that is no node with a class
    return f"{parent} has no '{key}' yet, which {target} takes: add it with +{given[0]}"


def _explain(error: Exception) -> str:
    """Say what was wrong with a config in one line, with near matches."""
    text = str(error)
    cause = str(error.__cause__ or "")
    first = text.splitlines()[0]
    missing_group = re.search(r"Could not find '([\w/]+)/([\w.-]+)'", text)
    if missing_group:
        group, choice = missing_group.groups()
        if group == "hydra/launcher":
            return (
                f"{group}={choice}: there is no such launcher here; joblib, submitit_local and submitit_slurm come "
                "with pip install 'mm_llama[sweep]'"
            )
        options = _options(group)
        return f"{group}={choice}: there is no such choice{_near(choice, options)}; known are {', '.join(options)}"
    unknown_group = re.search(r"Could not override '([\w/@.]+)'", text)
    key = re.search(r"[Kk]ey '([\w]+)' (?:is not in struct|not in)", text + cause)
    if unknown_group and (key or "No match" in text):
        name = unknown_group.group(1)
        return (
            f"unknown key '{name}'{_near(name, _known_keys())}; `mm-llama train ... --cfg job` shows all keys"
        )
    if key:
        where = re.search(r"full_key: ([\w.]+)", text + cause)
        name = where.group(1) if where else key.group(1)
        return (
            f"unknown key '{name}'{_near(name, _known_keys())}; `mm-llama train ... --cfg job` shows all keys"
        )
    where = re.search(r"full_key: ([\w.\[\]]+)", text + cause)
    detail = (cause.splitlines() or [first])[0]
    return f"{where.group(1)}: {detail}" if where and where.group(1) not in detail else detail or first


def _near(name: str, known: list[str]) -> str:
    last = {full.rpartition(".")[2]: full for full in known}
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    close += [last[short] for short in difflib.get_close_matches(name.rpartition(".")[2], last, n=3)]
    unique = list(dict.fromkeys(close))[:3]
    return f" (did you mean {' or '.join(unique)}?)" if unique else ""


def _known_keys() -> list[str]:
    """Return every key of the typed schema and every group, dotted."""
    keys: list[str] = []

    def walk(node: Any, path: str) -> None:
        for key in node:
            full = f"{path}.{key}" if path else str(key)
            keys.append(full)
            child = None if OmegaConf.is_missing(node, key) else node[key]
            if OmegaConf.is_dict(child):
                walk(child, full)

    walk(OmegaConf.structured(schema.TrainSchema), "")
    groups = [str(p.relative_to(conf_dir())) for p in conf_dir().rglob("*") if p.is_dir()]
    return keys + groups


def _options(group: str) -> list[str]:
    folder = conf_dir() / group
    return sorted(file.stem for file in folder.glob("*.yaml")) if folder.is_dir() else []


def _groups() -> str:
    lines = [""]
    for group in ("stage", "experiment", "core", "modality/image", "data", "optim", "sweep"):
        lines.append(f"  {group:<15} {', '.join(_options(group))}")
    return "\n".join(lines)
