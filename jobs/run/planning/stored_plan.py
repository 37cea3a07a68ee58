"""plan.json of a run folder: its shape, checked against the digest in it, and how two plans differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from index.errors import InputError, IntegrityError
from index.storage import entry_of, is_folder, read_object
from pipeline.audit.binding import PLAN_FILE

_SHAPE: dict[str, type] = {
    "run_id": str, "created_at": float, "plan_sha256": str, "parts": dict, "parent": str, "config": dict, "policy": dict,
    "base": str, "identity": dict, "copy_check": dict, "guards": list, "shards": list, "requests": int, "requests_sha256": str,
    "plan_json_sha256": str,
}  # fmt: skip


RESTORE = "Restore it from a copy, or start the run in a new folder"


def stored_plan(folder: Path) -> dict[str, Any]:
    """The content of a run folder's plan.json.

    Raises:
        InputError: not a run folder.
        IntegrityError: plan.json cannot be read, or was changed.
    """
    stored = read_plan(folder)
    check_plan(folder, stored)
    return stored


def check_plan(folder: Path, stored: Mapping[str, Any]) -> None:
    """Compare plan.json with the digest in it; raises IntegrityError."""
    if plan_json_digest(stored) != stored["plan_json_sha256"]:
        where = str(folder / PLAN_FILE)
        raise IntegrityError("was changed: it does not match its own digest", where=where, fix=RESTORE)


def read_plan(folder: Path) -> dict[str, Any]:
    """The content of plan.json, not yet compared with its digest; raises as :func:`stored_plan`."""
    where, fix = str(folder / PLAN_FILE), RESTORE
    if not is_folder(folder) or entry_of(folder, PLAN_FILE) is None:
        raise InputError("not a run folder (no plan.json)", where=str(folder), fix="Name the --out folder of a run")
    stored = read_object(folder, PLAN_FILE)
    missing = [name for name in _SHAPE if name not in stored]
    if missing and "plan_sha256" in stored and not {"requests_sha256", "plan_json_sha256"} & stored.keys():
        first = "This version verifies and reports such a run; continue it with the version that began it"
        raise IntegrityError("is a plan of the first version, in another form", where=where, fix=first)
    if missing:
        raise IntegrityError(f"is not a plan ({missing[0]} is missing)", where=where, fix=fix)
    wrong = [name for name, kind in _SHAPE.items() if type(stored[name]) is not kind]
    if wrong:
        what = f"is not a plan ({wrong[0]} is {type(stored[wrong[0]]).__name__}, not {_SHAPE[wrong[0]].__name__})"
        raise IntegrityError(what, where=where, fix=fix)
    for name in ("parts", "identity"):
        odd = [key for key, value in stored[name].items() if not isinstance(value, str)]
        if odd:
            raise IntegrityError(f"is not a plan ({name}: {odd[0]} is not text)"[:200], where=where, fix=fix)
    if not re.fullmatch(r"|\.|\.\.(/\.\.)*", stored["base"]):
        raise IntegrityError("is not a plan (base leads elsewhere)", where=where, fix=fix)
    if not re.fullmatch(r"[\w.-]{1,100}", stored["run_id"]):
        raise IntegrityError("is not a plan (run_id is not a name)", where=where, fix=fix)
    return stored


def difference(now: Mapping[str, str], stored: Mapping[str, str]) -> str:
    """Which parts of two plans differ."""
    names = [name for name in (*now, *(n for n in stored if n not in now)) if now.get(name) != stored.get(name)]
    parts = [f"{name} {_short(stored.get(name))} there, {_short(now.get(name))} here" for name in names]
    return "changed: " + "; ".join(parts) if parts else "same parts, other digest"


def _short(part: str | None) -> str:
    """A part for people: eight signs of a digest, a version whole."""
    return "none" if not part else part[:8] if re.fullmatch("[0-9a-f]{32,}", part) else part


def plan_json_digest(body: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in body.items() if name != "plan_json_sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
