"""Read pictures as a viewer shows them: any format that Pillow opens, whatever the file's name, as 8-bit RGB.

The content decides, not the name. Deep and float pictures are reduced to 8 bits, transparency becomes white, a stored rotation
(EXIF orientation) is applied. Of an animation or of several pages the frames with different content are separate pictures.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from index.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Source = Path | bytes | IO[bytes]

# Pillow names these without being able to draw them: data, a video, and languages that would run a program of their own.
NOT_OPENED = {"BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF"}
ONE_PICTURE = {"PSD", "MPO", "ICO", "ICNS", "CUR"}  # what they hold beside it is the same picture: layers, sizes, depth
PAGES = {"TIFF", "DCX", "FITS"}  # formats whose frames are pages, each a work of its own
# Endings of pictures that Pillow does not open here: Clearance cannot read such a file, but its owner takes it for a picture.
FOREIGN = (
    ".heic .heif .hif .jxl .svg .svgz .eps .ai .wmf .emf .exr .hdr .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .xcf .kra .psb .jxr "
    ".wdp .cdr .cin .dpx"
).split()
FOREIGN_SIGNS = {  # the same by their first bytes
    b"\xff\x0a": "JPEG XL", b"\x00\x00\x00\x0cJXL ": "JPEG XL", b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR",
    b"<svg": "SVG", b"%!PS-Adobe": "PostScript", b"\xc5\xd0\xd3\xc6": "EPS", b"gimp xcf": "GIMP", b"II\xbc\x01": "JPEG XR",
}  # fmt: skip
HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # brands after "ftyp"
SIGNS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"8BPS", b"qoif", b"DDS ")
APPLE_DOUBLE = b"\x00\x05\x16\x07"  # what macOS leaves beside files on foreign disks, under the picture's own name

THUMB = 32  # side of the small copies by which frames are compared
ANOTHER_FRAME = 16.0  # root mean square, of 255, from which a frame of an animation shows something else
ANOTHER_PAGE = 2.0  # the same for pages, which may look alike from afar
FRAMES = 32  # of an animation at most
LOOKED_AT = 1000  # frames of an animation that are compared
MOST_PAGES = 10_000  # of a document
MOST_PIXELS = 10**10  # of all frames together: a file of some kB may hold thousands of large empty ones, which take hours


class _TooMuch(Exception):
    """A file holds more frames, or more pixels in them, than can be looked at; the text is how many."""


class UnreadablePicture(InputError):
    """A file that is a picture, or should be one, and cannot be read; ``what`` is the reason."""


@cache
def endings() -> frozenset[str]:
    """Endings of file names, in lower case, that promise a picture."""
    from PIL import Image

    Image.init()
    return frozenset(FOREIGN) | {ending for ending, name in Image.EXTENSION.items() if name in _formats()}


def why_no_picture(source: Path | bytes, name: str = "") -> str | None:
    """Look at the beginning of a file: None if it is a picture that can be opened, else what it is instead.

    Args:
        source: the file, or its content.
        name: what its ending is taken from; the path's own name by default.

    Raises:
        UnreadablePicture: by its name or content it is a picture, and it cannot be opened.
    """
    name = name or (source.name if isinstance(source, Path) else "")
    try:
        if isinstance(source, Path) and not source.is_file():
            raise UnreadablePicture(_no_file(source), where=name, fix=_fix(name))
        head = source[:64] if isinstance(source, bytes) else _head(source)
    except OSError as error:
        raise UnreadablePicture(f"cannot be read ({error.strerror or error})", where=name, fix=_fix(name)) from None
    if head.startswith(APPLE_DOUBLE):
        return "a remnant of macOS"
    try:
        with _opened(source, name):
            return None
    except UnreadablePicture:
        if (foreign := _foreign(head)) is not None:
            raise UnreadablePicture(f"cannot be read (it is {foreign})", where=name, fix="Save it as PNG or JPEG") from None
        ending = Path(name).suffix.lower()
        if ending in endings() or head.startswith(SIGNS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            raise
        return "empty" if not head else "no picture"


def read_picture(source: Source, *, where: str = "") -> np.ndarray:
    """The picture as a viewer shows it: uint8 RGB (H, W, 3); transparency becomes white, a stored rotation is applied.

    Of an animation or of several pages it is the first frame that shows at least half as much as the one that shows most: the
    first is often blank.

    Args:
        source: a file, its content, or a stream.
        where: what messages call it; the path by default.

    Raises:
        UnreadablePicture: it cannot be read.
    """
    with _opened(source, where) as image:
        if len(numbers := _frames_of(image)) > 1:
            image.seek(numbers[_representative(_thumbs(image, numbers))])
        return _seen(image)


def read_frames(source: Source, *, where: str = "") -> Iterator[tuple[int, np.ndarray]]:
    """The pictures of a file with their frame numbers, from 1: mostly one.

    Every page of a document that shows something counts, and of an animation those that show something else than the others,
    32 at most, the most different first. The one that :func:`read_picture` takes comes first.

    Raises:
        UnreadablePicture: a frame cannot be read; then none is to be used.
    """
    with _opened(source, where) as image:
        if len(numbers := _frames_of(image)) == 1:
            yield 1, _seen(image)
            return
        for place in _different(_thumbs(image, numbers), pages=image.format in PAGES):
            image.seek(numbers[place])
            yield numbers[place] + 1, _seen(image)


# --- opening ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Source, where: str) -> Iterator[Image]:
    """The opened image; whatever its decoder raises, here or inside the block, becomes one sentence."""
    from PIL import Image, UnidentifiedImageError

    where = where or (str(source) if isinstance(source, Path) else "picture")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but readable files, and sizes below the limit
            stream: Any = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(stream, formats=_formats()) as image:
                yield image
    except (InputError, GeneratorExit):
        raise
    except UnidentifiedImageError:
        raise UnreadablePicture("cannot be read (no picture of a known format)", where=where, fix=_fix(where)) from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        fix = "Save it smaller, or remove it"
        raise UnreadablePicture(f"cannot be read (more than {most / 1e6:.0f} million pixels)", where=where, fix=fix) from None
    except _TooMuch as error:
        fix = "Split it into several files, save it smaller, or remove it"
        raise UnreadablePicture(f"cannot be read ({error})", where=where, fix=fix) from None
    except MemoryError:
        raise UnreadablePicture("cannot be read (no memory)", where=where, fix="Save it smaller, or remove it") from None
    except Exception as error:
        # Decoders of some forty formats raise OSError, SyntaxError, struct.error, zlib.error and a dozen other types.
        reason = str(error).strip() or type(error).__name__
        raise UnreadablePicture(f"cannot be read ({reason[:160]})", where=where, fix=_fix(where)) from None


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_OPENED)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(64)


def _foreign(head: bytes) -> str | None:
    """What a picture is called that Pillow cannot open here, by its first bytes."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        return "HEIC"
    return next((name for sign, name in FOREIGN_SIGNS.items() if head.startswith(sign)), None)


def _no_file(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "cannot be read (a link to nothing)"
    return "cannot be read (it does not exist)" if not path.exists() else "cannot be read (it is not a file)"


def _fix(name: str) -> str:
    if Path(name).suffix.lower() in FOREIGN:
        return "Save it as PNG or JPEG"
    return "Save it again as PNG or JPEG, or remove it"


# --- frames -----------------------------------------------------------------------------------------------------------------


def _frames_of(image: Image) -> list[int]:
    """The frames that are looked at: all pages, and of a long animation as many as :data:`LOOKED_AT`, evenly spread."""
    if image.format in PAGES:
        return list(range(_pages(image)))
    count = 1 if image.format in ONE_PICTURE else int(getattr(image, "n_frames", 1))
    if count > 1:
        _require_few(count, count * image.width * image.height)  # whichever are looked at, the others are decoded on the way
    if count <= LOOKED_AT:
        return list(range(count))
    return [int(number) for number in np.linspace(0, count - 1, LOOKED_AT)]


def _pages(image: Image) -> int:
    """How many pages there are, none of which is decoded. They are turned one by one: Pillow counts wrongly after a leap."""
    count = pixels = 0
    try:
        while True:
            image.seek(count)
            count, pixels = count + 1, pixels + image.width * image.height
            if count > MOST_PAGES:
                raise _TooMuch(f"it has more than {MOST_PAGES:,} pages")
    except EOFError:
        image.seek(0)
    if count > 1:
        _require_few(count, pixels)
    return count


def _require_few(count: int, pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise _TooMuch(f"its {count:,} frames have more than {MOST_PIXELS / 1e6:,.0f} million pixels together")


def _thumbs(image: Image, numbers: list[int]) -> np.ndarray:
    """Frames in small: float32 (N, THUMB, THUMB, 3)."""
    from PIL import Image as Pillow

    small = np.empty((len(numbers), THUMB, THUMB, 3), np.float32)
    for place, number in enumerate(numbers):
        image.seek(number)
        small[place] = np.asarray(Pillow.fromarray(_seen(image)).resize((THUMB, THUMB), Pillow.Resampling.BOX), np.float32)
    return small


def _contents(thumbs: np.ndarray) -> np.ndarray:
    """How much each frame shows: the spread of its values; 0 for one of a single colour."""
    spread: np.ndarray = thumbs.std(axis=(1, 2)).mean(axis=1)
    return spread


def _representative(thumbs: np.ndarray) -> int:
    contents = _contents(thumbs)
    return int(np.argmax(contents >= contents.max() / 2))


def _different(thumbs: np.ndarray, *, pages: bool) -> list[int]:
    """The representative frame, then the frame that differs most from those taken, and so on; pages in their order."""
    contents, first = _contents(thumbs), _representative(thumbs)
    least, most = (ANOTHER_PAGE, len(thumbs)) if pages else (ANOTHER_FRAME, FRAMES)
    shows = contents >= (1.0 if pages else contents.max() / 4)
    distance = _distance(thumbs, first)
    taken = [first]
    while len(taken) < most:
        furthest = int(np.argmax(np.where(shows, distance, -1)))
        if not shows[furthest] or distance[furthest] < least:
            break
        taken.append(furthest)
        distance = np.minimum(distance, _distance(thumbs, furthest))
    return [first, *sorted(taken[1:])]


def _distance(thumbs: np.ndarray, other: int) -> np.ndarray:
    """Root mean square from one frame to all, float (N,)."""
    found: np.ndarray = np.sqrt(np.square(thumbs - thumbs[other]).mean(axis=(1, 2, 3)))
    return found


# --- colours ----------------------------------------------------------------------------------------------------------------


def _seen(image: Image) -> np.ndarray:
    """The current frame as a viewer shows it: uint8 RGB (H, W, 3)."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    most = 2 * (Pillow.MAX_IMAGE_PIXELS or 0)
    if most and image.width * image.height > most:  # pages may be larger than the first, which was checked
        raise Pillow.DecompressionBombError
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:
        upright = image  # metadata that cannot be parsed turns nothing, in any viewer
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        grey = _eight_bits(upright, image)
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.mode == "LAB":
        upright = _from_lab(upright)
    elif upright.mode in ("RGBa", "La"):
        upright = upright.convert({"RGBa": "RGBA", "La": "LA"}[upright.mode])
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return np.asarray(upright)
    rgba = upright.convert("RGBA")
    canvas = Pillow.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return np.asarray(canvas.convert("RGB"))


def _eight_bits(image: Image, opened: Image) -> np.ndarray:
    """A deep or float grey picture as uint8 (H, W).

    ``opened`` is what was opened: a picture that was turned upright has neither its format nor its tags.

    16 bits go from 0 to 65,535. Other numbers have no stated range: where the brightest is just below 1 (floats), 255 or
    65,535, that is white; else the picture's own darkest and brightest value are black and white, as for 12 bits in 16.
    """
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    hidden = values == transparent if isinstance(transparent, int) else None
    if values.dtype == np.int32 and values.min() < 0 and _unsigned(opened):
        values = values.view(np.uint32)
    deep = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(deep.min()), float(deep.max())
    declared = image.mode.startswith("I;16") or (opened.format == "PPM" and image.mode == "I")
    if declared and (high > 4095 or opened.format in ("PNG", "PPM")):
        white = 65_535.0
    elif image.mode == "F" and low >= 0 and 0.25 <= high <= 1:
        white = 1.0
    elif low >= 0 and 64 <= high <= 255:
        white = 255.0
    elif low >= 0 and 16_384 <= high <= 65_535:
        white = 65_535.0
    else:
        deep, white = deep - low, (high - low) or 1.0
    grey: np.ndarray = np.clip(np.rint(deep * (255 / white)), 0, 255).astype(np.uint8)
    if hidden is not None:
        grey[hidden] = 255
    return grey


def _unsigned(image: Image) -> bool:
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(339, (1,)) in ((1,), 1)  # SampleFormat: unsigned, which is also the default


def _from_lab(image: Image) -> Image:
    from PIL import ImageCms

    profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert converted is not None
    return converted
