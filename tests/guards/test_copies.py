"""Copies: scores, the second look, categories, and what an empty index means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from guards.conformance import check_guard
from guards.copies import CopiesGuard
from index.calibrate import OperatingPoint
from index.colours import in_hues, turn_hues
from index.errors import IndexMismatch
from index.reference import Match
from index.undone import WINDOWS


class TinyEmbedder:
    """The mean colours of a 2×2 grid, as a unit vector."""

    embedder_id = "tiny"
    dim = 12

    def images(self, pictures: np.ndarray) -> np.ndarray:
        pictures = pictures.repeat(2 if pictures.shape[1] < 2 else 1, 1).repeat(2 if pictures.shape[2] < 2 else 1, 2)
        n, high, wide, _ = pictures.shape
        quarters = [pictures[:, y : y + high // 2, x : x + wide // 2] for y in (0, high // 2) for x in (0, wide // 2)]
        rows = [np.concatenate([q[i].mean((0, 1)) for q in quarters]) for i in range(n)]
        vectors = np.stack(rows).astype(np.float32) - 128
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def texts(self, captions: Any) -> np.ndarray:
        raise NotImplementedError


class TinyIndex:
    """References in a list; the fields of a match other than similarity are given."""

    embedder_id = "tiny"

    def __init__(self, works: list[tuple[Match, np.ndarray]], pictures: bool = True) -> None:
        self.works = [(match, TinyEmbedder().images(picture[None])[0]) for match, picture in works]
        self.pictures = {match.ref_id: picture for match, picture in works} if pictures else {}

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Match]]:
        from dataclasses import replace

        rows = [[replace(m, similarity=float(v @ e)) for m, v in self.works] for e in embeddings]
        return [sorted(row, key=lambda m: -m.similarity)[:k] for row in rows]

    def compare(self, embedding: np.ndarray, ref_id: str) -> Match:
        from dataclasses import replace

        return next(replace(m, similarity=float(v @ embedding)) for m, v in self.works if m.ref_id == ref_id)

    def picture(self, ref_id: str) -> np.ndarray | None:
        return self.pictures.get(ref_id)

    def get(self, ref_id: str) -> Match | None:
        return next((match for match, _ in self.works if match.ref_id == ref_id), None)


def same(picture: np.ndarray, reference: np.ndarray) -> float:
    return float((picture == reference).mean()) if picture.shape == reference.shape else 0.0


def work(ref_id: str, basis: str = "claim", status: str = "active") -> Match:
    return Match(ref_id=ref_id, title=ref_id.title(), similarity=0.0, rights_basis=basis, status=status)


def guard(works: list[tuple[Match, np.ndarray]], *, pictures: bool = True, **settings: Any) -> CopiesGuard:
    names = [field.name for field in fields(OperatingPoint)]
    point = OperatingPoint(
        **{"threshold": 0.999, "confirm_threshold": 0.9, **{n: settings.pop(n) for n in names if n in settings}}
    )
    return CopiesGuard(TinyIndex(works, pictures), TinyEmbedder(), point=point, **{"confirm": same, **settings})  # type: ignore[arg-type]


def test_it_conforms(clean: np.ndarray) -> None:
    check_guard(guard([(work("a"), clean[0]), (work("b", "memorisation_probe"), clean[1])]), clean[:5])


def test_a_copy_is_confirmed(clean: np.ndarray) -> None:
    examined = guard([(work("apple"), clean[0]), (work("pear"), clean[1])]).examine(clean[:3])
    hit = examined[0]
    protected, memorised, geometry, recoloured = hit.findings
    assert (
        protected.triggered and protected.confirmed and protected.ref_id == "apple" and protected.category == "copy.protected"
    )
    assert protected.score == pytest.approx(1, abs=1e-6) and protected.threshold == 0.999
    assert memorised.score == -1 and not memorised.triggered
    assert geometry.score == 1 and not geometry.triggered  # by default the second look never suffices alone
    assert recoloured.category == "copy.recoloured" and recoloured.score == 0  # it is too near as it is
    assert hit.nearest[0].ref_id == "apple" and hit.nearest[0].confirm == 1.0
    assert hit.nearest[1].confirm is None  # below the threshold nobody looks twice
    assert hit.embedding.shape == (12,) and hit.embedding.dtype == np.float32
    assert not examined[2].findings[0].triggered and examined[2].findings[0].ref_id in ("apple", "pear")


def test_people_read_the_title_and_steering_reads_the_id(clean: np.ndarray) -> None:
    (examined,) = guard(
        [(Match(ref_id="3f9a0c", title="A red apple", similarity=0.0, rights_basis="claim", status="active"), clean[0])]
    ).examine(clean[:1])
    assert (examined.findings[0].ref_id, examined.findings[0].detail) == ("3f9a0c", "A red apple")
    assert [finding.ref_id for finding in examined.findings if not finding.triggered and not finding.score > 0] == ["", ""]


def test_check_is_the_findings_of_examine(clean: np.ndarray) -> None:
    copies = guard([(work("apple"), clean[0])])
    assert copies.check(clean) == [list(e.findings) for e in copies.examine(clean)]


def test_the_second_look_can_disagree(clean: np.ndarray) -> None:
    finding = guard([(work("apple"), clean[0])], confirm=lambda *_: 0.2).check(clean[:1])[0][0]
    assert finding.triggered and not finding.confirmed


def test_without_the_reference_picture_similarity_alone_counts(clean: np.ndarray) -> None:
    (examined,) = guard([(work("apple"), clean[0])], pictures=False, confirm=lambda *_: 0.0).examine(clean[:1])
    assert examined.nearest[0].confirm is None and examined.findings[0].confirmed


def test_memorised_works_have_their_own_category(clean: np.ndarray) -> None:
    protected, memorised, *_ = guard([(work("probe", "memorisation_probe"), clean[0])]).check(clean[:1])[0]
    assert protected.score == -1 and memorised.triggered and memorised.category == "copy.memorised"
    assert memorised.ref_id == "probe"


def test_a_look_that_cannot_judge_clears_nothing(clean: np.ndarray) -> None:
    made = guard([(work("apple"), clean[0])], veto_below=0.2, confirm=lambda *_: float("nan"))
    (examined,) = made.examine(clean[:1])
    assert examined.nearest[0].confirm is None
    assert examined.findings[0].triggered and examined.findings[0].confirmed


def test_a_confirmed_reference_outranks_a_nearer_unconfirmed_one(clean: np.ndarray) -> None:
    twin = clean[0].copy()
    twin[:8] //= 2
    works = [(work("decoy"), clean[0]), (work("real"), twin)]
    finding = guard(works, threshold=0.5, confirm=lambda _, ref: float(np.array_equal(ref, twin))).check(clean[:1])[0][0]
    assert finding.ref_id == "real" and finding.confirmed and 0.5 < finding.score < 1


@pytest.mark.parametrize("status", ["retired", "allowed"])
def test_references_that_forbid_nothing_are_shown_but_not_flagged(clean: np.ndarray, status: str) -> None:
    (examined,) = guard([(work("old", status=status), clean[0])]).examine(clean[:1])
    assert [m.ref_id for m in examined.nearest] == ["old"] and examined.findings[0].score == -1


def test_an_empty_index_flags_nothing(clean: np.ndarray) -> None:
    examined = guard([]).examine(clean[:2])
    assert [f.score for e in examined for f in e.findings] == [-1.0, -1.0, 0.0, 0.0] * 2
    assert not any(f.triggered for e in examined for f in e.findings) and examined[0].nearest == ()


def test_an_index_of_another_embedder_is_refused(clean: np.ndarray) -> None:
    index = TinyIndex([(work("a"), clean[0])])
    index.embedder_id = "other"
    with pytest.raises(IndexMismatch, match="other"):
        CopiesGuard(index, TinyEmbedder(), point=OperatingPoint(threshold=0.9))  # type: ignore[arg-type]


def test_the_second_look_may_suffice_alone(clean: np.ndarray) -> None:
    settings = {"threshold": 1.01, "look_from": -1.0, "alone_threshold": 0.8}
    works = [(work("apple"), clean[0]), (work("pear"), clean[1])]
    sure = guard(works, confirm=lambda _, ref: 0.9 * float(np.array_equal(ref, clean[1])), **settings).examine(clean[:1])[0]
    protected, _, geometry, _ = sure.findings
    assert not protected.triggered and geometry.triggered and geometry.category == "copy.geometry"
    assert not geometry.confirmed  # one opinion does not reject
    assert geometry.score == 0.9 and geometry.ref_id == "pear"  # not the nearest by cosine, but the one that was recognised
    unsure = guard(works, confirm=lambda *_: 0.7, **settings).check(clean[:1])[0]
    assert not any(finding.triggered for finding in unsure)


def test_there_is_no_second_look_below_look_from(clean: np.ndarray) -> None:
    asked: list[int] = []
    settings = {"threshold": 1.01, "look_from": 1.005, "alone_threshold": 0.0}
    found = guard([(work("apple"), clean[0])], confirm=lambda *_: float(asked.append(1) or 1), **settings).check(clean[:1])[0]
    assert not asked and found[2].score == 0.0


def test_the_second_look_may_clear_what_the_embedder_flags(clean: np.ndarray) -> None:
    works = [(work("apple"), clean[0]), (work("pear"), clean[1])]
    looks = {0: 0.05, 1: 0.9}

    def look(_: np.ndarray, reference: np.ndarray) -> float:
        return looks[int(np.array_equal(reference, clean[1]))]

    examined = guard(works, threshold=-0.99, veto_below=0.1, confirm=look).examine(clean[:1])[0]
    assert examined.nearest[0].ref_id == "apple" and examined.nearest[0].confirm == 0.05  # on record all the same
    assert examined.findings[0].ref_id == "pear" and examined.findings[0].triggered
    looks[1] = 0.0
    assert not guard(works, threshold=-0.99, veto_below=0.1, confirm=look).check(clean[:1])[0][0].triggered


def test_a_pictures_own_reference_is_looked_at_however_far_it_is(clean: np.ndarray) -> None:
    """A copy in other colours: the embedder finds it nowhere near, laid over the reference it is the same drawing."""
    works = [(work(name), clean[i]) for i, name in enumerate(("apple", "pear", "plum"))]
    recoloured = 255 - clean[0][None]
    cosine = TinyEmbedder().images(recoloured)[0] @ TinyEmbedder().images(clean[:1])[0]
    assert cosine < 0

    def edges(picture: np.ndarray, reference: np.ndarray) -> float:
        return float(any((picture == side).all() for side in (reference, 255 - reference)))

    copies = guard(works, confirm=edges, k=1, look_from=0.9, alone_threshold=0.5)
    (missed,) = copies.examine(recoloured)
    assert "apple" not in [match.ref_id for match in missed.nearest] and not any(f.triggered for f in missed.findings)
    (found,) = copies.examine(recoloured, [["apple"]])
    geometry = found.findings[2]
    assert geometry.category == "copy.geometry" and geometry.triggered and geometry.ref_id == "apple"
    assert not geometry.confirmed, "alone it steers and asks a person, and never rejects"
    (other,) = copies.examine(recoloured, [["plum"]])
    assert not any(f.triggered for f in other.findings)


def test_likeness_is_the_second_look_at_a_pictures_own_references_alone(clean: np.ndarray) -> None:
    works = [(work("apple"), clean[0]), (work("pear", status="retired"), clean[1]), (work("plum"), clean[2])]
    looked: list[float] = []

    def look(picture: np.ndarray, reference: np.ndarray) -> float:
        looked.append(0.95 if (picture == reference).all() else 0.3)
        return looked[-1]

    copies = guard(works, confirm=look, alone_threshold=0.5)
    found = copies.likeness(clean[0], ["plum", "apple"])
    assert found is not None
    match, bar = found
    assert (match.ref_id, match.title, match.similarity, match.confirm, bar) == ("apple", "Apple", 0.95, 0.95, 0.9)
    assert looked == [0.3, 0.95]
    assert copies.likeness(clean[0], ["plum"]) is None, "no other reference is looked for"
    assert copies.likeness(clean[1], ["pear"]) is None, "a retired one forbids nothing"
    assert copies.likeness(clean[0], []) is None and copies.likeness(clean[0], ["gone"]) is None
    assert guard(works, pictures=False, confirm=look).likeness(clean[0], ["apple"]) is None


RNG = np.random.default_rng(7)


def coloured() -> np.ndarray:
    """A picture of saturated blocks: its hues turned, the tiny embedder finds it elsewhere."""
    blocks = np.kron(RNG.integers(0, 2, (4, 4, 3)) * 200 + 20, np.ones((8, 8, 1)))
    return np.asarray(blocks, np.uint8)


def shape(picture: np.ndarray, reference: np.ndarray) -> float:
    """A second look that is blind to hue: brightest channel against brightest channel."""
    return float((picture.max(2) == reference.max(2)).mean())


def test_a_copy_in_other_colours_is_found_by_turning_its_hues() -> None:
    works = [(work(name), coloured()) for name in ("apple", "pear", "plum")]
    copy = turn_hues(works[0][1], 1 / 3)[None]
    plain, turning = (guard(works, confirm=shape, threshold=0.95, hues=hues) for hues in (1, 12))
    assert not any(finding.triggered for finding in plain.check(copy)[0])
    (found,) = turning.examine(copy)
    *others, recoloured = found.findings
    assert not any(finding.triggered for finding in others)
    assert recoloured.triggered and recoloured.confirmed and recoloured.ref_id == "apple" and recoloured.score == 1
    assert next(m for m in found.nearest if m.ref_id == "apple").confirm == 1


def test_what_the_second_look_finds_to_be_another_drawing_is_no_copy_in_other_colours() -> None:
    works = [(work(name), coloured()) for name in ("apple", "pear", "plum")]
    copy = turn_hues(works[0][1], 1 / 3)[None]
    # Just below its bar, and above that for the geometry: what was looked at for its other colours is held to the stricter one.
    copies = guard(works, confirm=lambda *_: 0.79, threshold=0.95, look_from=0.9, alone_threshold=0.3, hues=12)
    (found,) = copies.examine(copy)
    assert found.findings[-1].score == 0.79 and not any(finding.triggered for finding in found.findings)
    assert all(match.confirm is None for match in found.nearest), "it is no evidence for anything else"


@pytest.mark.parametrize("status", ["retired", "allowed"])
def test_colours_of_references_that_forbid_nothing_do_not_matter(status: str) -> None:
    picture = coloured()
    copies = guard([(work("old", status=status), picture)], confirm=shape, threshold=0.95, hues=12)
    assert not any(finding.triggered for finding in copies.check(turn_hues(picture, 1 / 3)[None])[0])


class Fitting(TinyEmbedder):
    """A tiny embedder whose network takes pictures of 16 pixels; it notes the shape of everything that it embeds."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def fitted(self, picture: np.ndarray) -> np.ndarray:
        step = picture.shape[0] // 16
        return np.ascontiguousarray(picture[::step, ::step])

    def images(self, pictures: np.ndarray) -> np.ndarray:
        self.seen.append(pictures.shape)
        return super().images(pictures)


def test_pictures_and_their_colours_share_calls_in_the_embedders_size() -> None:
    works = [(work(name), coloured()) for name in ("apple", "pear", "plum")]
    large = np.stack([np.kron(picture, np.ones((8, 8, 1), np.uint8)) for _, picture in works])
    embedder = Fitting()
    copies = CopiesGuard(TinyIndex(works), embedder, point=OperatingPoint(threshold=0.95), hues=12, confirm=lambda *_: 0.9)  # type: ignore[arg-type]
    together = copies.examine(large)
    assert embedder.seen == [(3 * 12, 16, 16, 3)], "one list of all pictures in all colours, none of them large"
    alone = [copies.examine(picture[None])[0] for picture in large]
    assert [one.findings for one in together] == [one.findings for one in alone]
    embedder.seen.clear()
    assert copies.examine(large, embeddings=np.stack([one.embedding for one in together]))[2].findings == alone[2].findings
    assert embedder.seen == [(3 * 11, 16, 16, 3)], "what is known is not embedded again"


def test_hues_of_a_large_picture_are_turned_once_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[tuple[int, ...]] = []

    def seen(picture: np.ndarray, shares: Iterable[float]) -> Iterator[np.ndarray]:
        turned.append(picture.shape)
        return in_hues(picture, shares)

    monkeypatch.setattr("guards.copies.in_hues", seen)
    works = [(work(name), coloured()) for name in ("apple", "pear", "plum")]
    large = np.kron(turn_hues(works[1][1], 2 / 3), np.ones((8, 8, 1), np.uint8))
    copies = CopiesGuard(TinyIndex(works), Fitting(), point=OperatingPoint(threshold=0.95), hues=12, confirm=lambda *_: 0.9)  # type: ignore[arg-type]
    (found,) = copies.examine(large[None])
    assert found.findings[-1].triggered and found.findings[-1].ref_id == "pear"
    assert large.shape[0] > 16 and turned[0] == (16, 16, 3)


def noise(seed: int) -> np.ndarray:
    """A picture whose quarters differ; turned, inverted or cut into, the tiny embedder finds it elsewhere."""
    rng = np.random.default_rng(seed)
    return np.asarray(np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((10, 10, 1))), np.uint8)


def on_a_page(picture: np.ndarray) -> np.ndarray:
    """The picture where the first of the smallest windows lies."""
    side = round(40 / WINDOWS[-1][0])
    page = np.full((side, side, 3), 100, np.uint8)
    page[:40, :40] = picture
    return page


EDITED = {"turned": lambda picture: np.rot90(picture).copy(), "negative": lambda picture: 255 - picture, "inset": on_a_page}


@pytest.mark.parametrize("edit", EDITED)
def test_a_copy_that_hides_behind_an_edit_is_found_where_the_edit_is_undone(edit: str) -> None:
    works = [(work(name), noise(seed)) for seed, name in enumerate(("apple", "pear", "plum"))]
    copy = EDITED[edit](works[0][1])[None]
    plain, undoing = (guard(works, threshold=0.99, edits=edits) for edits in ((), ("turned", "negative", "inset")))
    assert not any(finding.triggered for finding in plain.check(copy)[0])
    (found,) = undoing.examine(copy)
    hits = [finding for finding in found.findings if finding.triggered]
    assert [(hit.category, hit.ref_id, hit.confirmed, hit.score) for hit in hits] == [(f"copy.{edit}", "apple", True, 1.0)]
    assert next(match for match in found.nearest if match.ref_id == "apple").confirm == 1
    assert [finding.category for finding in found.findings] == list(undoing.categories)


def test_edits_are_undone_only_where_they_are_asked_for() -> None:
    works = [(work("apple"), noise(0))]
    turning = guard(works, threshold=0.99, edits=("turned",))
    assert turning.categories == (*CopiesGuard.categories, "copy.turned")
    assert not any(finding.triggered for finding in turning.check(255 - noise(0)[None])[0])


def test_an_undone_copy_is_held_to_the_stricter_bar_of_the_second_look() -> None:
    works = [(work("apple"), noise(0))]
    scores = iter((0.79, 0.81))
    copies = guard(works, threshold=0.99, confirm=lambda *_: next(scores), alone_threshold=0.3, edits=("negative",))
    (below, above) = (copies.examine(255 - noise(0)[None])[0] for _ in range(2))
    assert not any(finding.triggered for finding in below.findings) and below.findings[-1].score == 0.79
    assert above.findings[-1].triggered


@pytest.mark.parametrize("status", ["retired", "allowed"])
def test_undone_copies_of_what_forbids_nothing_do_not_matter(status: str) -> None:
    copies = guard([(work("old", status=status), noise(0))], threshold=0.99, edits=("negative",))
    assert not any(finding.triggered for finding in copies.check(255 - noise(0)[None])[0])


def test_a_reference_without_a_picture_is_not_found_undone() -> None:
    copies = guard([(work("apple"), noise(0))], threshold=0.99, pictures=False, edits=("negative",))
    assert not any(finding.triggered for finding in copies.check(255 - noise(0)[None])[0])


def test_what_is_found_as_it_is_is_not_found_again_undone() -> None:
    """A drawing that a half turn leaves as it is has one finding."""
    half = np.asarray(np.kron(np.random.default_rng(1).integers(0, 256, (2, 4, 3)), np.ones((10, 10, 1))), np.uint8)
    same_upside_down = np.concatenate([half, np.rot90(half, 2)])
    copies = guard([(work("apple"), same_upside_down)], threshold=0.99, edits=("turned",))
    assert [f.category for f in copies.check(same_upside_down[None])[0] if f.triggered] == ["copy.protected"]


def test_what_the_second_look_clears_as_it_is_may_still_be_a_copy_with_the_edit_undone() -> None:
    works = [(work("apple"), noise(0))]

    def look(picture: np.ndarray, reference: np.ndarray) -> float:
        return 1.0 if picture.shape == reference.shape else 0.01

    copies = guard(works, threshold=0.2, veto_below=0.05, confirm=look, edits=("inset",))
    (seen,) = copies.examine(on_a_page(noise(0))[None])
    found = {finding.category: finding for finding in seen.findings}
    assert seen.nearest[0].similarity >= 0.2, "near as it is"
    assert not found["copy.protected"].triggered and found["copy.inset"].triggered


def test_pictures_with_edits_undone_are_judged_alike_alone_and_in_company() -> None:
    works = [(work(name), noise(seed)) for seed, name in enumerate(("apple", "pear", "plum"))]
    shown = np.stack([on_a_page(noise(seed)) for seed in (2, 7, 0)])
    copies = guard(works, threshold=0.99, hues=4, edits=("inset", "turned"))
    together = copies.examine(shown)
    assert [one.findings for one in together] == [copies.examine(picture[None])[0].findings for picture in shown]
    assert [next((f.ref_id for f in one.findings if f.triggered), "") for one in together] == ["plum", "", "apple"]
