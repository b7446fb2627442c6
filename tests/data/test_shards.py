"""Tar shards as a source: chats and plain layouts, media where they lie, and nothing dropped, run or fetched."""

from __future__ import annotations

import json
import os
import tarfile
import time
from pathlib import Path

import pytest

from mm_llama.core.chat import MediaPart, Text
from mm_llama.data import files as files_module
from mm_llama.data.decode import open_image
from mm_llama.data.files import Member
from mm_llama.data.media import KEYS, num_mel_frames
from mm_llama.data.shards import Shards, shard_files
from mm_llama.data.sound import open_sound, sound_blocks
from mm_llama.data.video import medium_of, open_clip, probe_clip


def chat(name: str | None = None, answer: str = "yes", kind: str = "image", **more: object) -> bytes:
    parts = [{"type": kind, "path": name}] if name else []
    messages = [
        {"role": "user", "content": [*parts, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": answer},
    ]
    return json.dumps({"messages": messages, **more}).encode()


def parts_of(source: Shards, index: int) -> list[object]:
    return [part for message in source.row(index).messages for part in message.parts]


def test_a_chat_row_finds_its_media_beside_it(tar_file, real_media):
    path = tar_file(
        [
            ("a/000.json", chat("000.0.jpg", id=7, extra={"type": "shape"})),
            ("a/000.0.jpg", real_media.jpeg),
            ("a/001.json", chat()),
            ("a/002.0.wav", real_media.wav),
            ("a/002.json", chat("a/002.0.wav", kind="audio")),
        ]
    )
    source = Shards(path)
    assert len(source) == 3 and source.blocks == [3]
    assert [source.name_of(index) for index in range(3)] == [f"{path}/a/00{index}" for index in range(3)]
    row = source.row(0)
    assert row.source == f"{path}/a/000" and row.extra == {"type": "shape", "id": 7}
    (picture, text) = row.messages[0].parts
    assert isinstance(picture, MediaPart) and text == Text("?")
    assert open_image(picture.source).size == (64, 48)
    assert str(picture.source) == f"{path}/a/000.0.jpg"
    heard = source.row(2).messages[0].parts[0]
    assert isinstance(heard, MediaPart) and heard.kind == "speech"
    assert open_sound(heard.source).seconds == 1.0


def test_media_of_every_kind_are_read_where_they_lie_as_from_files_of_their_own(
    tar_file, real_media, tmp_path
):
    members = [
        (f"k.{i}.{ending}", data)
        for i, (ending, data) in enumerate(map(real_media.of, ("image", "audio", "video")))
    ]
    path = tar_file([("before.txt", b"x" * 700), *members])
    places = {}
    with tarfile.open(path) as tar:
        for info in tar:
            places[info.name] = Member(str(path), info.offset_data, info.size, info.name)
    for (name, data), kind in zip(members, ("image", "speech", "video"), strict=True):
        (tmp_path / name).write_bytes(data)
        member, own = places[name], str(tmp_path / name)
        with member.open() as file:
            assert (
                file.read() == data
                and file.seek(-3, os.SEEK_END) == len(data) - 3
                and file.read(9) == data[-3:]
            )
        assert KEYS[kind](member) == KEYS[kind](own) == KEYS[kind](data)
        assert medium_of(member) == medium_of(own)
    assert open_image(places["k.0.jpg"]).tobytes() == open_image(real_media.jpeg).tobytes()
    assert num_mel_frames(places["k.1.wav"]) == num_mel_frames(str(tmp_path / "k.1.wav")) == 100
    assert sum(len(block) for block in sound_blocks(places["k.1.wav"])) == 16_000
    clips = [open_clip(source, num_frames=4) for source in (places["k.2.mp4"], str(tmp_path / "k.2.mp4"))]
    assert [one.tobytes() for one in clips[0].frames] == [one.tobytes() for one in clips[1].frames]
    assert probe_clip(places["k.2.mp4"]).width == 64


def test_plain_layouts_become_chats(tar_file, real_media):
    source = Shards(
        tar_file(
            [
                ("0.jpg", real_media.jpeg),
                ("0.txt", b"a gradient\n"),
                ("1.json", b'{"caption": "a bar", "width": 64}'),
                ("1.jpg", real_media.jpeg),
                ("2.wav", real_media.wav),
                ("2.txt", b"one tone"),
                ("3.mp4", real_media.mp4),
                ("3.txt", b"a window"),
                ("4.jpg", real_media.jpeg),
                ("4.cls", b"7"),
                ("5.jpg", real_media.jpeg),
                ("5.json", b'{"question": "which?", "answer": "this"}'),
            ]
        )
    )
    said = [source.row(index).messages[-1].parts for index in range(6)]
    assert [part.text for (part,) in said] == ["a gradient", "a bar", "one tone", "a window", "7", "this"]
    assert source.row(0).messages[0].parts[1] == Text("Describe the picture.")
    assert source.row(1).extra == {"width": 64, "text": "a bar"}
    heard = source.row(2).messages
    assert heard[0].role == "system" and heard[0].parts == (Text("Repeat after me in English:"),)
    assert heard[1].parts[0].transcript == "one tone" and len(heard[1].parts) == 1
    assert source.row(3).messages[0].parts[0].kind == "video"
    assert source.row(3).messages[0].parts[1] == Text("Describe the clip.")
    assert source.row(5).messages[0].parts[1] == Text("which?")


def test_wording_is_an_option_and_part_of_the_digest(tar_file, real_media):
    path = tar_file([("0.jpg", real_media.jpeg), ("0.json", b'{"alt": "a bar", "caption": "b"}')])
    source = Shards(path, prompt="What?", answer=["alt"])
    assert source.row(0).messages[0].parts[1] == Text("What?")
    assert source.row(0).messages[1].parts == (Text("a bar"),)
    assert len({source.digest, Shards(path).digest, Shards(path, ignore=["txt"]).digest}) == 3


@pytest.mark.parametrize(
    ("members", "cause", "what"),
    [
        ([("0.json", b"{")], "bad_json", "/0.json: not JSON"),
        ([("0.json", b"[1]")], "bad_type", "/0.json: must be an object, not list"),
        ([("0.json", chat("0.9.jpg")), ("0.0.jpg", b"x")], "missing_file", "0.9.jpg is not in the row; it has 0.0.jpg"),
        ([("0.json", chat()), ("0.0.jpg", b"x")], "bad_type", "the member 0.0.jpg stands nowhere in its chat"),
        ([("0.json", chat(answer=" "))], "empty_answer", "the assistant's answer is empty"),
        ([("0.jpg", b"x")], "empty_answer", "there is no answer"),
        ([("0.jpg", b"x"), ("0.txt", b"\xff")], "bad_json", "not UTF-8"),
        ([("0.json", b'{"caption": ["a", "b"]}')], "bad_type", "must be a text or a number, not list"),
        ([("0.txt", b"a"), ("0.pyd", b"cos\nsystem\n")], "bad_type", r"nothing reads .* 0.pyd.*ignore=\[pyd\]"),
        ([("0.a.json", chat()), ("0.json", chat())], "bad_type", "two members that end in .json"),
        ([("0.json", chat(extra=[1]))], "bad_type", "'extra' must be an object"),
        ([("0.json", chat(mesages=1))], None, ""),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_shard_and_member(tar_file, members, cause, what):
    path = tar_file([*members, ("1.json", chat())])
    source = Shards(path)
    if cause is None:  # what else a record holds is carried along
        assert source.row(0).extra == {"mesages": 1}
        return
    with pytest.raises(ValueError, match=what) as error:
        source.row(0)
    assert str(error.value).startswith(f"{path}/0") and error.value.cause == cause
    assert source.row(1).messages


def test_endings_are_left_out_only_when_asked(tar_file, real_media):
    path = tar_file([("0.jpg", real_media.jpeg), ("0.txt", b"a"), ("0.npy", b"x"), ("0.pickle", b"x")])
    assert parts_of(Shards(path, ignore=["npy", ".PICKLE"]), 0)[1:] == [
        Text("Describe the picture."),
        Text("a"),
    ]
    assert parts_of(Shards(path, ignore=["npy", "pickle", "jpg"]), 0) == [Text("a")]


def hostile(kind: str) -> list[tuple[str, bytes] | tarfile.TarInfo]:
    link = tarfile.TarInfo("1.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return {
        "link": [("1.txt", b"a"), link],
        "name": [("../1.txt", b"a")],
        "key": [("0.jpg", b"a")],
        "member": [("1.txt", b"a"), ("1.txt", b"b")],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("link", "member '1.jpg' that is a symbolic link; refused"),
        ("name", "member '../1.txt' that has a name that leaves the folder; refused"),
        ("key", "the key '0' twice"),
        ("member", "the member '1.txt' twice"),
    ],
)
def test_what_no_row_can_hold_is_refused_at_once_or_fails_in_its_row(tar_file, kind, what):
    last = [("2.json", chat(answer="last"))]
    path = tar_file([("0.json", chat()), ("x.json", chat()), *hostile(kind), *last])
    with pytest.raises(ValueError, match=rf"{what}.*row 3.*on_damage=skip"):
        Shards(path)
    source = Shards(path, on_damage="skip")
    assert len(source) == 4 and source.row(3).messages[1].parts == (Text("last"),)
    with pytest.raises(ValueError, match=what) as error:
        source.row(2)
    assert error.value.cause == "bad_shard"


def test_a_shard_cut_short_keeps_the_rows_before_and_says_where_it_ends(tar_file):
    path = tar_file([(f"{index}.json", chat(answer="x" * 600)) for index in range(6)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"rows\.tar is cut short: .* at byte .*pack it again"):
        Shards(path)
    source = Shards(path, on_damage="skip")
    good = []
    for index in range(len(source)):
        try:
            source.row(index)
            good.append(index)
        except ValueError as error:
            assert "is cut short" in str(error) and str(error).startswith(str(path))
    assert 0 < len(good) < 5 and good == list(range(len(source) - 1))


def test_a_shard_that_changes_under_a_run_is_an_error_and_not_another_row(tar_file):
    path = tar_file([("0.json", chat()), ("1.json", chat())])
    source = Shards(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="was not when it was opened"):
        source.row(1)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{001..001}.tar", ["s-001.tar"]),
        ("{t,s}-{0,00}1.tar", ["t-01.tar", "t-001.tar", "s-01.tar", "s-001.tar"]),
        ("s-00?.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        (["t-*.tar", "s-01.tar"], ["t-001.tar", "t-01.tar", "s-01.tar"]),
        ("", ["s-000.tar", "s-001.tar", "s-002.tar", "s-01.tar", "t-001.tar", "t-01.tar"]),
    ],
)
def test_patterns_name_shards_in_order(tmp_path, pattern, names):
    for name in ("s-000.tar", "s-001.tar", "s-002.tar", "s-01.tar", "t-01.tar", "t-001.tar"):
        (tmp_path / name).touch()
    given = [tmp_path / one for one in pattern] if isinstance(pattern, list) else tmp_path / pattern
    assert [Path(path).name for path in shard_files(given)] == names


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("pipe:curl -s http://x/a.tar", "nothing is fetched and no program run"),
        ("https://x.org/{0..3}.tar", "nothing is fetched"),
        ("s3://bucket/a.tar", "nothing is fetched"),
        ("{folder}/s-{0..3}.tar", "there is no shard at .*s-0.tar"),
        ("{folder}/{5..3}.tar", "no range"),
        ("{folder}/*.tar", "there is no shard at"),
        ("", "there is no shard|holds no"),
    ],
)  # fmt: skip
def test_what_names_no_shard_is_refused(tmp_path, pattern, what, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=what):
        Shards(pattern.replace("{folder}", str(tmp_path)))


def test_a_shard_named_twice_is_refused(tar_file):
    path = tar_file([("0.json", chat())])
    with pytest.raises(ValueError, match="named twice"):
        Shards([path, path])


def test_what_is_no_archive_is_an_error_even_where_damage_is_skipped(tmp_path):
    (tmp_path / "a.tar").write_text("no archive")
    with pytest.raises(ValueError, match=r"a\.tar is cut short|is no tar"):
        Shards(tmp_path / "a.tar", on_damage="skip")
    with pytest.raises(ValueError, match="on_damage must be 'error' or 'skip', not 'ignore'"):
        Shards(tmp_path / "a.tar", on_damage="ignore")


def test_the_digest_follows_what_rows_say(tar_file, real_media):
    first = Shards(tar_file([("0.json", chat())], "a.tar")).digest
    assert Shards(tar_file([("0.json", chat())], "b.tar")).digest == first
    assert Shards(tar_file([("0.json", chat(answer="yep"))], "c.tar")).digest != first
    assert Shards(tar_file([("1.json", chat())], "d.tar")).digest != first


def test_a_kept_index_is_used_while_the_shard_stays_and_never_after(tar_file, tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "FRESH_SECONDS", 0)
    path, kept = tar_file([(f"{index:02d}.json", chat()) for index in range(20)]), tmp_path / "index"
    whole = Shards(path, index=kept)
    (entry,) = kept.iterdir()
    # It is read: with another end, the last row is not found.
    told = json.loads(entry.read_text())
    entry.write_text(json.dumps(told | {"starts": told["starts"][:5], "end": told["starts"][5]}))
    assert len(Shards(path, index=kept)) == 5
    # One that is damaged is written anew.
    entry.write_text("{")
    assert Shards(path, index=kept).digest == whole.digest and len(Shards(path, index=kept)) == 20
    # Other contents of the same name, size and time of modification are other contents.
    before = os.stat(path)
    changed = path.read_bytes().replace(b'"yes"', b'"noo"')
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert Shards(path, index=kept).digest != whole.digest
    assert len(list(kept.iterdir())) == 2


def test_a_file_just_written_is_not_remembered(tar_file, tmp_path):
    path, kept = tar_file([("0.json", chat())]), tmp_path / "index"
    assert time.time() - os.stat(path).st_ctime < files_module.FRESH_SECONDS
    Shards(path, index=kept)
    assert not kept.exists()
