"""The requests in a run folder: read against the digest in its plan, and taken from there by a run that goes on.

A run that goes on reads no prompt file again where the files are, byte for byte, those it began with: reading a million rows
takes 17 s or more, their digest less than .4. What was read is in the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import ClearanceError, IntegrityError, PlanMismatch
from index.padding import first_line
from index.parquet import parquet_file
from index.storage import read_file
from jobs.run.planning.bound import bound
from jobs.run.planning.stored_plan import RESTORE, stored_plan
from jobs.run.planning.stored_requests import StoredRequests, has_requests
from jobs.run.prompts.requests import AdapterColumn
from pipeline.audit.binding import PLAN_FILE, REQUESTS_FILE
from pipeline.config import RunConfig
from pipeline.outcome import Request
from pipeline.settings import digest

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.run.prompts.sources import Source


def prompts_digest(config: RunConfig, sources: Sequence[Source], adapters: AdapterColumn) -> str:
    """The digest of prompt files as a run file reads them: their bytes and order, and the keys that say how.

    Sizes and presets are the model's matter as well: see :func:`drawn_alike`.

    Returns:
        The digest; empty where a file cannot be read, which its reader says better.
    """
    files = []
    for source in sources:
        try:
            if not source.path.is_file():
                return ""
            with source.path.open("rb") as stream:
                files.append([source.label, source.path.suffix.lower(), hashlib.file_digest(stream, "sha256").hexdigest()])
        except OSError:
            return ""
    size = config.generation.diversity.size
    keys = [config.base_seed, config.samples_per_prompt, size, dataclasses.asdict(config.columns), list(adapters)]
    return digest({"files": files, "keys": keys})


def requests_begun(folder: Path, prompts_sha256: str) -> StoredRequests | None:
    """The requests of the run in a folder, if it began with prompts of this digest; None also where the folder is damaged.

    Whoever goes on with the run compares folder and plan, and names what is damaged.
    """
    try:
        stored = stored_plan(folder)
        if not prompts_sha256 or stored.get("prompts_sha256") != prompts_sha256:
            return None
        return read_requests(folder, stored["requests_sha256"])
    except (ClearanceError, OSError):
        return None


def drawn_alike(folder: Path, config: RunConfig, identity: Mapping[str, str]) -> bool:
    """Whether run file and model are those of the run in a folder. They decide, beside the prompts, which sizes and steps
    requests hold and which are refused; where nothing was committed yet, another model may take the folder over.

    Raises:
        InputError, IntegrityError: as :func:`jobs.run.planning.stored_plan.stored_plan`.
    """
    parts, model = stored_plan(folder)["parts"], "model_digest"
    return bool(parts["config"] == digest(bound(config)) and parts.get(model) == identity.get(model))


def read_requests(folder: Path, sha256: str) -> StoredRequests:
    """The requests of a run folder.

    Args:
        folder: the run folder. sha256: digest of the file, from the plan.

    Raises:
        IntegrityError: the file was changed.
        PlanMismatch: prompts of the run were erased.
    """
    where = str(folder / REQUESTS_FILE)
    data = read_file(folder, REQUESTS_FILE)
    if hashlib.sha256(data).hexdigest() != sha256:
        if prompts_erased(folder):
            what = "prompts of this run were erased; its requests cannot be drawn again"
            raise PlanMismatch(what, where=where, fix="Start a new run from the prompts file")
        raise IntegrityError(f"was changed: it is not the file that {PLAN_FILE} names", where=where, fix=RESTORE)
    try:
        table: pa.Table = parquet_file(io.BytesIO(data)).read(use_threads=False)
    except Exception as error:  # the reader of damaged bytes may raise anything
        raise IntegrityError(f"cannot be read ({first_line(error)})", where=where, fix=RESTORE) from None
    if not has_requests(table):
        raise IntegrityError("does not hold the columns of requests", where=where, fix=RESTORE)
    return StoredRequests(table.combine_chunks(), file_sha256=sha256)


def holds_requests(folder: Path, sha256: str, requests: Sequence[Request], table: Callable[[], pa.Table]) -> bool:
    """Whether the requests in a run folder are these; False also where they are damaged, which reading them names.

    Args:
        folder, sha256: see :func:`read_requests`.
        requests: these. table: gives them as a table; asked only where they were not read from a file of this digest.
    """
    try:
        data = read_file(folder, REQUESTS_FILE)
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        if isinstance(requests, StoredRequests) and requests.file_sha256 == sha256:
            return True
        return bool(parquet_file(io.BytesIO(data)).read(use_threads=False).equals(table()))
    except Exception:  # the reader of damaged bytes may raise anything
        return False


def prompts_erased(folder: Path) -> bool:
    """Whether events say that prompts were erased from the requests of a run.

    Raises:
        IntegrityError: the events were changed.
    """
    from pipeline.audit.erasure import Erasures
    from pipeline.audit.events import read_events

    return REQUESTS_FILE in Erasures.of(read_events(folder)).paths
