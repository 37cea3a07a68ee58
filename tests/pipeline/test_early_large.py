"""Probes that compare latents beside a large index: the same bytes, bounded memory, and a sentence where they stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from index.colours import hue_shares, in_hues
from index.errors import InputError
from index.reference import NewReference, Reference
from index.shipped import STICKERS
from index.store import ReferenceIndex
from index.vectors import StoredVectors
from jobs.run.preflight.notes import notes_of
from pipeline.config import ModelConfig, RunConfig
from pipeline.model.load import load_model
from pipeline.policy import EarlyPolicy, Policy
from pipeline.references import References
from pipeline.respond.early import HEAD, set_aside
from pipeline.respond.reference_latents import LATENTS, ReferenceLatents
from pipeline.rungs import NudgeRung
from tests.index.conftest import GridEmbedder, drawing

HUES = 3
PROBED = Policy(ladder=(NudgeRung(),), early=EarlyPolicy(enabled=True, signal="latent", threshold=0.5))
FLUX = (16, 128, 128)  # of a latent at 1024 × 1024


class Counted:
    """An index that is only asked how many references can match, and which keep their picture."""

    embedder_id, folder = "grid-1", Path("index")

    def __init__(self, matching: int, bare: int = 0) -> None:
        self.matching, self.bare = matching, bare

    def __len__(self) -> int:
        return self.matching

    def in_force(self) -> Iterator[Reference]:
        return (Reference(ref_id=str(n), title="", content_sha256="", pdq="") for n in range(self.matching))

    def keeps(self, ref_id: str) -> bool:
        return int(ref_id) >= self.bare


def test_references_of_the_embedded_world_have_the_rows_that_they_had(tmp_path: Path) -> None:
    """Encoded all at once, as earlier versions did, and in blocks of a bounded number."""
    pictures = [drawing(n) for n in range(12)]
    works = [NewReference(title=f"{n}", picture=p, keep_picture=True) for n, p in enumerate(pictures)]
    index = ReferenceIndex.build(tmp_path / "i", works, GridEmbedder())
    model = load_model(ModelConfig())
    kept = {r.ref_id: p for r in index.references() if (p := index.picture(r.ref_id)) is not None}
    plain = dict(zip(kept, model.encode(np.stack(list(kept.values()))), strict=True))
    turned = {r: model.encode(np.stack(list(in_hues(p, hue_shares(HUES))))) for r, p in kept.items()}
    centre = torch.stack(list(plain.values())).mean(0)
    rows = torch.stack([(z - centre).flatten() for r in kept for z in (plain[r], *turned[r])])
    expected = torch.nn.functional.normalize(rows.double(), dim=1)

    lab = ReferenceLatents.encoded(index, model, HUES)
    of = References(index, model, hues=HUES)
    run = ReferenceLatents(index, of.latent, lambda: of.centre, of.recoloured, of.encode_ahead)
    for one in (lab, run):
        one.search([], 1)
        assert one._ready is not None
        assert [(r.ref_id, is_turned) for r, is_turned in one._ready[0]] == [(r, n > 0) for r in kept for n in range(HUES)]
        assert torch.equal(one._ready[1], expected)


def test_a_reference_that_a_probe_finds_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = {str(n): torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(9)}
    asked: list[list[str]] = []

    def found() -> list[tuple[str, float]]:
        near = ReferenceLatents(Counted(9), latents.get, lambda: torch.zeros(4, 8, 8), encode_ahead=asked.append)  # type: ignore[arg-type]
        return [(hit.match.ref_id, hit.match.similarity) for [hit] in near.search(list(latents.values()), 1)]

    at_once = found()
    monkeypatch.setattr("pipeline.respond.reference_latents.ENCODED", 4)
    assert found() == at_once
    assert [ref_id for ref_id, _ in at_once] == list(latents)
    assert [len(block) for block in asked] == [9, 4, 4, 1]


@pytest.mark.parametrize(
    ("matching", "bare", "numbers", "why"),
    [
        (LATENTS, 0, 0, ""),
        (LATENTS + 1, 0, 0, "513 references can match, and latents are compared with 512 at most"),
        (LATENTS, 0, 16 * 128 * 128, ""),
        (LATENTS, 0, 16 * 256 * 256, "latents of the 512 references that can match would take 4.0 GiB"),
        (4, 3, 0, "the index has no picture of 3 of the 4 references that can match"),
    ],
)
def test_latents_stand_for_an_index_up_to_a_number_and_a_size(matching: int, bare: int, numbers: int, why: str) -> None:
    index = Counted(matching, bare)
    assert ReferenceLatents.obstacle(index, numbers) == why  # type: ignore[arg-type]
    assert ReferenceLatents.possible(index, numbers) == (not why)  # type: ignore[arg-type]


def test_a_large_index_sets_the_latents_aside_in_words() -> None:
    sentence = set_aside(PROBED, Counted(600), "m")  # type: ignore[arg-type]
    assert "600 references can match" in sentence
    assert "early.threshold = 0.5 counts for cosines of embeddings" in sentence
    assert 'early.signal = "head" or "decode"' in sentence


@pytest.mark.parametrize("early", [EarlyPolicy(), EarlyPolicy(enabled=True, signal="head")])
def test_where_latents_are_not_to_be_compared_nothing_is_set_aside(early: EarlyPolicy) -> None:
    """Probes are off, or look in the embedder's space."""
    assert set_aside(Policy(ladder=(NudgeRung(),), early=early), Counted(600), "m") == ""  # type: ignore[arg-type]


def test_probes_without_thresholds_for_the_model_are_set_aside_in_words() -> None:
    shipped, policy = json.loads((HEAD / "thresholds.json").read_text()), replace(PROBED, early=EarlyPolicy(enabled=True))
    index: Any = SimpleNamespace(embedder_id=shipped["embedder_id"], matching=3)
    sentence = set_aside(policy, index, "another model")
    assert sentence.startswith("no thresholds of probes are calibrated for this model and embedder: probes decode and embed")
    assert set_aside(policy, index, "") == ""  # a dry run that found no model
    index.embedder_id = "another"
    assert set_aside(policy, index, shipped["model_digest"]) == sentence


def test_run_dry_run_and_doctor_note_an_index_that_is_too_large(tmp_path: Path) -> None:
    for name, count in (("large", LATENTS + 1), ("small", 3)):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(count, GridEmbedder.dim)).astype("<f4"))
        vectors = StoredVectors(tmp_path / f"{name}.npy", GridEmbedder.dim)
        ReferenceIndex.build_of_vectors(tmp_path / name, vectors, GridEmbedder())

    def noted(index: str) -> list[str]:
        config = RunConfig(prompts="-", index=index)
        return [note.text for note in notes_of(config, PROBED, tmp_path, model_digest="m") if note.topic == "early"]

    assert [text.partition(",")[0] for text in noted("large")] == ["513 references can match"]
    assert [text.partition(":")[0] for text in noted("small")] == [
        "the index has no picture of 3 of the 3 references that can match"
    ]


def test_the_bench_refuses_a_large_index_before_it_draws() -> None:
    with pytest.raises(InputError, match=r"index: has 513 references, and latents are compared with all of them"):
        ReferenceLatents.encoded(Counted(LATENTS + 1), SimpleNamespace(), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "kept", "coloured"), [((4, 8, 8), 4096, 512), ((4, 128, 128), 4096, 341), (FLUX, 1024, 85)])
def test_latents_that_are_kept_are_bounded_in_bytes(shape: tuple[int, int, int], kept: int, coloured: int) -> None:
    references = References(None, SimpleNamespace(latent_shape=shape), hues=12)  # type: ignore[arg-type]
    assert references.latent.cache_info().maxsize == kept
    assert references.recoloured.cache_info().maxsize == coloured


def test_the_shipped_policy_compares_latents_with_the_embedded_world() -> None:
    """The index of the demo is far below the limit: its probes are what they were."""
    assert len(list((STICKERS / "references").glob("*.png"))) < LATENTS
