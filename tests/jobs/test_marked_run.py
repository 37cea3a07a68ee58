"""Runs whose pictures are signed: what rows and files hold, what does not change, and what is refused before drawing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from guards.own_label import own_label
from index.errors import ConfigError, PlanMismatch
from index.fingerprint import pixel_digest
from jobs.cli.main import app
from jobs.export.load import load
from jobs.keys import c2pa_test_chain, new_keys
from jobs.run.lease.lock import Process
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.preflight.notes import key_notes, notes_of, watermark_notes
from jobs.run.ray.actor import Actor, Driver
from jobs.run.ray.runner import run_ray
from pipeline.audit.contents import report_numbers
from pipeline.audit.events import append_event
from pipeline.audit.ledger import sample_rows
from pipeline.audit.verify import verify
from pipeline.config import MarksConfig, RunConfig
from pipeline.keys import ENVIRONMENT, Keys
from pipeline.marking.c2pa import read_manifest
from pipeline.marking.encode import decode
from pipeline.marking.tile import TileWatermark
from pipeline.marking.watermark import PUBLIC_KEY, key_id, run_tag
from pipeline.outcome import Request, Stated
from pipeline.policy import Policy

PROMPTS = ["cat", "a copy", "a steered owl", "", "fox"]
MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    new_keys(tmp_path / "keys")
    return Keys(tmp_path / "keys")


@pytest.fixture
def in_environment(keys: Keys) -> Iterator[Keys]:
    os.environ[ENVIRONMENT] = str(keys.folder)
    yield keys
    del os.environ[ENVIRONMENT]


def signers(folder: Path, keys: Keys) -> list[tuple[bool, str, bool]]:
    """Of every row: whether it says that it is signed and by whom, and whether a reader trusts the file."""
    found = []
    for row in sample_rows(folder):
        image = row["image"]
        trusted = image is not None and read_manifest(image["bytes"], row["media_type"], keys.anchors()).trusted
        found.append((row["c2pa_present"], row["c2pa_key_id"], trusted))
    return found


def expected(keys: Keys) -> list[tuple[bool, str, bool]]:
    signed, nothing = (True, keys.ids()["c2pa.pem"], True), (False, "", False)
    return [signed, nothing, signed, nothing, signed]


def test_accepted_pictures_are_signed_and_the_run_verifies(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys
) -> None:
    plan = make_plan(PROMPTS, marks=MarksConfig(keys="keys", c2pa="required"))
    folder = run_local(plan, tmp_path / "run", open_loop=open_loop).folder
    assert signers(folder, keys) == expected(keys)
    verification = verify(folder)
    assert verification.ok, verification.problems


def test_signing_changes_no_pixel(make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys) -> None:
    plain = run_local(make_plan(PROMPTS), tmp_path / "plain", open_loop=open_loop)
    signed = run_local(make_plan(PROMPTS, marks=MarksConfig(keys="keys")), tmp_path / "signed", open_loop=open_loop)
    facts = "request_key outcome pixel_sha256 stored_pixel_sha256 pdq iscc width".split()
    rows = [[[row[name] for name in facts] for row in sample_rows(run.folder)] for run in (plain, signed)]
    assert rows[0] == rows[1]
    assert [row["file_sha256"] for row in sample_rows(plain.folder)] != [r["file_sha256"] for r in sample_rows(signed.folder)]


def test_no_secret_is_in_the_run_folder(make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys) -> None:
    folder = run_local(make_plan(PROMPTS, marks=MarksConfig(keys="keys")), tmp_path / "run", open_loop=open_loop).folder
    key, watermark = keys.c2pa(), keys.watermark()
    assert key is not None and watermark is not None
    secrets = [b"PRIVATE KEY", key.key_pem.splitlines()[1], watermark, watermark.hex().encode(), keys.salt().encode()]
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert len(written) > 10_000 and not [secret for secret in secrets if secret in written]


def test_the_environment_names_keys_for_a_local_run(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, in_environment: Keys
) -> None:
    folder = run_local(make_plan(PROMPTS), tmp_path / "run", open_loop=open_loop).folder
    assert signers(folder, in_environment) == expected(in_environment)


@pytest.mark.ray
def test_the_environment_names_keys_for_workers_of_ray(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, small_ray: None, in_environment: Keys
) -> None:
    folder = run_ray(make_plan(PROMPTS, workers=2), tmp_path / "run", open_loop=open_loop).folder
    assert signers(folder, in_environment) == expected(in_environment)


def test_a_machines_own_keys_come_before_the_drivers(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, in_environment: Keys
) -> None:
    """A cluster's machine may keep the keys elsewhere."""
    drivers = [Driver(process=Process.this(), keys=str(keys)) for keys in (tmp_path / "the drivers", in_environment.folder)]
    actor = Actor(make_plan(PROMPTS), tmp_path / "run", "run", "ray-0", open_loop, drivers[0])
    assert os.environ[ENVIRONMENT] == str(in_environment.folder)
    assert actor.open().context.worker_id == "ray-0"
    del os.environ[ENVIRONMENT]
    Actor(make_plan(PROMPTS), tmp_path / "run", "run", "ray-0", open_loop, drivers[1])
    assert os.environ[ENVIRONMENT] == str(in_environment.folder)


def test_a_worker_that_cannot_sign_is_refused(make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys) -> None:
    plan = make_plan(PROMPTS, marks=MarksConfig(keys="keys"))
    without = replace(plan, config=replace(plan.config, marks=MarksConfig()))
    with pytest.raises(PlanMismatch, match=r"marks\.c2pa signed by a test certificate there, none here"):
        run_local(without, tmp_path / "run", open_loop=open_loop)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("harm", ["absent", "half", "damaged", "ended"])
def test_a_required_signature_that_is_impossible_is_refused_with_the_plan(
    make_plan: MakePlan, tmp_path: Path, keys: Keys, harm: str
) -> None:
    assert keys.folder is not None
    ended = c2pa_test_chain(days=1, now=datetime(2025, 3, 1, tzinfo=UTC))
    changes: dict[str, dict[str, bytes | None]] = {
        "absent": {"c2pa.key": None, "c2pa.pem": None},
        "half": {"c2pa.key": None},
        "damaged": {"c2pa.pem": b"-----BEGIN CERTIFICATE-----\n"},
        "ended": dict(ended),
    }
    for name, data in changes[harm].items():
        (keys.folder / name).unlink()
        if data is not None:
            (keys.folder / name).write_bytes(data)
    with pytest.raises(ConfigError):
        make_plan(PROMPTS, marks=MarksConfig(keys="keys", c2pa="required"))


def test_keys_that_go_after_the_plan_stop_the_run_before_it_draws(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys
) -> None:
    plan = make_plan(PROMPTS, marks=MarksConfig(keys="keys", c2pa="required"))
    assert keys.folder is not None
    (keys.folder / "c2pa.key").unlink()
    with pytest.raises(ConfigError, match="is of no use without it"):
        run_local(plan, tmp_path / "run", open_loop=open_loop)
    assert not (tmp_path / "run").exists()


def test_a_run_around_its_keys_is_refused(make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys) -> None:
    shutil.move(str(keys.folder), tmp_path / "run" / "keys")
    plan = make_plan(PROMPTS, marks=MarksConfig(keys="run/keys"))
    with pytest.raises(ConfigError, match="lies in the folder of the run"):
        run_local(plan, tmp_path / "run", open_loop=open_loop)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["keys"]


def test_the_report_names_a_test_signer(make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys) -> None:
    folder = run_local(make_plan(PROMPTS, marks=MarksConfig(keys="keys")), tmp_path / "run", open_loop=open_loop).folder
    measures = {row["measure"]: row for row in report_numbers(folder)["marks"]["code_of_practice"]}
    assert measures["1.1.1"]["state"] == "all pictures, by a test signer"
    assert "The certificate calls itself a test: nobody else trusts it." in measures["1.1.1"]["note"]


def test_a_test_certificate_and_its_end_are_noted(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys", days=2)
    config = RunConfig(prompts="p.csv", marks=MarksConfig(keys="keys"))
    notes = [f"{note.topic}: {note.text}" for note in key_notes(config, tmp_path)]
    assert len(notes) == 2
    assert "a test certificate, nobody else trusts it" in notes[0]
    assert "from then on readers call its manifests invalid" in notes[1]
    assert key_notes(replace(config, marks=MarksConfig(keys="keys", c2pa="off")), tmp_path) == []


def test_the_published_watermark_key_is_noted_where_pictures_are_large_enough(tmp_path: Path) -> None:
    config = RunConfig(prompts="p.csv")
    for side in (128, 512, None):
        (note,) = watermark_notes(config, tmp_path, side)
        assert note.topic == "watermark" and "everybody can find the mark and imitate it" in note.text
    assert watermark_notes(config, tmp_path, 127) == []
    assert watermark_notes(replace(config, marks=MarksConfig(watermark="off")), tmp_path, 512) == []
    new_keys(tmp_path / "keys")
    assert watermark_notes(replace(config, marks=MarksConfig(keys="keys")), tmp_path, 512) == []


def test_the_side_is_read_from_the_models_folder(tmp_path: Path) -> None:
    small = RunConfig(prompts="p.csv")
    assert "watermark" not in {note.topic for note in notes_of(small, Policy(), tmp_path)}  # the embedded world: 64 pixels
    large = replace(small, model=replace(small.model, size=256))
    assert "watermark" in {note.topic for note in notes_of(large, Policy(), tmp_path)}


@pytest.mark.parametrize(
    ("stated", "width", "noted"),
    [
        (Stated(width=128, height=256), None, True),
        (Stated(width=128), None, False),  # as high as the model's own: 64
        (Stated(width=64, height=64), 256, False),  # not one picture has the run file's size
        (Stated(height=256), 256, True),
    ],
)
def test_the_sides_that_rows_state_count(tmp_path: Path, stated: Stated, width: int | None, noted: bool) -> None:
    config = RunConfig(prompts="p.csv")
    config = replace(config, model=replace(config.model, width=width, height=width))
    requests = [Request(row_no=0, key="a", prompt="cat", seed=0, stated=stated)]
    assert ("watermark" in {note.topic for note in notes_of(config, Policy(), tmp_path, requests)}) is noted


def test_a_run_of_larger_pictures_is_watermarked_labelled_and_verifies(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys
) -> None:
    marks = MarksConfig(keys="keys", label="AI generated")
    plan = make_plan(["large cat", "a copy", "fox"], marks=marks)
    result = run_local(plan, tmp_path / "run", open_loop=open_loop)
    large, copy, small = sample_rows(result.folder)
    key = keys.watermark()
    assert key is not None
    assert (large["watermark_scheme"], large["watermark_key_id"]) == ("tile", key_id(key))
    assert (large["watermark_reason"], large["visible_label"], large["c2pa_present"]) == ("", True, True)
    pixels = decode(large["image"]["bytes"])[0]
    seen = TileWatermark().look(pixels, key)
    assert (seen.found, seen.payload, seen.score) == (True, run_tag(plan.plan_sha256), large["watermark_score"])
    assert own_label(pixels) is not None
    assert large["pixel_sha256"] != large["stored_pixel_sha256"] == pixel_digest(pixels)
    assert (copy["watermark_scheme"], copy["watermark_reason"], copy["visible_label"]) == ("", "", False)
    assert (small["watermark_scheme"], small["watermark_reason"], small["visible_label"]) == ("", "too_small", True)
    manifest = read_manifest(large["image"]["bytes"], large["media_type"], keys.anchors())
    assert manifest.trusted and "clearance.tile" in manifest.bindings
    assert verify(result.folder).ok


def test_another_watermark_key_is_another_plan(make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys) -> None:
    plan = make_plan(["cat"], marks=MarksConfig(keys="keys"))
    assert keys.folder is not None
    (keys.folder / "watermark.key").write_text("7a" * 32)
    with pytest.raises(PlanMismatch, match=r"marks\.watermark_key"):
        run_local(plan, tmp_path / "run", open_loop=open_loop)


def renew(keys: Keys) -> None:
    """A certificate of the same key that ends later, under a root of its own."""
    assert keys.folder is not None
    old = x509.load_pem_x509_certificate((keys.folder / "c2pa.pem").read_bytes())
    made = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer).public_key(old.public_key())
    made = made.serial_number(7).not_valid_before(old.not_valid_before_utc)
    made = made.not_valid_after(old.not_valid_after_utc + timedelta(days=1))
    for one in old.extensions:
        made = made.add_extension(one.value, one.critical)
    issuer = ec.generate_private_key(ec.SECP256R1())
    (keys.folder / "c2pa.pem").write_bytes(made.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize("whose", ["none", "run", "other", "renewed"])
def test_an_export_says_which_marks_a_picture_lacks_that_was_accepted_in_review(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, keys: Keys, whose: str
) -> None:
    """With the keys of the run it is marked as those are that the run released, the payload of its watermark too."""
    new_keys(tmp_path / "others")
    chosen = {"none": "", "other": str(tmp_path / "others")}.get(whose, str(keys.folder))
    with_keys = whose in ("run", "renewed")
    plan = make_plan(["large cat", "a large copy", "a copy"], marks=MarksConfig(keys="keys"))
    folder = run_local(plan, tmp_path / "run", open_loop=open_loop).folder
    held = [str(row["sample_id"]) for row in sample_rows(folder) if row["outcome"] == "rejected"]
    append_event(folder, "review.decided", "reviewer", "looked at", samples=held, details={"outcome": "accepted"})
    if whose == "renewed":
        renew(keys)
    to, columns = tmp_path / "export", "--columns=prompt,c2pa_key_id,watermark_key_id"
    named = ["--keys", chosen] if chosen else []
    done = CliRunner().invoke(app, ["export", str(folder), "--to", str(to), columns, *named])
    assert done.exit_code == 0
    stated, card = json.loads((to / "export.json").read_text()), (to / "README.md").read_text()
    rows = {row["prompt"]: row for row in pq.read_table(to / "data").to_pylist()}
    key, large = keys.watermark(), decode(rows["a large copy"]["image"]["bytes"])[0]
    assert key is not None
    signed = {"none": "C2PA manifest", "other": "C2PA manifest of the run's signer"}
    lacking = {} if with_keys else {signed[whose]: 2, "watermark with the run's key": 1}
    assert stated["fewer_marks"] == lacking
    assert all(f"{mark} ({count})" in done.stderr and f"{mark} ({count})" in card for mark, count in lacking.items())
    assert ("note: marks:" in done.stderr, "--keys FOLDER" in card) == (not with_keys, not with_keys)
    if whose != "other":
        assert TileWatermark().look(large, key if with_keys else PUBLIC_KEY).payload == run_tag(plan.plan_sha256)
    frame = {row["prompt"]: row for row in load(folder, keys=chosen).to_pylist()}
    same, _ = decode(frame["a large copy"]["image"]["bytes"])
    assert (same == large).all(), "in Python it carries what the export does"
    if with_keys:
        assert len({row["c2pa_key_id"] for row in rows.values()} - {keys.ids()["c2pa.pem"]}) == (whose == "renewed")
        assert rows["a large copy"]["watermark_key_id"] == rows["large cat"]["watermark_key_id"] == key_id(key)


def test_a_run_verifies_whose_pictures_carry_a_watermark_that_no_look_finds(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    """The mark changed their pixels, and their rows claim none."""

    def opened(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        small = loop.runtime._attempt

        def attempt(*of: Any) -> Any:
            made = small(*of)
            noise = made.picture.repeat(2, 0).repeat(2, 1)
            return replace(made, picture=noise, pixel_sha256=pixel_digest(noise))

        loop.runtime._attempt = attempt
        return loop

    folder = run_local(make_plan(["cat", "owl"]), tmp_path / "run", open_loop=opened).folder
    reasons = [(row["watermark_scheme"], row["watermark_reason"]) for row in sample_rows(folder)]
    assert reasons == [("", "not_found_after_encoding")] * 2
    assert [row["stored_pixel_sha256"] == row["pixel_sha256"] for row in sample_rows(folder)] == [False, False]
    verification = verify(folder)
    assert verification.ok, verification.problems
