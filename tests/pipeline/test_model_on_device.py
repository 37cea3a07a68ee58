"""What of a model is on its device, in which number format, with which attention; and that a compiled one is not hooked."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError, ModelError, SteeringFailed
from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.lowrank import LowRank, RowAdapter, adapted
from pipeline.model.conditioning import Conditioning
from pipeline.model.contexts import Contexts
from pipeline.model.families.attention import BACKENDS, choose_attention
from pipeline.model.families.registry import model_classes
from pipeline.model.families.resident import resident
from pipeline.model.load import load_model
from pipeline.model.machine import machine
from pipeline.steer.negtome import NegToMe

STEPS = 3


def loaded(folder: Path, **more: Any) -> Any:
    return load_model(ModelConfig(path=str(folder), size=16, text_tokens=24, dtype="float32", **more))


@pytest.mark.parametrize("name", model_classes())
def test_a_denoiser_leaves_its_output_where_it_is(name: str) -> None:
    """A copy to the host would be waited for in every call; the engine reads one small vector."""
    assert ".cpu()" not in inspect.getsource(model_classes()[name].denoise_tensor)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_an_autoencoder_in_bfloat16_decodes_almost_the_same(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    exact, narrow = loaded(folder), loaded(folder, vae_dtype="bfloat16")
    z = torch.randn(2, *exact.latent_shape, generator=torch.Generator().manual_seed(0))
    a, b = (m.decode(z).astype(int) for m in (exact, narrow))
    assert next(narrow.autoencoder.parameters()).dtype is torch.bfloat16
    assert 0 < abs(a - b).max() <= 4
    back = narrow.encode(narrow.decode(z))
    assert back.dtype is torch.float32 and back.isfinite().all()


def test_an_autoencoder_may_decode_in_tiles(tiny_sdxl: Path) -> None:
    assert loaded(tiny_sdxl, vae_tiling=True).autoencoder.use_tiling
    assert not loaded(tiny_sdxl).autoencoder.use_tiling


def test_a_row_names_attention_and_autoencoder() -> None:
    found = machine(ModelConfig(attention="math", vae_dtype="bfloat16", vae_tiling=True))
    assert (found.attention, found.autoencoder) == ("math", "bfloat16, in tiles")


class Network:
    """Remembers where it was."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def to(self, device: str) -> None:
        self.places.append(device)


def test_text_encoders_are_on_the_device_only_while_they_work() -> None:
    networks = [Network(), Network()]
    with pytest.raises(ZeroDivisionError), resident(networks, "cuda:1"):
        assert [n.places for n in networks] == [["cuda:1"], ["cuda:1"]]
        raise ZeroDivisionError
    assert [n.places for n in networks] == [["cuda:1", "cpu"], ["cuda:1", "cpu"]]


def test_on_a_cpu_there_is_nothing_to_move(tiny_sdxl: Path) -> None:
    assert loaded(tiny_sdxl, text_encoders="offload")._away == []


def test_the_prompts_of_a_shard_are_encoded_together_where_the_encoders_leave() -> None:
    asked: list[list[str]] = []

    def encode(prompts: Any) -> list[Conditioning]:
        asked.append(list(prompts))
        return [Conditioning(torch.zeros(1, 1)) for _ in prompts]

    contexts = Contexts(encode, 100, together=100)
    shard = [f"prompt {i}" for i in range(20)]
    contexts.expect(shard)
    for prompt in shard:
        contexts(prompt)
    assert asked == [shard]


def test_attention_by_name_draws_almost_the_same(tiny_flux: Path) -> None:
    plain, chosen = loaded(tiny_flux), loaded(tiny_flux, attention="math")
    context = plain.encode_prompts(["a red apple", ""])
    z = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    a, b = (m.denoise(z, torch.tensor([500.0, 20.0]), context, 3.0) for m in (plain, chosen))
    assert torch.allclose(a, b, atol=1e-4)
    backends = {m.processor._attention_backend for m in chosen.network.modules() if hasattr(m, "processor")}
    assert {b.value for b in backends} == {BACKENDS["math"]}


def test_a_unet_takes_no_attention_by_name(tiny_sdxl: Path) -> None:
    with pytest.raises(ConfigError, match="UNet2DConditionModel take no backend by name"):
        loaded(tiny_sdxl, attention="math")


def test_a_backend_that_is_not_installed_is_refused(tiny_flux: Path) -> None:
    with pytest.raises(ConfigError, match="'flash3' does not run here"):
        choose_attention(loaded(tiny_flux).network, "flash3")


def test_a_compiled_network_is_never_adapted(tiny_sd: Path) -> None:
    model = loaded(tiny_sd)
    model.network.compile(backend="eager")
    weights = LowRank("an adapter", {})
    wanted = adapted(model.network, [RowAdapter(weights, 1.0, (0,))])
    with pytest.raises(ModelError, match="was compiled, and low-rank weights would silently do nothing"), wanted:
        pass


def test_a_sample_that_would_be_steered_on_a_compiled_network_ends_and_no_other(tiny_sd: Path) -> None:
    model = loaded(tiny_sd)
    text, empty = model.encode_prompts(["a red apple", ""])
    e = Engine(model, rows=8, steps=STEPS, guidance_scale=3.0)
    z = e.initial_noise(9)
    push = NegToMe(latents=(z,), noises=(z,), context=empty, alpha=0.9, threshold=0.1, until_step=STEPS)
    for tag in (0, 1):
        own = {"push": push} if tag else {}
        e.submit(Trajectory(tag=tag, latent=e.initial_noise(tag), step=0, context=text, negative=empty, **own))
    block = model.network.mid_block
    block.compile(backend="eager")
    ended = e.make_call()
    ((failed, error),) = ended.failed
    assert failed.tag == 1 and isinstance(error, SteeringFailed)
    assert "its part mid_block was compiled, and token merging would silently do nothing" in str(error)
    assert [t.tag for t in e.running] == [0]
