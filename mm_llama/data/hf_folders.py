"""Hugging Face's layouts: folders of media with a metadata table or a folder a class, and Parquet files with the bytes.

`imagefolder`, `audiofolder` and `videofolder` of the datasets library, and what `push_to_hub` writes. Read by our own
readers: no script of a data set is ever run.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from mm_llama.data.captioned import ANSWERS, KIND_OF_ENDING, QUESTIONS, Medium, Wording
from mm_llama.data.causes import RowError
from mm_llama.data.shards import glob_safe
from mm_llama.data.sources import Row, in_folder
from mm_llama.data.tables import Table, open_table

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
KINDS = {"image": "image", "audio": "speech", "video": "video"}
SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"}
CLASS_PROMPTS = {
    "image": "What is in the picture?",
    "video": "What is in the clip?",
    "speech": "What is heard?",
}


class MediaFolder:
    """A folder of pictures, recordings or clips: an imagefolder, audiofolder or videofolder.

    With `metadata.csv`, `.jsonl` or `.parquet` in it, a row is a record of that table, whose `file_name` (or
    `image_file_name` and so on, also a list under `file_names`) names its media; without, a row is a file, and the
    folder it lies in its answer. `kind` is image, audio or video. The others are those of `Wording`.

    Raises FileNotFoundError for a folder without media of the kind.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        prompt: str | None = None,
        question: Sequence[str] = QUESTIONS,
        answer: Sequence[str] = ANSWERS,
        language: str = "English",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be {', '.join(KINDS)}, not {kind!r}")
        self.folder, self.kind = Path(folder).expanduser(), KINDS[kind]
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {self.folder}")
        tables = [self.folder / name for name in METADATA if (self.folder / name).is_file()]
        if len(tables) > 1:
            raise ValueError(
                f"{self.folder} holds {' and '.join(path.name for path in tables)}; keep one of them"
            )
        self.table: Table | None = open_table(tables[0]) if tables else None
        self.files: list[str] = []
        if self.table is None:
            prompt = CLASS_PROMPTS[self.kind] if prompt is None else prompt
            self.files = self._classified()
        self.wording = Wording(prompt, question, answer, language)
        self._find = in_folder(self.folder.absolute())
        held = self.files if self.table is None else self.table.digest
        said = repr((self.kind, self.wording.identity(), held))
        self.digest = "sha256:" + hashlib.sha256(said.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files) if self.table is None else self.table.blocks[-1]

    def name_of(self, index: int) -> str:
        """Return the file, or `metadata file:line`."""
        return str(self.folder / self.files[index]) if self.table is None else self.table.name_of(index)

    def row(self, index: int) -> Row:
        """Return a row. Raises RowError naming it."""
        name = self.name_of(index)
        if self.table is None:
            record: dict[str, Any] = {"label": os.path.basename(os.path.dirname(self.files[index]))}
            names: list[Any] = [self.files[index]]
        else:
            record = self.table.record(index)
            keys = [key for key in record if key in ("file_name", "file_names") or key.endswith("_file_name")]
            names = [
                one
                for key in keys
                for one in (record[key] if isinstance(record[key], list) else [record[key]])
            ]
            record = {key: value for key, value in record.items() if key not in keys}
            if not names and "messages" not in record:
                raise RowError(f"{name}: the column file_name is missing or empty", "bad_type")
        media: list[Medium] = []
        for one in names:
            if not isinstance(one, str):
                raise RowError(f"{name}: a file_name is a text, not {type(one).__name__}", "bad_type")
            try:
                media.append((self.kind, self._find(self.kind, one)))
            except FileNotFoundError as error:
                raise RowError(f"{name}: {error}", "missing_file") from None
        return self.wording.row(record, media, name, self._find)

    def _classified(self) -> list[str]:
        """Media below the folder, each in the folder of its class, by name."""
        endings = {ending for ending, kind in KIND_OF_ENDING.items() if kind == self.kind}
        found = []
        for root, folders, files in os.walk(self.folder):
            folders.sort()
            here = os.path.relpath(root, self.folder)
            if here != "." and (tables := sorted(set(files) & set(METADATA))):
                raise ValueError(
                    f"{os.path.join(root, tables[0])} is of a folder in {self.folder}; give that folder"
                )
            media = [name for name in sorted(files) if os.path.splitext(name)[1].lower() in endings]
            if media and here == ".":
                raise ValueError(
                    f"{self.folder} holds {media[0]} beside no metadata.csv, .jsonl or .parquet, so nothing says what "
                    "it is; write one, or put files into folders named for their class"
                )
            found += [os.path.join(here, name) for name in media]
        if not found:
            raise FileNotFoundError(
                f"there is no {self.kind} in {self.folder} (endings: {', '.join(sorted(endings))})"
            )
        classes = {path.split(os.sep)[0].lower() for path in found}
        if classes <= SPLITS:
            raise ValueError(
                f"{self.folder} holds splits ({', '.join(sorted(classes))}); give the folder of one"
            )
        return found


class ParquetRows:
    """Parquet files with columns of media: bytes, {bytes, path} as the datasets library writes them, or lists of these.

    `files` is a path, a folder, a pattern, or a list of these. `media` names the columns and the kind of each, by
    default `image(s)`, `audio(s)` and `video(s)`. Paths without bytes are files beside the table. The others are those
    of `Wording`.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        media: Mapping[str, str] | None = None,
        prompt: str | None = None,
        question: Sequence[str] = QUESTIONS,
        answer: Sequence[str] = ANSWERS,
        language: str = "English",
    ) -> None:
        given = [files] if isinstance(files, str | Path) else list(files)
        self.tables = [open_table(path) for pattern in given for path in _parquet_files(str(pattern))]
        columns = dict.fromkeys(name for table in self.tables for name in table.columns)
        usual = {name: kind for kind in KINDS for name in (kind, f"{kind}s") if name in columns}
        self.media = {
            name: KINDS.get(kind, kind) for name, kind in (usual if media is None else media).items()
        }
        for name, kind in self.media.items():
            if name not in columns or kind not in KINDS.values():
                raise ValueError(
                    f"media={{{name}: {kind}}}: the columns are {', '.join(columns)}, kinds are {', '.join(KINDS)}"
                )
        self.wording = Wording(prompt, question, answer, language)
        self._ends = list(accumulate(table.blocks[-1] for table in self.tables))
        starts = [0, *self._ends]
        self.blocks = [
            start + end for start, table in zip(starts, self.tables, strict=False) for end in table.blocks
        ]
        said = repr(
            (sorted(self.media.items()), self.wording.identity(), [table.digest for table in self.tables])
        )
        self.digest = "sha256:" + hashlib.sha256(said.encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def name_of(self, index: int) -> str:
        """Return `file:row`."""
        table, number = self._place(index)
        return table.name_of(number)

    def row(self, index: int) -> Row:
        """Return a row. Raises RowError naming it."""
        table, number = self._place(index)
        record, name = table.record(number), table.name_of(number)
        find = in_folder(Path(name.rpartition(":")[0]).absolute().parent)
        media: list[Medium] = []
        for column, kind in self.media.items():
            cell = record.pop(column, None)
            for one in cell if isinstance(cell, list) else [] if cell is None else [cell]:
                media.append((kind, _medium(one, column, kind, name, find)))
        return self.wording.row(record, media, name, find)

    def _place(self, index: int) -> tuple[Table, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"no row {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self.tables[number], index - (self._ends[number - 1] if number else 0)


def _medium(cell: Any, column: str, kind: str, name: str, find: Any) -> Any:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise RowError(
            f"{name}: {column} must be bytes or {{bytes, path}}, not {type(cell).__name__}", "bad_type"
        )
    try:
        return find(kind, cell)
    except FileNotFoundError as error:
        raise RowError(f"{name}: {error}", "missing_file") from None


def _parquet_files(pattern: str) -> list[str]:
    from glob import glob, has_magic

    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        found = sorted(glob(os.path.join(glob_safe(path), "*.parquet")))
    elif has_magic(path) and not os.path.exists(path):
        found = sorted(glob(path))
    else:
        found = [path]
    if not found:
        raise FileNotFoundError(f"there is no Parquet file at {pattern}")
    return found
