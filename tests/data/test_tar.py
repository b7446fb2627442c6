"""Tar headers by a reader of our own: what Python's reads, and an error with a place for everything else."""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

import pytest

from mm_llama.data.tar import TarError, TarMember, tar_members

LONG = "folder/" * 30 + "a name that is longer than a header has room for.json"
MEMBERS = [("a.txt", b"one"), ("b/c.png", bytes(range(256)) * 5), ("grüße.txt", b""), (LONG, b"x" * 512)]


def read(path: Path) -> list[TarMember]:
    file = os.open(path, os.O_RDONLY)
    try:
        return list(tar_members(file))
    finally:
        os.close(file)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_python_reads_and_lie_where_they_say(tar_file, form):
    path = tar_file(MEMBERS, form=form)
    found = read(path)
    with tarfile.open(path) as tar:
        assert [(m.name, m.size, m.offset) for m in found] == [
            (info.name, info.size, info.offset_data) for info in tar
        ]
    data = path.read_bytes()
    assert [data[m.offset : m.offset + m.size] for m in found] == [content for _, content in MEMBERS]
    # From any member on, and up to any other.
    file = os.open(path, os.O_RDONLY)
    try:
        assert list(tar_members(file, found[1].start, found[3].start)) == found[1:3]
    finally:
        os.close(file)


def test_a_name_in_two_parts_and_a_large_size_are_read(tar_file, tmp_path):
    path = tar_file([("d" * 80 + "/" + "e" * 60 + ".txt", b"1")], form=tarfile.USTAR_FORMAT)
    assert read(path)[0].name == "d" * 80 + "/" + "e" * 60 + ".txt"
    info = tarfile.TarInfo("big.mp4")
    info.size = 9 * 2**30  # more than eleven octal digits hold
    with (tmp_path / "big.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + 1024)  # holes: no disk is used
    (member,) = read(tmp_path / "big.tar")
    assert member.size == info.size and member.end == 512 + info.size


def test_what_is_no_file_and_names_that_leave_the_folder_are_marked(tar_file):
    entries: list[tarfile.TarInfo | tuple[str, bytes]] = []
    for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        entries.append(info)
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    bad = ["/etc/passwd", "../up", "a/../../up", "a\\b"]
    found = read(tar_file([*entries, folder, *((name, b"x") for name in bad), ("./fine", b"x")]))
    wrong = {member.name: member.wrong for member in found}
    assert "a symbolic link" in wrong["link"] and "a hard link" in wrong["hard"] and "a pipe" in wrong["pipe"]
    assert all("leaves the folder" in wrong[name] for name in bad)
    assert wrong["folder/"] == wrong["fine"] == "" and [m.name for m in found if m.folder] == ["folder/"]


def test_an_archive_that_is_cut_short_anywhere_says_so(tar_file):
    path = tar_file(MEMBERS)
    data = path.read_bytes()
    end = read(path)[-1].end
    # Behind the first block of zeros nothing is missing.
    for length in [0, 1, 511, *range(512, end + 1, 512), end - 100]:
        path.write_bytes(data[:length])
        with pytest.raises(TarError, match=r"is cut short|is damaged"):
            read(path)
    path.write_bytes(data[: end + 512])
    assert len(read(path)) == len(MEMBERS)


def test_one_member_alone_is_not_given_when_its_content_is_cut_short(tar_file):
    path = tar_file(MEMBERS)
    member = read(path)[1]
    path.write_bytes(path.read_bytes()[: member.offset + member.size - 1])
    file = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(TarError, match=r"is cut short: 'b/c\.png' at byte .* has 1,280 bytes"):
            list(tar_members(file, member.start, member.end))
    finally:
        os.close(file)


def test_a_changed_header_is_an_error_and_no_other_member(tar_file):
    path = tar_file(MEMBERS[:3], form=tarfile.USTAR_FORMAT)
    data, whole = path.read_bytes(), read(path)
    headers = [byte for member in whole for byte in range(member.start, member.start + 512)]
    drawn = random.Random(0)
    for _ in range(400):
        changed = bytearray(data)
        changed[drawn.choice(headers)] ^= 1 << drawn.randrange(8)
        path.write_bytes(changed)
        try:
            assert read(path) == whole  # a bit of the checksum's own padding
        except TarError as error:
            assert any(word in str(error) for word in ("checksum", "no tar archive", "no size"))


def test_bytes_of_any_kind_end_in_an_error_or_in_members_of_the_file(tar_file):
    path = tar_file(MEMBERS)
    data = path.read_bytes()
    drawn = random.Random(1)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(drawn.randrange(1, 40)):
            changed[drawn.randrange(len(data))] = drawn.randrange(256)
        path.write_bytes(changed[: drawn.randrange(len(data))] if drawn.random() < 0.3 else changed)
        try:
            for member in read(path):
                assert 0 <= member.size and member.offset + member.size <= path.stat().st_size
        except TarError:
            pass


def test_other_files_say_what_they_are(tmp_path, tar_file):
    with tarfile.open(tmp_path / "rows.tar.gz", "w:gz") as tar:
        tar.add(tar_file(MEMBERS), "inner")
    (tmp_path / "text.tar").write_text("no archive " * 100)
    with pytest.raises(TarError, match=r"is compressed \(gzip\).*unpack it to a plain tar"):
        read(tmp_path / "rows.tar.gz")
    with pytest.raises(TarError, match="is no tar archive"):
        read(tmp_path / "text.tar")


def test_archives_behind_each_other_are_not_taken_for_the_first_alone(tar_file):
    path = tar_file(MEMBERS)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(TarError, match="goes on after its end mark"):
        read(path)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (b"99 path=a\n", "does not parse"),
        (b"11 size=-1\n", "does not parse"),
        (b"24 GNU.sparse.major=1.0\n"[:24], r"sparse|does not parse"),
        (b"x" * 70_000, "a name of 70,000 bytes"),
    ],
)
def test_a_pax_header_that_lies_is_damage(tmp_path, record, what):
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(record)
    padded = record + bytes(-len(record) % 512)
    (tmp_path / "a.tar").write_bytes(
        info.tobuf(tarfile.USTAR_FORMAT) + padded + tarfile.TarInfo("a").tobuf() + bytes(1024)
    )
    with pytest.raises(TarError, match=what):
        read(tmp_path / "a.tar")
