"""The kinds of second look, and which of them an index was calibrated for.

Three kinds answer whether a picture shows what a reference shows: *alignment* lays one drawing over the other
(:mod:`index.confirm`), *key points* find the same places of a photograph again (:mod:`index.keypoints`), and a *descriptor*
is a network in a file (:mod:`index.descriptor`). Their scores mean different things, so an operating point belongs to one of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.errors import ConfigError, IndexMismatch
from index.precision import average_precision

# picture, reference picture: uint8 RGB (H, W, 3) → [0, 1]; NaN: the look cannot judge this reference
Look = Callable[[np.ndarray, np.ndarray], float]

AUTO, ALIGNMENT, KEYPOINTS, DESCRIPTOR = "auto", "alignment", "keypoints", "descriptor:"
BUILT_IN = (ALIGNMENT, KEYPOINTS)
WORDS = f"{AUTO}, {ALIGNMENT}, {KEYPOINTS} or {DESCRIPTOR}FILE"
RESAMPLES = 1000


def named(look: str, *, base: Path | None = None, where: str = "second look") -> str:
    """A look's name with the absolute path of its file; relative ones start from ``base`` (None: the working folder).

    Raises:
        ConfigError: there is no such kind.
    """
    if look in (AUTO, *BUILT_IN):
        return look
    file = look.removeprefix(DESCRIPTOR)
    if file == look or not file.strip():
        raise ConfigError(f"there is no second look {look!r}", where=where, fix=f"One of: {WORDS}")
    return f"{DESCRIPTOR}{(base or Path.cwd()) / Path(file).expanduser()}"


def look_id(look: str) -> str:
    """Digest of everything that decides the scores of a look.

    Raises:
        ModelError: a descriptor's file cannot be read.
    """
    if look == ALIGNMENT:
        from index.confirm import second_look_id

        return second_look_id()
    if look == KEYPOINTS:
        from index.keypoints import keypoints_id

        return keypoints_id()
    from index.descriptor import descriptor_id

    return descriptor_id(Path(look.removeprefix(DESCRIPTOR)))


def open_look(look: str, *, expected: str = "", device: str = "cpu") -> Look:
    """A look, ready to compare pictures.

    Args:
        look: its name, as :func:`named` returns it.
        expected: the digest that its operating point was measured with; empty: any.
        device: torch device of a descriptor in TorchScript.

    Raises:
        ModelError: a descriptor cannot be opened.
        IndexMismatch: its scores are not those that were measured.
    """
    require(look, expected)
    if look == ALIGNMENT:
        from index.confirm import confirm

        return confirm
    if look == KEYPOINTS:
        from index.keypoints import Keypoints

        return Keypoints()
    from index.descriptor import Descriptor

    return Descriptor(Path(look.removeprefix(DESCRIPTOR)), device)


def open_looks(names: Sequence[str], *, where: str) -> dict[str, Look]:
    """Looks to compare, each once; ``auto`` stands for both kinds that need no file. Alignment comes first: it is kept unless
    another one is better.

    Raises:
        ConfigError: there is no such kind.
        ModelError: a descriptor cannot be opened.
    """
    given = [look for name in names for look in (BUILT_IN if name == AUTO else (named(name, where=where),))]
    ordered = sorted(dict.fromkeys(given), key=lambda look: look != ALIGNMENT)
    return {look: open_look(look) for look in ordered}


def require(look: str, expected: str) -> None:
    """Refuse a look whose scores are not those that an operating point was measured with; ``expected`` empty: any.

    Raises:
        ModelError: a descriptor's file cannot be read.
        IndexMismatch: the digests differ.
    """
    if expected and look_id(look) != expected:
        what = (
            f"it is not the one that was calibrated ({look_id(look)[:12]}, not {expected[:12]}): its scores mean something else"
        )
        raise IndexMismatch(what, where=f"second look {look}", fix="Calibrate again: clearance index calibrate")


# --- which look tells copies from other pictures ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LookWorth:
    """How well one look alone tells copies from other pictures.

    Attributes:
        look: its name.
        precision: average precision over the compared pairs; low, high: 95 % interval, over whole works.
        gain: precision above the first look's; gain_low, gain_high: 95 % interval, of the same works. All 0 for the first.
    """

    look: str
    precision: float
    low: float
    high: float
    gain: float = 0.0
    gain_low: float = 0.0
    gain_high: float = 0.0

    def plain(self) -> tuple[str, float, float, float, float, float, float]:
        """For a file of JSON."""
        numbers = (self.precision, self.low, self.high, self.gain, self.gain_low, self.gain_high)
        return self.look, *(round(number, 6) for number in numbers)  # type: ignore[return-value]


def compared(scores: Mapping[str, np.ndarray], copy: np.ndarray, works: Sequence[str]) -> list[LookWorth]:
    """What every look is worth on the same pairs, in the order given.

    Args:
        scores: look → float (M,); NaN where there was none. A pair on which only some looks give no score counts as 0 for them.
        copy: bool (M,). works: M names; pairs of one work are resampled together.
    """
    seen = ~np.all([np.isnan(mine) for mine in scores.values()], axis=0)
    scores = {look: np.nan_to_num(mine, nan=0.0) for look, mine in scores.items()}
    label, of = np.asarray(copy)[seen], np.asarray(works)[seen]
    if not label.any() or label.all():
        return []
    _, groups = np.unique(of, return_inverse=True)
    rows = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        some = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        if label[some].any() and not label[some].all():
            drawn.append([average_precision(mine[seen][some], label[some]) for mine in scores.values()])
    spread = np.array(drawn) if drawn else np.tile([[0.0], [1.0]], len(scores))
    first = average_precision(next(iter(scores.values()))[seen], label)
    found = []
    for place, (look, mine) in enumerate(scores.items()):
        precision = average_precision(mine[seen], label)
        low, high = (float(v) for v in np.quantile(spread[:, place], (0.025, 0.975)))
        gained = np.quantile(spread[:, place] - spread[:, 0], (0.025, 0.975)) if place else np.zeros(2)
        found.append(
            LookWorth(
                look=look, precision=precision, low=low, high=high, gain=precision - first, gain_low=float(gained[0]),
                gain_high=float(gained[1]),
            )
        )  # fmt: skip
    return found


def best_of(worth: Sequence[LookWorth]) -> LookWorth:
    """The first look, unless another one is better with certainty: the best of those whose gain's interval lies above 0."""
    surer = [one for one in worth[1:] if one.gain_low > 0]
    return max(surer, key=lambda one: one.precision, default=worth[0])


def why(worth: Sequence[LookWorth]) -> str:
    """Which look wins, and on what ground, in one sentence."""
    won, first = best_of(worth), worth[0]
    if len(worth) == 1:
        return f"{won.look}: no other look was compared"
    if won is not first:
        return (
            f"{won.look}: its average precision lies {won.gain:.3f} above that of {first.look} "
            f"({won.gain_low:.3f} to {won.gain_high:.3f})"
        )
    nearest = max(worth[1:], key=lambda one: one.gain)
    return (
        f"{first.look}: no other look is better with certainty; {nearest.look} gains {nearest.gain:+.3f} "
        f"({nearest.gain_low:+.3f} to {nearest.gain_high:+.3f})"
    )
