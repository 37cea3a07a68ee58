"""The reference index: what must not be copied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
