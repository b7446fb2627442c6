"""Media bytes -> pictures, safely: known formats only, sizes capped before a pixel is decoded."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from mm_llama.data.files import Member, Wanted, open_file

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 20_000_000
MAX_PIXELS = 25_000_000
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")

_EXPECTED = "expected a JPEG, PNG, WEBP or GIF picture"
_PICTURE = Wanted(
    "picture",
    "a path, bytes or a PIL picture",
    _EXPECTED,
    IMAGE_SUFFIXES,
    none_here="; it holds no JPEG, PNG, WEBP or GIF file",
)
_ORIENTATION = 0x0112  # EXIF tag
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x01\x00", "icon"),
    (b"\x00\x00\x00\x0cjP", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL", "JPEG XL"),
    (b"PK\x03\x04", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"OggS", "Ogg"),
    (b"ID3", "MP3"),
    (b"\xff\xfb", "MP3"),
    (b"\xff\xf3", "MP3"),
    (b"\xff\xf2", "MP3"),
    (b"\xff\xf1", "AAC"),
    (b"\xff\xf9", "AAC"),
    (b"fLaC", "FLAC"),
    (b"FLV\x01", "Flash video"),
    (b"\0\0\x01\xba", "MPEG program stream"),
    (b"#EXTM3U", "playlist"),
    (b"ffconcat", "list of files"),
)
_RIFF = {b"WEBP": "WEBP", b"WAVE": "WAV", b"AVI ": "AVI video"}


def open_image(
    source: str | Path | bytes | Member | Image.Image,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """One picture in RGB, upright (EXIF orientation applied), transparent parts on white.

    `source` is a path, a member of a file, the bytes of one, or a PIL picture. Animations give their first frame;
    16-bit grey is scaled, not clipped. ValueError, naming the file, for a folder, an unknown format, a damaged
    file, or one over `max_bytes` or `max_pixels` (read from the header, before decoding); FileNotFoundError
    for no file at all.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        _check_size("the picture", source.size, max_pixels)
        return upright_rgb(source)
    name, data = _read(source, max_bytes)
    # The decoders' own messages stay inside: on hostile bytes they have carried memory addresses to the
    # caller. What they raise is not confined to any type either.
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} has more pixels than the limit of {max_pixels:,}; make it smaller"
        ) from error
    except Exception:
        found = kind_of(data)
        if found in IMAGE_FORMATS:
            raise ValueError(f"{name} begins like a {found} picture but is cut short or damaged") from None
        hint = ", or give it as a clip" if found and "video" in found else ""
        raise ValueError(f"{name} holds {found or 'no known format'}; {_EXPECTED}{hint}") from None
    with image:
        _check_size(name, image.size, max_pixels)
        try:
            return upright_rgb(image)
        except Exception:
            width, height = image.size
            raise ValueError(
                f"{name} is cut short or damaged: its header says {image.format}, {width}x{height} pixels, "
                "but they do not decode; get a whole copy"
            ) from None


def image_key(source: str | Path | bytes | Member | Image.Image, *, max_bytes: int = MAX_BYTES) -> str:
    """Content identity "sha256:...": of the file's bytes, or of size and pixels for a PIL picture."""
    from PIL import Image

    if isinstance(source, Image.Image):
        rgb = open_image(source)
        return "sha256:" + hashlib.sha256(f"RGB {rgb.size} ".encode() + rgb.tobytes()).hexdigest()
    return "sha256:" + hashlib.sha256(_read(source, max_bytes)[1]).hexdigest()


def _read(source: str | Path | bytes | Member, max_bytes: int) -> tuple[str, bytes]:
    """(name for messages, bytes) of a file, of a member or of bytes at hand."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = f"a picture given as {len(source):,} bytes", bytes(source)
    elif isinstance(source, (str, Path, Member)):
        name = str(source)
        with open_file(source, _PICTURE) as file:
            data = file.read(max_bytes + 1)
    else:
        raise ValueError(f"a picture is {_PICTURE.given_as}, not {type(source).__name__}")
    if not data:
        raise ValueError(f"{name} is empty; {_EXPECTED}")
    if len(data) > max_bytes:
        raise ValueError(f"{name} has more than {max_bytes:,} bytes, the limit; make it smaller")
    return name, data


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ValueError(
            f"{name} has {size[0]}x{size[1]} pixels, more than the limit of {max_pixels:,}; make it smaller"
        )
    if not size[0] or not size[1]:
        raise ValueError(f"{name} has {size[0]}x{size[1]} pixels, so nothing to see")


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB with its EXIF orientation applied, transparent parts on white."""
    from PIL import Image

    # Before anything is asked of it: PIL decodes a PNG when it looks for camera notes, and what fails then is lost.
    image.load()
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(image))
    rgb = _rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged camera notes beside a whole picture: take it as it lies
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled_grey(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """16-bit grey as RGB; PIL's own conversion would turn every value over 255 white."""
    import numpy as np
    from PIL import Image

    grey = np.asarray(image).astype(np.int64).clip(0, 65535)
    shown = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        shown[grey == transparent] = 255
    return Image.fromarray(shown, "L").convert("RGB")


def kind_of(data: bytes) -> str | None:
    """What the first bytes look like, in a word, or None."""
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], "RIFF")
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
            return "HEIC"
        return "AVIF" if brand in (b"avif", b"avis") else "MP4 or QuickTime video"
    head = data[:512].lstrip().lower()
    if head.startswith((b"<svg", b"<?xml")) and b"<svg" in data[:4096].lower():
        return "SVG"
    if head.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    try:
        text = data[:512].decode("utf-8")
    except UnicodeDecodeError:
        return None
    return "text" if text.isprintable() or not any(ord(c) < 9 for c in text) else None
