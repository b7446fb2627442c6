"""Imports point one way, and what a person types first loads no torch."""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package -> what it may import of ours. The longest matching key counts; `core` is mm_llama.core, and so on.
CORE = {"mm_llama.core"}
MODEL = {f"mm_llama.{name}" for name in ("batch", "modality", "model", "prefixes", "splice", "spoken")}
CHAT = {"mm_llama.core.tokenizer", "mm_llama.core.chat", "mm_llama.core.messages"}
FILES = {"mm_llama.paths", "mm_llama.assets", "mm_llama.archives"}
ANY = {"mm_llama"}
MAY_IMPORT: dict[str, set[str]] = {
    "encoders": {"encoders"},
    "adapters": {"adapters", "mm_llama.core.layers", "mm_llama.core.fan_out"},
    "mm_llama.core": CORE,
    "mm_llama.batch": set(),
    "mm_llama.splice": {"mm_llama.batch"},
    "mm_llama.spoken": CORE,
    "mm_llama.voice": CORE | MODEL | {"mm_llama.voice"},
    "mm_llama.modality": CORE | {"mm_llama.batch", "mm_llama.splice"},
    "mm_llama.prefixes": CORE | MODEL,
    "mm_llama.model": CORE | MODEL,
    "mm_llama.data": CHAT | {"mm_llama.data", "mm_llama.batch", "mm_llama.voice"},
    "mm_llama.stages": CORE | MODEL | {"mm_llama.stages", "mm_llama.data", "mm_llama.voice"},
    "mm_llama.generation": CORE | MODEL | {"mm_llama.generation", "mm_llama.data"},
    "mm_llama.eval": CORE
    | MODEL
    | {"mm_llama.eval", "mm_llama.data", "mm_llama.generation", "mm_llama.voice"},
    "mm_llama.report": {"mm_llama.report"},
    "mm_llama.testing": CORE | {"mm_llama.testing"},
    "mm_llama.paths": set(),
    "mm_llama.schema": set(),
    "mm_llama.archives": set(),
    "mm_llama.assets": FILES,
    # what assembles the parts
    "mm_llama": ANY,
}
# Libraries that the parts which know nothing of files and configs may use.
LIBRARIES: dict[str, set[str]] = {
    "encoders": {"torch", "torchvision", "torchaudio", "timm", "einops", "numpy", "PIL", "safetensors"},
    "adapters": {"torch", "einops"},
    "mm_llama.core": {"torch", "numpy", "safetensors", "tokenizers", "tiktoken", "regex", "gguf"},
    "mm_llama.batch": {"torch"},
    "mm_llama.modality": {"torch"},
    "mm_llama.splice": {"torch"},
    "mm_llama.spoken": {"torch"},
    "mm_llama.voice": {"torch", "torchaudio", "num2words", "soundfile", "librosa", "numpy"},
    "mm_llama.model": {"torch"},
    "mm_llama.prefixes": {"torch"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("mm_llama", "encoders", "adapters"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(source: str) -> Iterator[str]:
    """Dotted names that a source imports, wherever it does so; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "." + (node.module or "")
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def below(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def rule_for(module: str, table: dict[str, set[str]]) -> set[str] | None:
    keys = [key for key in table if below(module, {key})]
    return table[max(keys, key=len)] if keys else None


def violations(module: str, source: str) -> list[str]:
    wrong = []
    ours, libraries = rule_for(module, MAY_IMPORT), rule_for(module, LIBRARIES)
    for name in imported(source):
        top = name.split(".")[0]
        if name.startswith("."):
            wrong.append(f"{module}: relative import {name}; write the full name")
        elif top in ("mm_llama", "encoders", "adapters"):
            if name in ("mm_llama", "mm_llama.__version__"):
                continue
            if top != "mm_llama" and top != module.split(".")[0]:
                wrong.append(f"{module} imports {name}; only conf/ connects {top} to the rest")
            elif ours is not None and not below(name, ours):
                wrong.append(
                    f"{module} imports {name}; it may import {', '.join(sorted(ours)) or 'nothing of ours'}"
                )
        elif top not in sys.stdlib_module_names and libraries is not None and top not in libraries:
            wrong.append(f"{module} imports {name}; it may use {', '.join(sorted(libraries))}")
    return wrong


def test_imports_point_one_way() -> None:
    found = [line for module, path in modules() for line in violations(module, path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mm_llama.core.llama", "from mm_llama.model import MultimodalLlama"),
        ("mm_llama.core.llama", "def f():\n    import timm"),
        ("encoders.timm_image", "from mm_llama import batch"),
        ("encoders.timm_image", "import omegaconf"),
        ("adapters.image", "from mm_llama.core.llama import Llama"),
        ("adapters.image", "import encoders.timm_image"),
        ("mm_llama.build", "import adapters.image"),
        ("mm_llama.data.mix", "from mm_llama.core.llama import Llama"),
        ("mm_llama.stages.loop", "from mm_llama.generation import engine"),
        ("mm_llama.model", "from ..stages import loop"),
    ],
)
def test_an_import_against_the_direction_is_seen(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


def run_python(*args: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["assets", "list"], ["doctor", "--help"]]
)
def test_first_commands_and_the_package_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys, mm_llama\n"
        "if sys.argv[1:]:\n"
        "    from mm_llama.cli import main\n"
        "    try:\n"
        "        assert main(sys.argv[1:]) == 0\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'timm', 'hydra', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run_python("-c", code, *arguments)


def test_help_is_there_within_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert "usage: mm-llama" in run_python("-m", "mm_llama", "--help")
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.5, seconds


def test_package_with_its_load_function_imports_within_three_seconds() -> None:
    code = "import time; start = time.time(); from mm_llama import load; print(time.time() - start)"
    assert min(float(run_python("-c", code)) for _ in range(3)) < 3.0
