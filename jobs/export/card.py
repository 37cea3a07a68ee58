"""Cards: the ``README.md`` by which ``datasets`` finds the data files of a run or an export, and a description as Croissant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.counted import counted
from index.printable import visible

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.export.exported import Exported
    from jobs.export.formats import Format

_CROISSANT = "http://mlcommons.org/croissant/"
_MARKUP = re.compile(r"[\\`*\[\]<>&|~]")
_TERMS = "recordSet field source fileSet extract column includes".split()
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": _CROISSANT,
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{term: f"cr:{term}" for term in _TERMS},
}


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says of a run.

    Attributes:
        dataset_id, run_id: its names. model, licence: of the model. policy: in force. date: when it ended.
        adapters: with what licence, of a run that had any.
    """

    dataset_id: str
    run_id: str
    model: str
    licence: str
    policy: str
    date: str
    adapters: str = ""

    @classmethod
    def of(cls, run: Path, statement: Mapping[str, Any] | None) -> About:
        """From a run's statement; without one, the folder's name is all that is known."""
        found = (statement or {}).get("predicate")
        predicate: Mapping[str, Any] = found if isinstance(found, dict) else {}
        model = predicate.get("model") or {}
        return cls(
            dataset_id=str(predicate.get("dataset_id", run.name)),
            run_id=str(predicate.get("run_id", run.name)),
            model=str(model.get("id", "")),
            licence=str(model.get("licence", "")),
            policy=str(predicate.get("policy_id", "")),
            date=str(predicate.get("finished_at", ""))[:10],
            adapters=", ".join(map(_adapter, predicate.get("adapters") or [])),
        )


def write_run_card(run: Path, statement: Mapping[str, Any]) -> None:
    """Write the card of a sealed run, by which ``datasets.load_dataset(RUN)`` works; one that is there stays.

    Raises:
        RunStopped: it cannot be written.
    """
    from index.storage import entry_of, write_file
    from pipeline.audit.coverage import CARD_FILE

    if entry_of(run, CARD_FILE) is None:
        write_file(run, CARD_FILE, run_card(About.of(run, statement)).encode())


def run_card(about: About) -> str:
    """The card of a run folder: the rows of every request, as the record holds them."""
    return f"""{_front(about, "samples/*.parquet")}
# {_literal(about.dataset_id)}, run {about.run_id}

One row for every request of the run, whatever became of it. `image` is there where the picture was released; the column
`outcome` states how the request ended. What a review or a claim changed afterwards is in `events/`, not here.
`clearance export` writes the data set that is in force now.

{_facts(about)}
Pictures that were not released are not part of this data set. `clearance verify` recomputes every digest of the folder.
"""


def export_card(about: About, exported: Exported, kind: Format) -> str:
    """The card of an export."""
    runs = [one["run_id"] for one in exported.runs]
    source = f"run {about.run_id}" if not runs else f"{len(runs)} runs ({', '.join(runs)}), of each request the latest outcome,"
    roots = {about.run_id: exported.roots} if not runs else {one["run_id"]: one["roots"] for one in exported.runs}
    proof = "".join(
        f"* content root of run {run}: `{of.get('content_root', 'none, it was not sealed')}`\n" for run, of in roots.items()
    )
    left = "".join(f"* left out: {count} ({reason})\n" for reason, count in exported.left_out.items())
    left += f"* **marks:** {exported.fewer_marks_note}\n" if exported.fewer_marks else ""
    pictures = counted(exported.samples, "generated picture")
    return f"""{_front(about, kind.data_files)}
# {_literal(about.dataset_id)}

{pictures} {"with its row" if exported.samples == 1 else "with their rows"}, exported from {source} by Clearance as {kind.what}.
Outcome in force at the export: {exported.only}.

{_facts(about)}{left}{proof}
Every picture was made by a model, and its file states it (IPTC digital source type in XMP). `export.json` lists the data files
with their digests.
"""


def _adapter(one: Mapping[str, Any]) -> str:
    """One adapter of a run's statement: its name, what it is, and the licence that its file states."""
    licence = one.get("licence")
    return f"{one.get('name', '')} ({one.get('kind', '')}{f', {licence}' if licence else ', no licence stated'})"


def _facts(about: About) -> str:
    facts = {
        "model": about.model, "licence of the model": about.licence, "adapters": about.adapters, "policy": about.policy,
        "date": about.date,
    }  # fmt: skip
    return "".join(f"* {name}: {_literal(value)}\n" for name, value in facts.items() if value)


def _literal(text: str) -> str:
    """Text of others (the licence that an adapter's file states) as Markdown that shows it: no markup, no second line."""
    return _MARKUP.sub(r"\\\g<0>", visible(text, lines=False))


def _front(about: About, data_files: str) -> str:
    """The head of a card, in the YAML that is JSON."""
    configs = [{"config_name": "default", "data_files": [{"split": "train", "path": data_files}]}]
    return f"""---
pretty_name: {json.dumps(about.dataset_id)}
license: other
tags: [synthetic, text-to-image]
configs: {json.dumps(configs)}
---
"""


def croissant(about: About, schema: pa.Schema, kind: Format, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The export as Croissant 1.0 (JSON-LD): its files with digests, and its columns as fields."""
    container = [
        {
            "@type": "cr:FileObject",
            "@id": file["path"],
            "name": file["path"],
            "contentUrl": file["path"],
            "contentSize": f"{file['bytes']} B",
            "encodingFormat": _media_type(file["path"]),
            "sha256": file["sha256"],
        }
        for file in files
        if file["path"].endswith((".parquet", ".tar", ".jsonl"))
    ]
    encodings = sorted({file["encodingFormat"] for file in container})
    data = {
        "@type": "cr:FileSet",
        "@id": "data",
        "name": "data",
        "includes": kind.data_files,
        "encodingFormat": encodings[0] if encodings else "application/octet-stream",
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": f"{_CROISSANT}1.0",
        "name": about.dataset_id,
        "description": f"Generated pictures of run {about.run_id}, cleared by Clearance (policy {about.policy or 'unknown'})",
        "license": about.licence or "not stated",
        **({"datePublished": about.date} if about.date else {}),
        "distribution": [*container, data],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"samples/{field.name}",
                        "name": field.name,
                        "dataType": _data_type(field),
                        "source": {"fileSet": {"@id": "data"}, "extract": {"column": field.name}},
                    }
                    for field in schema
                ],
            }
        ],
    }  # fmt: skip


def _media_type(path: str) -> str:
    kinds = {".parquet": "application/x-parquet", ".tar": "application/x-tar", ".jsonl": "application/jsonlines"}
    return next(kind for suffix, kind in kinds.items() if path.endswith(suffix))


def _data_type(field: pa.Field) -> str:
    import pyarrow as pa

    if field.name == "image":
        return "sc:ImageObject"
    kind = field.type
    tests = {
        "sc:Boolean": pa.types.is_boolean, "sc:Integer": pa.types.is_integer, "sc:Float": pa.types.is_floating,
        "sc:DateTime": pa.types.is_timestamp,
    }  # fmt: skip
    return next((name for name, test in tests.items() if test(kind)), "sc:Text")
