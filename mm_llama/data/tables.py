"""Tables that say something about media: CSV and JSONL by the places of their records, Parquet by its row groups."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from mm_llama.data.causes import RowError
from mm_llama.data.sources import index_lines, parse_json

MAX_GROUP_BYTES = 4_000_000_000
_GROUPS_HELD = 2  # row groups of a Parquet file that are kept decoded, so that rows in order are read once


class Table(Protocol):
    """Records by number; `blocks` are the ends of the stretches that are cheap to read in order."""

    columns: list[str]
    digest: str
    blocks: list[int]

    def record(self, index: int) -> dict[str, Any]: ...

    def name_of(self, index: int) -> str: ...


def open_table(path: str | Path) -> Table:
    """Open a table by the ending of its name. Raises ValueError for one without records, or that is no table."""
    path = Path(path)
    kinds: Mapping[str, type[Any]] = {".csv": CsvTable, ".jsonl": JsonlTable, ".parquet": ParquetTable}
    if path.suffix not in kinds:
        raise ValueError(f"{path} is no table that is read here: {', '.join(kinds)}")
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} does not exist")
    table: Table = kinds[path.suffix](path)
    if not table.blocks or not table.blocks[-1]:
        raise ValueError(f"{path}: the table holds no rows")
    return table


class CsvTable:
    """A CSV file with a header line; one offset a record is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets, self.lines, digest = array("Q"), array("Q"), hashlib.sha256()
        read = [0, 0]  # bytes, lines

        def lines() -> Iterator[str]:
            with path.open("rb") as file:
                for line in file:
                    digest.update(line)
                    read[0], read[1] = read[0] + len(line), read[1] + 1
                    yield _decoded(line)

        before = (0, 1)
        self.columns: list[str] = []
        try:
            for cells in csv.reader(lines()):
                if not self.columns:
                    self.columns = [name.removeprefix("\ufeff") for name in cells]
                elif cells:
                    self.offsets.append(before[0])
                    self.lines.append(before[1])
                before = (read[0], read[1] + 1)
        except csv.Error as error:
            raise ValueError(
                f"{path}:{before[1]}: not CSV: {error}; is a quotation mark left open?"
            ) from None
        self.offsets.append(before[0])
        self.blocks = [len(self.lines)]
        self.digest = digest.hexdigest()
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"{path}:1: a column is named twice: {', '.join(self.columns)}")

    def name_of(self, index: int) -> str:
        """Return `file:line`."""
        return f"{self.path}:{self.lines[index]}"

    def record(self, index: int) -> dict[str, Any]:
        """Return a record; cells that are empty are none. Raises RowError for one of another number of cells."""
        start, stop = self.offsets[index : index + 2]
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        name = self.name_of(index)
        try:
            text = data.decode("utf-8")
            cells = next(
                (cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells), []
            )
        except UnicodeDecodeError as error:
            raise RowError(f"{name}: not UTF-8 text (byte {error.start} of the record)", "bad_json") from None
        except csv.Error as error:
            raise RowError(f"{name}: not CSV: {error}", "bad_json") from None
        if len(cells) != len(self.columns):
            what = f"{name}: has {len(cells)} cells, and there are {len(self.columns)} columns"
            raise RowError(what, "bad_json")
        return {key: cell for key, cell in zip(self.columns, cells, strict=True) if cell != ""}


class JsonlTable:
    """A JSONL file of objects; one offset a line is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets, self.lines, self.digest = index_lines(path)
        self.blocks = [len(self.offsets)]
        self.columns = next((list(record) for record in self._first()), [])

    def _first(self) -> Iterator[dict[str, Any]]:
        """The first record that parses, for its keys."""
        for index in range(min(100, len(self.offsets))):
            try:
                yield self.record(index)
            except ValueError:
                continue

    def name_of(self, index: int) -> str:
        """Return `file:line`."""
        return f"{self.path}:{self.lines[index]}"

    def record(self, index: int) -> dict[str, Any]:
        """Return a record. Raises RowError for a line that is no object."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            data = parse_json(file.readline(), self.name_of(index))
        if not isinstance(data, dict):
            raise RowError(f"{self.name_of(index)}: must be an object, not {type(data).__name__}", "bad_type")
        return data


class ParquetTable:
    """A Parquet file; the last row groups that were read stay decoded, and none is read before a row of it is.

    Labels that Hugging Face keeps as numbers come as their names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = self._open()
        about = file.metadata
        sizes = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
        for number in range(about.num_row_groups):
            if about.row_group(number).total_byte_size > MAX_GROUP_BYTES:
                raise ValueError(
                    f"{path}: row group {number} has more than {MAX_GROUP_BYTES:,} bytes; write smaller ones"
                )
        self.blocks = list(accumulate(sizes))
        self.columns = list(file.schema_arrow.names)
        self._labels = _labels(file.schema_arrow.metadata or {})
        # Parquet keeps no digest: the footer says where every column chunk lies and how many bytes it has, and the
        # first and last value of each, but not what is between.
        self.digest = hashlib.sha256(_footer(path)).hexdigest()
        self._held: dict[int, Any] = {}  # row group -> pyarrow table

    def _open(self) -> Any:
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise ValueError(
                'Parquet files are read by pyarrow, which is not installed: pip install "mm_llama[parquet]"'
            ) from None
        try:
            return ParquetFile(self.path)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{self.path} is no whole Parquet file ({str(error).splitlines()[0]})") from None

    def name_of(self, index: int) -> str:
        """Return `file:row`, rows counted from 1."""
        return f"{self.path}:{index + 1}"

    def record(self, index: int) -> dict[str, Any]:
        """Return a record. Raises RowError where its row group does not decode."""
        group = bisect_right(self.blocks, index)
        if group not in self._held:
            try:
                rows = self._open().read_row_group(group)
            except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
                what = (
                    f"{self.name_of(index)}: row group {group} does not decode ({str(error).splitlines()[0]})"
                )
                raise RowError(what, "bad_shard") from None
            while len(self._held) >= _GROUPS_HELD:
                del self._held[next(iter(self._held))]
            self._held[group] = rows
        place = index - (self.blocks[group - 1] if group else 0)
        (record,) = self._held[group].slice(place, 1).to_pylist()
        for key, names in self._labels.items():
            value = record.get(key)
            if isinstance(value, int) and 0 <= value < len(names):
                record[key] = names[value]
        return dict(record)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": {}}


def _footer(path: Path) -> bytes:
    """The last bytes of a Parquet file: its metadata, their length, and the mark."""
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(end - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, end - 8 - length))
        return file.read()


def _labels(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes of label columns, from what the datasets library writes into a file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            key: [str(name) for name in about["names"]]
            for key, about in features.items()
            if isinstance(about, dict) and about.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _decoded(line: bytes) -> str:
    # Only to find where records end; what a record holds is decoded strictly when it is read.
    return line.decode("utf-8", "replace")
