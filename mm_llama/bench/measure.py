"""What measurements share: interleaved timing, memory of a child process, this machine's facts, tables and files.

Several contestants are timed in turns within the same rounds, so that a machine that slows down meanwhile favours
none; a ratio is the median over rounds of the ratios within each.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Timing:
    """Seconds of one contestant, round by round: wall clock, and CPU time over all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def record(self) -> dict[str, float]:
        """Return the medians as JSON data."""
        return {"wall_s": statistics.median(self.wall), "cpu_s": statistics.median(self.cpu)}


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1
) -> dict[str, Timing]:
    """Call all contestants in turns, `repeats` rounds in alternating order after `warmup` untimed ones."""
    timings = {name: Timing() for name in contestants}
    for number in range(-warmup, repeats):
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            wall, cpu = time.perf_counter(), time.process_time()
            contestants[name]()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number >= 0:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def times_faster(ours: Timing, theirs: Timing) -> dict[str, float]:
    """Return how many times faster `ours` is: medians over rounds of the ratio within a round."""
    return {
        "wall": statistics.median(b / a for a, b in zip(ours.wall, theirs.wall, strict=True)),
        "cpu": statistics.median(b / a for a, b in zip(ours.cpu, theirs.cpu, strict=True)),
    }


def peak_of_child(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run `python -m module ARGUMENTS` and return the JSON object that it prints; ValueError with its last words.

    A peak of memory is a process's own, and never comes down: each measurement gets a process.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(
            f"`python -m {module} {' '.join(arguments)}` ended with code {done.returncode}: {last}"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def peak_bytes() -> int:
    """Return the most memory that this process has held so far (resident, in bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike the number of getrusage, not inherited from the process that started this one.
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def resident_bytes() -> int:
    """Return the memory that this process holds now (resident, in bytes); 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def machine_facts() -> dict[str, Any]:
    """Return what the numbers depend on: processor, cores, threads, versions, and how busy the machine is."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name") or platform.processor() or platform.machine()
    matrix = " with AMX" if "amx_bf16" in known.get("flags", "").split() else ""
    return name + matrix


def write_facts(path: str | Path | None, facts: Mapping[str, Any]) -> None:
    """Write the numbers as JSON, whole or not at all; nothing without a path."""
    if path is None:
        return
    from mm_llama.core.identity import write_text

    write_text(Path(path), json.dumps(facts, indent=1) + "\n")


def run_file(bench: str) -> Path:
    """Return where the numbers of a measurement are kept when nobody says otherwise: its run folder, by the time."""
    return Path("runs") / f"bench_{bench}" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=200, markup=False, highlight=False).print(table)
    print()


def megabytes(count: float) -> str:
    """Return a number of bytes as MB."""
    return f"{count / 1e6:,.2f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


def positive(option: str, value: int | str) -> int:
    """Return the whole number from 1 that an option takes; ValueError names the option."""
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{option} takes whole numbers from 1, not {value!r}")
    return int(value)


def positives(option: str, values: str) -> list[int]:
    """Return the rising whole numbers from 1 of a list with commas; ValueError names the option."""
    numbers = [positive(option, part.strip()) for part in values.split(",")]
    if sorted(set(numbers)) != numbers:
        raise ValueError(f"{option} takes rising numbers, not {values}")
    return numbers
