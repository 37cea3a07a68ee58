"""The training data of the latent head, its thresholds, and the areas of the bench of early detection."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from jobs.lab.bench.early import Seen, area, bench_flights, found_at
from jobs.lab.world.calibrate_head import FALSE_ALARMS, MARGIN, choose
from jobs.lab.world.flights import Flight, subjects, training_flights, watch
from jobs.lab.world.head_data import calibrating, collect_flights, examples
from jobs.lab.world.pictures import WorldError
from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model

DOCS = Path(__file__).resolve().parents[2] / "infra" / "docs" / "bench"


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


class Embedder:
    """Mean colours."""

    embedder_id, dim = "e", 3

    def images(self, pictures: np.ndarray) -> np.ndarray:
        return np.asarray(pictures.reshape(len(pictures), -1, 3).mean(1), np.float32)


def test_unseen_subjects_are_in_no_training_sample() -> None:
    seen, unseen, ordinary = subjects()
    assert len(seen) + len(unseen) == 62 and not set(seen) & set(unseen) and not set(ordinary) & {*seen, *unseen}
    flights = training_flights(600, 0)
    assert flights[:100] == training_flights(100, 0)  # a longer collection begins with the shorter one
    assert {f.kind for f in flights} == {"plain", "mixed", "ordinary"} and len({f.seed for f in flights}) == 600
    assert not {f.subject for f in flights} & set(unseen)
    for f in flights:
        assert (f.subject in f.caption) and (f.kind == "ordinary") == (f.subject == "")


def test_the_bench_has_seeds_of_its_own_and_unseen_subjects() -> None:
    one, two = bench_flights(1), bench_flights(2)
    assert [f.caption for f in one] == [f.caption for f in two]
    seeds = [f.seed for f in (*one, *two, *training_flights(600, 0))]
    assert len(set(seeds)) == len(seeds)
    assert {f.subject for f in one if f.kind == "mixed"} & set(subjects()[1])


def test_watching_changes_nothing(model: DiffusionModel) -> None:
    flights = [
        Flight(kind="plain", caption="a red apple", subject="", seed=5),
        Flight(kind="plain", caption="a pear", subject="", seed=6),
    ]
    seen = watch(model, flights, steps=4, kept=2, rows=8)
    engine = Engine(model, rows=8, steps=4, guidance_scale=3.0)
    context = model.encode_prompts(["a pear", ""])
    engine.submit(Trajectory(tag=0, latent=engine.initial_noise(6), step=0, context=context[0], negative=context[1]))
    (alone,) = [t for _ in range(4) for t in engine.step()]
    assert np.array_equal(model.decode(alone.latent[None])[0], seen.pictures[1])
    assert seen.clean.shape == (2, 2, *model.latent_shape) and seen.text_norms.shape == (2, 4)
    assert (
        seen.score_changes.shape == (2, 4) and (seen.score_changes[:, 0] == 0).all() and (seen.score_changes[:, 1:] > 0).all()
    )
    np.testing.assert_array_equal(seen.update_norms[1], np.float32(alone.update_norms))
    first = engine.sampler.clean(engine.initial_noise(6), torch.zeros(model.latent_shape), 0)[0]
    assert seen.clean[1, 0].shape == tuple(first.shape)


def test_what_another_model_drew_is_not_taken(model: DiffusionModel, tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "flights-000.npz").touch()
    for owner in (None, "another"):
        if owner:
            (tmp_path / "head" / "model.txt").write_text(owner)
        with pytest.raises(WorldError, match=r"another model drew.*remove it"):
            next(collect_flights(tmp_path, model, Embedder(), 8))


def test_a_stopped_collection_goes_on_and_a_quarter_is_for_calibrating(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.lab.world.head_data.CHUNK", 2)
    monkeypatch.setattr("jobs.lab.world.head_data.watch", lambda m, flights: watch(m, flights, steps=3, kept=2, rows=8))
    paths = list(itertools.islice(collect_flights(tmp_path, model, Embedder(), 8), 2))
    before = [p.stat().st_mtime_ns for p in paths]
    assert [p.name for p in collect_flights(tmp_path, model, Embedder(), 8)] == [f"flights-00{i}.npz" for i in range(4)]
    assert [p.stat().st_mtime_ns for p in paths] == before
    data, kept = examples(tmp_path), calibrating(tmp_path)
    assert data.clean.shape == (3 * 2 * 2, *model.latent_shape) and data.step.tolist() == [0, 1] * 6
    assert len(data.target) == 12 and kept["clean"].shape[:2] == (2, 2)
    assert kept["caption"].tolist() == [f.caption for f in training_flights(8, 0)[6:]]


def test_thresholds_keep_the_false_alarm_budget() -> None:
    rng = np.random.default_rng(0)
    copy = np.arange(400) < 100
    best = np.where(copy, rng.normal(0.8, 0.1, 400), rng.normal(0.3, 0.1, 400)).clip(-1, 1)
    armed = np.where(rng.random(400) < 0.7, best, -1.0)
    chosen = choose(best, armed, copy)
    assert chosen["armed"] <= chosen["threshold"] == pytest.approx(best[~copy].max() + MARGIN, abs=1e-3)
    assert chosen["false_alarms"] <= FALSE_ALARMS and chosen["caught"] > 0.7
    hit = (best >= chosen["threshold"]) | (armed >= chosen["armed"])
    assert chosen["caught"] == pytest.approx(hit[copy].mean(), abs=0.02)


def test_areas_are_counted_pair_by_pair() -> None:
    rng = np.random.default_rng(1)
    captions = [f"c{i % 5}" for i in range(60)]
    copy = rng.random(60) < 0.5
    scores = np.round(copy * 0.5 + rng.random(60), 1)  # with ties
    seen = Seen([Flight(kind="mixed", caption=c, subject="", seed=i) for i, c in enumerate(captions)], copy, copy, {})

    def naive(within: bool) -> float:
        pairs = [(i, j) for i in range(60) for j in range(60) if copy[i] and not copy[j]]
        pairs = [(i, j) for i, j in pairs if not within or captions[i] == captions[j]]
        return float(np.mean([(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for i, j in pairs]))

    for level, within in (("seed level", True), ("overall", False)):
        m = area("x", scores, seen, level)
        assert m.value == pytest.approx(naive(within)) and m.low < m.value < m.high
    assert area("x", copy.astype(float), seen, "overall").value == 1.0
    assert area("x", scores, seen, "unseen").n == 0  # no subject here is one the head was kept from


def test_found_copies_are_counted_above_all_but_one_in_a_hundred_others() -> None:
    copy = np.arange(300) < 100
    scores = np.where(copy, np.arange(300), np.arange(300) - 100.0)  # copies 0 … 99, others 0 … 199
    flights = [Flight(kind="mixed", caption=f"c{i % 30}", subject="", seed=i) for i in range(300)]
    seen = Seen(flights, copy, copy, {})
    apart = found_at("x", copy * 1000.0 + scores, seen, "overall")
    assert (apart.value, apart.n) == (1.0, 100)
    assert found_at("x", scores, seen, "overall", alarms=0.5).value == 1.0  # copies are lower: turned round
    half = np.where(copy & (np.arange(300) < 50), 1000.0, scores)
    assert found_at("x", half, seen, "half-memorised").value == 0.5


def test_curves_and_intervals_are_drawn_where_they_belong() -> None:
    from jobs.lab.bench.curves import HIGH, LEAST, MOST, Curve, Panel, charts

    curves = [Curve("low", [(0.1, 0.0, 0.3)] * 3), Curve("high & mighty", [(0.9, 0.8, 1.0), (0.8, 0.7, 1.0), (0.7, 0.5, 0.9)])]
    root = ElementTree.fromstring(charts([Panel("t", curves, "low")] * 2, [1, 2, 3], at=1, goal=0.97, below="x", beside="y"))
    space = "{http://www.w3.org/2000/svg}"
    lines = {line.get("class"): line.get("points", "") for line in root.iter(f"{space}polyline")}
    heights = {name: [float(place.split(",")[1]) for place in points.split()] for name, points in lines.items()}
    assert min(heights["s0"]) > max(heights["s1"]) + 100  # larger values stand higher
    assert heights["s1"] == sorted(heights["s1"]) and len(set(heights["s0"])) == 1
    assert len(list(root.iter(f"{space}polygon"))) == 2  # one band a panel, of the marked curve
    dots = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter(f"{space}circle")]
    assert dots[0][0] == pytest.approx(LEAST + 0.8 * (MOST - LEAST)) and dots[0][1] < dots[1][1]  # the best first
    assert dots[2] == (dots[0][0], dots[0][1] + HIGH)
    with pytest.raises(ValueError, match="colours"):
        charts([Panel("t", curves[:1] * 11, "low")], [1, 2, 3], at=1, goal=0.97, below="x", beside="y")
    assert "high & mighty" in [text.text for text in root.iter(f"{space}text")]


def test_the_shipped_chart_is_of_the_shipped_numbers() -> None:
    from jobs.lab.bench.early import chart

    found = json.loads((DOCS / "early.json").read_text(encoding="utf-8"))
    assert (DOCS / "early.svg").read_text(encoding="utf-8") == chart(found["auc"])


def test_augmented_examples_keep_shape_and_length() -> None:
    from jobs.lab.world.train_head import augmented

    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((16, 4, 8, 8), dtype=np.float32))
    e = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((16, 5), dtype=np.float32)), dim=1)
    steps = torch.arange(16) % 4
    y, t = augmented(x, e, steps, np.random.default_rng(3))
    again, _ = augmented(x, e, steps, np.random.default_rng(3))
    assert y.shape == x.shape and torch.equal(y, again) and not torch.equal(y, x)
    assert torch.allclose(t.norm(dim=1), torch.ones(16), atol=1e-5)
    kept = (t - e).norm(dim=1) < 1e-5
    assert 4 <= int(kept.sum()) < 16  # some are mixed with a mate, most are themselves
