from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import InputError, IntegrityError
from pipeline.audit.context import RunContext
from pipeline.audit.ledger import append_event, attempt_rows, read_events, run_predicate, sample_rows, seal
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import commit_shard, committed, write_parquet
from pipeline.audit.tree import merkle_root
from pipeline.audit.verify import verify

Make = Callable[..., Any]
KINDS = {
    "samples": "samples/*.parquet",
    "attempts": "attempts/*.parquet",
    "marker": "commits/*.json",
    "run": "run.json",
    "events": "events/*.parquet",
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("runs") / "run"}


@pytest.fixture
def folder(pristine: dict[str, Path], make_run: Make, tmp_path: Path) -> Path:
    """A fresh copy of one sealed run."""
    if not pristine["folder"].exists():
        make_run(pristine["folder"])
    return Path(shutil.copytree(pristine["folder"], tmp_path / "run"))


def test_an_untouched_run_verifies(folder: Path) -> None:
    result = verify(folder)
    assert result.ok and result.problems == ()
    # samples, attempts and marker of two shards; run.json; two parts of events
    expected = {"shards": 2, "files": 9, "samples": 20, "attempts": 26, "pictures": 12, "pixels": 12, "thumbnails": 26}
    assert {name: result.counts[name] for name in expected} == expected
    assert result.counts["prompts"] == 20 and result.counts["embeddings"] == 18 and result.counts["events"] == 2
    assert not {path.suffix for path in folder.rglob("*") if path.is_file()} - {".parquet", ".json"}


@pytest.mark.parametrize("position", [0.02, 0.3, 0.55, 0.8, 0.999])
@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_byte_is_found_and_named(folder: Path, kind: str, position: float) -> None:
    path = sorted(folder.glob(KINDS[kind]))[0]
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 0x01
    path.write_bytes(data)
    result = verify(folder)
    assert not result.ok
    name = path.relative_to(folder).as_posix()
    assert any(problem.where.startswith(name) for problem in result.problems), result.problems


def test_many_single_bits_of_the_small_files(folder: Path) -> None:
    for kind in ("marker", "events"):
        path = sorted(folder.glob(KINDS[kind]))[0]
        whole = path.read_bytes()
        for place in range(0, len(whole), 61):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
            # Only the parsers are run here: verifying the pictures each time would say nothing new.
            with pytest.raises(IntegrityError):
                committed(folder) if kind == "marker" else read_events(folder)
        path.write_bytes(whole)
    assert verify(folder).ok


def test_a_flipped_picture_byte_names_file_row_and_column(folder: Path) -> None:
    row = next(row for row in sample_rows(folder) if row["request_key"] == "key-002")
    path = sorted(folder.glob("samples/*.parquet"))[0]
    data = bytearray(path.read_bytes())
    data[data.index(row["image"]["bytes"]) + 60] ^= 0xFF
    path.write_bytes(data)
    name = path.relative_to(folder).as_posix()
    places = [problem.where for problem in verify(folder).problems]
    assert name in places
    assert f"{name} column image" in places
    assert f"{name} row 2 column image" in places


def rewrite(folder: Path, context: RunContext, change: Callable[[list[dict[str, Any]]], Any], table: str = "samples") -> None:
    """Forge: change rows of the first shard, then redo file, marker and statement, as the owner of the folder could."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    marker = sorted(folder.glob("commits/*.json"))[0]
    first = committed(folder)[marker.stem]
    tables = {file.table: pq.ParquetFile(folder / file.path).read() for file in first.files}
    for file in first.files:
        (folder / file.path).unlink()
    marker.unlink()
    rows = tables[table].to_pylist()
    change(rows)
    tables[table] = pa.Table.from_pylist(rows, schema=tables[table].schema)
    commit_shard(folder, first.shard_id, tables["samples"], tables["attempts"])
    seal(folder, run_predicate(context, requested=20))


@pytest.mark.parametrize(
    ("table", "column", "value", "place"),
    [
        ("samples", "outcome", "review", "row 0 column record_sha256"),
        ("samples", "policy_name", "another", "row 0 column record_sha256"),
        ("samples", "prompt", "something else", "row 0 column prompt"),
        ("samples", "embedding", [0.5] * 8, "row 0 column embedding"),
        ("samples", "image", None, "row 0 column image"),
        ("samples", "prev_sha256", "00", "row 0 column prev_sha256"),
        ("samples", "record_sha256", "00", "row 1 column prev_sha256"),
        ("samples", "xmp_present", False, "row 0 column xmp_present"),
        ("attempts", "decision", "review", "row 0 column record_sha256"),
        ("attempts", "thumbnail", {"bytes": b"x", "path": "x"}, "row 0 column thumbnail"),
    ],
)
def test_a_forged_column_is_named_even_when_every_file_digest_was_redone(
    folder: Path, context: Make, table: str, column: str, value: object, place: str
) -> None:
    rewrite(folder, context(), lambda rows: rows[0].update({column: value}), table)
    problems = verify(folder).problems
    assert any(p.where.startswith(f"{table}/") and p.where.endswith(place) for p in problems), problems


def test_a_swapped_picture_is_found_by_its_pixels(folder: Path, context: Make) -> None:
    rewrite(folder, context(), lambda rows: rows[0].update({name: rows[1][name] for name in ("image", "file_sha256")}))
    assert any(p.where.endswith("row 0 column pixel_sha256") and "decoded" in p.what for p in verify(folder).problems)


def test_removed_rows_are_found(folder: Path, context: Make) -> None:
    rewrite(folder, context(), lambda rows: rows.pop(1))
    text = str(verify(folder).problems)
    assert "chain is broken" in text and "belongs to no sample" in text and "20 samples were requested" in text


def test_a_removed_attempt_is_found(folder: Path, context: Make) -> None:
    rewrite(folder, context(), lambda rows: rows.pop(), "attempts")
    assert "the attempts table has" in str(verify(folder).problems)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_found(folder: Path, kind: str) -> None:
    path = sorted(folder.glob(KINDS[kind]))[-1]
    path.unlink()
    result = verify(folder)
    name = path.relative_to(folder).as_posix()
    assert not result.ok and any(problem.where.startswith(name) for problem in result.problems), result.problems


def test_an_extra_shard_and_extra_files_are_found(folder: Path, make_run: Make, context: Make, tmp_path: Path) -> None:
    donor = make_run(tmp_path / "donor", shards=1)
    commit_shard(
        folder, "extra", sample_table(donor.samples, context(), "extra"), attempt_table(donor.samples, context(), "extra")
    )
    (folder / "samples" / "part-zzz.parquet").write_bytes(b"")
    (folder / "attempts" / ".tmp-part").write_bytes(b"")
    (folder / "commits" / "readme.txt").write_bytes(b"")
    problems = {problem.where: problem.what for problem in verify(folder).problems}
    assert "added after sealing" in problems["commits/extra.json"]
    assert "belongs to no committed shard" in problems["samples/part-zzz.parquet"]
    assert "leftover" in problems["attempts/.tmp-part"] and "no commit marker" in problems["commits/readme.txt"]
    assert any("has a row already" in what for what in problems.values())


def test_a_whole_missing_shard_is_found(folder: Path) -> None:
    for file in committed(folder)["00001"].files:
        (folder / file.path).unlink()
    (folder / "commits" / "00001.json").unlink()
    problems = verify(folder).problems
    assert any(p.where == "commits/00001.json" and "no committed shard has it" in p.what for p in problems)
    assert any("Merkle root" in p.what for p in problems)


def test_shards_cannot_change_places(folder: Path) -> None:
    markers = sorted(folder.glob("commits/*.json"))
    a, b = (marker.read_bytes() for marker in markers)
    markers[0].write_bytes(b)
    markers[1].write_bytes(a)
    assert any("is the marker of shard" in problem.what for problem in verify(folder).problems)


def test_events_cannot_be_dropped_or_reordered(folder: Path) -> None:
    append_event(folder, "run.noted", "reviewer", "fine", after_sha256="aa")
    assert verify(folder).ok
    parts = sorted(folder.glob("events/*.parquet"))
    whole = [part.read_bytes() for part in parts]
    for wrong in ([0, 2], [1, 0, 2], [0], [0, 1]):
        for part in parts:
            part.unlink(missing_ok=True)
        for place, number in enumerate(wrong):
            parts[place].write_bytes(whole[number])
        assert not verify(folder).ok
    with pytest.raises(IntegrityError, match="is missing"):
        append_event(folder, "x.y", "y", "z")


def test_run_json_cannot_be_swapped_for_an_older_one(folder: Path, context: Make) -> None:
    old = (folder / "run.json").read_bytes()
    seal(folder, run_predicate(context(), requested=20))
    assert verify(folder).ok
    (folder / "run.json").write_bytes(old)
    assert [p.where for p in verify(folder).problems] == ["run.json"]


def test_the_statement(folder: Path) -> None:
    statement = json.loads((folder / "run.json").read_bytes())
    assert (
        statement["_type"] == "https://in-toto.io/Statement/v1" and statement["predicateType"] == "https://clearance.dev/run/v1"
    )
    for subject in statement["subject"]:
        data = (folder / subject["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == subject["digest"]["sha256"] and subject["annotations"]["rows"] >= 0
    predicate = statement["predicate"]
    assert predicate["counts"]["outcomes"] == {
        "accepted": 8,
        "accepted_after_steering": 4,
        "error": 4,
        "rejected": 2,
        "review": 2,
    }
    assert predicate["merkle_root"] == merkle_root([receipt.digest for receipt in committed(folder).values()])
    packages = {package["name"]: package for package in predicate["bill_of_materials"]}
    assert packages["torch"]["version"] and packages["pyarrow"]["licence"] == "Apache-2.0"
    assert "salt" not in predicate and predicate["salt_id"]


def test_a_secret_salt_is_needed_for_prompts(make_run: Make, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", shards=1, salt="3b7f" * 8)
    without = verify(run.folder)
    assert without.ok and without.counts["prompts_unchecked"] == 10 and "prompts" not in without.counts
    assert verify(run.folder, salt="3b7f" * 8).counts["prompts"] == 10
    assert ("3b7f" * 8).encode() not in b"".join(p.read_bytes() for p in run.folder.rglob("*") if p.is_file())


def test_jpeg_runs_verify_by_file_digest(make_run: Make, tmp_path: Path) -> None:
    result = verify(make_run(tmp_path / "run", shards=1, image_format="jpeg").folder)
    assert result.ok and result.counts["pictures"] == 6 and "pixels" not in result.counts


def test_merkle_root() -> None:
    leaves = [hashlib.sha256(bytes([i])).hexdigest() for i in range(7)]

    def leaf(i: int) -> bytes:
        return hashlib.sha256(b"\0" + bytes.fromhex(leaves[i])).digest()

    def node(a: bytes, b: bytes) -> bytes:
        return hashlib.sha256(b"\1" + a + b).digest()

    assert merkle_root([]) == hashlib.sha256().hexdigest()
    assert merkle_root(leaves[:1]) == leaf(0).hex()
    assert merkle_root(leaves[:3]) == node(node(leaf(0), leaf(1)), leaf(2)).hex()
    four = node(node(leaf(0), leaf(1)), node(leaf(2), leaf(3)))
    assert merkle_root(leaves) == node(four, node(node(leaf(4), leaf(5)), leaf(6))).hex()
    assert merkle_root(leaves[::-1]) != merkle_root(leaves)


def test_seal_refuses_what_is_not_whole(folder: Path, context: Make) -> None:
    with pytest.raises(InputError, match="plain data"):
        seal(folder, run_predicate(context(), policy=object()))
    path = sorted(folder.glob("attempts/*.parquet"))[0]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="not the file that was committed"):
        seal(folder, run_predicate(context()))


def test_files_of_the_plan_are_held_to_their_digests(folder: Path, context: Make) -> None:
    (folder / "plan.json").write_bytes(b"{}")
    files = {"plan.json": hashlib.sha256(b"{}").hexdigest()}
    seal(folder, run_predicate(context(), plan={"files": files}))
    assert verify(folder).ok
    (folder / "plan.json").write_bytes(b"[]")
    assert [p.where for p in verify(folder).problems] == ["plan.json"]
    (folder / "plan.json").unlink()
    assert [p.what for p in verify(folder).problems] == ["is missing; the plan names it"]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        verify(tmp_path / "absent")


def test_a_parquet_file_from_elsewhere_is_named(folder: Path) -> None:
    import pyarrow as pa

    path = sorted(folder.glob("samples/*.parquet"))[0]
    with path.open("wb") as stream:
        write_parquet(pa.table({"outcome": ["accepted"]}), stream)
    assert any("columns are missing" in problem.what for problem in verify(folder).problems)


def test_rows_in_order(folder: Path) -> None:
    assert [row["request_key"] for row in sample_rows(folder, ["request_key"])] == [f"key-{i:03d}" for i in range(20)]
    assert sum(1 for _ in attempt_rows(folder, ["sample_id"])) == 26
    path = sorted(folder.glob("samples/*.parquet"))[0]
    path.write_bytes(b"broken")
    with pytest.raises(Exception, match=r"samples/.*cannot be read"):
        list(sample_rows(folder))


def test_problems_are_capped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.audit.verify._MOST_PROBLEMS", 2)
    for path in folder.glob("*/*"):
        path.unlink()
    assert len(verify(folder).problems) == 2
