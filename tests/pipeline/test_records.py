from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import ConfigError, InputError, IntegrityError
from index.fingerprint import iscc, pixel_digest
from pipeline.audit.chain import chain_start, record_digest, sample_identity, table_header
from pipeline.audit.commitments import prompt_commitment
from pipeline.audit.context import RunContext
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.schema import attempts_schema, kept_schema, samples_schema
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, decode, encode, thumbnail, xmp_packet
from pipeline.outcome import Adapter, Outcome, Request, Sample

GOLDEN = Path(__file__).parent / "golden" / "audit_schema.txt"
Make = Callable[..., RunContext]


def listing() -> str:
    lines = []
    for name, schema in (("samples", samples_schema(256)), ("attempts", attempts_schema()), ("kept", kept_schema())):
        lines += [f"[{name}]", *(f"{field.name}: {field.type}" for field in schema), ""]
    return "\n".join(lines)


def test_schema_is_the_golden_one() -> None:
    # A changed column is a changed product: raise SCHEMA_VERSION, write it down, then update the golden file.
    assert listing() == GOLDEN.read_text(encoding="utf-8")


def test_every_column_is_documented() -> None:
    for schema in (samples_schema(), attempts_schema(), kept_schema()):
        assert all(field.metadata[b"doc"] for field in schema)


@pytest.mark.parametrize(("schema", "column"), [(samples_schema(), "image"), (attempts_schema(), "thumbnail")])
def test_pictures_carry_the_image_feature(schema: Any, column: str) -> None:
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {column: {"_type": "Image"}}
    assert str(schema.field(column).type) == "struct<bytes: binary, path: string>"


def test_import_is_light() -> None:
    heavy = "('pyarrow', 'PIL', 'torch', 'jinja2')"
    code = f"import sys, pipeline.audit.report, pipeline.audit.shards; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"


def test_a_finding_names_its_reference(samples: Sequence[Sample], context: Make) -> None:
    rows = [row for row in sample_table(samples, context(), "s0").to_pylist() if row["findings"]]
    named = [[f["ref_id"] for f in row["findings"] if f["guard"] == "copies"] for row in rows]
    assert named == [[row["nearest"][0]["ref_id"]] for row in rows] and len(named) >= 8


@pytest.mark.parametrize(
    ("settings", "version"),
    [
        ({"model_revision": "refs/pr/4"}, "refs/pr/4"),
        ({"model_revision": "", "model_digest": "ab" * 32}, "sha256:abababababababab"),
        ({"model_revision": "", "model_digest": ""}, ""),
    ],
)
def test_a_picture_names_the_version_of_its_model(
    samples: Sequence[Sample], context: Make, settings: dict[str, str], version: str
) -> None:
    row = sample_table(samples, context(**settings), "s0").to_pylist()[0]
    assert f'AISystemVersionUsed="{version}"'.encode() in decode(row["image"]["bytes"])[1]


def test_one_row_per_request_and_per_attempt(samples: Sequence[Sample], context: Make) -> None:
    rows = sample_table(samples, context(), "s0").to_pylist()
    attempts = attempt_table(samples, context(), "s0").to_pylist()
    assert [r["request_key"] for r in rows] == [s.request.key for s in samples]
    assert {r["outcome"] for r in rows} == set(Outcome) - {"quarantined"}
    assert len(attempts) == sum(len(s.attempts) for s in samples)
    assert [r["attempts"] for r in rows] == [len(s.attempts) for s in samples]


def test_only_accepted_pictures_are_stored(samples: Sequence[Sample], context: Make) -> None:
    for row, sample in zip(sample_table(samples, context(), "s0").to_pylist(), samples, strict=True):
        accepted = row["outcome"].startswith("accepted")
        assert (row["image"] is not None) == accepted == (row["file_sha256"] is not None) == row["xmp_present"]
        assert (row["digital_source_type"] == DIGITAL_SOURCE_TYPE) == accepted
        assert (row["c2pa_present"], row["watermark_scheme"], row["watermark_score"]) == (False, "", None)
        if accepted:
            assert sample.final is not None
            pixels, xmp = decode(row["image"]["bytes"])
            assert np.array_equal(pixels, sample.final.picture)
            assert DIGITAL_SOURCE_TYPE.encode() in xmp and b'AISystemUsed="stickers"' in xmp
            assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["file_sha256"]


def test_the_released_have_an_iscc(samples: Sequence[Sample], context: Make) -> None:
    rows = sample_table(samples, context(), "s0").to_pylist()
    expected = [iscc(s.final.picture) if s.final is not None and s.outcome.startswith("accepted") else None for s in samples]
    assert [row["iscc"] for row in rows] == expected


def test_an_error_without_attempts_has_a_full_row(samples: Sequence[Sample], context: Make) -> None:
    row = sample_table(samples, context(), "s0").to_pylist()[-1]
    assert (row["outcome"], row["reason"], row["error_class"]) == ("error", "input.prompt_empty", "InputError")
    assert row["attempts"] == 0 and row["findings"] == [] and row["nearest"] == []
    assert row["pixel_sha256"] is None and row["embedding"] is None and row["accepted_attempt"] is None


def test_findings_matches_and_interventions_are_kept(samples: Sequence[Sample], context: Make) -> None:
    row = sample_table(samples, context(), "s0").to_pylist()[5]
    assert [(i["attempt"], i["kind"]) for i in row["interventions"]] == [(1, "negtome"), (2, "nudge")]
    assert row["nearest"][0] == {
        "ref_id": "ref-5", "title": "drawing 5", "similarity": 0.6,
        "confirm": 0.7, "rights_basis": "licensed", "status": "active",
    }  # fmt: skip
    review = sample_table(samples, context(), "s0").to_pylist()[6]
    assert review["findings"][1]["box"] == [0.1, 0.1, 0.4, 0.4] and review["findings"][1]["triggered"]
    assert review["review_state"] == "open" and review["skipped_guards"] == ["unsafe"]


def test_chain_links_every_row(samples: Sequence[Sample], context: Make) -> None:
    for table in (sample_table(samples, context(), "s0"), attempt_table(samples, context(), "s0")):
        prev = chain_start(table_header(table.schema))
        for row in table.to_pylist():
            assert row["prev_sha256"] == prev
            assert row["record_sha256"] == record_digest(row, prev)
            prev = row["record_sha256"]


def test_payloads_are_outside_the_chain_and_everything_else_inside(samples: Sequence[Sample], context: Make) -> None:
    row = sample_table(samples, context(), "s0").to_pylist()[0]
    digest = record_digest(row, row["prev_sha256"])
    for name in row:
        changed = record_digest({**row, name: None}, row["prev_sha256"]) if row[name] is not None else ""
        payload = name in {"image", "prompt", "negative_prompt", "embedding", "prev_sha256", "record_sha256"}
        assert (changed == digest) == payload if changed else True, name


def test_sample_id_is_idempotent_and_sees_its_parts(context: Make) -> None:
    request = Request(row_no=0, key="k", prompt="a cat", seed=3)
    same = sample_identity(request, context())
    assert same == sample_identity(
        Request(row_no=7, key="k", prompt="a cat", seed=3), context(run_id="another", worker_id="w9")
    )
    others = [
        Request(row_no=0, key="k2", prompt="a cat", seed=3),
        Request(row_no=0, key="k", prompt="a dog", seed=3),
        Request(row_no=0, key="k", prompt="a cat", seed=4),
    ]
    ids = {same, *(sample_identity(r, context()) for r in others), sample_identity(request, context(dataset_id="x"))}
    assert len(ids) == 5


def test_commitment_is_salted() -> None:
    assert prompt_commitment("a cat", "", "00") != prompt_commitment("a cat", "", "01")
    assert prompt_commitment("ab", "c", "00") != prompt_commitment("a", "bc", "00")


@pytest.mark.parametrize(("image_format", "media_type"), [("webp", "image/webp"), ("png", "image/png"), ("jpeg", "image/jpeg")])
def test_formats(image_format: str, media_type: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    encoded = encode(picture, image_format, xmp_packet(ai_system='a "b" <c>', ai_version="1", software="s"))
    pixels, xmp = decode(encoded.data)
    assert encoded.media_type == media_type and DIGITAL_SOURCE_TYPE.encode() in xmp
    assert pixels.shape == picture.shape
    if image_format != "jpeg":
        assert pixel_digest(pixels) == pixel_digest(picture)
    assert encode(picture, image_format, xmp).data == encode(picture, image_format, xmp).data


def test_thumbnails_are_exact_when_small_and_small_when_large() -> None:
    small = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(decode(thumbnail(small))[0], small)
    assert decode(thumbnail(np.zeros((300, 600, 3), np.uint8)))[0].shape == (64, 128, 3)


def test_fixed_size_embeddings_adapters_and_retention(samples: Sequence[Sample], context: Make) -> None:
    made = context(
        embedding_dim=8, adapters=(Adapter(name="e", kind="lora", digest="77", weight=0.5, tokens=("<qr>",)),), retention_days=2
    )
    table = sample_table(samples, made, "s0")
    row = table.to_pylist()[0]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<item: halffloat>[8]" and len(row["embedding"]) == 8
    assert row["adapters"] == [{"name": "e", "kind": "lora", "digest": "77", "weight": 0.5, "tokens": ["<qr>"]}]
    assert (row["retain_until"] - row["finished_at"]).days == 2


def test_what_is_refused(samples: Sequence[Sample], context: Make) -> None:
    from dataclasses import replace

    with pytest.raises(IntegrityError, match="appear twice"):
        sample_table([samples[0], samples[0]], context(), "s0")
    wrong = replace(samples[0], attempts=(replace(samples[0].attempts[0], pixel_sha256="00"),))
    with pytest.raises(IntegrityError, match="does not match"):
        sample_table([wrong], context(), "s0")
    with pytest.raises(IntegrityError, match="does not match"):
        attempt_table([wrong], context(), "s0")
    with pytest.raises(InputError, match="64 bits"):
        sample_table([replace(samples[0], request=replace(samples[0].request, seed=2**64))], context(), "s0")
    with pytest.raises(ConfigError, match="unknown image format"):
        sample_table(samples, context(image_format="bmp"), "s0")
    with pytest.raises(IntegrityError, match="cannot be decoded"):
        decode(b"nothing")
