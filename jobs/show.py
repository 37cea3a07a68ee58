"""One request in full: found in a run by its key, as plain data, as lines for a terminal, and as a page of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from index.counted import counted
from index.errors import ClearanceError, InputError, IntegrityError

if TYPE_CHECKING:
    from jobs.report import ReferencePictures
    from pipeline.audit.requests import Ended

PAGES = "pages"
_LEAST = 8  # characters of the beginning of a sample_id
_LONGEST = 120  # characters of a page's name; longer keys are named by their sample_id
_FACTS = ("run_id", "dataset_id", "policy_name", "software_version")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A request: ``entry`` as :func:`pipeline.audit.sections.entry.entry_of` makes it, and its pictures by id."""

    entry: dict[str, Any]
    pictures: dict[str, bytes]

    @property
    def page_name(self) -> str:
        """Name of its page: the key where a file system takes it, else the sample_id."""
        name = quote(str(self.entry["request_key"]), safe=" ()+,=@").strip()
        fits = name and not name.startswith(".") and len(name) <= _LONGEST
        return f"{name if fits else self.entry['sample_id']}.html"


def show_request(folder: Path, key: str, *, near: bool = True) -> Shown:
    """Find a request of a run by its key, its sample_id, or the beginning of its sample_id.

    Args:
        folder: the run folder. key: the key or id.
        near: where there is none, name the keys most like it, which takes long: every key of the run is compared.

    Raises:
        InputError: there is no such request, or several.
        IntegrityError: a file of the run cannot be read, or that of the request is not the one that was committed.
    """
    from pipeline.audit.committed_files import CommittedFiles
    from pipeline.audit.ledger import sample_rows
    from pipeline.audit.sections.entry import entries

    found, keys = [], dict[str, str]()  # sample ids by key
    for row in sample_rows(folder, ["sample_id", "request_key", "shard_id"]):
        if row["request_key"] == key or row["sample_id"] == key:
            found = [row]
            break
        keys[str(row["request_key"])] = str(row["sample_id"])
        if len(key) >= _LEAST and row["sample_id"].startswith(key):
            found.append(row)
    if len(found) != 1:
        raise _not_found(folder, key, keys if near else {}, len(found))
    sample_id, shard = found[0]["sample_id"], found[0]["shard_id"]
    files = CommittedFiles.of(folder, shards={shard})
    ended, thumbnails = next(entries(folder, {sample_id}, shards={shard}, opener=files.open))
    (shown,) = _shown(folder, iter([(ended, thumbnails)]))
    return shown


def _not_found(folder: Path, key: str, keys: Mapping[str, str], count: int) -> InputError:
    if count:
        what = f"{count} requests have a sample_id that begins with {key!r}"
        return InputError(what, where=str(folder), fix="Write more of it, or the request's key")

    def named(one: str) -> str:
        # A key that can only be shown escaped cannot be typed as it is shown; its sample id can.
        return repr(one) if repr(one)[1:-1] == one else f"sample id {keys[one]} (key {one!r})"

    near = get_close_matches(key, keys, n=3)
    what = f"there is no request {key!r}"
    fix = (
        f"Did you mean {' or '.join(map(named, near))}?"
        if near
        else f"Name one of its {counted(len(keys), 'key')}, as {named(next(iter(keys)))}"
        if keys
        else ""
    )
    return InputError(what, where=str(folder), fix=fix or "The run has committed no request yet")


def _shown(folder: Path, found: Iterator[tuple[Ended, dict[str, bytes]]]) -> Iterator[Shown]:
    from pipeline.audit.events import scan_events
    from pipeline.audit.sections.about import EventsAbout
    from pipeline.audit.sections.entry import entry_of
    from pipeline.audit.state import fold

    events, _ = scan_events(folder)  # what does not hold there is verify's to name
    state, about = fold(events), EventsAbout(events)
    for ended, thumbnails in found:
        sample_id = str(ended.sample["sample_id"])
        entry = entry_of(ended, state.of(sample_id), about.of(sample_id, str(ended.sample["request_key"])))
        yield Shown(entry=entry, pictures=thumbnails)


def page_of(shown: Shown, picture_of: ReferencePictures) -> str:
    """The page of a request, with the pictures of the references near to it."""
    from pipeline.audit.page import render_request
    from pipeline.audit.report import reference_pictures, titles_in

    row = shown.entry["row"]
    named = [match["ref_id"] for attempt in shown.entry["attempts"] for match in attempt["nearest"]]
    about: Mapping[str, Any] = {
        "run": {name: row[name] for name in _FACTS},
        "titles": titles_in([shown.entry]),
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return render_request(shown.entry, about, shown.pictures | reference_pictures(named, picture_of))


def write_page(folder: Path, shown: Shown, picture_of: ReferencePictures) -> Path:
    """Write the page of a request below ``pages/`` of the run folder; returns its path."""
    from index.storage import write_file

    write_file(folder, f"{PAGES}/{shown.page_name}", page_of(shown, picture_of).encode())
    return folder / PAGES / shown.page_name


def write_pages(
    folder: Path, base: Path | None = None, told: Callable[[int], None] = lambda count: None
) -> tuple[int, list[IntegrityError]]:
    """Write a page for every request of a run that stands in the files that were committed.

    Args:
        folder: the run folder.
        base: the run file's folder, where the index is looked for.
        told: called with the number of pages after each of them.

    Returns:
        How many pages there are, and why others were left out: the files that are not those that were committed.

    Raises:
        InputError, RunStopped: the storage failed, or a page cannot be written.
    """
    from index.storage import write_file
    from jobs.report import ReferencePictures
    from pipeline.audit.committed_files import CommittedFiles
    from pipeline.audit.sections.entry import entries

    pictures, names, count = ReferencePictures(folder, base), set[str](), 0
    try:
        files = CommittedFiles.of(folder)
    except IntegrityError as error:
        return 0, [error]
    damaged: list[ClearanceError] = []
    for shown in _shown(folder, entries(folder, damaged=damaged, opener=files.open)):
        name = shown.page_name
        if name.lower() in names:  # some file systems take "A" and "a" for one name
            name = f"{shown.entry['sample_id']}.html"
        names.add(name.lower())
        write_file(folder, f"{PAGES}/{name}", page_of(shown, pictures).encode())
        count += 1
        told(count)
    for one in damaged:
        if not isinstance(one, IntegrityError):  # the storage's: it says nothing of the file
            raise one
    return count, [one for one in damaged if isinstance(one, IntegrityError)]


# --- for a terminal --------------------------------------------------------------------------------------------------------


def lines(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A request as rows of name and value."""
    state = entry["state"]
    yield "request", str(entry["request_key"])
    yield "sample_id", str(entry["sample_id"])
    yield "prompt", entry["prompt"] or ("erased" if "prompt" in state["erased"] else "none")
    if drawn := entry["row"].get("drawn_prompt"):
        yield "  drawn as", str(drawn)
    if entry["negative_prompt"]:
        yield "  not", str(entry["negative_prompt"])
    if entry["drawn_with"]:
        yield "  with", entry["drawn_with"]
    because = f" because {entry['reason']}" if entry["reason"] else ""
    yield "outcome", f"{_words(entry['outcome'])}{because}"
    if entry["outcome_in_force"] != entry["outcome"]:
        yield "  in force now", _words(entry["outcome_in_force"])
    for name, value in (("review", state["review_state"]), ("claims", state["claims"]), ("holds", state["holds"])):
        if value and value != "none":
            yield f"  {name}", value if isinstance(value, str) else ", ".join(value)
    yield "  kept until", str(state["retain_until"] or "no limit")[:10]
    if state["erased"]:
        yield "  erased", ", ".join(map(_words, state["erased"]))
    row = entry["row"]
    if row["error_class"]:
        yield "  error", f"{row['error_class']}: {row['error_message']}"
    if row["file_sha256"]:
        marks = f"XMP {_yes(row['xmp_present'])}, watermark {row['watermark_scheme'] or 'no'}, C2PA {_yes(row['c2pa_present'])}"
        yield "file", f"{row['media_type']}, {row['width']} × {row['height']}, sha256 {row['file_sha256'][:16]}…; {marks}"
    yield (
        "cost",
        f"{row['denoiser_evals']:g} evaluations, {row['device_seconds']:.2f} s of device time, worker {row['worker_id']}",
    )
    for attempt in entry["attempts"]:
        yield from _attempt(attempt, accepted=attempt["attempt"] == entry["accepted_attempt"])
    if not entry["attempts"]:
        yield from map(_finding, entry["findings"])
    for event in entry["events"]:
        who = f"{event['actor']} {event['person']}".strip()
        yield str(event["at"])[:16].replace("T", " "), f"{event['kind']} by {who}: {event['reason']}"
    yield "where", str(entry["where"])


def _attempt(attempt: Mapping[str, Any], *, accepted: bool) -> Iterator[tuple[str, str]]:
    titles = {match["ref_id"]: match["title"] for match in attempt["nearest"] if match["title"]}

    def named(ref_ids: list[str]) -> str:
        return ", ".join(titles.get(ref_id, ref_id) for ref_id in ref_ids)

    because = f" because {attempt['reason']}" if attempt["reason"] else ""
    start = f"resumed from step {attempt['resumed_from_step']}" if attempt["resumed_from_step"] else "from noise"
    verdict = "accepted" if accepted else f"{attempt['decision']}{because}"
    yield (
        f"attempt {attempt['attempt']}",
        f"{verdict}; seed {attempt['seed']}, {start}, {attempt['denoiser_evals']:g} evaluations",
    )
    if attempt["group"]:
        yield "  group", f"drawn with its mates of {attempt['group']}, pushed apart; drawn again alone it is another picture"
    for caught in attempt["caught"]:
        score = f"{caught['signal']} {caught['score']:.3f}, threshold {caught['threshold']:.3f}"
        yield "  caught", f"after {caught['step']} steps on its way to {named(caught['ref_ids'])} ({score})"
    if done := attempt["intervention"]:
        away = f", away from {named(done['ref_ids'])}" if done["ref_ids"] else ""
        yield "  changed", f"{done['kind']}, strength {done['strength']:g}{away}"
    yield from map(_finding, attempt["findings"])
    for match in attempt["nearest"]:
        second = "" if match["confirm"] is None else f", second look {match['confirm']:.3f}"
        yield "    near", f"{match['title'] or match['ref_id']}  embedder {match['similarity']:.3f}{second}"
    for guard in attempt["skipped_guards"]:
        yield "  skipped", str(guard)


def _finding(finding: Mapping[str, Any]) -> tuple[str, str]:
    mark = "!" if finding["triggered"] else " "
    # The lowest cosine stands for no reference of this kind (guards/copies.py).
    score = "nothing compared" if finding["score"] == -1 else f"{finding['score']:.3f} of {finding['threshold']:.3f}"
    unsure = "" if finding["confirmed"] or not finding["triggered"] else ", unconfirmed"
    about = f"  {finding['detail']}" if finding["detail"] else ""
    return f"  {mark} {finding['guard']}", f"{finding['category']}  {score}{unsure}{about}"


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


def _yes(value: object) -> str:
    return "yes" if value else "no"


def open_page(path: Path) -> None:
    """Open a page in the browser of this machine.

    Raises:
        ClearanceError: there is none.
    """
    import webbrowser

    if not webbrowser.open(path.resolve().as_uri()):
        raise ClearanceError("no browser could be started", where=str(path), fix="Open the file yourself, or leave out --open")
