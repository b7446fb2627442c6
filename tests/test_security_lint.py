"""What our source must never do: run code from data, trust a remote, or hand a string to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

UNPICKLING_ERRORS = {"UnpicklingError", "PickleError"}
FORBIDDEN_MODULES = {
    "pickle": "unpickling runs code",
    "cPickle": "unpickling runs code",
    "dill": "unpickling runs code",
    "cloudpickle": "unpickling runs code",
    "marshal": "unmarshalling is not safe on foreign data",
    "shelve": "it is pickle",
    "requests": "no remote URL is ever opened",
    "urllib.request": "no remote URL is ever opened",
    "aiohttp": "no remote URL is ever opened",
    "torch.hub": "it downloads and runs code",
}
FORBIDDEN_CALLS = {
    "eval": "it runs code",
    "exec": "it runs code",
    "compile": "it runs code",
    "__import__": "import by name belongs to Hydra, behind the allowlist",
    "os.system": "it is a shell",
    "os.popen": "it is a shell",
    "subprocess.getoutput": "it is a shell",
    "subprocess.getstatusoutput": "it is a shell",
    "tempfile.mktemp": "another process can take the name",
    "torch.save": "it is pickle; write safetensors",
    "torch.hub.load": "it downloads and runs code",
    "joblib.load": "it is pickle",
    "yaml.load": "it builds any object; use yaml.safe_load",
    "yaml.unsafe_load": "it builds any object; use yaml.safe_load",
    "yaml.full_load": "it builds any object; use yaml.safe_load",
    "shutil.unpack_archive": "archives are read member by member",
}
FORBIDDEN_METHODS = {"extractall": "archives are read member by member"}
FORBIDDEN_TRUE_KEYWORDS = {"allow_pickle", "shell", "trust_remote_code"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def findings(source: str) -> Iterator[str]:
    """What is wrong in a source, as `line: what and why`."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name in FORBIDDEN_MODULES and name.name != "pickle":
                    yield f"{line}: import {name.name}: {FORBIDDEN_MODULES[name.name]}"
                if name.name == "pickle" and name.asname:
                    yield f"{line}: import pickle under another name"
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                for module in (node.module or "", f"{node.module}.{name.name}"):
                    if module in FORBIDDEN_MODULES and name.name not in UNPICKLING_ERRORS:
                        yield f"{line}: from {module}: {FORBIDDEN_MODULES[module]}"
                if f"{node.module}.{name.name}" in FORBIDDEN_CALLS | {"torch.load": ""}:
                    yield f"{line}: {node.module}.{name.name} under a short name hides it from this check"
        elif isinstance(node, ast.Attribute):
            # Its errors may be caught; nothing else of pickle may be touched.
            if dotted(node.value) == "pickle" and node.attr not in UNPICKLING_ERRORS:
                yield f"{line}: pickle.{node.attr}: {FORBIDDEN_MODULES['pickle']}"
        elif isinstance(node, ast.Call):
            yield from (f"{line}: {what}" for what in call_findings(node))


def call_findings(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    if name in FORBIDDEN_CALLS:
        yield f"{name}: {FORBIDDEN_CALLS[name]}"
    if isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS:
        yield f"{call.func.attr}: {FORBIDDEN_METHODS[call.func.attr]}"
    if name == "torch.load" and not is_true(keyword(call, "weights_only")):
        yield "torch.load without weights_only=True"
    if name in ("Image.open", "PIL.Image.open") and keyword(call, "formats") is None:
        yield "Image.open without a list of allowed formats"
    for item in call.keywords:
        constant_false = isinstance(item.value, ast.Constant) and item.value.value is False
        if item.arg in FORBIDDEN_TRUE_KEYWORDS and not constant_false:
            yield f"{item.arg} may be true"


def test_no_source_of_ours_runs_data_or_trusts_a_remote() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for package in ("mm_llama", "encoders", "adapters")
        for path in sorted((ROOT / package).rglob("*.py"))
        for finding in findings(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle; pickle.loads(data)",
        "import pickle as p",
        "from pickle import loads",
        "import dill",
        "import urllib.request",
        "from urllib import request",
        "from torch import hub",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "torch.save(state, path)",
        "numpy.load(path, allow_pickle=True)",
        "model(name, trust_remote_code=flag)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "yaml.load(text)",
        "eval(text)",
        "tar.extractall(folder)",
        "Image.open(path)",
    ],
)
def test_each_rule_sees_its_breach(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\ntry:\n    torch.load(p, weights_only=True)\nexcept pickle.UnpicklingError:\n    pass",
        "numpy.load(path, allow_pickle=False)",
        "model.eval()",
        "re.compile(text)",
        "torch.compile(model)",
        "Image.open(file, formats=('PNG',))",
        "subprocess.run([tool, path])",
    ],
)
def test_what_is_fine_passes(source: str) -> None:
    assert not list(findings(source))
