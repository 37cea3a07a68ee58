"""Every format and kind of pixel is read as a viewer shows it: like the PNG of the same picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from index.picture import (
    FRAMES,
    UnreadablePicture,
    endings,
    read_frames,
    read_picture,
    why_no_picture,
)

from .conftest import drawing

Image.init()
SAVED = sorted(Image.SAVE)
READ = sorted(set(Image.OPEN) - {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
PICTURE = drawing(5, 96)
GREY = np.asarray(Image.fromarray(PICTURE).convert("L"))
LOSSLESS: dict[str, dict[str, object]] = {
    "WEBP": {"lossless": True},
    "ICO": {"sizes": [(96, 96)]},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
MODES = "RGB RGBA L LA 1 P PA CMYK YCbCr LAB HSV I I;16 I;16B F La RGBa RGBX".split()


def of_mode(mode: str) -> Image.Image:
    """The drawing in any of Pillow's kinds of pixels; deep ones use their whole range."""
    image = Image.fromarray(PICTURE)
    if mode == "I;16":
        return Image.fromarray(GREY.astype("<u2") * 257)
    if mode == "I;16B":
        return Image.fromarray((GREY.astype("<u2") * 257).astype(">u2"))
    if mode == "I":
        return Image.fromarray(GREY.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(GREY.astype(np.float32) / 255)
    if mode == "LAB":
        lab = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
        assert lab is not None
        return lab
    if mode in ("La", "RGBa", "PA"):
        return image.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode]).convert(mode)
    return image.convert(mode)


def seen(mode: str) -> np.ndarray:
    """What people see of it, by another way than the code under test."""
    if mode in ("1", "P", "PA"):
        return np.asarray(of_mode("1" if mode == "1" else "P").convert("RGB"))
    return np.repeat(GREY[..., None], 3, 2) if mode in ("L", "LA", "La", "I", "I;16", "I;16B", "F") else PICTURE


def written() -> Iterator[tuple[str, str]]:
    """Every pair of format and kind of pixels that Pillow writes here and reads again."""
    for name in SAVED:
        for mode in MODES:
            try:
                content = file_of(name, mode)
                with Image.open(io.BytesIO(content)) as stored:
                    kind = stored.mode
            except Exception:
                continue
            # An encoder that cannot hold deep pixels wraps or cuts them: then the file is not the picture.
            if name in READ and not (mode in ("I", "F", "I;16", "I;16B") and kind in ("L", "P", "RGB", "1")):
                yield name, mode


def file_of(name: str, mode: str, **how: object) -> bytes:
    stream = io.BytesIO()
    of_mode(mode).save(stream, name, **LOSSLESS.get(name, {}), **how)
    return stream.getvalue()


WRITTEN = list(written())


def test_there_are_many_formats() -> None:
    assert {"AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"} <= {
        name for name, _ in WRITTEN
    }
    assert len(WRITTEN) > 90


@pytest.mark.parametrize(("name", "mode"), WRITTEN)
def test_every_format_is_read_like_the_png_of_the_same_picture(name: str, mode: str, tmp_path: Path) -> None:
    (tmp_path / "no-suffix").write_bytes(file_of(name, mode))
    assert why_no_picture(tmp_path / "no-suffix") is None
    got, wanted = read_picture(tmp_path / "no-suffix"), seen(mode)
    if got.shape != wanted.shape:  # icons of macOS have sizes of their own
        assert name == "ICNS"
        wanted = np.asarray(Image.fromarray(wanted).resize(got.shape[1::-1], Image.Resampling.LANCZOS))
    assert got.dtype == np.uint8
    # Codec loss: mean error of the pictures' channels, of 255. A picture read as white, black or turned is beyond 30.
    grey = name == "SPIDER"
    difference = np.abs(got.astype(int).mean(2) - wanted.astype(int).mean(2)) if grey else np.abs(got.astype(int) - wanted)
    assert difference.mean() < (25 if name == "ICNS" else 12 if name == "SPIDER" or mode in ("P", "PA") else 2.5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_stored_turn_is_applied(name: str, orientation: int) -> None:
    how = Image.Transpose
    undo = {
        2: how.FLIP_LEFT_RIGHT, 3: how.ROTATE_180, 4: how.FLIP_TOP_BOTTOM, 5: how.TRANSPOSE, 6: how.ROTATE_90,
        7: how.TRANSVERSE, 8: how.ROTATE_270,
    }  # fmt: skip
    wide = np.concatenate([PICTURE, PICTURE[:, :40]], axis=1)
    image = Image.fromarray(wide)
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    stored.save(stream, name, exif=exif.tobytes(), **LOSSLESS.get(name, {}))
    got = read_picture(stream.getvalue())
    assert got.shape == wide.shape
    assert np.abs(got.astype(int) - wide).mean() < 3


def test_metadata_that_cannot_be_parsed_turn_nothing() -> None:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert np.array_equal(read_picture(stream.getvalue()), PICTURE)


# --- depth ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32) / 255, GREY.astype(np.float32), GREY.astype(np.float32) * 257, GREY.astype(np.int32),
        GREY.astype(np.int32) * 257,
    ],
)  # fmt: skip
def test_deep_pixels_keep_their_tones(values: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF")
    assert np.abs(read_picture(stream.getvalue())[..., 0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32) / 2000, GREY.astype(np.float32) - 128, GREY.astype(np.float32) * 1e6,
        GREY.astype(np.int32) * 4, GREY.astype(np.int32) * 100_000, GREY.astype(np.int32) - 100,
        (GREY.astype("<u2") * 16),
    ],
)  # fmt: skip
def test_unstated_ranges_are_stretched_and_never_black(values: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF")
    got = read_picture(stream.getvalue())[..., 0]
    stretched = (GREY.astype(float) - GREY.min()) / (GREY.max() - GREY.min()) * 255
    assert np.abs(got - stretched).max() <= 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_of_a_png_state_their_range(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(GREY.astype("<u2") * 12).save(stream, "PNG", exif=exif.tobytes())
    got = read_picture(stream.getvalue())[..., 0]
    dark = np.rint(GREY * (12 / 257))
    assert np.array_equal(got, dark if orientation == 1 else np.rot90(dark, -1))


def test_unsigned_numbers_of_32_bits_go_from_black_to_white() -> None:
    values = np.linspace(0, 2**32 - 1, GREY.size).reshape(GREY.shape).astype("<u4")
    stream = io.BytesIO()
    Image.fromarray(values.view("<i4")).save(stream, "TIFF")
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))  # SampleFormat
    assert stream.getvalue().count(signed) == 1
    got = read_picture(stream.getvalue().replace(signed, unsigned))[..., 0]
    assert (got[0, 0], got[-1, -1]) == (0, 255) and (np.diff(got.ravel().astype(int)) >= 0).all()


def test_values_that_are_no_numbers_hide_nothing() -> None:
    values = GREY.astype(np.float32) / 255
    values[0, 0], values[0, 1] = np.nan, np.inf
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF")
    assert np.abs(read_picture(stream.getvalue())[1:, :, 0].astype(int) - GREY[1:]).max() <= 1


def test_transparency_becomes_white_in_every_kind() -> None:
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:20] = 0
    rgba = Image.fromarray(np.dstack([PICTURE, alpha]))
    for image in (rgba, rgba.convert("LA"), rgba.quantize(64)):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        assert (read_picture(stream.getvalue())[:20] == 255).all(), image.mode
    deep = np.where(alpha == 0, 7, np.maximum(GREY.astype("<u2"), 1) * 257).astype("<u2")
    stream = io.BytesIO()
    Image.fromarray(deep).save(stream, "PNG", transparency=7)
    assert (read_picture(stream.getvalue())[:20] == 255).all()


def test_an_eight_bit_png_keeps_every_byte() -> None:
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, "PNG")
    assert np.array_equal(read_picture(stream.getvalue()), PICTURE)


# --- frames -----------------------------------------------------------------------------------------------------------------


def animation(frames: list[np.ndarray], name: str = "GIF") -> bytes:
    stream = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(stream, name, save_all=True, append_images=rest, **LOSSLESS.get(name, {}))
    return stream.getvalue()


def blank(level: int = 255) -> np.ndarray:
    return np.full_like(PICTURE, level)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("first", ["white", "black", "a speck", "faded"])
def test_a_first_frame_that_shows_nothing_is_passed_over(name: str, first: str) -> None:
    frame = blank(0 if first == "black" else 255)
    if first == "a speck":
        frame[3:5, 3:5] = 0
    if first == "faded":
        frame = (255 - (255 - PICTURE.astype(int)) // 12).astype(np.uint8)
    got = read_picture(animation([frame, PICTURE, PICTURE[::-1]], name))
    assert np.abs(got.astype(int) - PICTURE).mean() < 12  # GIF has 256 colours


def test_of_an_animation_every_scene_is_a_work_and_no_frame_twice() -> None:
    other = drawing(9, 96)
    shifted = np.roll(PICTURE, 1, axis=1)
    frames = list(read_frames(animation([blank(), PICTURE, shifted, other, PICTURE])))
    assert [number for number, _ in frames] == [2, 4]
    assert np.abs(frames[1][1].astype(int) - other).mean() < 12


def test_of_a_document_every_page_that_shows_something_is_a_work() -> None:
    pages = [drawing(seed, 96) for seed in (1, 2)]
    small_change = pages[0].copy()
    small_change[:40, :20] = 90  # as two pages of text differ
    frames = list(read_frames(animation([pages[0], blank(), small_change, pages[1]], "TIFF")))
    assert [number for number, _ in frames] == [1, 3, 4]
    assert np.array_equal(frames[2][1], pages[1])


def test_a_long_animation_gives_a_limited_number_of_works() -> None:
    frames = [drawing(seed, 32) for seed in range(FRAMES + 20)]
    assert len(list(read_frames(animation(frames)))) == FRAMES


def test_of_a_very_long_animation_a_sample_of_the_frames_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from index import picture

    monkeypatch.setattr(picture, "LOOKED_AT", 3)
    frames = [drawing(seed, 32) for seed in range(9)]
    assert [number for number, _ in read_frames(animation(frames))] == [1, 5, 9]


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_frames_that_would_take_hours_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 25 kB may hold thousands of large white pages."""
    from index import picture

    data = animation([drawing(seed, 32) for seed in range(4)], kind)
    monkeypatch.setattr(picture, "MOST_PIXELS", 4 * 32 * 32)
    assert len(list(read_frames(data))) == 4
    monkeypatch.setattr(picture, "MOST_PIXELS", 4 * 32 * 32 - 1)
    for read in (read_picture, lambda data: list(read_frames(data))):
        with pytest.raises(UnreadablePicture, match="its 4 frames have more than 0 million pixels together"):
            read(data)


def test_a_document_of_too_many_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from index import picture

    data = animation([drawing(seed, 32) for seed in range(4)], "TIFF")
    monkeypatch.setattr(picture, "MOST_PAGES", 4)
    assert len(list(read_frames(data))) == 4
    monkeypatch.setattr(picture, "MOST_PAGES", 3)
    with pytest.raises(UnreadablePicture, match="more than 3 pages"):
        list(read_frames(data))


def test_a_picture_has_one_frame() -> None:
    [(number, picture)] = read_frames(file_of("PNG", "RGB"))
    assert number == 1
    assert np.array_equal(picture, PICTURE)


# --- what is no picture -----------------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A one-bit PNG of any size, in a few bytes of header: its pixels are never read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["cat.PNG", "cat.jpg", "cat.txt", "cat"])
def test_a_picture_is_recognised_by_its_content(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(file_of("WEBP", "RGB"))
    assert why_no_picture(tmp_path / name) is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bomb.png", bomb(20_000), "more than 179 million pixels"),
        ("broken.png", b"\x89PNG\r\n\x1a\nnothing", "cannot be read"),
        ("empty.jpg", b"", "no picture of a known format"),
        ("text.avif", b"hello", "no picture of a known format"),
        ("photo.heic", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "it is HEIC"),
        ("no-suffix", b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00", "it is HEIC"),
        ("drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is SVG"),
        ("drawing.svg", b"<?xml version='1.0'?><svg/>", "no picture of a known format"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is PostScript"),
        ("no-suffix-either", b"\xff\xd8\xff\xe0 a broken JPEG", "cannot be read"),
    ],
)
def test_what_should_be_a_picture_and_cannot_be_read_is_refused_with_its_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadablePicture, match=reason) as refused:
        why_no_picture(tmp_path / name)
    assert refused.value.where == name
    assert refused.value.fix


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("README.md", b"# hello", "no picture"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "no picture"),
        ("._cat.png", b"\x00\x05\x16\x07" + bytes(100), "a remnant of macOS"),
        ("empty.txt", b"", "empty"),
        ("header.h", b"#define A 1\n#define B_X 3\n", "no picture"),
        ("data.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "no picture"),
        ("zeros", bytes(1000), "no picture"),
    ],
)
def test_other_files_are_none(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert why_no_picture(tmp_path / name) == what


def test_a_link_to_nothing_a_folder_and_a_pipe_are_named(tmp_path: Path) -> None:
    import os

    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (
        ("gone.png", "a link to nothing"),
        ("folder.png", "it is not a file"),
        ("pipe.png", "it is not a file"),
    ):
        with pytest.raises(UnreadablePicture, match=reason):
            why_no_picture(tmp_path / name)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "TGA"])
@pytest.mark.parametrize("part", [0.3, 0.8])
def test_a_picture_cut_short_is_refused(name: str, part: float) -> None:
    content = file_of(name, "RGB")
    with pytest.raises(UnreadablePicture):
        read_picture(content[: int(len(content) * part)])


def test_changed_bytes_raise_nothing_else(tmp_path: Path) -> None:
    """A decoder may raise what it likes: here it is one kind of error, or a picture."""
    rng = np.random.default_rng(0)
    for name in ("PNG", "GIF", "TIFF", "WEBP", "JPEG", "BMP", "ICO", "TGA", "PCX", "DDS", "SGI", "PPM", "QOI", "JPEG2000"):
        content = bytearray(file_of(name, "RGB"))
        for _ in range(12):
            changed = bytearray(content)
            for at in rng.integers(0, min(len(content), 400), 4):
                changed[at] = int(rng.integers(0, 256))
            try:
                pictures = [picture for _, picture in read_frames(bytes(changed))]
            except UnreadablePicture:
                continue
            assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures)


def test_endings_are_those_of_pictures() -> None:
    assert {".png", ".jpe", ".jfif", ".avif", ".jp2", ".tga", ".ico", ".ppm", ".heic", ".svg"} <= endings()
    assert not {".txt", ".md", ".h5", ".mpg", ".pdf", ""} & endings()
