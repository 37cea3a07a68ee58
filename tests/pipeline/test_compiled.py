"""Compiled blocks: steering and adapters act on their rows as without, all other rows keep their bytes, and nothing is compiled
again. Through torch's own tracing and functionalization here; through generated code, all classes, in `make nightly`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from index.errors import ConfigError, ModelError
from jobs.run.planning.bound import bound
from pipeline.config import ModelConfig, RunConfig
from pipeline.engine.packed_call import packed_call
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.lowrank import LowRank, RowAdapter, adapted
from pipeline.model.compiled import add_layer_points, check_compiles, compile_blocks, compile_now
from pipeline.model.conditioning import Conditioning
from pipeline.model.hook_points import add_point, listen, points_of
from pipeline.model.load import check_model
from pipeline.steer.feature_memory import site_shapes
from pipeline.steer.features import capturing
from pipeline.steer.negtome import NegToMe
from tests.pipeline.families import FAMILIES, engine_of, load, sample, text
from tests.pipeline.tiny_models import BUILDERS

NIGHTLY = bool(os.environ.get("CLEARANCE_COMPILED"))
# The compiler imports a part of torch that torch has deprecated (torch.utils.mkldnn), and leaves complex numbers to torch's own
# kernels, which it says.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex:UserWarning"),
]
BACKEND = "inductor" if NIGHTLY else "aot_eager"
COMPILED = (
    ["sd", "sdxl", "flux", "flux2", "qwen_image", "z_image", "chroma"] if NIGHTLY else ["sd"]
)  # a class takes half a minute
LAYERS = {
    "sd": ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"),
    "flux": ("single_transformer_blocks.0.attn.to_v", "x_embedder"),
}
"""Of each class a layer in a compiled block, and one that is not in any."""


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def low_rank(network: Any, *names: str) -> LowRank:
    chance, pairs = torch.Generator().manual_seed(1), {}
    for name in names:
        out, *wide = network.get_submodule(name).weight.shape
        up = torch.randn(out, 2, *[1] * (len(wide) - 1), generator=chance)
        pairs[name] = (torch.randn(2, *wide, generator=chance), up)
    return LowRank("an adapter", pairs)


class Drawn:
    """A model before and after it is compiled, with an engine and three samples."""

    def __init__(self, name: str, folder: Path) -> None:
        family = FAMILIES[name]
        self.name, self.model = name, load(family, BUILDERS[family.pipeline](folder))
        self.engine = engine_of(family, self.model)
        self.samples = [sample(self.engine, tag) for tag in range(3)]
        self.weights = low_rank(self.model.network, *LAYERS[name]) if name in LAYERS else None
        self.names = list(self.model.network.state_dict())
        self.uncompiled = self.all_ways()
        compile_blocks(self.model.network, self.model.sites(), backend=BACKEND)
        if self.weights is not None:
            add_layer_points(self.model.network, self.weights.pairs)
        before = graphs()
        self.plain = self.outputs(self.samples)
        self.compiled = graphs() - before

    def outputs(self, samples: list[Trajectory]) -> list[torch.Tensor]:
        return packed_call(self.model, self.engine.sampler, samples, self.engine.rows, self.engine.inner_guidance)

    def push(self, placement: str) -> NegToMe:
        z = torch.randn(self.model.latent_shape, generator=torch.Generator().manual_seed(50))
        settings: dict[str, Any] = {"alpha": 0.9, "threshold": -0.5, "until_step": 2, "placement": placement}
        return NegToMe(latents=(z,), noises=(z,), context=text(self.model, ""), attention="both", **settings)

    def steered(self, placement: str, *others: int) -> list[torch.Tensor]:
        self.samples[1].push = self.push(placement)
        try:
            return self.outputs([self.samples[1], *(self.samples[i] for i in others)])
        finally:
            self.samples[1].push = None

    def captured(self) -> dict[str, torch.Tensor]:
        with capturing(self.model.sites(), self.push("paper")) as found:
            self.outputs(self.samples)
        return found

    def adapted(self) -> list[torch.Tensor]:
        assert self.weights is not None
        self.samples[1].lowrank = ((self.weights, 0.5),)
        try:
            return self.outputs(self.samples)
        finally:
            self.samples[1].lowrank = ()

    def all_ways(self) -> dict[str, Any]:
        ways: dict[str, Any] = {placement: self.steered(placement, 0, 2) for placement in ("paper", "released")}
        ways |= {"plain": self.outputs(self.samples), "captured": self.captured()}
        return ways | ({"adapted": self.adapted()} if self.weights is not None else {})


@pytest.fixture(scope="module", params=COMPILED)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawn]:
    torch._dynamo.reset()
    yield Drawn(request.param, tmp_path_factory.mktemp(request.param))
    torch._dynamo.reset()


def near(a: Any, b: Any) -> bool:
    return all(torch.allclose(x, y, atol=1e-3, rtol=1e-3) for x, y in zip(a, b, strict=True))


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_plain_row_has_the_same_bytes_in_any_company_and_nothing_is_compiled_again(drawn: Drawn) -> None:
    assert drawn.compiled >= 1 and near(drawn.plain, drawn.uncompiled["plain"])
    before = graphs()
    assert equal(drawn.outputs(drawn.samples), drawn.plain)
    turned = drawn.outputs([drawn.samples[2], drawn.samples[0]])
    assert equal(turned, [drawn.plain[2], drawn.plain[0]])
    assert equal(drawn.outputs([drawn.samples[1]]), [drawn.plain[1]])
    assert graphs() == before


@pytest.mark.parametrize("placement", ["paper", "released"])
def test_steering_moves_its_row_and_no_other_and_nothing_is_compiled_again(drawn: Drawn, placement: str) -> None:
    before = graphs()
    own, *others = drawn.steered(placement, 2, 0)
    wanted = drawn.uncompiled[placement]
    assert near([own], wanted[:1]) and (own - drawn.plain[1]).abs().max() > 0.01
    assert equal(others, [drawn.plain[2], drawn.plain[0]])
    assert equal(drawn.steered(placement), [own])  # alone
    assert equal(drawn.outputs(drawn.samples), drawn.plain)  # and afterwards nothing remains
    assert graphs() == before


def test_tokens_are_read_as_without_compiling(drawn: Drawn) -> None:
    before, wanted, found = graphs(), drawn.uncompiled["captured"], drawn.captured()
    assert list(found) == list(wanted) and near(found.values(), wanted.values())
    assert graphs() == before
    assert {shape.site.name for shape in site_shapes(drawn.model, text(drawn.model, ""), drawn.model.latent_shape[1:])} >= set(
        found
    )


def test_an_adapter_moves_its_row_and_no_other_and_nothing_is_compiled_again(drawn: Drawn) -> None:
    if drawn.weights is None:
        pytest.skip("adapters are tried on two classes")
    before, found = graphs(), drawn.adapted()
    assert near(found, drawn.uncompiled["adapted"]) and (found[1] - drawn.plain[1]).abs().max() > 1e-4
    assert equal([found[0], found[2]], [drawn.plain[0], drawn.plain[2]])
    assert equal(drawn.outputs(drawn.samples), drawn.plain) and graphs() == before
    network = drawn.model.network
    inside, outside = (network.get_submodule(name) for name in LAYERS[drawn.name])
    assert points_of(inside) and not points_of(outside)


def test_an_adapter_of_a_layer_without_a_hook_point_is_refused(drawn: Drawn) -> None:
    if drawn.name != "sd":
        pytest.skip("one class is enough")
    other = low_rank(drawn.model.network, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    with pytest.raises(ModelError, match="was compiled, and low-rank weights would silently do nothing"):
        adapted(drawn.model.network, [RowAdapter(other, 1.0, (0,))]).__enter__()


def test_hook_points_leave_names_and_no_hooks(drawn: Drawn) -> None:
    assert list(drawn.model.network.state_dict()) == drawn.names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in drawn.model.network.modules())


# --- without compiling ------------------------------------------------------------------------------------------------------


def test_a_hook_point_shows_what_a_hook_would() -> None:
    x, layer = torch.randn(3, 4), torch.nn.Linear(4, 4).requires_grad_(False)
    plain, kind, names = layer(x), type(layer), list(layer.state_dict())

    def doubled(value: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.tensor([[True], [False], [False]]), value + given, value)

    hook = listen(layer, "output", doubled)
    hooked = layer(x)
    hook.remove()
    add_point(layer, "output")
    add_point(layer, "input")
    add_point(layer, "output")
    assert torch.equal(layer(x), plain) and isinstance(layer, kind) and list(layer.state_dict()) == names
    seen: list[torch.Tensor] = []
    hooks = [listen(layer, "output", doubled), listen(layer, "input", lambda value, _: seen.append(value.clone()))]
    assert torch.equal(layer(x), hooked) and torch.equal(seen[0], x) and not layer._forward_hooks
    for hook in hooks:
        hook.remove()
    assert torch.equal(layer(x), plain) and len(seen) == 1


def test_classes_without_repeated_blocks_are_refused_in_the_dry_run(tiny_sd3: Path) -> None:
    with pytest.raises(ConfigError, match="compiles no blocks of a SD3Transformer2DModel"):
        check_model(ModelConfig(path=str(tiny_sd3), size=16, compile="blocks"))


def test_a_missing_compiler_is_said_before_the_run(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(path=str(tiny_sd), compile="blocks")
    check_model(config)

    def none_there() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none_there)
    with pytest.raises(ConfigError, match=r"finds none .*No working C"):
        check_model(config)
    network = type("Denoiser", (), {"_repeated_blocks": ["Block"]})
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="compiles for cuda with Triton"):
            check_compiles(network, "cuda:0")


def test_a_run_file_compiles_and_its_value_is_in_the_plan(tiny_sd: Path) -> None:
    config = ModelConfig(path=str(tiny_sd), size=16, dtype="float32", compile="blocks")
    block = load(FAMILIES["sd"], tiny_sd, compile="blocks").network.mid_block.attentions[0].transformer_blocks[0]  # type: ignore[attr-defined]
    assert block._compiled_call_impl is not None and points_of(block.norm3)
    run = RunConfig(prompts="p.csv", out="out", model=config)
    assert bound(run)["model"]["compile"] == "blocks"
    assert "compile" not in bound(RunConfig(prompts="p.csv", out="out"))["model"]


def test_what_cannot_be_compiled_ends_the_opening() -> None:
    class Broken:
        latent_shape, device, network = (4, 2, 2), torch.device("cpu"), torch.nn.Linear(1, 1)

        def denoise(self, *args: Any) -> torch.Tensor:
            raise RuntimeError("no such kernel\nmore")

    broken: Any = Broken()
    with pytest.raises(ModelError, match="the blocks of Linear cannot be compiled: no such kernel"):
        compile_now(broken, 2, torch.tensor(3), Conditioning(torch.zeros(1, 1)), 1.0)
