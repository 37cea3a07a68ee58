"""Photographs of installed or unpacked packages as works, their edits, and pictures that are near misses.

None is committed. Which files are photographs was chosen by eye from all pictures of the packages; drawings, renderings and
test charts were left out. Of a large photograph several crops that do not overlap are works of their own: each is the nearest
thing to the others that is no copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE = 512  # longer side of a work
LEAST = 300  # shorter side of a crop before it is shrunk
FLAT = 8.0  # spread of brightness below which a crop shows nothing

PACKAGES = {  # package → (licences of its photographs, their names without what follows the last dot)
    "lomiri-wallpapers-16.04": ("CC-BY-4.0, CC-BY-SA-4.0, CC0-1.0", (
        "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Picture_0B_by_freespace", "Picture_1A_by_freespace",
        "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi", "analogpattern_by_Peter_Nerlich", "free_by_Peter_Nerlich",
        "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich", "life_by_Aitzol_Berasategi",
        "picosdeeuropa_by_Aitzol_Berasategi", "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi")),
    "lomiri-wallpapers-20.04": ("CC-BY-SA-3.0", ("Kleiber_by_Lukas_Baubkus",)),
    "mate-backgrounds": ("GPL-2+", (
        "Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm", "TwoWings", "Wood",
        "YellowFlower")),
    "plasma-workspace-wallpapers": ("GPL-2+", (
        "Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
        "OneStandsOut", "Path", "summer_1am")),
    "opencv-doc": ("Apache-2.0, BSD-3-Clause", (
        "aero1", "aloeL", "apple", "baboon", "board", "building", "chicky_512", "ela_original", "fruits", "box_in_scene",
        "home", "licenseplate_motion", "orange", "squirrel_cls", "starry_night", "stuff", "leuvenA", "graf1", "messi5",
        "butterfly", "left01")),
    "scikit-image": ("BSD-3-Clause; the pictures public domain or CC0", (
        "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "ihc",
        "motorcycle_left", "retina", "rocket")),
    "scikit-learn": ("CC-BY-2.0", ("china", "flower")),
    "stellarium-data": ("as each author states: CC-BY, CC-BY-SA, Free Art License and others", ("nebulae/default/*",)),
}  # fmt: skip
VIEWS = {  # the same scene once more from elsewhere, or a moment later: package opencv-doc and scikit-image
    "graf1": "graf3", "leuvenA": "leuvenB", "aloeL": "aloeR", "aero1": "aero3", "motorcycle_left": "motorcycle_right",
    "left01": "right01",
}  # fmt: skip
NEBULAE = 60  # photographs of the sky: they are many, and much alike


@dataclass(frozen=True, kw_only=True)
class Work:
    """A photograph, or a crop of one.

    Attributes:
        picture: uint8 RGB (H, W, 3), at most :data:`SIDE` pixels.
        photograph: the file that it is of.
        package: where that comes from.
    """

    picture: np.ndarray
    photograph: str
    package: str


def works(folder: Path, most: int | None = None) -> list[Work]:
    """The works that unpacked packages yield.

    Args:
        folder: holds one folder for each package, of the package's name.
        most: stop after so many.
    """
    found: list[Work] = []
    for package, path in _files(folder):
        for crop in _crops(_read(path)):
            found.append(Work(picture=crop, photograph=path.stem if path.stem[0].isalpha() else str(path), package=package))
            if len(found) == most:
                return found
    return found


def views(folder: Path) -> list[tuple[str, np.ndarray]]:
    """Other photographs of the scene of some works: the name of the work's photograph, and the picture."""
    files = {path.stem: path for package in PACKAGES for path in sorted((folder / package).rglob("*.*")) if path.is_file()}
    return [(name, _crops(_read(files[other]))[0]) for name, other in VIEWS.items() if other in files]


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for package, (_, names) in PACKAGES.items():
        here = [path for path in sorted((folder / package).rglob("*.*"))
                if path.suffix.lower() in (".jpg", ".png") and path.is_file() and not path.is_symlink()]  # fmt: skip
        if names[0].endswith("*"):
            sky = [path for path in here if path.parent.match(names[0].removesuffix("/*")) and path.stat().st_size > 60_000]
            yield from ((package, path) for path in sky[:: max(1, len(sky) // NEBULAE)][:NEBULAE])
            continue
        for name in names:  # a wallpaper of Plasma has the name of its folder, and its largest file is the whole picture
            of = [p for p in here if p.stem == name or (name in p.parts and p.parent.name == "images")]
            if of:
                yield package, max(of, key=lambda path: path.stat().st_size)


def _read(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        image.draft("RGB", (3 * SIDE, 3 * SIDE))  # a JPEG of 5120 pixels need not be decoded whole
        if image.mode in ("RGBA", "LA", "P"):
            flat = image.convert("RGBA")
            ground = Image.new("RGBA", flat.size, (255, 255, 255, 255))
            return np.asarray(Image.alpha_composite(ground, flat).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def _crops(picture: np.ndarray) -> list[np.ndarray]:
    """The picture in as many parts as are large enough, each at most :data:`SIDE` pixels."""
    import cv2

    high, wide = picture.shape[:2]
    down, across = (max(1, min(3, round(length / (2 * LEAST)))) for length in (high, wide))
    crops = []
    for y in range(down):
        for x in range(across):
            crop = picture[y * high // down : (y + 1) * high // down, x * wide // across : (x + 1) * wide // across]
            factor = min(1.0, SIDE / max(crop.shape[:2]))
            size = (max(1, round(crop.shape[1] * factor)), max(1, round(crop.shape[0] * factor)))
            small = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)
            if float(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).std()) >= FLAT:
                crops.append(small)
    return crops


# --- edits ------------------------------------------------------------------------------------------------------------------

Edit = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def cropped(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part with 35 to 70 % of the area, enlarged again, one in two mirrored."""
    import cv2

    high, wide = picture.shape[:2]
    share = rng.uniform(0.35, 0.7) ** 0.5
    h, w = int(high * share), int(wide * share)
    y, x = int(rng.integers(0, high - h + 1)), int(rng.integers(0, wide - w + 1))
    part = picture[y : y + h, x : x + w]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return np.asarray(cv2.resize(np.ascontiguousarray(part), (wide, high), interpolation=cv2.INTER_CUBIC), np.uint8)


def turned(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by 5 to 30 degrees either way, 0.7 to 1 times as large, on a ground of one grey."""
    import cv2

    high, wide = picture.shape[:2]
    angle = float(rng.uniform(5, 30) * rng.choice((-1, 1)))
    matrix = cv2.getRotationMatrix2D((wide / 2, high / 2), angle, float(rng.uniform(0.7, 1.0)))
    ground = (float(rng.integers(0, 256)),) * 3
    return np.asarray(cv2.warpAffine(picture, matrix, (wide, high), flags=cv2.INTER_LINEAR, borderValue=ground), np.uint8)


def worn(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrunk to 40 to 60 %, blurred, noisy, and JPEG of quality 15 to 40."""
    import cv2

    high, wide = picture.shape[:2]
    factor = rng.uniform(0.4, 0.6)
    small = cv2.resize(picture, (int(wide * factor), int(high * factor)), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), float(rng.uniform(0.4, 1.0))).astype(np.float32)
    noisy = np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 41))])
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def regraded(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other brightness, contrast, gamma and colours, one in four grey, one in four with all hues turned."""
    from index.colours import turn_hues

    x = picture.astype(np.float32) / 255
    chance = rng.random()
    if chance < 0.25:
        x = np.repeat(x.mean(2, keepdims=True), 3, 2)
    elif chance < 0.5:
        x = turn_hues(picture, float(rng.uniform(0.2, 0.8))).astype(np.float32) / 255
    x = x ** float(rng.uniform(0.6, 1.6)) * rng.uniform(0.7, 1.2) + rng.uniform(-0.1, 0.1)
    x = x * rng.normal(1, 0.08, 3).astype(np.float32)
    return np.asarray(np.clip(255 * x, 0, 255), np.uint8)


def inset(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrunk to 45 to 70 % and laid into another photograph."""
    import cv2

    high, wide = picture.shape[:2]
    ground = cv2.resize(other, (wide, high), interpolation=cv2.INTER_AREA)
    factor = rng.uniform(0.45, 0.7)
    h, w = int(high * factor), int(wide * factor)
    y, x = int(rng.integers(0, high - h + 1)), int(rng.integers(0, wide - w + 1))
    ground[y : y + h, x : x + w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)
    return np.asarray(ground, np.uint8)


def squashed(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stretched by 15 to 40 % in one direction, seen a little from the side, mirrored, a bar with writing across it."""
    import cv2

    high, wide = picture.shape[:2]
    corners = np.array([[0, 0], [wide, 0], [wide, high], [0, high]], np.float32)
    moved = corners + rng.uniform(-0.06, 0.06, (4, 2)).astype(np.float32) * (wide, high)
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    seen = cv2.warpPerspective(np.ascontiguousarray(picture[:, ::-1]), matrix, (wide, high), borderMode=cv2.BORDER_REPLICATE)
    stretch = float(rng.uniform(1.15, 1.4))
    size = (int(wide * stretch), high) if rng.random() < 0.5 else (wide, int(high * stretch))
    seen = np.asarray(cv2.resize(seen, size, interpolation=cv2.INTER_AREA), np.uint8)
    y = int(rng.integers(0, size[1] - size[1] // 8))
    seen[y : y + size[1] // 8] = rng.integers(0, 256, 3)
    cv2.putText(seen, "preview only", (size[0] // 8, y + size[1] // 10), cv2.FONT_HERSHEY_SIMPLEX, size[0] / 400, (255,) * 3, 2)
    return seen


EDITS: dict[str, Edit] = {
    "cropped": cropped, "turned": turned, "worn": worn, "regraded": regraded, "inset": inset, "squashed": squashed,
}  # fmt: skip
