"""The numbers of a report, each with its interval where it is a rate, and with the expression that made it.

Everything is computed from the Parquet files, ``run.json`` and ``events.jsonl`` when the report is written; the verdict on
integrity is recomputed, never copied.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from index.errors import IntegrityError
from index.rate import wilson
from pipeline.audit.ledger import RUN_FILE, attempt_rows, read_events, sample_rows
from pipeline.audit.verify import Verification, verify
from pipeline.outcome import Outcome
from pipeline.shard import digest_file

ACCEPTED = (Outcome.ACCEPTED.value, Outcome.ACCEPTED_AFTER_STEERING.value)
SAMPLE_COLUMNS = (
    "row_no sample_id request_key outcome reason prompt prompt_truncated attempts accepted_attempt findings nearest "
    "interventions skipped_guards error_class error_message denoiser_evals device_seconds wall_seconds copy_threshold model_id "
    "model_revision model_digest model_licence adapters scheduler steps guidance dtype device_kind rows threads index_id "
    "embedder_id calibration_id policy_id policy_sha256 policy_name c2pa_present xmp_present watermark_scheme worker_id "
    "software_version run_id dataset_id started_at finished_at media_type"
)
_ATTEMPT_COLUMNS = "sample_id attempt intervention caught findings nearest decision reason denoiser_evals device_seconds"


def report_numbers(folder: Path, salt: str | None = None) -> dict[str, Any]:
    """Everything the report says, as plain data: ``measures`` by name, and tables beside them."""
    verification = verify(folder, salt)
    samples = list(sample_rows(folder, SAMPLE_COLUMNS.split()))
    if not samples:
        fix = "Finish the run with --resume, then report again"
        raise IntegrityError("holds no committed sample", where=str(folder), fix=fix)
    tries: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in attempt_rows(folder, _ATTEMPT_COLUMNS.split()):
        tries[row["sample_id"]].append(row)
    for rows in tries.values():
        rows.sort(key=lambda row: int(row["attempt"]))
    predicate = _predicate(folder)
    return {
        "report_version": 1,
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "integrity": _integrity(folder, verification),
        "run": _run(samples, predicate),
        "measures": _measures(samples, tries),
        "outcomes": dict(sorted(Counter(s["outcome"] for s in samples).items())),
        "reasons": dict(sorted(Counter(s["reason"] for s in samples if s["reason"]).items())),
        "guards": _guards(samples, tries),
        "interventions": _interventions(tries),
        "similarity": _similarities(samples, tries),
        "references": _references(samples, tries),
        "skipped_guards": dict(sorted(Counter(name for s in samples for name in s["skipped_guards"]).items())),
        "policy": predicate.get("policy"),
        "bill_of_materials": predicate.get("bill_of_materials", []),
        "events": _events(folder),
    }


def _predicate(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RUN_FILE).read_bytes())["predicate"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the verdict on the cover says so
    return found if isinstance(found, dict) else {}


def _events(folder: Path) -> list[dict[str, Any]]:
    try:
        return [{key: event[key] for key in ("at", "kind", "actor", "reason")} for event in read_events(folder)]
    except (IntegrityError, KeyError):
        return []  # the verdict on the cover says so


def _integrity(folder: Path, verification: Verification) -> dict[str, Any]:
    path = folder / RUN_FILE
    return {
        "ok": verification.ok,
        "problems": [{"where": problem.where, "what": problem.what} for problem in verification.problems],
        "counts": dict(verification.counts),
        "run_sha256": digest_file(path) if path.is_file() else "",
        "merkle_root": _predicate(folder).get("merkle_root", ""),
    }


def _run(samples: Sequence[Mapping[str, Any]], predicate: Mapping[str, Any]) -> dict[str, Any]:
    first = samples[0]
    names = (
        "run_id dataset_id model_id model_revision model_digest model_licence scheduler steps guidance dtype device_kind rows "
        "threads index_id embedder_id calibration_id copy_threshold policy_id policy_sha256 policy_name software_version"
    )
    return {
        **{name: first[name] for name in names.split()},
        "adapters": first["adapters"],
        "media_types": sorted({s["media_type"] for s in samples if s["media_type"]}),
        "workers": sorted({s["worker_id"] for s in samples}),
        "plan_sha256": predicate.get("plan_sha256", ""),
        "runner": predicate.get("runner"),
        "started_at": min(s["started_at"] for s in samples).isoformat(timespec="seconds"),
        "finished_at": max(s["finished_at"] for s in samples).isoformat(timespec="seconds"),
    }


def _count(value: float, expression: str) -> dict[str, Any]:
    return {"value": value, "expression": expression}


def _rate(k: int, n: int, expression: str) -> dict[str, Any]:
    """A share with its interval; its value is None when there was nothing to count."""
    low, high = wilson(k, n)
    return {"value": k / n if n else None, "k": k, "n": n, "low": low, "high": high, "expression": expression}


def _per(total: float, n: int, expression: str) -> dict[str, Any]:
    return {"value": total / n if n else None, "total": total, "n": n, "expression": expression}


def _copied(findings: Iterable[Mapping[str, Any]]) -> bool:
    return any(f["triggered"] and f["category"].startswith("copy.") for f in findings)


def _measures(samples: Sequence[Mapping[str, Any]], tries: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    n = len(samples)
    made = [s for s in samples if s["attempts"]]
    firsts = [tries[s["sample_id"]][0] for s in made if tries.get(s["sample_id"])]
    steered = [s for s in samples if s["attempts"] > 1 or s["interventions"]]  # caught in mid-flight: one attempt, and steered
    caught = sum(1 for rows in tries.values() if any(a["caught"] for a in rows))
    by_outcome = Counter(s["outcome"] for s in samples)
    released = [s for s in samples if s["outcome"] in ACCEPTED]
    flagged = sum(1 for a in firsts if a["decision"] != "accept" or a["caught"])
    copied = sum(1 for a in firsts if _copied(a["findings"]) or a["caught"])
    still = sum(1 for s in released if _copied(s["findings"]))
    near = sum(1 for s in released if s["nearest"] and s["nearest"][0]["similarity"] >= s["copy_threshold"])
    evals = math.fsum(s["denoiser_evals"] for s in samples)
    useful = math.fsum(
        a["denoiser_evals"] for s in released for a in tries.get(s["sample_id"], ()) if a["attempt"] == s["accepted_attempt"]
    )
    device = math.fsum(s["device_seconds"] for s in samples)
    pictures = sum(s["attempts"] for s in samples)
    good, is_released = len(released), "outcome in (accepted, accepted_after_steering)"
    by = {name: f"count(samples where outcome = {name})" for name in Outcome}
    return {
        "requested": _count(n, "count(samples)"),
        "generated": _count(len(made), "count(samples where attempts > 0)"),
        "pictures": _count(pictures, "sum(samples.attempts)"),
        "flagged": _count(flagged, "count(attempts where attempt = 0 and (decision <> accept or caught <> []))"),
        "caught": _count(caught, "count(samples where any(attempts: caught <> []))"),
        "steered": _count(len(steered), "count(samples where attempts > 1 or interventions <> [])"),
        "released": _count(good, f"count(samples where {is_released})"),
        **{name.value: _count(by_outcome[name.value], by[name]) for name in Outcome},
        "flagged_rate": _rate(flagged, len(made), "flagged / generated"),
        "copy_rate_first": _rate(
            copied,
            len(made),
            "count(attempts where attempt = 0 and (any(findings: category like copy.* and triggered) or caught <> []))"
            " / generated",
        ),
        "copy_rate_released": _rate(
            still, good, f"count(samples where {is_released} and any(findings: category like copy.* and triggered)) / released"
        ),
        "near_rate_released": _rate(
            near, good, f"count(samples where {is_released} and nearest[0].similarity >= copy_threshold) / released"
        ),
        "steering_success": _rate(by_outcome["accepted_after_steering"], len(steered), "accepted_after_steering / steered"),
        "release_rate": _rate(good, n, "released / requested"),
        "review_rate": _rate(by_outcome["review"], n, "review / requested"),
        "rejected_rate": _rate(by_outcome["rejected"], n, "rejected / requested"),
        "error_rate": _rate(by_outcome["error"], n, "error / requested"),
        "truncated": _count(sum(1 for s in samples if s["prompt_truncated"]), "count(samples where prompt_truncated)"),
        "xmp_rate": _rate(sum(1 for s in released if s["xmp_present"]), good, "count(samples where xmp_present) / released"),
        "c2pa_rate": _rate(sum(1 for s in released if s["c2pa_present"]), good, "count(samples where c2pa_present) / released"),
        "watermark_rate": _rate(
            sum(1 for s in released if s["watermark_scheme"]), good, "count(samples where watermark_scheme <> '') / released"
        ),
        "evals": _count(evals, "sum(samples.denoiser_evals)"),
        "evals_per_released": _per(evals, good, "sum(samples.denoiser_evals) / released"),
        "evals_wasted": {
            "value": 1 - useful / evals if evals else None,
            "total": evals - useful,
            "n": evals,
            "expression": "1 - sum(attempts.denoiser_evals of the accepted attempts) / sum(samples.denoiser_evals)",
        },
        "device_seconds": _count(device, "sum(samples.device_seconds)"),
        "device_seconds_per_released": _per(device, good, "sum(samples.device_seconds) / released"),
        "wall_seconds": _count(
            (max(s["finished_at"] for s in samples) - min(s["started_at"] for s in samples)).total_seconds(),
            "max(samples.finished_at) - min(samples.started_at)",
        ),
    }


def _guards(samples: Sequence[Mapping[str, Any]], tries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Per guard and category: how often it fired at first and on released pictures, and what steering made of it."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}

    def fired(findings: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], bool]:
        out: dict[tuple[str, str], bool] = {}
        for f in findings:
            key = (f["guard"], f["category"])
            out[key] = out.get(key, False) or bool(f["triggered"])
            entry = seen.setdefault(key, {"versions": set(), "thresholds": set(), "tally": Counter()})
            entry["versions"].add(f["version"])
            entry["thresholds"].add(f["threshold"])
        return out

    for sample in samples:
        attempts = tries.get(sample["sample_id"], ())
        if not attempts:
            continue
        first, last = fired(attempts[0]["findings"]), fired(sample["findings"])
        for key, hit in first.items():
            tally = seen[key]["tally"]
            tally["first_n"] += 1
            tally["first_k"] += hit
            if hit and len(attempts) > 1:
                tally["steered_n"] += 1
                tally["steered_k"] += not last.get(key, True)
        if sample["outcome"] in ACCEPTED:
            for key, hit in last.items():
                seen[key]["tally"]["released_n"] += 1
                seen[key]["tally"]["released_k"] += hit
    out = []
    for (guard, category), entry in sorted(seen.items()):
        tally, named = entry["tally"], f"any(findings: guard = {guard} and category = {category} and triggered)"
        steered = f"of first attempts with {named} that were steered: share whose final picture has none"
        out.append(
            {
                "guard": guard,
                "category": category,
                "versions": sorted(entry["versions"]),
                "thresholds": sorted(entry["thresholds"]),
                "first": _rate(tally["first_k"], tally["first_n"], f"attempts where attempt = 0: share with {named}"),
                "cleared": _rate(tally["steered_k"], tally["steered_n"], steered),
                "released": _rate(tally["released_k"], tally["released_n"], f"released samples: share with {named}"),
            }
        )
    return out


def _interventions(tries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    drops: dict[str, list[float]] = defaultdict(list)
    evals: dict[str, list[float]] = defaultdict(list)
    for attempts in tries.values():
        # Caught in mid-flight: steered without a picture before it.
        for before, after in [*((None, a) for a in attempts[:1] if a["caught"]), *pairwise(attempts)]:
            kind = (after["intervention"] or {}).get("kind") or "none"
            tally[kind]["n"] += 1
            tally[kind]["k"] += after["decision"] == "accept"
            evals[kind].append(after["denoiser_evals"])
            if before and before["nearest"] and after["nearest"]:
                drops[kind].append(before["nearest"][0]["similarity"] - after["nearest"][0]["similarity"])
    return [
        {
            "kind": kind,
            "accepted": _rate(counts["k"], counts["n"], f"attempts where intervention.kind = {kind}: share decided accept"),
            "mean_drop": _per(
                math.fsum(drops[kind]), len(drops[kind]), "mean(nearest[0].similarity of the attempt before - of this attempt)"
            ),
            "mean_evals": _per(math.fsum(evals[kind]), len(evals[kind]), "mean(attempts.denoiser_evals)"),
        }
        for kind, counts in sorted(tally.items())
    ]


def _similarities(samples: Sequence[Mapping[str, Any]], tries: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    firsts = [rows[0]["nearest"][0]["similarity"] for rows in tries.values() if rows[0]["nearest"]]
    final = [(s["outcome"] in ACCEPTED, s["nearest"][0]["similarity"]) for s in samples if s["nearest"]]
    return {
        "threshold": samples[0]["copy_threshold"],
        "first": sorted(firsts),
        "final_released": sorted(value for released, value in final if released),
        "final_held": sorted(value for released, value in final if not released),
        "expression": "nearest[0].similarity of attempt 0, and of each sample's final picture",
    }


def _references(samples: Sequence[Mapping[str, Any]], tries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Every reference that was the nearest one of a first attempt or a final picture, most wanted first."""
    found: dict[str, dict[str, Any]] = {}

    def entry(match: Mapping[str, Any]) -> dict[str, Any]:
        blank = {"nearest": 0, "flagged": 0, "highest_first": None, "highest_released": None}
        told = {name: match[name] for name in ("title", "rights_basis", "status")}
        return found.setdefault(match["ref_id"], {**told, **blank})

    threshold = samples[0]["copy_threshold"]
    for sample in samples:
        attempts = tries.get(sample["sample_id"], ())
        if attempts and attempts[0]["nearest"]:
            match = attempts[0]["nearest"][0]
            row = entry(match)
            row["nearest"] += 1
            row["flagged"] += match["similarity"] >= threshold
            row["highest_first"] = max(match["similarity"], row["highest_first"] or -1.0)
        if sample["outcome"] in ACCEPTED and sample["nearest"]:
            match = sample["nearest"][0]
            row = entry(match)
            row["highest_released"] = max(match["similarity"], row["highest_released"] or -1.0)
    order = sorted(found.items(), key=lambda item: (-item[1]["flagged"], -(item[1]["highest_first"] or -1.0), item[0]))
    return [{"ref_id": ref_id, **row} for ref_id, row in order]
