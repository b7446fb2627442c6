"""Any data by its path: a JSONL chat file, tar shards, a media folder, Parquet files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_llama.data.captioned import KIND_OF_ENDING
from mm_llama.data.hf_folders import KINDS, METADATA, MediaFolder, ParquetRows
from mm_llama.data.shards import MANIFEST, PARTIAL, Shards
from mm_llama.data.sources import JsonlChat, Source

FORMATS = "a JSONL file, tar shards, Parquet files, or a folder of shards, of Parquet files or of media"


def open_data(
    path: str | Path,
    *,
    on_damage: str = "error",
    index: str | Path | None = None,
    ignore: Sequence[str] = (),
    **wording: Any,
) -> Source:
    """Open what lies at a path, or what a pattern of shards or Parquet files names; `wording` as `Wording` takes it.

    `on_damage`, `index` and `ignore` are for shards. Raises FileNotFoundError for nothing, ValueError for what is none
    of these.
    """
    name = str(path)
    tars: dict[str, Any] = {"on_damage": on_damage, "index": index, "ignore": ignore}
    if name.endswith(".tar"):
        return Shards(name, **tars, **wording)
    if name.endswith(".parquet"):
        return ParquetRows(name, **wording)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() and folder.suffix in (".csv", ".json"):
            raise ValueError(f"{path} is no data that is read here: {FORMATS}")
        return JsonlChat(folder)
    if any(folder.glob("*.tar")) or (folder / MANIFEST).exists() or (folder / PARTIAL).exists():
        return Shards(folder, **tars, **wording)
    has_table = any((folder / table).is_file() for table in METADATA)
    if not has_table and any(folder.glob("*.parquet")):
        return ParquetRows(folder, **wording)
    return MediaFolder(folder, _kind_in(folder), **wording)


def describe(source: Source) -> dict[str, Any]:
    """Return what a source is and of what it is made, as plain JSON values."""
    if isinstance(source, Shards):
        return {"format": "tar shards", "shards": len(source.files)} | _packed(source.files)
    if isinstance(source, ParquetRows):
        return {
            "format": "Parquet",
            "files": len(source.tables),
            "row_groups": len(source.blocks),
            "media": dict(source.media),
        }
    if isinstance(source, MediaFolder):
        kind = next(name for name, of in KINDS.items() if of == source.kind)
        return {
            "format": f"{kind}folder",
            "rows_from": source.table.name_of(0).rpartition(":")[0] if source.table else "classes",
        }
    return {"format": "JSONL chats"}


def _packed(files: Sequence[str]) -> dict[str, Any]:
    manifest = Path(files[0]).with_name(MANIFEST)
    return {"packed": json.loads(manifest.read_text("utf-8")).get("from", "")} if manifest.is_file() else {}


def _kind_in(folder: Path) -> str:
    """The kind of the media in a folder: that of the first file that has one."""
    for path in sorted(folder.rglob("*")):
        found = KIND_OF_ENDING.get(path.suffix.lower())
        if found:
            return next(name for name, kind in KINDS.items() if kind == found)
    raise FileNotFoundError(f"{folder} holds no data; expected {FORMATS}")
