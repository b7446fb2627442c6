"""Opening pictures: every mode and format to upright RGB, and a clear error for everything else."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm_llama.data.decode import image_key, open_image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(width=40, height=30, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, format, **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds next to no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "JPEG"])
def test_every_allowed_format_opens_from_path_bytes_and_pil_alike(tmp_path, format):
    image = Image.fromarray(noise())
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(image, format, **options)
    path = tmp_path / "a.picture"  # the name says nothing: the content decides
    path.write_bytes(data)
    opened = open_image(path)
    assert opened.mode == "RGB" and opened.size == (40, 30)
    for source in (str(path), data, Image.open(io.BytesIO(data))):
        assert open_image(source).tobytes() == opened.tobytes()
    if format in ("PNG", "WEBP"):
        assert opened.tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (32, 16), RED)
    upright.paste(BLUE, (0, 0, 16, 8))  # top left
    upright.paste(GREEN, (16, 8, 32, 16))  # bottom right
    # How the sensor would have stored it: the inverse of the turn that the tag asks for.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(stored, "PNG", exif=exif))
    assert opened.tobytes() == upright.tobytes()
    jpeg = open_image(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    assert np.abs(np.asarray(jpeg, int) - np.asarray(upright, int)).mean() < 20


def test_damaged_exif_leaves_the_picture_as_it_lies():
    data = encoded(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_image(data).size == (40, 30)


def test_transparent_parts_become_white():
    rgba = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (10, 20, 30, 255))
    rgba.putpixel((2, 0), (0, 0, 0, 51))
    for data in (encoded(rgba, "PNG"), encoded(rgba, "WEBP", lossless=True, exact=True)):
        opened = open_image(data)
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert opened.getpixel((1, 0)) == (10, 20, 30)
        assert opened.getpixel((2, 0)) == (204, 204, 204)
    grey = open_image(encoded(Image.new("LA", (2, 2), (0, 0)), "PNG"))
    assert grey.getpixel((0, 0)) == (255, 255, 255)


def test_palettes_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    for format in ("PNG", "GIF"):
        opaque = open_image(encoded(palette, format))
        assert [opaque.getpixel((x, 0)) for x in (0, 1)] == [RED, GREEN]
        clear = open_image(encoded(palette, format, transparency=0))
        assert [clear.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), GREEN]
    half = open_image(encoded(palette, "PNG", transparency=bytes([255, 0])))
    assert [half.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


def test_grey_black_and_white_and_cmyk():
    grey = Image.fromarray(noise(channels=1))
    assert np.array_equal(np.asarray(open_image(encoded(grey, "PNG")))[..., 1], noise(channels=1))
    bilevel = grey.convert("1")
    assert set(np.unique(np.asarray(open_image(encoded(bilevel, "PNG"))))) == {0, 255}
    cmyk = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    opened = np.asarray(open_image(encoded(cmyk, "JPEG", quality=95)), int)
    assert np.abs(opened - np.array((200, 40, 90))).max() < 6


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp), "PNG")))
    assert np.array_equal(opened[0, :, 0], np.arange(256))
    assert open_image(Image.new("I", (2, 2), 65535)).getpixel((0, 0)) == (255, 255, 255)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
        assert open_image(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_extreme_sizes_open(size):
    assert open_image(encoded(Image.new("RGB", size, RED), "PNG")).size == size


@pytest.mark.parametrize(
    ("format", "found"), [("BMP", "BMP"), ("TIFF", "TIFF"), ("PPM", "no known format|text")]
)
def test_format_outside_the_list_is_named(tmp_path, format, found):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.fromarray(noise()), format))
    with pytest.raises(
        ValueError, match=rf"photo\.png holds ({found}); expected a JPEG, PNG, WEBP or GIF picture"
    ):
        open_image(path)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"hello, this is no picture\n", "text"),
        ("täxt in Unicode\n".encode(), "text"),
        (b"<!DOCTYPE html><html>not found</html>", "HTML"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "HEIC"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "AVIF"),
        (b"\0\0\0\x1cftypisom" + bytes(40), "MP4 or QuickTime video"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "WAV"),
        (b"\x93\x01\x02\xfe" * 20, "no known format"),
    ],
)
def test_what_was_found_is_said(data, found):
    with pytest.raises(ValueError, match=rf"given as {len(data)} bytes holds {found}; expected a JPEG"):
        open_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_truncated_file_is_an_error_that_names_it(tmp_path, format, keep):
    data = encoded(Image.fromarray(noise(200, 200)), format)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"cut\.img .*cut short or damaged"):
        open_image(path)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGBA", "RGB"])
def test_a_damaged_png_is_not_taken_for_a_whole_one(mode):
    """PIL decodes a PNG when it is asked for its camera notes; asked again, it gives what it had, as if it were all."""
    image = Image.fromarray(noise(60, 60))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    data = bytearray(encoded(image, "PNG"))
    assert open_image(bytes(data)).size == (60, 60)
    data[-500] ^= 255
    with pytest.raises(ValueError, match="cut short or damaged"):
        open_image(bytes(data))
    with pytest.raises(OSError, match="data stream"):
        open_image(Image.open(io.BytesIO(data), formats=("PNG",)))


def test_empty_file_missing_file_folder_and_address_are_told_apart(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png is empty"):
        open_image(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError, match=r"there is no picture at .*gone\.png"):
        open_image(tmp_path / "gone.png")
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"photos is a folder; give one picture; it holds no JPEG"):
        open_image(folder)
    (folder / "B.JPG").touch()
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"photos is a folder; give one picture, for example .*B\.JPG"):
        open_image(str(folder))
    with pytest.raises(ValueError, match="https://example.org/a.png is an address; download"):
        open_image("https://example.org/a.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        open_image(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a path, bytes or a PIL picture, not int"):
        open_image(3)


def test_size_limits_come_before_decoding(tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(encoded(Image.fromarray(noise(100, 100)), "PNG"))
    with pytest.raises(ValueError, match=r"big\.png has 100x100 pixels, more than the limit of 9,999"):
        open_image(path, max_pixels=9_999)
    with pytest.raises(ValueError, match="the picture has 100x100 pixels"):
        open_image(Image.new("RGB", (100, 100)), max_pixels=9_999)
    assert open_image(path, max_pixels=10_000).size == (100, 100)
    size = path.stat().st_size
    with pytest.raises(ValueError, match=r"big\.png has more than .* bytes, the limit"):
        open_image(path, max_bytes=size - 1)
    with pytest.raises(ValueError, match="bytes, the limit"):
        open_image(path.read_bytes(), max_bytes=size - 1)
    assert open_image(path, max_bytes=size).size == (100, 100)


@pytest.mark.parametrize("side", [5001, 10_000, 50_000])
def test_decompression_bomb_is_an_error_whatever_its_size(side):
    with pytest.raises(ValueError, match="pixels"):
        open_image(png_header(side, side))


@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_a_value_error(format, changes):
    data = bytearray(encoded(Image.fromarray(noise()), format))
    for place, byte in changes:
        data[int(place * len(data))] = byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks on odd metadata
        try:
            assert open_image(bytes(data)).mode == "RGB"
        except ValueError as error:
            assert "object at" not in str(error)


def test_key_is_of_the_content(tmp_path):
    image = Image.fromarray(noise())
    data = encoded(image, "PNG")
    for name in ("one.png", "two.jpg"):
        (tmp_path / name).write_bytes(data)
    key = image_key(tmp_path / "one.png")
    assert key.startswith("sha256:") and len(key) == 71
    assert key == image_key(str(tmp_path / "two.jpg")) == image_key(data)
    assert image_key(image) == image_key(Image.open(io.BytesIO(data))) != key
    assert image_key(image) != image_key(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert image_key(Image.new("RGB", (2, 8))) != image_key(Image.new("RGB", (8, 2)))
    with pytest.raises(ValueError, match="is a folder"):
        image_key(tmp_path)
