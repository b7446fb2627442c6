"""Documents and files that mean harm, made from good ones."""

from __future__ import annotations

import copy
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# What stands where a number, a text or a list is expected.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e300, 10**30, 2**31 - 2, "", "text", "${oc.env:HOME}", "../../../etc/passwd",
    [], [-1], ["text"], [[]], {}, {"_target_": "os.system"}, {"content": 1},
)  # fmt: skip


def variants(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield (what was changed, document) for each value of a document left out, and put in its place each of VALUES."""
    for path in _paths(document):
        name = ".".join(map(str, path))
        yield f"{name} missing", _changed(document, path)
        for value in VALUES:
            yield f"{name}={value!r}", _changed(document, path, value)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(entries)[:40]:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _changed(document: Any, path: tuple[Any, ...], *value: Any) -> Any:
    changed = copy.deepcopy(document)
    node = changed
    for key in path[:-1]:
        node = node[key]
    if value:
        node[path[-1]] = copy.deepcopy(value[0])
    else:
        del node[path[-1]]
    return changed


def mutated(data: bytes, seed: int, number: int, header: int = 400) -> bytes:
    """Return bytes changed in one of six ways, the same ones for the same numbers.

    Bits are flipped anywhere, values are written where headers are (within `header` bytes of either end), the file is
    cut, a stretch of it is left out or comes twice, or a number of four bytes becomes the largest or the smallest.
    """
    random = np.random.default_rng([seed, number])
    changed = bytearray(data)
    kind = random.integers(6)
    near = min(header, len(data) - 4)
    if kind == 0:
        del changed[random.integers(len(data)) :]
    elif kind == 1:
        for _ in range(random.integers(1, 9)):
            changed[random.integers(len(data))] ^= 1 << int(random.integers(8))
    elif kind == 2:
        for _ in range(random.integers(1, 9)):
            place = random.integers(near)
            changed[place if random.integers(4) else -1 - place] = random.choice([0, 1, 127, 128, 255])
    elif kind == 3:
        start, stop = sorted(random.integers(0, len(data), 2))
        del changed[start : min(stop, start + 500)]
    elif kind == 4:
        start, place = random.integers(0, len(data), 2)
        changed[place:place] = data[start : start + random.integers(1, 500)]
    else:
        place = random.integers(near)
        changed[place : place + 4] = bytes(
            [random.choice([0, 127, 255])] * 3 + [int(random.choice([0, 127, 255]))]
        )
    return bytes(changed)


@contextmanager
def little_memory(num_bytes: int = 2 << 30) -> Iterator[None]:
    """Let this process have so much more than it has: what asks for more gets a MemoryError, not the machine's."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
