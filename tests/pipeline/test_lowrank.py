"""Low-rank weights on some rows of a call: those rows are a merged model's, the others keep their bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ModelError
from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.lowrank import LowRank, RowAdapter, adapted
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model

from .adapters import ATTENTION, low_rank

STEPS = 4


def call(model: DiffusionModel, wanted: Sequence[RowAdapter], rows: int = 6) -> torch.Tensor:
    latents = torch.randn(rows, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    context = model.encode_prompts(["cat"])[0].expand(rows)
    with adapted(model.network, wanted):
        return model.denoise(latents, torch.full((rows,), 500), context)


def test_rows_without_the_adapter_keep_their_bytes(model: DiffusionModel) -> None:
    weights, plain = low_rank(model), call(model, [])
    for rows in ([2], [0, 2, 5], [1, 2, 3, 4]):
        mixed = call(model, [RowAdapter(weights, 1.0, tuple(rows))])
        for row in range(6):
            assert torch.equal(mixed[row], plain[row]) == (row not in rows)
        assert torch.equal(mixed[2], call(model, [RowAdapter(weights, 1.0, (2,))])[2])  # whoever stands beside it
    assert torch.equal(call(model, []), plain)
    assert torch.equal(call(model, [RowAdapter(weights, 0.0, (2,))])[0], plain[0])


def test_adapted_rows_are_those_of_merged_weights(exact: DiffusionModel, tiny_sd: Path) -> None:
    weights, other = low_rank(exact), load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    modules = dict(other.network.named_modules())
    with torch.no_grad():
        for name, (down, up) in weights.pairs.items():
            modules[name].weight += 0.7 * (up.flatten(1) @ down.flatten(1)).view_as(modules[name].weight)
    ours = call(exact, [RowAdapter(weights, 0.7, (0, 1, 2, 3, 4, 5))])
    assert torch.allclose(ours, call(other, []), atol=1e-4) and not torch.allclose(ours, call(exact, []), atol=1e-3)


def test_two_adapters_in_one_call(model: DiffusionModel) -> None:
    first, second = low_rank(model, seed=1), low_rank(model, seed=2)
    both = call(model, [RowAdapter(first, 1.0, (0, 1)), RowAdapter(second, 0.5, (3,))])
    assert torch.equal(both[:2], call(model, [RowAdapter(first, 1.0, (0, 1))])[:2])
    assert torch.equal(both[3], call(model, [RowAdapter(second, 0.5, (3,))])[3])


def test_the_mask_of_a_call_is_made_once(model: DiffusionModel) -> None:
    from torch.overrides import TorchFunctionMode

    class Counting(TorchFunctionMode):
        made = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.made += function is torch.tensor
            return function(*args, **(kwargs or {}))

    latents, context = torch.zeros(4, *model.latent_shape), model.encode_prompts(["cat"])[0].expand(4)
    with adapted(model.network, [RowAdapter(low_rank(model), 1.0, (1,))]), Counting() as counting:  # three modules, two ranks
        model.denoise(latents, torch.full((4,), 500), context)
    assert counting.made == 1


def test_an_adapter_without_rows_acts_on_all(model: DiffusionModel) -> None:
    weights = low_rank(model)
    assert torch.equal(
        call(model, [RowAdapter(weights, 0.5, None)]), call(model, [RowAdapter(weights, 0.5, (0, 1, 2, 3, 4, 5))])
    )


def test_a_module_has_a_scale_of_its_own(model: DiffusionModel) -> None:
    weights = low_rank(model)
    halved = LowRank("halved", weights.pairs, dict.fromkeys(weights.pairs, 0.5))
    assert torch.equal(call(model, [RowAdapter(halved, 1.0, (2,))]), call(model, [RowAdapter(weights, 0.5, (2,))]))


def test_weights_of_another_network_are_refused(exact: DiffusionModel) -> None:
    lost = LowRank("lost", {"nowhere.to_k": (torch.zeros(1, 4), torch.zeros(4, 1))})
    with pytest.raises(ModelError, match="does not have"):
        lost.products(exact.network)
    wrong = LowRank("wrong", {ATTENTION: (torch.zeros(1, 4), torch.zeros(4, 1))})
    with pytest.raises(ModelError, match="shape"):
        wrong.products(exact.network)


def test_engine_bytes_do_not_depend_on_other_adapted_samples(model: DiffusionModel) -> None:
    weights = low_rank(model)

    def sample(e: Engine, tag: int) -> Trajectory:
        texts = e.model.encode_prompts([f"a red apple {tag}", ""])
        t = Trajectory(tag=tag, latent=e.initial_noise(tag), step=0, context=texts[0], negative=texts[1])
        t.lowrank = ((weights, 1.0),) if tag % 2 else ()
        return t

    def draw(tags: Sequence[int]) -> dict[int, torch.Tensor]:
        e = Engine(model, rows=8, steps=STEPS, guidance_scale=3.0)
        for tag in tags:
            e.submit(sample(e, tag))
        done: dict[int, torch.Tensor] = {}
        while e.busy:
            done |= {t.tag: t.latent for t in e.step()}
        return done

    alone = {tag: draw([tag])[tag] for tag in range(5)}
    for order in ([0, 1, 2, 3, 4], [4, 1, 3, 0, 2]):
        mixed = draw(order)
        assert all(torch.equal(mixed[tag], alone[tag]) for tag in range(5))


ORDERS = {"style, ink": ("style", "ink"), "ink, style": ("ink", "style"), "style": ("style",), "ink": ("ink",), "": ()}


def test_engine_bytes_of_a_sample_with_two_adapters_do_not_depend_on_its_company(model: DiffusionModel) -> None:
    """Each sample's adapters are added in its own order: (x + a) + b is not (x + b) + a in rounded numbers."""
    named = {"style": (low_rank(model, seed=1), 1.0), "ink": (low_rank(model, seed=2), 1.0)}
    texts = model.encode_prompts(["a red apple", ""])

    def draw(*rows: str) -> dict[str, torch.Tensor]:
        e = Engine(model, rows=12, steps=STEPS, guidance_scale=3.0)
        wearing = [tuple(named[name] for name in ORDERS[row]) for row in rows]
        samples = [
            Trajectory(tag=i, latent=e.initial_noise(7), step=0, context=texts[0], negative=texts[1], lowrank=worn)
            for i, worn in enumerate(wearing)
        ]
        done = e.finish(samples)
        return {row: done[i] for i, row in enumerate(rows)}

    rows = list(ORDERS)
    alone = {row: draw(row)[row] for row in rows}
    for company in (turned for way in (rows, rows[::-1]) for turned in (way[i:] + way[:i] for i in range(len(way)))):
        mixed = draw(*company)
        assert all(torch.equal(mixed[row], alone[row]) for row in rows), company


def test_an_adapter_in_two_strengths_acts_on_each_row_with_its_own(model: DiffusionModel) -> None:
    weights, other = low_rank(model, seed=1), low_rank(model, seed=2)
    texts = model.encode_prompts(["a red apple", ""])
    worn = [((weights, 0.5), (other, 1.0)), ((weights, 1.0), (other, 1.0)), ((other, 1.0), (weights, 0.5))]

    def draw(*which: int) -> dict[int, torch.Tensor]:
        e = Engine(model, rows=8, steps=STEPS, guidance_scale=3.0)
        return e.finish(
            [
                Trajectory(tag=i, latent=e.initial_noise(7), step=0, context=texts[0], negative=texts[1], lowrank=worn[i])
                for i in which
            ]
        )

    alone = {i: draw(i)[i] for i in range(3)}
    for company in itertools.permutations(range(3)):
        assert all(torch.equal(z, alone[i]) for i, z in draw(*company).items()), company
    assert not torch.equal(alone[0], alone[1])
