"""Archives are read member by member; what could leave the folder or is no plain file is refused."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from mm_llama.archives import unpack_members

BAD_NAMES = [
    "../escape.txt",
    "data/../../escape.txt",
    "/tmp/escape.txt",
    "data\\..\\escape.txt",
    "C:/escape.txt",
]


def make_archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", ["a.whl", "a.tar.gz"])
def test_chosen_members_come_out_under_their_names(tmp_path: Path, form: str) -> None:
    members = {"data/a.txt": b"a", "data/deep/b.txt": b"bb", "code.py": b"c"}
    archive = make_archive(tmp_path / form, members)
    written = unpack_members(archive, ["data/*"], tmp_path / "out", max_bytes=3)
    assert written == {"data/a.txt": 1, "data/deep/b.txt": 2}
    assert (tmp_path / "out/data/deep/b.txt").read_bytes() == b"bb"
    assert not (tmp_path / "out/code.py").exists()


@pytest.mark.parametrize("form", ["a.whl", "a.tar.gz"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_member_names_that_leave_the_folder_are_refused(tmp_path: Path, form: str, name: str) -> None:
    archive = make_archive(tmp_path / form, {name: b"x"})
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(ValueError, match="leaves the folder"):
        unpack_members(archive, ["*"], out, max_bytes=100)
    assert not list(tmp_path.rglob("escape*")) and not Path("/tmp/escape.txt").exists()


def test_stripping_cannot_make_a_name_leave_the_folder(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"pre//etc/x": b"x"})
    with pytest.raises(ValueError, match="leaves the folder|does not lie below"):
        unpack_members(archive, ["*"], tmp_path / "out", strip="pre", max_bytes=100)
    with pytest.raises(ValueError, match="does not lie below 'other/'"):
        unpack_members(archive, ["*"], tmp_path / "out", strip="other/", max_bytes=100)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("data/link.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ValueError, match="not a regular file"):
        unpack_members(tmp_path / "a.tar.gz", ["data/*"], tmp_path / "out", max_bytes=100)


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        info = zipfile.ZipInfo("data/link.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="not a regular file"):
        unpack_members(tmp_path / "a.whl", ["data/*"], tmp_path / "out", max_bytes=100)


def test_more_bytes_than_allowed_are_refused_while_reading(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", {"bomb": b"\0" * 50_000_000})
    assert archive.stat().st_size < 100_000
    with pytest.raises(ValueError, match="more bytes than allowed"):
        unpack_members(archive, ["bomb"], tmp_path / "out", max_bytes=1_000_000)
    assert (tmp_path / "out/bomb").stat().st_size <= 1_000_000


def test_the_same_name_twice_and_a_pattern_without_member_are_refused(tmp_path: Path) -> None:
    twice = make_archive(tmp_path / "a.tar.gz", {"data/a": b"1", "data/./a": b"2"})
    with pytest.raises(ValueError, match="two members would be written as 'data/a'"):
        unpack_members(twice, ["data/*"], tmp_path / "out", max_bytes=100)
    with pytest.raises(ValueError, match=r"no member matches \*.gguf"):
        unpack_members(twice, ["*.gguf", "data/a"], tmp_path / "out2", max_bytes=100)


@pytest.mark.parametrize("form", ["a.whl", "a.tar.gz"])
def test_truncated_archive_is_named(tmp_path: Path, form: str) -> None:
    archive = make_archive(tmp_path / form, {"data": bytes(range(256)) * 4096})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{form}: the archive cannot be read"):
        unpack_members(archive, ["*"], tmp_path / "out", max_bytes=10_000_000)


def test_unknown_archive_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"x")
    with pytest.raises(ValueError, match="a.rar: not a wheel"):
        unpack_members(tmp_path / "a.rar", ["*"], tmp_path / "out", max_bytes=1)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine")
def test_debian_package_gives_its_members(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: me <me@example.org>\nDescription: tiny\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    (tree / "usr/share/tiny").mkdir(parents=True)
    (tree / "usr/share/tiny/cat.txt").write_text("cat")
    package = tmp_path / "tiny_1_all.deb"
    build = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    written = unpack_members(
        package, ["usr/share/tiny/*"], tmp_path / "out", strip="usr/share/", max_bytes=10
    )
    assert written == {"tiny/cat.txt": 3}
    package.write_bytes(b"not a package")
    with pytest.raises(ValueError, match="tiny_1_all.deb: .*cannot be read"):
        unpack_members(package, ["*"], tmp_path / "out2", max_bytes=10)
