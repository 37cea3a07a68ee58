"""Re-audit of a run that nobody could draw here: a million stored embeddings against a hundred new references.

The run is made up: random unit vectors of 512 numbers in the product's own tables, and near-copies of each reference planted
among them. Its rows hold no pictures: this measures reading, digests and search, and not the guard on the pictures found.
The work is done in a process of its own with two threads; its peak is the kernel's high-water mark.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.bench.apart import run_apart
from jobs.lab.bench.load import load_average, remark
from jobs.lab.bench.measures import Measure, publish, share

DIM, REFERENCES, PLANTED, HUES = 512, 100, 10, 12
SHARD = 20_000
THRESHOLD, LOOK_FROM = 0.8, 0.6
SECONDS, THREADS = 120.0, 2


class Projected:
    """An embedder without weights: a fixed random projection of the pixels, to unit length."""

    embedder_id, dim = "openclip-projected", DIM

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(1).normal(size=(16 * 16 * 3, DIM))

    def images(self, pictures: np.ndarray) -> np.ndarray:
        vectors = (pictures.reshape(len(pictures), -1).astype(np.float64) - 127.5) @ self._matrix
        unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        raise NotImplementedError


def bench(out: Path, *, quick: bool = False, work: Path) -> None:
    """Measure and publish ``reaudit``."""
    rows = 40_000 if quick else 1_000_000
    folder = work / f"run-{rows}"
    if not (folder / "planted.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_run(folder, rows)
    found = _apart(folder)
    loads = {"re-audit": load_average()}
    seconds, megabytes = found["seconds"], found["peak_bytes"] / 2**20
    planted = set(json.loads((folder / "planted.json").read_text(encoding="utf-8")))
    hits = planted & set(found["hits"])
    what = f"{rows} embeddings of {DIM} numbers against {REFERENCES} references in {HUES} colours"
    measures = [
        Measure(
            id=f"{what}, {THREADS} threads: seconds", value=seconds, low=seconds, high=seconds, n=rows,
            goal=None if quick else SECONDS, better="lower",
        ),
        Measure(
            id="peak memory above that of the loaded process, MB", value=megabytes, low=megabytes, high=megabytes, n=1,
            better="lower",
        ),
        share("planted copies found", len(hits), len(planted), 1.0),
        share("others called copies", len(set(found["hits"]) - planted), rows - len(planted), better="lower"),
    ]  # fmt: skip
    more = {
        "load_averages": loads,
        "remark": remark(loads),
        "process_seconds": found["process_seconds"],
        "bytes_on_disk": found["bytes"],
    }
    publish("reaudit", measures, out, seeds=[0], quick=quick, more=more)


def references() -> Any:
    """The claim's references: coloured noise, embedded."""
    from index.chosen import ChosenReferences
    from index.reference import NewReference

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (REFERENCES, 16, 16, 3), dtype=np.uint8)
    works = [NewReference(title=f"work {n}", picture=picture) for n, picture in enumerate(pictures)]
    return ChosenReferences.of_works(works, Projected())


def make_run(folder: Path, rows: int) -> None:
    """Write a run of made-up embeddings; the planted copies' ids go into ``planted.json``."""
    from pipeline.audit.shards import commit_shard

    rng = np.random.default_rng(2)
    copies = np.repeat(references().vectors, PLANTED, axis=0)
    at = set(rng.choice(rows, len(copies), replace=False).tolist())
    planted: list[str] = []
    for start in range(0, rows, SHARD):
        count = min(SHARD, rows - start)
        vectors = rng.normal(size=(count, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for n in (n for n in range(count) if start + n in at):
            vectors[n] = copies[len(planted)] + 0.6 * vectors[n]  # a cosine of .86
            vectors[n] /= np.linalg.norm(vectors[n])
            planted.append(f"{start + n:032x}")
        shard_id = f"{start:07d}"
        commit_shard(folder, shard_id, *_tables(vectors.astype("<f2"), start, shard_id))
    (folder / "planted.json").write_text(json.dumps(planted), encoding="utf-8")


def _tables(vectors: np.ndarray, start: int, shard_id: str) -> tuple[Any, Any]:
    """Samples with every column of the schema, most of them null, and no attempts."""
    import pyarrow as pa

    from pipeline.audit.chain import canonical
    from pipeline.audit.schema import SCHEMA_VERSION, attempts_schema, samples_schema

    schema, count = samples_schema(DIM), len(vectors)
    own: dict[str, Any] = {
        "sample_id": [f"{start + n:032x}" for n in range(count)],
        "request_key": [f"row-{start + n}" for n in range(count)],
        "row_no": range(start, start + count),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
        "embedding_sha256": [hashlib.sha256(vector.data).hexdigest() for vector in vectors],
        "findings": [[]] * count,
        "nearest": [[]] * count,
    }
    same = {"outcome": "accepted", "schema_version": SCHEMA_VERSION, "shard_id": shard_id, "record_sha256": "0" * 64,
            "pixel_sha256": "0" * 64}  # fmt: skip
    own |= {name: [value] * count for name, value in same.items()}
    columns = [pa.array(own[f.name], f.type) if f.name in own else pa.nulls(count, f.type) for f in schema]
    header = {b"clearance": canonical({"table": "samples", "shard_id": shard_id, "schema_version": SCHEMA_VERSION})}
    attempts = attempts_schema()
    return (
        pa.Table.from_arrays(columns, schema=schema.with_metadata({**(schema.metadata or {}), **header})),
        attempts.with_metadata({**(attempts.metadata or {}), **header}).empty_table(),
    )


def _apart(folder: Path) -> dict[str, Any]:
    """Look at the run in a process of its own."""
    code = f"from jobs.lab.bench.reaudit import measure; measure({str(folder)!r})"
    found: dict[str, Any] = json.loads(run_apart(code, THREADS))
    return found


def measure(folder: str) -> None:
    """Print seconds, peak and hits as JSON (Linux: the kernel's own high-water mark, set back just before)."""
    import pyarrow as pa

    from index.calibrate import OperatingPoint
    from jobs.reaudit.look import Standard, look

    pa.set_cpu_count(THREADS)
    run, point = Path(folder), OperatingPoint(threshold=THRESHOLD, look_from=LOOK_FROM)
    size = sum(path.stat().st_size for path in (run / "samples").iterdir())
    chosen, embedder = references(), Projected()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, began, process = _high_water(), time.monotonic(), time.process_time()
    looked = look(run, Standard.of(chosen, embedder, point=point, k=3, hues=HUES))
    seconds, spent = time.monotonic() - began, time.process_time() - process
    hits = [seen.sample_id for seen in looked.hits]
    print(
        json.dumps(
            {"seconds": seconds, "process_seconds": spent, "peak_bytes": _high_water() - before, "hits": hits, "bytes": size}
        )
    )


def _high_water() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
