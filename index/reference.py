"""A reference is a work that must not be copied: the classes for one before, in, and found by an index."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np

from index.errors import InputError

MATCHING = ("active", "disputed")  # statuses that can match; a disputed claim protects until it is settled
STATUSES = ("active", "disputed", "allowed")  # what a work can be given, strictest first
RETIRED = "retired"  # a status that only an index sets
PREFIX = 4  # digits of an id that are needed at least
BASES = ("licensed", "claim", "registry", "memorisation_probe", "own_mark")
COLUMNS = ("title", "source_uri", "rightsholder", "rights_basis", "licence", "status", "claim_id")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One protected or memorised work, as stored: embedding and hashes beside it, the picture only if allowed."""

    ref_id: str
    title: str
    content_sha256: str
    pdq: str
    source_uri: str = ""
    rightsholder: str = ""
    rights_basis: str = "claim"  # licensed | claim | registry | memorisation_probe | own_mark
    licence: str = ""
    status: str = "active"  # active | retired | disputed | allowed
    added_at: float = 0.0
    retired_at: float | None = None
    claim_id: str = ""


def amended(reference: Reference, changes: Mapping[str, str]) -> Reference:
    """The reference with other values in some of :data:`COLUMNS`."""
    return replace(reference, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Match:
    """A reference near a picture.

    Attributes:
        ref_id, title, rights_basis, status: copied from the reference.
        similarity: cosine between the embeddings, exact.
        confirm: score of the second, geometric look in [0, 1] (None: not looked).
    """

    ref_id: str
    title: str
    similarity: float
    rights_basis: str = "claim"
    status: str = "active"
    confirm: float | None = None


@dataclass(frozen=True, kw_only=True)
class NewReference:
    """A work on its way into an index.

    Attributes:
        title: what a person calls it.
        picture: uint8 RGB (H, W, 3).
        keep_picture: whether the picture itself may be stored; without it there is no second look and no steering away.
        origin: the file it comes from, for messages; empty: its title.
    """

    title: str
    picture: np.ndarray = field(repr=False, compare=False)
    source_uri: str = ""
    rightsholder: str = ""
    rights_basis: str = "claim"
    licence: str = ""
    keep_picture: bool = False
    status: str = "active"
    claim_id: str = ""
    origin: str = ""

    @property
    def place(self) -> str:
        """What messages call it."""
        return self.origin or self.title


def stricter(one: str, other: str) -> bool:
    """Whether a reference of the first status forbids more than one of the second: active, disputed, allowed, retired."""
    order = (*STATUSES, RETIRED)
    return order.index(one) < order.index(other)


def require(item: NewReference) -> None:
    """Refuse a new reference whose picture, rights basis or status cannot be used; raises InputError."""
    picture = item.picture
    where = f"reference {item.place!r}"
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        what = f"picture must be uint8 (H, W, 3), this is {picture.dtype} {picture.shape}"
        raise InputError(what, where=where, fix="Convert it to RGB bytes first")
    require_terms(item.rights_basis, item.status, where=where)


def require_terms(rights_basis: str, status: str, *, where: str) -> None:
    """Refuse an unknown rights basis or status; raises InputError."""
    for name, value, known in (("rights_basis", rights_basis, BASES), ("status", status, STATUSES)):
        if value not in known:
            near = get_close_matches(value.lower(), known, n=1)
            what = f"{name} is {value!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
            raise InputError(what, where=where, fix=f"One of: {', '.join(known)}")


def the_id(beginning: str, ids: Collection[str], *, where: str) -> str:
    """The one of some ids that begins so.

    Raises:
        InputError: none does, several do, or it is too short.
    """
    if beginning in ids:
        return beginning
    where = f"{where}: {beginning}"
    if len(beginning) < PREFIX:
        raise InputError("is too short for an id", where=where, fix=f"Write at least its first {PREFIX} digits")
    found = sorted(ref_id for ref_id in ids if ref_id.startswith(beginning.lower()))
    if not found:
        raise InputError("no such reference", where=where, fix="List them: clearance index info INDEX --references")
    if len(found) > 1:
        what = f"is the beginning of {len(found)} ids: {', '.join(found[:3])}{' …' if len(found) > 3 else ''}"
        raise InputError(what, where=where, fix="Write more digits")
    return found[0]
