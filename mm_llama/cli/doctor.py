"""`mm-llama doctor`: what works here, what is missing, and how to get it.

Libraries are imported in a child process, one after the other: one that raises, or even ends the process,
is reported and the others are still looked at.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mm_llama
from mm_llama.assets import AssetStatus, asset_status
from mm_llama.cli.assets import as_dict
from mm_llama.cli.parser import Parser
from mm_llama.paths import cache_dir, conf_dir

# extra -> distribution -> import name; "base" is what every command needs.
LIBRARIES: dict[str, dict[str, str]] = {
    "base": {
        "torch": "torch",
        "torchvision": "torchvision",
        "timm": "timm",
        "einops": "einops",
        "hydra-core": "hydra",
        "omegaconf": "omegaconf",
        "pyyaml": "yaml",
        "numpy": "numpy",
        "safetensors": "safetensors",
        "tokenizers": "tokenizers",
        "tiktoken": "tiktoken",
        "pillow": "PIL",
        "rich": "rich",
        "gguf": "gguf",
        "filelock": "filelock",
    },
    "train": {"tensorboard": "tensorboard", "psutil": "psutil"},
    "video": {"decord2": "decord", "av": "av"},
    "speech": {
        "torchaudio": "torchaudio",
        "soundfile": "soundfile",
        "soxr": "soxr",
        "av": "av",
        "onnxruntime": "onnxruntime",
        "num2words": "num2words",
    },
    "sweep": {
        "hydra-joblib-launcher": "hydra_plugins.hydra_joblib_launcher",
        "hydra-submitit-launcher": "hydra_plugins.hydra_submitit_launcher",
        "matplotlib": "matplotlib",
        "optuna": "optuna",
        "psutil": "psutil",
    },
    "eval": {
        "matplotlib": "matplotlib",
        "jiwer": "jiwer",
        "sacrebleu": "sacrebleu",
        "whisper-normalizer": "whisper_normalizer",
        "ctranslate2": "ctranslate2",
    },
    "recordings": {"librosa": "librosa"},
    "parquet": {"pyarrow": "pyarrow"},
    "perceptual": {"pesq": "pesq", "pystoi": "pystoi"},
    "serve": {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "python-multipart": "python_multipart",
        "httpx": "httpx",
    },
    "oracles": {"transformers": "transformers", "llama-models": "llama_models", "fairscale": "fairscale"},
}
PROBE_SECONDS = 240
CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mm_llama.cli.doctor import probe
probe(sys.argv[2:])
"""


def main(argv: list[str]) -> int:
    """Run `mm-llama doctor`; 0 when the base works, 1 when it does not."""
    parser = Parser(prog="mm-llama doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(argv)
    report = examine()
    print(json.dumps(report, indent=1) if options.json else _text(report))
    return 0 if not report["problems"] else 1


def examine() -> dict[str, Any]:
    """Everything the doctor reports, as plain JSON values; `problems` is empty when the base works."""
    libraries = _libraries()
    problems = [
        f"{name}: {row['error']}" for name, row in libraries["base"].items() if row["state"] != "works"
    ]
    problems += [error for error in (_floor_errors() + _neighbour_errors()) if error]
    try:
        conf = str(conf_dir())
    except FileNotFoundError as error:
        conf = ""
        problems.append(str(error))
    statuses = asset_status()
    return {
        "mm_llama": {"version": mm_llama.__version__, "folder": str(_home() / "mm_llama"), "conf": conf},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {"system": platform.platform(), "cores": _cores(), **_torch_facts(libraries)},
        "libraries": libraries,
        "notes": _notes(libraries),
        "cache": _cache(),
        "assets": [as_dict(status) for status in statuses],
        "fetch": _fetch_command(statuses),
        "problems": problems,
    }


def _libraries() -> dict[str, dict[str, dict[str, Any]]]:
    wanted = {module for group in LIBRARIES.values() for module in group.values()}
    versions: dict[str, str | None] = {}
    for name in {name for group in LIBRARIES.values() for name in group}:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    installed = {m for group in LIBRARIES.values() for name, m in group.items() if versions[name] is not None}
    # torch first: what others say about a broken torch is only its echo.
    outcomes = _probe_in_children(sorted(wanted & installed, key=lambda name: (name != "torch", name)))
    report: dict[str, dict[str, dict[str, Any]]] = {}
    for extra, group in LIBRARIES.items():
        report[extra] = {}
        for name, module in group.items():
            outcome = outcomes.get(module, {"error": "not installed"})
            state = (
                "not installed" if versions[name] is None else "broken" if outcome.get("error") else "works"
            )
            report[extra][name] = {"version": versions[name], "state": state, **outcome}
    return report


def _probe_in_children(modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Import the modules in a child process; when it dies, blame the module it was at and go on after it."""
    outcomes: dict[str, dict[str, Any]] = {}
    left = list(modules)
    while left:
        command = [sys.executable, "-c", CHILD, json.dumps(sys.path), *left]
        with tempfile.TemporaryFile() as output:
            try:
                status = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    timeout=PROBE_SECONDS,
                ).returncode
                end = f"importing it ended the process (exit status {status})"
            except subprocess.TimeoutExpired:
                end = f"importing it took more than {PROBE_SECONDS} s"
            output.seek(0)
            lines = [
                line for line in output.read().decode("utf-8", "replace").splitlines() if line.startswith("{")
            ]
        for line in lines:
            row = json.loads(line)
            outcomes[row.pop("module")] = row
        left = [module for module in left if module not in outcomes]
        if left:
            outcomes[left.pop(0)] = {"error": end}
    return outcomes


def probe(modules: Sequence[str]) -> None:
    """Child process: import each module and print one JSON line about it."""
    import importlib
    import warnings

    warnings.simplefilter("ignore")
    for name in modules:
        row: dict[str, Any] = {"module": name}
        try:
            importlib.import_module(name)
            if name == "torch":
                row["facts"] = _measure_torch()
        except (Exception, SystemExit) as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        # A line of its own, whatever a library printed before it.
        print("\n" + json.dumps(row), flush=True)


def _measure_torch() -> dict[str, Any]:
    """Threads, accelerators, and how many times as fast a bfloat16 matrix product is as a float32 one."""
    import time

    import torch

    def seconds(dtype: torch.dtype) -> float:
        left = torch.ones(768, 768, dtype=dtype)
        best = float("inf")
        for _ in range(6):
            start = time.perf_counter()
            left @ left
            best = min(best, time.perf_counter() - start)
        return best

    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_speedup": round(seconds(torch.float32) / seconds(torch.bfloat16), 1),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _torch_facts(libraries: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    return libraries["base"]["torch"].pop("facts", {})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _home() -> Path:
    return Path(mm_llama.__file__).resolve().parent.parent


def _neighbour_errors() -> list[str]:
    """`encoders` and `adapters` are names of other published distributions too: ours lie beside mm_llama."""
    errors = []
    for name in ("encoders", "adapters"):
        spec = importlib.util.find_spec(name)
        origin = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
        found = Path(origin).resolve() if origin else None
        found = found.parent if found is not None and found.name == "__init__.py" else found
        if found == _home() / name:
            continue
        owners = importlib.metadata.packages_distributions().get(name, [])
        intruders = [owner for owner in owners if owner.replace("-", "_") != "mm_llama"]
        advice = (
            f"pip uninstall {' '.join(intruders)}"
            if intruders
            else "run from another folder or install again"
        )
        where = f"is {found}" if found else "cannot be found"
        errors.append(f"the package `{name}` {where}, but mm_llama needs its own in {_home()}: {advice}")
    return errors


def _floor_errors() -> list[str]:
    """Base libraries older than mm_llama asks for, when it is installed and so says what it asks for."""
    try:
        requirements = importlib.metadata.requires("mm_llama") or []
        from packaging.requirements import Requirement
    except (importlib.metadata.PackageNotFoundError, ImportError):
        return []
    errors = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # reported as not installed
        if not requirement.specifier.contains(version, prereleases=True):
            errors.append(f"{requirement.name} {version} is installed, but mm_llama needs {requirement}")
    return errors


def _notes(libraries: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    notes = []
    try:
        old = importlib.metadata.version("decord")
        both = libraries["video"]["decord2"]["version"] is not None
        notes.append(
            f"decord {old} is installed{' together with decord2, which has the same files' if both else ''}: "
            "it is no longer maintained; pip uninstall decord decord2, then install decord2 again"
        )
    except importlib.metadata.PackageNotFoundError:
        pass
    notes.append(_clip_note(libraries["video"]))
    if hasattr(os, "getloadavg") and _cores() == os.cpu_count():
        notes += _load_notes(os.getloadavg()[0], _cores())
    program = shutil.which("ffmpeg")
    notes.append(
        f"the ffmpeg program is {'at ' + program if program else 'not installed'}; nothing here needs it"
    )
    return notes


def _load_notes(load: float, cores: int) -> list[str]:
    """Say when more is at work than there are cores: threads that wait for each other lose more than their share."""
    if load <= cores + 1:
        return []
    return [
        f"{load:.1f} threads were at work on {cores} cores during the last minute: trainings side by side are best run "
        "as one sweep, which divides the cores among them, or each with fewer threads (threads=1)"
    ]


def _clip_note(video: dict[str, dict[str, Any]]) -> str:
    works = [name for name, row in video.items() if row.get("state") == "works"]
    if "av" in works:
        return "clips are read with PyAV"
    if "decord2" in works:
        return "clips are read with decord, since PyAV does not work: slower, whole files in memory, no AVI"
    return "clips other than GIF and WebP cannot be read: neither PyAV nor decord works"


def _cache() -> dict[str, Any]:
    folder = cache_dir().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "folder": str(folder),
        "writable": os.access(existing, os.W_OK),
        "free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
    }


def _fetch_command(statuses: Sequence[AssetStatus]) -> str:
    missing = [status.asset.name for status in statuses if status.state != "ready"]
    return f"mm-llama assets fetch {' '.join(missing)}" if missing else ""


def _install_command(extra: str) -> str:
    if (_home() / "pyproject.toml").is_file():
        return f'pip install -c constraints.txt -e "{_home()}[{extra}]"'
    return f'pip install "mm_llama[{extra}]"'


def _text(report: dict[str, Any]) -> str:
    machine, cache = report["machine"], report["cache"]
    lines = [
        f"mm_llama {report['mm_llama']['version']} in {report['mm_llama']['folder']}",
        f"python {report['python']['version']} ({report['python']['executable']})",
        f"{machine['system']}, {machine['cores']} cores",
    ]
    if "threads" in machine:
        gpus = ", ".join(machine["gpus"]) or "none that torch can use"
        lines.append(
            f"torch: {machine['threads']} threads, {machine['cpu_capability']}, bfloat16 matrix products "
            f"{machine['bf16_speedup']}x as fast as float32; GPU: {gpus}"
        )
    for extra, group in report["libraries"].items():
        lines.append(f"\n{extra}")
        for name, row in group.items():
            mark = {"works": "ok", "broken": "!!"}.get(row["state"], "--")
            lines.append(f"  {mark} {name:<24}{row['version'] or ''} {row.get('error', '')}".rstrip())
        if extra != "base" and any(row["state"] == "not installed" for row in group.values()):
            lines.append(f"     get it: {_install_command(extra)}")
    room = f"{cache['free_gb']} GB free" + ("" if cache["writable"] else ", NOT WRITABLE")
    lines.append(f"\ncache {cache['folder']} ({room})")
    for row in report["assets"]:
        mark = {"ready": "ok", "damaged": "!!"}.get(row["state"], "--")
        lines.append(
            f"  {mark} {row['name']:<24}{row['purpose']}{' (' + row['detail'] + ')' if row['detail'] else ''}"
        )
    if report["fetch"]:
        lines.append(f"     get them: {report['fetch']}")
    lines += ["", *report["notes"]]
    lines += ["", *(f"PROBLEM {problem}" for problem in report["problems"])]
    lines.append("the base does not work" if report["problems"] else "the base works")
    return "\n".join(lines)
