"""The claim file: who asks for what, on which ground. One file a claim; its digest stands in every event and receipt."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from index.errors import ConfigError
from pipeline.fields import REQUIRED, entry, line, several
from pipeline.settings import contradiction, from_dict, read_toml, settings

EXAMPLE = """\
# A claim about protected works. Fill it in, then:
#   clearance takedown --index INDEX --runs RUN --add PICTURES --claim claim.toml
# The file stays with you: runs, index and receipt hold its digest and every line but `contact`.

claimant = "rights holder A"                # a role or a pseudonym; no personal name is needed
date = 2026-11-28                           # the day the claim was received
basis = "copyright: author of the drawings" # the ground of the claim, in a sentence
works = ["Red lemon, 2019", "Blue kite"]    # what is claimed, as the claimant names it
contact = "claims desk, ticket 4711"        # where an answer goes; kept in this file only
"""


def _day(value: Any) -> Any:
    """A date of TOML as text; text stays what it is."""
    return value.isoformat() if type(value) is date else value


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


@settings
class Claim:
    """A claim about protected works."""

    claimant: str = line(REQUIRED, "role or pseudonym of who claims", least=1)
    date: Annotated[str, BeforeValidator(_day)] = line(REQUIRED, "day the claim was received, as in 2026-11-28", least=1)
    basis: str = line(REQUIRED, "the ground of the claim, in a sentence", least=1)
    works: Annotated[tuple[Annotated[str, entry()], ...], BeforeValidator(_one_or_many)] = several(
        REQUIRED, 10_000, "what is claimed, as the claimant names it", least=1
    )
    contact: str = line(REQUIRED, "where an answer goes; kept in the claim file only", least=1)

    def __post_init__(self) -> None:
        try:
            whole = date.fromisoformat(self.date).isoformat() == self.date
        except ValueError:
            whole = False
        if not whole:
            raise contradiction("date", f"{self.date!r} is no day", "Write year, month and day: 2026-11-28")


@dataclass(frozen=True)
class FiledClaim:
    """A claim with the digest of its file: sha256, hex."""

    claim: Claim
    sha256: str

    @property
    def claim_id(self) -> str:
        """A short name of the claim, the same for the same file."""
        return f"claim-{self.sha256[:12]}"

    def plain(self) -> dict[str, Any]:
        """What events and receipts hold of it: everything but the contact."""
        claim = self.claim
        return {
            "id": self.claim_id, "file_sha256": self.sha256, "claimant": claim.claimant, "date": claim.date,
            "basis": claim.basis, "works": [*claim.works],
        }  # fmt: skip


def read_claim(path: Path) -> FiledClaim:
    """Read a claim file.

    Raises:
        ConfigError: it cannot be read, a key is unknown or missing, a value is not usable, or is still that of the example.
    """
    claim = read_toml(Claim, path)
    example = from_dict(Claim, tomllib.loads(EXAMPLE), where="the example")
    if left := [name for name in ("works", "contact") if getattr(claim, name) == getattr(example, name)]:
        what = f"{' and '.join(left)} still say{'s' if len(left) == 1 else ''} what the example says"
        raise ConfigError(what, where=str(path), fix="Fill in the claim that was received: runs keep it for good")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot be read ({error.strerror or error})", where=str(path), fix="Name a file you may read"
        ) from None
    return FiledClaim(claim, hashlib.sha256(data).hexdigest())
