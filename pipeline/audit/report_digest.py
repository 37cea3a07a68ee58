"""The report's own digest: its last line holds the sha256 of everything before it, and an event names the whole file.

Needs the standard library alone, so that any verifier can check it: ``sed '$d' report.html | sha256sum`` gives what
``tail -n 1 report.html`` states.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from index.errors import ClearanceError
from index.storage import entry_of, read_file

REPORT_HTML, REPORT_JSON = "report.html", "report.json"
REPORTED = "run.reported"
_DIGEST_LINE = b"sha256 of this file without this line"
_LINE = re.compile(rb"<!-- sha256 of this file without this line: ([0-9a-f]{64}) -->\n")


def with_digest(page: str) -> bytes:
    """The page as it is written: with a last line that holds the digest of everything before it."""
    data = page.encode()
    return data + b"<!-- sha256 of this file without this line: %s -->\n" % hashlib.sha256(data).hexdigest().encode()


def own_digest_matches(data: bytes) -> bool:
    """Whether the last line of a report holds the digest of what stands before it."""
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    stated = _LINE.fullmatch(data[start:])
    return stated is not None and stated[1].decode() == hashlib.sha256(data[:start]).hexdigest()


def report_state(
    folder: Path, name: str, events: Sequence[Mapping[str, Any]]
) -> tuple[Literal["pass", "changed", "absent"], str]:
    """What is known of a report in a run folder: its state, and a sentence.

    Args:
        folder: the run folder.
        name: ``report.html`` or ``report.json``.
        events: the run's; the last ``run.reported`` names the digests of both files. Those before it named earlier reports.
    """
    try:
        if (entry := entry_of(folder, name)) is None or entry.kind != "file":
            return "absent", "there is no such report"
        data = read_file(folder, name)
    except ClearanceError as error:
        return "changed", f"cannot be read ({error.what})"
    reported = [event for event in events if event["kind"] == REPORTED]
    stated = {event["digests"].get(_key(name)): event["seq"] for event in reported}
    sha256 = hashlib.sha256(data).hexdigest()
    if reported and sha256 == reported[-1]["digests"].get(_key(name)):
        return "pass", f"a report; event {reported[-1]['seq']} names its digest"
    if sha256 in stated:
        return "changed", f"an earlier report, of event {stated[sha256]}; event {reported[-1]['seq']} names the present one"
    if name == REPORT_HTML and not reported and _DIGEST_LINE not in data:
        return "pass", "a report of an earlier version, which states no digest"
    if name == REPORT_HTML and not own_digest_matches(data):
        return "changed", "the report was changed since it was written: its last line is not the digest of the rest"
    if reported:
        return "changed", "no event names this report's digest: it was changed or exchanged since it was written"
    return "pass", "a report; no event names its digest" + (", its own last line does" if name == REPORT_HTML else "")


def digests_of(folder: Path) -> dict[str, str]:
    """The digests of both files, as the event ``run.reported`` names them."""
    names = (REPORT_HTML, REPORT_JSON)
    return {_key(name): hashlib.sha256(read_file(folder, name)).hexdigest() for name in names}


def _key(name: str) -> str:
    return name.replace(".", "_") + "_sha256"
