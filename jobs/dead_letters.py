"""Dead letters: the requests of a run that ended as errors, each with its reason, and as a prompt file to draw them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from index.errors import ConfigError
from pipeline.outcome import Outcome

COLUMNS = ["request_key", "row_no", "outcome", "reason", "error_class", "error_message"]


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A request that ended as an error.

    Attributes:
        key, row_no, prompt, negative_prompt, seed, adapter: the request's.
        stated: its size, steps and guidance scale, where it states them.
        reason: the reason code. error_class, error_message: of the exception.
    """

    key: str
    row_no: int
    prompt: str
    negative_prompt: str
    seed: int
    adapter: str
    stated: Mapping[str, int | float]
    reason: str
    error_class: str
    error_message: str


def dead_letters(folder: Path) -> Iterator[DeadLetter]:
    """The requests of a run, finished or not, whose rows are errors, in the order of the run.

    Raises:
        ClearanceError: the folder is no run, its prompts were erased, or a shard cannot be read.
    """
    from jobs.run.plan import Plan
    from pipeline.audit.ledger import sample_rows

    requests = {request.row_no: request for request in Plan.load(folder).requests}
    for row in sample_rows(folder, COLUMNS):
        if row["outcome"] == Outcome.ERROR:
            request = requests[row["row_no"]]
            yield DeadLetter(
                key=request.key,
                row_no=request.row_no,
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                seed=request.seed,
                adapter=request.adapter,
                stated={name: value for name, value in request.stated._asdict().items() if value is not None},
                reason=row["reason"],
                error_class=row["error_class"] or "",
                error_message=row["error_message"] or "",
            )


def as_prompts(letters: Sequence[DeadLetter]) -> bytes:
    """A JSONL file that a run file can name as ``prompts``: same keys and seeds; reasons are columns of the caller's own."""
    return b"".join(json.dumps(_row(letter), ensure_ascii=False).encode() + b"\n" for letter in letters)


def _row(letter: DeadLetter) -> dict[str, Any]:
    row = asdict(letter)
    del row["row_no"], row["error_class"], row["stated"]
    row |= letter.stated
    return {name: value for name, value in row.items() if value != "" or name == "prompt"}


def save_prompts(letters: Sequence[DeadLetter], path: Path) -> None:
    """Write the letters as a prompt file.

    Raises:
        ConfigError: the name is no prompt file's, or the file is there or cannot be written.
    """
    if path.suffix != ".jsonl":
        raise ConfigError("is not a name for failed requests", where=str(path), fix="Name a file that ends in .jsonl")
    try:
        with path.open("xb") as stream:
            stream.write(as_prompts(letters))
    except FileExistsError:
        raise ConfigError("is there already", where=str(path), fix="Name another file, or remove it") from None
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", where=str(path), fix="Name a file elsewhere") from None
