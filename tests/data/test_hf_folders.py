"""Hugging Face's layouts: media folders with a table or a folder a class, and Parquet files with the bytes."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from mm_llama.core.chat import MediaPart, Text
from mm_llama.data.decode import open_image
from mm_llama.data.hf_folders import MediaFolder, ParquetRows
from mm_llama.data.opening import describe, open_data
from mm_llama.data.shards import Shards
from mm_llama.data.sources import JsonlChat

RECORDS = [
    {"file_name": "a.jpg", "text": "a gradient"},
    {"file_name": "sub/b.jpg", "text": 'a "bar",\nand a line'},
    {"file_name": "a.jpg", "text": "grün"},
]


def write_table(folder: Path, form: str, records: list[dict[str, Any]]) -> Path:
    path = folder / f"metadata.{form}"
    if form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table as write

        write(pyarrow.Table.from_pylist(records), path, row_group_size=2)
    return path


@pytest.fixture
def pictures(tmp_path, real_media) -> Path:
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(real_media.jpeg)
    return tmp_path


def answers(source: Any) -> list[str]:
    return [source.row(index).messages[-1].parts[0].text for index in range(len(source))]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_names_the_media_and_what_is_said_of_them(pictures, form):
    path = write_table(pictures, form, RECORDS)
    source = MediaFolder(pictures, "image")
    assert answers(source) == [record["text"] for record in RECORDS]
    row = source.row(1)
    assert row.messages[0].parts == (
        MediaPart("image", str(pictures / "sub/b.jpg")),
        Text("Describe the picture."),
    )
    # The second record of the CSV has a line break in it: the third begins a line later.
    lines = {"csv": [2, 3, 5], "jsonl": [1, 2, 3], "parquet": [1, 2, 3]}[form]
    assert [source.name_of(index) for index in range(3)] == [f"{path}:{line}" for line in lines]
    assert row.source == source.name_of(1)
    assert isinstance(open_data(pictures), MediaFolder) and open_data(pictures).digest == source.digest
    write_table(pictures, form, [*RECORDS[:2], {"file_name": "a.jpg", "text": "red"}])
    assert MediaFolder(pictures, "image").digest != source.digest


@pytest.mark.parametrize(("kind", "folder"), [("image", "image"), ("audio", "speech"), ("video", "video")])
def test_folders_are_classes_without_a_table(tmp_path, real_media, kind, folder):
    ending, data = real_media.of(kind)
    for name in ("cat/1", "cat/2", "dog/1"):
        path = tmp_path / f"{name}.{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "cat" / "notes.md").write_text("no medium")
    source = MediaFolder(tmp_path, kind)
    assert answers(source) == ["cat", "cat", "dog"]
    assert source.name_of(2) == str(tmp_path / f"dog/1.{ending}")
    assert source.row(0).messages[0].parts[0].kind == folder
    assert open_data(tmp_path).digest == source.digest
    assert describe(source) == {"format": f"{kind}folder", "rows_from": "classes"}


def test_recordings_with_a_table_are_repeated_and_their_words_known(tmp_path, real_media):
    (tmp_path / "1.wav").write_bytes(real_media.wav)
    write_table(tmp_path, "csv", [{"file_name": "1.wav", "transcription": "ein Ton"}])
    system, user, answer = MediaFolder(tmp_path, "audio", language="German").row(0).messages
    assert system.parts == (Text("Repeat after me in German:"),)
    assert user.parts == (MediaPart("speech", str(tmp_path / "1.wav"), "ein Ton"),)
    assert answer.parts == (Text("ein Ton"),)


def test_questions_several_pictures_and_whole_chats_are_rows_too(pictures):
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]},
        {"role": "assistant", "content": "same"},
    ]
    records = [
        {"file_name": "a.jpg", "question": "what?", "answer": "this", "author": "x"},
        {"file_names": ["a.jpg", "sub/b.jpg"], "text": "two"},
        {"file_names": ["a.jpg", "sub/b.jpg"], "messages": chat},
        {"file_names": ["a.jpg"], "messages": chat},
    ]
    write_table(pictures, "jsonl", records)
    source = MediaFolder(pictures, "image")
    assert source.row(0).messages[0].parts[1] == Text("what?") and source.row(0).extra["author"] == "x"
    assert len(source.row(1).messages[0].parts) == 3
    first, text, second = source.row(2).messages[0].parts
    assert (first.source, second.source) == (str(pictures / "a.jpg"), str(pictures / "sub/b.jpg"))
    with pytest.raises(ValueError, match=r"metadata\.jsonl:4: the chat shows more image media") as error:
        source.row(3)
    assert error.value.cause == "missing_file"


@pytest.mark.parametrize(
    ("form", "text", "cause", "what"),
    [
        ("csv", 'file_name,text\na.jpg,"x\n', "bad_json", "metadata.csv:2: not CSV"),
        ("csv", "file_name,text\na.jpg\n", "bad_json", "metadata.csv:2: has 1 cells, and there are 2"),
        ("csv", "file_name,text\na.jpg,\n", "empty_answer", "metadata.csv:2: there is no answer"),
        ("csv", "file_name,text\ngone.jpg,x\n", "missing_file", "gone.jpg does not exist"),
        ("csv", "name,text\na.jpg,x\n", "bad_type", "the column file_name is missing"),
        ("jsonl", '{"file_name": 3, "text": "x"}\n', "bad_type", "a file_name is a text, not int"),
        ("jsonl", '{"file_name": "a.jpg", "text": ["a", "b"]}\n', "bad_type", "'text' must be a text or a number"),
        ("jsonl", "[1]\n", "bad_type", "must be an object, not list"),
        ("jsonl", '{"file_name": "a.jpg"\n', "bad_json", "metadata.jsonl:1: not JSON"),
    ],
)  # fmt: skip
def test_a_bad_record_is_named_with_its_line(pictures, form, text, cause, what):
    (pictures / f"metadata.{form}").write_text(text)
    source = MediaFolder(pictures, "image")
    with pytest.raises(ValueError, match=what) as error:
        source.row(0)
    assert error.value.cause == cause


def test_folders_that_say_too_little_or_too_much_are_refused(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"holds a\.jpg beside no metadata\.csv"):
        MediaFolder(pictures, "image")
    with pytest.raises(ValueError, match="kind must be image, audio, video, not 'sound'"):
        MediaFolder(pictures, "sound")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*gone"):
        MediaFolder(pictures / "gone", "image")
    with pytest.raises(FileNotFoundError, match="there is no speech in"):
        MediaFolder(pictures, "audio")
    write_table(pictures, "csv", RECORDS)
    write_table(pictures, "jsonl", RECORDS)
    with pytest.raises(ValueError, match=r"holds metadata\.csv and metadata\.jsonl; keep one"):
        MediaFolder(pictures, "image")
    (pictures / "metadata.csv").write_text("file_name,text,text\n")
    (pictures / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="a column is named twice"):
        MediaFolder(pictures, "image")
    (pictures / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match="the table holds no rows"):
        MediaFolder(pictures, "image")


def test_splits_beside_each_other_are_not_taken_for_one_set(tmp_path, real_media):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "1.jpg").write_bytes(real_media.jpeg)
    with pytest.raises(ValueError, match=r"holds splits \(test, train\); give the folder of one"):
        MediaFolder(tmp_path, "image")
    assert answers(MediaFolder(tmp_path / "train", "image")) == ["cat"]
    write_table(tmp_path / "train" / "cat", "csv", [{"file_name": "1.jpg", "text": "x"}])
    with pytest.raises(ValueError, match=r"cat/metadata\.csv is of a folder in"):
        MediaFolder(tmp_path / "train", "image")


@pytest.fixture
def parquet(tmp_path, real_media) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table as write

    chat = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    held = {"bytes": real_media.jpeg, "path": "a.jpg"}
    info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    table = pyarrow.Table.from_pylist([{"image": held, "label": index % 2} for index in range(7)])
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    write(table, folder / "train-00000-of-00002.parquet", row_group_size=3)
    rows = [{"images": [held], "messages": chat, "image": None, "label": None}]
    write(pyarrow.Table.from_pylist(rows), folder / "train-00001-of-00002.parquet")
    return folder


def test_parquet_holds_the_bytes_and_the_names_of_labels(parquet):
    source = ParquetRows(parquet)
    assert len(source) == 8 and source.blocks == [3, 6, 7, 8]
    assert answers(source) == ["cat", "dog", "cat", "dog", "cat", "dog", "cat", "yes"]
    assert source.name_of(4) == f"{parquet}/train-00000-of-00002.parquet:5"
    assert source.name_of(7) == f"{parquet}/train-00001-of-00002.parquet:1"
    for index in (0, 6, 7):
        assert open_image(source.row(index).messages[0].parts[0].source).size == (64, 48)
    assert source.row(7).messages[0].parts[1] == Text("?")
    # What is decoded stays here when a source goes to a worker.
    assert len(pickle.dumps(source)) < 5000
    assert answers(pickle.loads(pickle.dumps(source))) == answers(source)
    opened = open_data(parquet)
    assert isinstance(opened, ParquetRows) and opened.digest == source.digest
    assert describe(opened)["media"] == {"image": "image", "images": "image"}


def test_parquet_of_recordings_and_named_columns(tmp_path, real_media):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table as write

    path = tmp_path / "a.parquet"
    write(pyarrow.Table.from_pylist([{"sound": real_media.wav, "clip": real_media.mp4, "text": "x"}]), path)
    source = ParquetRows(path, media={"sound": "audio", "clip": "video"}, prompt="")
    assert [part.kind for part in source.row(0).messages[0].parts] == ["speech", "video"]
    with pytest.raises(ValueError, match="media={picture: image}: the columns are sound, clip, text"):
        ParquetRows(path, media={"picture": "image"})


def test_parquet_that_is_damaged_is_named(parquet):
    path = parquet / "train-00000-of-00002.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes(120) + data[320:])  # within a page of the first row group
    source = ParquetRows(parquet)
    bad = []
    for index in range(len(source)):
        try:
            open_image(source.row(index).messages[0].parts[0].source)
        except ValueError as error:
            bad.append((index, getattr(error, "cause", "bad_image")))
    assert bad and all(index < 3 for index, _ in bad)
    path.write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet is no whole Parquet file"):
        ParquetRows(parquet)
    with pytest.raises(FileNotFoundError, match="there is no Parquet file at"):
        ParquetRows(parquet / "no-*.parquet")


def test_data_of_any_form_is_opened_by_its_path(tmp_path, tar_file, chat_file, row, real_media):
    shard = tar_file([("0.jpg", real_media.jpeg), ("0.txt", b"x")], "s-000.tar")
    rows = chat_file([row("yes")])
    assert isinstance(open_data(shard), Shards) and isinstance(open_data(rows), JsonlChat)
    assert isinstance(open_data(str(tmp_path / "s-{000..000}.tar")), Shards)
    assert isinstance(open_data(tmp_path), Shards)  # a folder with shards in it
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="holds no data; expected a JSONL file, tar shards"):
        open_data(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match="no data that is read here"):
        open_data(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError):
        open_data(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("form", ["imagefolder", "audiofolder", "videofolder", "parquet", "shards", "jsonl"])
def test_every_form_is_a_config_and_what_eval_opens(form, tmp_path, real_media, tar_file, monkeypatch):
    from mm_llama.build import build, compose_config, resolve
    from mm_llama.cli import eval_rows, eval_speech

    monkeypatch.setenv("MM_LLAMA_CACHE", str(tmp_path / "cache"))
    kind = {"audiofolder": "audio", "videofolder": "video"}.get(form, "image")
    ending, data = real_media.of(kind)
    place = tmp_path / "data"
    place.mkdir()
    if form == "shards":
        place = tar_file([(f"0.{ending}", data), ("0.txt", b"x")], "data/0.tar")
    elif form == "jsonl":
        place = place / "rows.jsonl"
        place.write_text(
            '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]}'
        )
    elif form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table as write

        write(pyarrow.Table.from_pylist([{"image": {"bytes": data}, "text": "x"}]), place / "a.parquet")
    else:
        (place / f"0.{ending}").write_bytes(data)
        write_table(place, "csv", [{"file_name": f"0.{ending}", "text": "x"}])
    key = {"shards": "files", "parquet": "files", "jsonl": "path"}.get(form, "folder")
    given = [f"data={form}", f"data.train.0.source.{key}={place}", "stage=none", "core=tiny"]
    source = build(resolve(compose_config("train", given))["data"]["train"][0]["source"])
    assert answers(source) == answers(open_data(place)) == ["x"]
    assert open_data(place).digest == source.digest
    for opened in (eval_rows.source_of(str(place), [], "test"), eval_speech.source_of(str(place), "test")):
        assert opened.digest == source.digest
