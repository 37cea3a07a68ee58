"""Exports: what is accepted now, in three formats, read back by the readers that people use."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from index import storage
from index.errors import ClearanceError, InputError, IntegrityError
from jobs.by import By
from jobs.cli.main import app
from jobs.compact import compact_run
from jobs.export.card import About, run_card
from jobs.export.formats import Format, format_named
from jobs.export.load import load
from jobs.export.own import own_columns
from jobs.export.select import DEFAULT, Selection, outcomes_named
from jobs.export.write import export_run
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.erase import erase_payloads
from pipeline.audit.events import NewEvent, append_event, read_events
from pipeline.audit.kept import kept_pictures
from pipeline.audit.ledger import sample_rows
from pipeline.audit.stored import samples_of
from pipeline.config import RunConfig
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, decode
from pipeline.policy import Policy
from tests.jobs.conftest import fake_identity, open_fake
from tests.pipeline.test_stored import rewrite
from tests.tampering.forge import put

PROMPTS = """prompt,key,category,weight
cat,a,pets,1
steered owl,b,birds,2
copy,c,pets,3
stubborn fox,d,other,4
,e,none,5
bee,f,insects,6
"""
FORMATS = ["parquet", "webdataset", "folder"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a, b and f are accepted (b after steering), c and d rejected and kept, e is an error."""
    base = tmp_path_factory.mktemp("project")
    (base / "prompts.csv").write_text(PROMPTS)
    config = RunConfig(prompts="prompts.csv", shard_size=2)
    plan = Plan.make(config, Policy(), base, identity=fake_identity(config, Policy(), base))
    return run_local(plan, base / "run", open_loop=open_fake).folder


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    import shutil

    return Path(shutil.copytree(run, tmp_path / "run"))


def pixels(run: Path) -> dict[str, np.ndarray]:
    """The pictures of the record by request key."""
    return {r["request_key"]: decode(r["image"]["bytes"])[0] for r in sample_rows(run) if r["image"] is not None}


def ids(run: Path) -> dict[str, str]:
    return {row["request_key"]: row["sample_id"] for row in sample_rows(run, ["sample_id", "request_key"])}


def decided(run: Path, key: str, outcome: str) -> None:
    append_event(run, "review.decided", "reviewer", "looked at", samples=[ids(run)[key]], details={"outcome": outcome})


# --- readers ---------------------------------------------------------------------------------------------------------------


def by_datasets(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for row in datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache")):
        image = row.pop("image", None) or row.pop("webp")
        yield row.get("json") or row, np.asarray(image.convert("RGB"))


def by_pandas(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    pandas = pytest.importorskip("pandas")
    for row in pandas.read_parquet(folder / "data").to_dict("records"):
        yield row, decode(row["image"]["bytes"])[0]


def by_polars(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    polars = pytest.importorskip("polars")
    for row in polars.read_parquet(folder / "data" / "*.parquet").to_dicts():
        yield row, decode(row["image"]["bytes"])[0]


def by_duckdb(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    duckdb = pytest.importorskip("duckdb")
    query = f"select request_key, category, weight, outcome, image.bytes as data from '{folder}/data/*.parquet'"
    for key, category, weight, outcome, data in duckdb.sql(query).fetchall():
        row = {"request_key": key, "category": category, "weight": weight, "outcome": outcome}
        yield row, decode(data)[0]


def by_webdataset(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(str(path) for path in (folder / "data").glob("*.tar"))
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"):
        yield sample["json"], sample["webp"]


def by_eye(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    for line in (folder / "data" / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row, np.asarray(Image.open(folder / "data" / row["file_name"]).convert("RGB"))


READERS = [
    ("parquet", by_datasets), ("parquet", by_pandas), ("parquet", by_polars), ("parquet", by_duckdb),
    ("webdataset", by_webdataset), ("webdataset", by_datasets), ("folder", by_eye), ("folder", by_datasets),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files to the collector
@pytest.mark.parametrize(("format", "read"), READERS, ids=[f"{name} {read.__name__[3:]}" for name, read in READERS])
def test_readers_find_the_accepted_pictures_and_own_columns(run: Path, tmp_path: Path, format: str, read: Any) -> None:
    export_run(run, tmp_path / "export", format=format)
    found = {row["request_key"]: (row, picture) for row, picture in read(tmp_path / "export")}
    expected = pixels(run)
    assert sorted(found) == ["a", "b", "f"] == sorted(expected)
    assert {key: row["category"] for key, (row, _) in found.items()} == {"a": "pets", "b": "birds", "f": "insects"}
    assert found["b"][0]["outcome"] == "accepted_after_steering"
    assert all(np.array_equal(picture, expected[key]) for key, (_, picture) in found.items())


def test_datasets_reads_the_run_folder_itself(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = list(datasets.load_dataset(str(run), split="train", cache_dir=str(tmp_path)))
    assert [row["request_key"] for row in rows] == list("abcdef")
    drawn = {row["request_key"]: np.asarray(row["image"].convert("RGB")) for row in rows if row["image"] is not None}
    expected = pixels(run)
    assert sorted(drawn) == sorted(expected) and all(np.array_equal(drawn[key], expected[key]) for key in drawn)


def test_the_card_of_a_run_is_named_as_not_covered(run: Path) -> None:
    found = verify_run(run)
    assert found.ok and "README.md" in [left.where for left in found.not_covered]


def test_a_run_with_its_card_is_taken_for_a_run(run: Path) -> None:
    from jobs.run.folder import look

    assert look(run, Plan.load(run), resume=True).state == "begun"


def test_a_readme_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    from index.errors import PlanMismatch

    (tmp_path / "prompts.txt").write_text("cat\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    config = RunConfig(prompts="prompts.txt")
    plan = Plan.make(config, Policy(), tmp_path, identity=fake_identity(config, Policy(), tmp_path))
    with pytest.raises(PlanMismatch, match=r"not empty \(README.md\)"):
        run_local(plan, tmp_path / "out", open_loop=open_fake)


def test_one_line_gives_a_frame(run: Path) -> None:
    frame = load(run).to_pandas()
    assert list(frame["request_key"]) == ["a", "b", "f"] and list(frame["category"]) == ["pets", "birds", "insects"]
    light = load(str(run), pictures=False)
    assert light.num_rows == 3 and "image" not in light.column_names


# --- what is exported ------------------------------------------------------------------------------------------------------


def exported_keys(run: Path, only: str = "accepted") -> list[str]:
    return [item.values["request_key"] for item in Selection(run, only).items()]


def test_a_sample_quarantined_after_the_run_is_absent(own_run: Path) -> None:
    append_event(own_run, "sample.quarantined", "claims", "claim 1", samples=[ids(own_run)["a"]], details={"claim": "1"})
    assert exported_keys(own_run) == ["b", "f"]
    assert exported_keys(own_run, "quarantined") == ["a"]


def test_a_sample_accepted_in_review_is_there_with_marks(own_run: Path, tmp_path: Path) -> None:
    decided(own_run, "c", "accepted")
    export_run(own_run, tmp_path / "export", columns=["request_key", "outcome", "file_sha256", "xmp_present"])
    rows = {row["request_key"]: row for row, _ in by_pandas(tmp_path / "export")}
    kept = next(one for one in kept_pictures(own_run) if one.request_key == "c")
    assert kept.data is not None and rows["c"]["outcome"] == "accepted" and rows["c"]["xmp_present"]
    data = rows["c"]["image"]["bytes"]
    assert hashlib.sha256(data).hexdigest() == rows["c"]["file_sha256"]
    assert np.array_equal(decode(data)[0], decode(kept.data)[0]) and DIGITAL_SOURCE_TYPE.encode() in decode(data)[1]


def test_the_held_are_exported_on_request_alone(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "held", only="held")
    kept = {one.request_key: one.data for one in kept_pictures(run)}
    assert {row["request_key"]: row["image"]["bytes"] for row, _ in by_pandas(tmp_path / "held")} == kept
    assert sorted(kept) == ["c", "d"]


def test_samples_without_a_picture_are_counted(run: Path, tmp_path: Path) -> None:
    exported = export_run(run, tmp_path / "all", only="all")
    assert (exported.samples, exported.left_out) == (5, {"no picture of it was kept": 1})
    assert "* left out: 1 (no picture of it was kept)" in (tmp_path / "all" / "README.md").read_text(encoding="utf-8")


def test_an_erased_picture_is_absent_and_counted(own_run: Path, tmp_path: Path) -> None:
    about = NewEvent(kind="payload.erased", actor="privacy", reason="on request")
    wanted = {ids(own_run)["a"]: ["image"], ids(own_run)["b"]: ["columns"], ids(own_run)["c"]: ["image"]}
    erase_payloads(own_run, wanted, about, known=len(read_events(own_run)))
    exported = export_run(own_run, tmp_path / "export")
    assert exported.left_out == {"its picture was erased": 1}
    rows = {row["request_key"]: row["category"] for row, _ in by_polars(tmp_path / "export")}
    assert rows == {"b": None, "f": "insects"}
    assert export_run(own_run, tmp_path / "held", only="held").left_out == {"its picture was erased": 1}
    assert verify_run(own_run).problems == ()


@pytest.mark.parametrize(
    ("only", "expected"),
    [("accepted", {"accepted", "accepted_after_steering"}), ("review, rejected", {"review", "rejected"}), ("error", {"error"})],
)
def test_outcomes_are_chosen_by_name(only: str, expected: set[str]) -> None:
    assert outcomes_named(only) == expected


def test_a_misspelt_outcome_or_column_is_named(run: Path) -> None:
    with pytest.raises(InputError, match="no outcome 'acepted'") as error:
        Selection(run, "acepted")
    assert error.value.fix == "Did you mean 'accepted'?"
    with pytest.raises(InputError, match="no column 'categry'") as error:
        Selection(run, columns=["categry"])
    assert error.value.fix == "Did you mean 'category'?"


def test_columns_are_chosen(run: Path) -> None:
    assert Selection(run, columns=["weight", "own", "image"]).names == ["weight", "category"]
    assert Selection(run).names == [*DEFAULT, "category", "weight"]
    everything = Selection(run, columns=["all"]).names
    assert {"findings", "embedding", "record_sha256", "weight"} < set(everything) and "columns" not in everything


@pytest.mark.parametrize("format", FORMATS)
def test_every_column_can_be_written(run: Path, tmp_path: Path, format: str) -> None:
    exported = export_run(run, tmp_path / "export", format=format, columns=["all"])
    assert exported.samples == 3 and "findings" in exported.columns


def test_own_columns_get_the_narrowest_type_that_holds_them() -> None:
    rows = [
        '{"n":1,"x":1,"mixed":1,"flag":true,"big":9223372036854775808,"list":[1],"gap":null,"outcome":"o","own_outcome":1}',
        '{"n":2,"x":0.5,"mixed":"a","flag":null,"big":1,"list":[2],"gap":null}',
        None,
    ]
    found = {column.source: (column.name, column.kind) for column in own_columns(rows, taken={"outcome"})}
    assert found == {
        "n": ("n", "whole"), "x": ("x", "number"), "mixed": ("mixed", "json"), "flag": ("flag", "flag"),
        "big": ("big", "json"), "list": ("list", "json"), "gap": ("gap", "text"), "outcome": ("own_own_outcome", "text"),
        "own_outcome": ("own_outcome", "whole"),
    }  # fmt: skip


def test_half_a_surrogate_pair_in_own_columns_is_written_as_its_escape() -> None:
    """JSON can spell it, UTF-8 cannot hold it: one such row would stop the export of a whole run."""
    import pyarrow as pa

    rows = [json.dumps(row) for row in ({"a\ud800": "b\udc00", "l": ["\ud800"]}, {"a\ud800": "c", "l": [], "a\\ud800": 1})]
    found = own_columns(rows, taken=())
    made = {column.name: [column.value(json.loads(row)) for row in rows] for column in found}
    assert made == {"own_a\\ud800": ["b\\udc00", "c"], "l": ['["\\ud800"]', "[]"], "a\\ud800": [None, 1]}
    table = pa.table(made, pa.schema([pa.field(column.name, column.type) for column in found]))
    assert table.num_rows == 2


# --- whole or nothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_run_gives_the_same_files(run: Path, tmp_path: Path, format: str) -> None:
    one, two = (export_run(run, tmp_path / name, format=format) for name in ("one", "two"))
    assert one.files == two.files and len(one.files) >= 1


def test_tars_hold_no_times_and_no_owners(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "export", format="webdataset")
    data = (tmp_path / "export" / "data" / "00000.tar").read_bytes()
    assert data[257:263] == b"ustar\0"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_no_headers_of_written_members_are_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    class Counting(tarfile.TarFile):
        def addfile(self, *given: Any) -> None:
            super().addfile(*given)
            kept.append(len(self.members))  # type: ignore[attr-defined]

    monkeypatch.setattr(tarfile, "TarFile", Counting)
    monkeypatch.setattr(tarfile, "open", Counting.open)
    export_run(run, tmp_path / "export", format="webdataset")
    assert len(kept) == 9 and max(kept) == 3


def test_pictures_have_no_dictionary_and_groups_are_small(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export_run(run, tmp_path / "export")
    file = pq.ParquetFile(tmp_path / "export" / "data" / "part-00000.parquet")
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert not columns["image.bytes"].has_dictionary_page and columns["image.bytes"].compression == "UNCOMPRESSED"
    assert json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"] == {"image": {"_type": "Image"}}
    assert group.num_rows <= 64


@pytest.mark.parametrize("there", ["file", "full"])
def test_nothing_is_overwritten(run: Path, tmp_path: Path, there: str) -> None:
    place = tmp_path / "export"
    place.write_text("mine") if there == "file" else place.mkdir()
    if there == "full":
        (place / "mine").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export_run(run, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_an_empty_folder_is_taken(run: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    assert export_run(run, tmp_path / "export").samples == 3


@pytest.mark.parametrize("place", ["", "inside"])
def test_a_run_folder_is_no_place_for_an_export(run: Path, place: str) -> None:
    with pytest.raises(InputError, match="lies in the run folder"):
        export_run(run, run / place)


@pytest.mark.parametrize("format", FORMATS)
def test_a_changed_picture_stops_the_export_and_leaves_nothing(own_run: Path, tmp_path: Path, format: str) -> None:
    there = next(row["image"] for row in sample_rows(own_run, ["request_key", "image"]) if row["request_key"] == "f")
    put(own_run, "f", "image", {**there, "bytes": there["bytes"] + b"\0"})
    with pytest.raises(IntegrityError, match="does not match its digest") as error:
        export_run(own_run, tmp_path / "export", format=format)
    assert "'f'" in error.value.where and sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_rejected_copy_that_a_row_calls_accepted_is_not_given_out(own_run: Path, tmp_path: Path, compacted: bool) -> None:
    if compacted:
        compact_run(own_run, By(role="operator", reason="fewer files"))
    part = next(part for part in samples_of(own_run) if "rejected" in part.outcomes)
    rewrite(own_run, part.path, "outcome", "accepted", part.outcomes.index("rejected"))
    with pytest.raises(IntegrityError, match="is not the") as error:
        export_run(own_run, tmp_path / "export")
    assert error.value.where == f"{own_run}/{part.path}" and sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    with pytest.raises(IntegrityError):
        load(own_run)


def test_changed_events_stop_the_export(own_run: Path, tmp_path: Path) -> None:
    sorted((own_run / "events").iterdir())[-1].unlink()
    with pytest.raises(ClearanceError):
        export_run(own_run, tmp_path / "export")


def test_a_selection_of_nothing_is_no_export(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sample is review now"):
        export_run(run, tmp_path / "export", only="review")


# --- card, manifest, formats of others -------------------------------------------------------------------------------------


def test_the_manifest_lists_the_files_with_their_digests(run: Path, tmp_path: Path) -> None:
    exported = export_run(run, tmp_path / "export")
    manifest = json.loads((tmp_path / "export" / "export.json").read_text(encoding="utf-8"))
    (file,) = manifest["files"]
    assert file["sha256"] == hashlib.sha256((tmp_path / "export" / file["path"]).read_bytes()).hexdigest()
    assert manifest["roots"] == verify_run(run).roots == exported.roots
    assert str(tmp_path) not in json.dumps(manifest)


def test_croissant_names_every_file_and_column(run: Path, tmp_path: Path) -> None:
    exported = export_run(run, tmp_path / "export")
    data = json.loads((tmp_path / "export" / "croissant.json").read_text(encoding="utf-8"))
    assert data["conformsTo"] == "http://mlcommons.org/croissant/1.0" and data["@type"] == "sc:Dataset"
    files = [one for one in data["distribution"] if one["@type"] == "cr:FileObject"]
    assert [(one["contentUrl"], one["sha256"]) for one in files] == [(f["path"], f["sha256"]) for f in exported.files]
    fields = {field["name"]: field["dataType"] for field in data["recordSet"][0]["field"]}
    assert list(fields) == ["image", *exported.columns]
    assert (fields["image"], fields["weight"], fields["c2pa_present"]) == ("sc:ImageObject", "sc:Text", "sc:Boolean")


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(InputError, match="no format 'zip'"):
        format_named("zip")


def test_formats_that_ship_are_formats() -> None:
    assert all(isinstance(format_named(name), Format) and format_named(name).name == name for name in FORMATS)


def test_a_format_of_another_package_is_found_by_its_entry_point(tmp_path: Path, run: Path) -> None:
    import sys

    package = tmp_path / "site"
    (package / "mine-1.dist-info").mkdir(parents=True)
    (package / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (package / "mine-1.dist-info" / "entry_points.txt").write_text("[clearance.exports]\nkeys = exports_of_mine:KEYS\n")
    (package / "exports_of_mine.py").write_text(
        "from jobs.export.formats import Format\n"
        "def write(items, schema, folder):\n"
        "    (folder / 'keys.txt').write_text(' '.join(item.values['request_key'] for item in items))\n"
        "KEYS = Format(name='keys', what='keys', data_files='keys.txt', write=write)\n"
    )
    sys.path.insert(0, str(package))
    try:
        importlib.invalidate_caches()
        export_run(run, tmp_path / "export", format="keys")
    finally:
        sys.path.remove(str(package))
    assert (tmp_path / "export" / "keys.txt").read_text() == "a b f"


# --- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_exports_and_prints_data(run: Path, tmp_path: Path) -> None:
    arguments = [
        "export",
        str(run),
        "--to",
        str(tmp_path / "out"),
        "--format",
        "folder",
        "--columns",
        "request_key,own",
        "--json",
    ]
    done = CliRunner().invoke(app, arguments)
    shown = json.loads(done.stdout)
    assert (done.exit_code, shown["samples"], shown["columns"]) == (0, 3, ["request_key", "category", "weight"])


def test_the_command_refuses_with_a_sentence(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path), "--only", "nothing"])
    assert done.exit_code == 2 and "there is no outcome 'nothing'" in done.stderr


class Full(storage.Disk):
    def writable(self, folder: Path) -> bool:
        return False


def test_a_place_that_cannot_be_written_is_known_before(run: Path, tmp_path: Path) -> None:
    with storage.using(Full()), pytest.raises(ClearanceError, match="permission denied"):
        export_run(run, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_card_names_adapters_with_their_licences(tmp_path: Path) -> None:
    adapters = [{"name": "detail", "kind": "lora", "licence": "CC-BY-4.0"}, {"name": "glow", "kind": "embedding"}]
    card = run_card(About.of(tmp_path, {"predicate": {"adapters": adapters}}))
    assert "* adapters: detail (lora, CC-BY-4.0), glow (embedding, no licence stated)\n" in card


def test_a_licence_that_a_file_states_is_no_markup_in_the_card(tmp_path: Path) -> None:
    stated = "CC\n---\n![](http://example.org/seen) <img src=x>\u202e"
    card = run_card(About.of(tmp_path, {"predicate": {"adapters": [{"name": "a_b", "kind": "lora", "licence": stated}]}}))
    (line,) = [line for line in card.splitlines() if line.startswith("* adapters: ")]
    assert line == (r"* adapters: a_b (lora, CC\\n---\\n!\[\](http://example.org/seen) \<img src=x\>\\u202e)")
