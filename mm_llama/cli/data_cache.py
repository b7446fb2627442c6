"""`mm-llama data cache`: how large the cache is, and what of it was not used for long, removed."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from mm_llama.data.cached import FEATURES, Entry, entries, identity_of_features, prune
from mm_llama.paths import cache_dir


def add_cache(verbs: Any) -> None:
    """Add the verb to the parsers of `data`."""
    cache = verbs.add_parser("cache", help="show what the cache holds; remove features not used for long")
    cache.add_argument(
        "--prune", type=float, metavar="DAYS", help="remove what no run has opened for so many days"
    )
    cache.add_argument(
        "--max-gb", type=float, metavar="N", help="then the longest unused, until so much is left"
    )
    cache.add_argument("--dry-run", action="store_true", help="say what would go, and leave it")
    cache.add_argument("--json", action="store_true", help="one JSON object on standard output")
    cache.set_defaults(run=_cache)


def _cache(options: argparse.Namespace) -> int:
    root = cache_dir()
    if options.prune is None and options.max_gb is None:
        if options.dry_run:
            raise ValueError("--dry-run needs --prune DAYS or --max-gb N")
        groups = _groups(entries(root))
        total = sum(group["bytes"] for group in groups)
        if options.json:
            print(json.dumps({"folder": str(root), "bytes": total, "entries": groups}, indent=1))
            return 0
        print(f"{root}: {total / 1e9:.2f} GB")
        for group in groups:
            about = (
                f"{group['media']} media, {group['dtype']}, encoder {group['encoder'][:19]}"
                if "media" in group
                else ""
            )
            kept = "" if group["removable"] else "kept"
            print(
                f"{group['what']:<32} {group['bytes'] / 1e6:>9.1f} MB  used {_ago(group['used'])}  {about}{kept}"
            )
        return 0
    max_bytes = None if options.max_gb is None else int(options.max_gb * 1e9)
    gone = prune(root, days=options.prune, max_bytes=max_bytes, dry=options.dry_run)
    groups = _groups(gone, describe=False)
    size = sum(entry.num_bytes for entry in gone)
    if options.json:
        print(
            json.dumps(
                {"folder": str(root), "removed": not options.dry_run, "bytes": size, "entries": groups},
                indent=1,
            )
        )
        return 0
    for group in groups:
        print(
            f"{group['what']:<32} {group['bytes'] / 1e6:>9.1f} MB  used {_ago(group['used'])}  {group['files']} files"
        )
    print(
        f"{'would remove' if options.dry_run else 'removed'} {len(gone)} files, {size / 1e9:.2f} GB, of {root}"
    )
    return 0


def _groups(found: list[Entry], describe: bool = True) -> list[dict[str, Any]]:
    """One line for each folder: its size, and when any of it was last used."""
    groups: dict[str, dict[str, Any]] = {}
    for entry in found:
        group = groups.setdefault(
            entry.what,
            {"what": entry.what, "bytes": 0, "files": 0, "used": 0.0, "removable": entry.removable},
        )
        group["bytes"] += entry.num_bytes
        group["files"] += 1
        group["used"] = max(group["used"], entry.used)
        if describe and entry.what.startswith(FEATURES) and "media" not in group:
            group |= identity_of_features(entry.path.parent)
    return list(groups.values())


def _ago(used: float) -> str:
    return f"{max(0.0, time.time() - used) / 86_400:6.1f} days ago"
