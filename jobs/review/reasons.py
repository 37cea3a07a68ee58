"""The reasons that a reviewer gives, as codes: few enough to be keys, stable enough to be counted."""

from __future__ import annotations

from dataclasses import dataclass

ACCEPT, REJECT = "accept", "reject"


@dataclass(frozen=True)
class Reason:
    """A reason: its code, what it leads to, its sentence, and whether it needs a note."""

    code: str
    decision: str
    text: str
    note: bool = False


REASONS = (
    Reason("nothing_wrong", ACCEPT, "Nothing is wrong with it"),
    Reason("another_work", ACCEPT, "Another drawing, not the reference"),
    Reason("licensed", ACCEPT, "A right to use it is on file"),
    Reason("harmless_mark", ACCEPT, "The mark is our own or harmless"),
    Reason("copy", REJECT, "A copy of the reference"),
    Reason("too_similar", REJECT, "Too similar to be sure"),
    Reason("mark", REJECT, "It shows a mark, a code or text"),
    Reason("unsafe", REJECT, "It shows unsafe content"),
    Reason("other", REJECT, "Another reason, in the note", True),
    Reason("stated", ACCEPT, "Another reason, in the note", True),  # last, for its key on the page is 0
)
BY_CODE = {reason.code: reason for reason in REASONS}
