"""The keyed tile: a faint pattern of 64×64 pixels, drawn from a key and repeated over the luma of a picture.

The pattern is a sum of 362 waves of .045 to .24 cycles per pixel. The key sets their phases. Two fifths of the waves, always
the same, tell where the tile stands; each of the others carries one of 32 bits as its sign. The pattern is stronger where the
picture is busy.

A look takes the picture's Fourier coefficients at the waves of the tile and compares their phases with the key's. For a
picture made without the key the phases of the key are independent and uniform, whatever the picture shows. The sum of n
weighted cosines of such phases is sub-Gaussian, so that P(score ≥ z) ≤ exp(−z²/2) for one comparison, and the number of
comparisons (scales × orientations × shifts) multiplies it. That bound is the ``p_value`` of a find.

It is a label, and never more. Who averages many pictures of one key, or subtracts the tile of one from another, removes or
copies it; who turns a picture by a few degrees, or changes its aspect, hides it from this look. With the published key
everybody can find it and imitate it.

Everything that makes a marked picture is whole numbers, so that its bytes are the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from index.errors import InputError
from pipeline.marking.watermark import PAYLOAD_BITS, Found, require_picture

TILE = 64  # pixels
LOW, HIGH = 0.045, 0.24  # cycles per pixel: below is the picture itself, above is what encoders drop
TURNS = 1024  # steps of a phase
ONE = 1 << 14  # amplitude of a wave in whole numbers
UNIT = 64  # root mean square of the finished pattern
SYNC_OF_FIVE = (0, 3)  # of five waves, in order of frequency, these tell where the tile stands
REACH = 15  # waves have up to so many periods in a tile

# Strength in sixteenths of a grey level, root mean square: in flat places, for each level of activity, and at most.
FLAT, BUSY, MOST = 30, 14, 48
ENDS, ENDS_TIMES = 3, 20  # so near to black and white half the pattern is cut off; what is left is 20/16 as strong

ALIGNED, SEARCHED = 4.9, 7.0  # scores from which the mark counts as found
STEP, FROM, TO = 1.01, 0.5, 2.0  # the ladder of scales
WINDOW = 384  # pixels of the middle that the ladder looks at: in a larger part one per cent is too coarse
LEAST_SEARCHED = 128  # pixels of the shorter side; with fewer than two tiles a search finds nothing
FINE = tuple(step * 0.00125 for step in range(-4, 5))  # scales tried about a candidate, over the whole picture
CANDIDATES = 3
ORIENTATIONS = ("", "turned by 90°", "turned by 180°", "turned by 270°", *(
    f"mirrored{turned}" for turned in ("", ", turned by 90°", ", turned by 180°", ", turned by 270°")
))  # fmt: skip


@dataclass(frozen=True)
class Waves:
    """The waves of the tile under one key: ``k`` (n, 2) periods along x and y; ``phase`` (n,) in 1,024ths; ``owner`` (n,) the
    bit that a wave carries, -1: it tells where the tile stands."""

    k: np.ndarray
    phase: np.ndarray
    owner: np.ndarray

    @cached_property
    def sync(self) -> np.ndarray:
        return self.owner < 0

    @cached_property
    def back(self) -> np.ndarray:
        """Turns a wave's coefficient back by its phase."""
        turns: np.ndarray = np.exp(-2j * np.pi / TURNS * self.phase)
        return turns


@dataclass(frozen=True)
class Place:
    """Where a look found the most: score, orientation, scale, shift (x, y) in pixels of the tile."""

    score: float
    orientation: int
    scale: float
    shift: tuple[float, float] = (0.0, 0.0)


class TileWatermark:
    """The keyed tile. See the module."""

    name = "tile"
    version = "tile 1"
    licence = "Apache-2.0"
    least_side = 128
    false_alarm = 2e-4  # the bound of a full search at its threshold
    payload_bits = PAYLOAD_BITS
    psnr_floor = 38.0

    @classmethod
    def probe(cls) -> str:
        return cls.version

    @classmethod
    def open(cls, *, allow_download: bool = False) -> TileWatermark:
        return cls()

    def embed(self, picture: np.ndarray, key: bytes, payload: int) -> np.ndarray:
        """See :class:`pipeline.marking.watermark.Watermark`. Only the luma changes: all three channels by the same amount."""
        require_picture(picture, scheme=self.name, least_side=self.least_side)
        high, wide = picture.shape[:2]
        repeats = (-(-high // TILE), -(-wide // TILE))
        pattern = np.tile(tile(key, payload), repeats)[:high, :wide]
        change = (strength(picture) * pattern + (1 << 9)) >> 10  # sixteenths of a level × 64ths of the pattern
        marked: np.ndarray = np.clip(picture + change[..., None], 0, 255).astype(np.uint8)
        return marked

    def look(self, picture: np.ndarray, key: bytes, *, size_hint: tuple[int, int] | None = None) -> Found:
        """See :class:`pipeline.marking.watermark.Watermark`.

        First in place, upright and mirrored; then, unless the picture has the hinted size or is below 128 pixels, at 139 scales
        from half to double, in eight orientations and at every shift.
        """
        require_picture(picture, scheme=self.name)
        high, wide = picture.shape[:2]
        known, flat = waves(key), residual(picture)
        sizes = dict.fromkeys([(wide, high), size_hint or (wide, high)])
        best, tried = Place(-math.inf, 0, 1.0), 0
        coefficients = best_coefficients = np.zeros((0, 0), np.complex128)
        for size in sizes:
            for orientation in (0, 4):
                at = (wide / size[0], high / size[1])
                coefficients = spectrum(turned(flat, orientation), *at)
                place = Place(_score(_read(coefficients, known), known), orientation, math.sqrt(at[0] * at[1]))
                tried += 1
                if place.score > best.score:
                    best, best_coefficients = place, coefficients
        if best.score >= ALIGNED:
            return _found(best, best_coefficients, known, tried, aligned=True)
        if size_hint == (wide, high) or min(high, wide) < LEAST_SEARCHED:
            return Found(found=False, score=round(best.score, 2), p_value=_bound(best.score, tried))
        best, best_coefficients, tried_too = _search(flat, known, [wide / size[0] for size in sizes])
        tried += tried_too
        if best.score < SEARCHED:
            return Found(found=False, score=round(best.score, 2), p_value=_bound(best.score, tried))
        return _found(best, best_coefficients, known, tried, aligned=False)


@lru_cache(maxsize=16)
def waves(key: bytes) -> Waves:
    """The waves of the tile under a key, from SHAKE-256 of the key.

    Raises:
        InputError: the key has fewer than 16 bytes.
    """
    if len(key) < 16:
        fix = "Make one with `clearance keys new FOLDER`"
        raise InputError(f"a watermark key has 16 bytes or more, not {len(key)}", where="watermark tile", fix=fix)
    every = [(x, y) for y in range(-REACH, REACH + 1) for x in range(REACH + 1) if x > 0 or y > 0]
    inside = sorted((x * x + y * y, x, y) for x, y in every if LOW <= math.hypot(x, y) / TILE <= HIGH)
    k = np.array([(x, y) for _, x, y in inside])
    phase = np.frombuffer(hashlib.shake_256(b"tile 1 phases" + key).digest(2 * len(k)), "<u2") % TURNS
    owner = np.full(len(k), -1)
    carriers = [i for i in range(len(k)) if i % 5 not in SYNC_OF_FIVE]
    lots = np.frombuffer(hashlib.shake_256(b"tile 1 owners" + key).digest(8 * (len(carriers) + PAYLOAD_BITS)), "<u8")
    for start in range(0, len(carriers), PAYLOAD_BITS):  # in turn, so that every bit has waves of all frequencies
        order = np.argsort(lots[start : start + PAYLOAD_BITS], kind="stable")
        for wave, bit in zip(carriers[start : start + PAYLOAD_BITS], order, strict=False):
            owner[wave] = bit
    return Waves(k, phase.astype(np.int64), owner)


@lru_cache(maxsize=16)
def tile(key: bytes, payload: int) -> np.ndarray:
    """The pattern as whole numbers, int32 (64, 64) with a root mean square of 64; the same on every machine.

    Raises:
        InputError: the payload has more than 32 bits, or the key is too short.
    """
    if not 0 <= payload < 1 << PAYLOAD_BITS:
        raise InputError(f"a payload is a number of 32 bits, not {payload}", where="watermark tile", fix="Pass 0 to 2³²−1")
    known = waves(key)
    cosines = np.array([round(math.cos(2 * math.pi * step / TURNS) * ONE) for step in range(TURNS)], np.int64)
    y, x = np.mgrid[:TILE, :TILE]
    total = np.zeros((TILE, TILE), np.int64)
    for (kx, ky), phase, owner in zip(known.k, known.phase, known.owner, strict=True):
        negative = owner >= 0 and not payload >> int(owner) & 1
        total += cosines[(TURNS // TILE * (kx * x + ky * y) + phase + (TURNS // 2 if negative else 0)) % TURNS]
    size = math.isqrt(ONE * ONE * len(known.k) // 2)  # the sum's root mean square
    made: np.ndarray = ((total * UNIT + size // 2) // size).astype(np.int32)
    made.setflags(write=False)
    return made


def strength(picture: np.ndarray) -> np.ndarray:
    """How strong the pattern may be at each pixel of uint8 RGB (H, W, 3), in sixteenths of a grey level: int32 (H, W).

    It is the least activity within three pixels, so that nothing shows beside an edge. Every intermediate value is a whole
    number that float32 holds exactly.
    """
    import cv2

    red, green, blue = (picture[..., i].astype(np.int32) for i in range(3))
    luma = (77 * red + 150 * green + 29 * blue) >> 8
    side = 7
    sums = cv2.boxFilter(luma.astype(np.float32), -1, (side, side), normalize=False)
    spread = np.abs(luma * side**2 - sums.astype(np.int32))
    activity = cv2.boxFilter(spread.astype(np.float32), -1, (side, side), normalize=False).astype(np.int32)
    there = np.minimum(FLAT + activity * BUSY // (4 * side**4), MOST)
    there = cv2.erode(there.astype(np.float32), np.ones((side, side), np.uint8)).astype(np.int32)
    at_end = (luma <= ENDS) | (luma >= 255 - ENDS)
    found: np.ndarray = np.where(at_end, there * ENDS_TIMES // 16, there)
    return found


def residual(picture: np.ndarray) -> np.ndarray:
    """The fine detail of the luma, brought to one size everywhere: float32 (H, W). Edges do not outweigh flat places."""
    import cv2

    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    detail = luma - cv2.GaussianBlur(luma, (0, 0), 2.0)
    spread = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 4.0))
    clipped: np.ndarray = np.clip(detail / (spread + 1.5), -2.5, 2.5)
    return clipped


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """The array brought back upright from one of :data:`ORIENTATIONS`."""
    quarter = np.rot90(array, -(orientation % 4))
    return quarter[:, ::-1] if orientation >= 4 else quarter


def spectrum(flat: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Fourier coefficients of float32 (H, W) at every wave of a tile that was scaled: complex (31, 31), by ky and kx + 15."""
    periods = np.arange(-REACH, REACH + 1)
    high, wide = flat.shape
    x = (np.arange(wide) + 0.5) / scale_x - 0.5
    y = (np.arange(high) + 0.5) / scale_y - 0.5
    along_x = np.outer(x, periods[REACH:]) * (2 * np.pi / TILE)
    parts = np.concatenate([np.cos(along_x), -np.sin(along_x)], 1).astype(np.float32)
    rows = np.ascontiguousarray(flat) @ parts
    along_y = np.exp(np.outer(periods[REACH:], y) * (-2j * np.pi / TILE)).astype(np.complex64)
    along_y = np.concatenate([np.conj(along_y[:0:-1]), along_y])
    half = along_y @ (rows[:, : REACH + 1] + 1j * rows[:, REACH + 1 :])
    full: np.ndarray = np.concatenate([np.conj(half[::-1, :0:-1]), half], 1)
    return full


def _read(coefficients: np.ndarray, known: Waves) -> np.ndarray:
    """Every wave's weighted unit phasor, turned back by the key's phase: complex (…, n); the weights depend on size alone."""
    at = coefficients[..., known.k[:, 1] + REACH, known.k[:, 0] + REACH]
    size = np.abs(at) + 1e-12
    # A wave far stronger than the others is the picture's own; a weak one says little about its phase.
    weight = np.minimum(size / np.median(size, axis=-1, keepdims=True), 1.0)
    phasors: np.ndarray = weight * at / size * known.back
    return phasors


def _score(phasors: np.ndarray, known: Waves) -> float:
    """Standard deviations by which the sync waves agree, where the tile stands at the corner."""
    sync = phasors[known.sync]
    return float(sync.real.sum() / _deviation(sync))


def _deviation(phasors: np.ndarray) -> float:
    return math.sqrt(float((np.abs(phasors) ** 2).sum()) / 2) or 1.0


def _scores(phasors: np.ndarray, known: Waves, side: int = TILE) -> np.ndarray:
    """The same for (m, n) phasors at every shift of the tile: (m, side, side), by y and x in steps of 64 / side pixels."""
    sync = phasors[:, known.sync]
    k = known.k[known.sync]
    grid = np.zeros((len(sync), side, side // 2 + 1), np.complex64)
    # The transform adds the waves of negative kx, which are the conjugates of these; those of kx = 0 stand there once.
    grid[:, k[:, 1] % side, k[:, 0]] = sync * np.where(k[:, 0] > 0, 0.5, 1.0)
    deviation = np.sqrt((np.abs(sync) ** 2).sum(1) / 2) + 1e-12
    found: np.ndarray = np.fft.irfft2(grid, (side, side)) * (side * side / deviation)[:, None, None]
    return found


def _search(flat: np.ndarray, known: Waves, likely: Iterable[float]) -> tuple[Place, np.ndarray, int]:
    """The best place over the ladder of scales, its coefficients, and how many places were compared."""
    high, wide = flat.shape
    top, left = max(0, (high - WINDOW) // 2), max(0, (wide - WINDOW) // 2)
    middle = flat[top : top + WINDOW, left : left + WINDOW]
    rungs = round(math.log(TO / FROM) / math.log(STEP))
    scales = [FROM * STEP**rung for rung in range(rungs + 1)]
    tried, places = 0, []
    for scale in dict.fromkeys([*likely, *scales]):
        coefficients = spectrum(middle, scale, scale)
        upright = np.stack([turned(coefficients, orientation) for orientation in range(len(ORIENTATIONS))])
        scores = _scores(_read(upright, known), known)
        tried += scores.size
        places += [Place(float(best), orientation, scale) for orientation, best in enumerate(scores.max((1, 2)))]
    best, best_coefficients = Place(-math.inf, 0, 1.0), np.zeros((0, 0), np.complex128)
    for candidate in sorted(places, key=lambda place: -place.score)[:CANDIDATES]:
        upright = turned(flat, candidate.orientation)
        for fine in FINE:
            scale = candidate.scale * (1 + fine)
            coefficients = spectrum(upright, scale, scale)
            side = 2 * TILE
            scores = _scores(_read(coefficients, known)[None], known, side)[0]
            tried += scores.size
            if scores.max() > best.score:
                row, column = divmod(int(scores.argmax()), side)
                shift = (column * TILE / side, row * TILE / side)
                best = Place(float(scores.max()), candidate.orientation, scale, shift)
                best_coefficients = coefficients
    return best, best_coefficients, tried


def _bound(score: float, tried: int) -> float:
    return min(1.0, tried * math.exp(-(max(0.0, score) ** 2) / 2))


def _found(place: Place, coefficients: np.ndarray, known: Waves, tried: int, *, aligned: bool) -> Found:
    """Read the payload at a place."""
    phasors = _read(coefficients, known) * np.exp(2j * np.pi / TILE * (known.k @ np.array(place.shift)))
    weight, agreement = np.abs(phasors), phasors.real
    # How well a wave that carries no bit agrees tells how far to trust those that carry one.
    trust = float(np.clip(agreement[known.sync].sum() / weight[known.sync].sum(), 0.0, 0.98))
    payload, sure = 0, 1.0
    for bit in range(PAYLOAD_BITS):
        own = known.owner == bit
        total = float(agreement[own].sum())
        payload |= (total > 0) << bit
        variance = float((weight[own] ** 2).sum()) * (1 - trust**2) / 2
        sure /= 1 + math.exp(-2 * trust * float(weight[own].sum()) * abs(total) / variance)
    score = round(place.score, 2)
    details: dict[str, Any] = {"orientation": ORIENTATIONS[place.orientation], "scale": round(place.scale, 4)}
    return Found(
        found=True, score=score, p_value=_bound(score, tried), payload=payload, payload_sure=round(sure, 4), aligned=aligned,
        **details,
    )  # fmt: skip
