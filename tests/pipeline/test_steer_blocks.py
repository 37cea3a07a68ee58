"""NegToMe inside tiny random models of every class of denoiser: identities, axis, placement, rows, reversibility."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention import JointTransformerBlock

from index.errors import ConfigError, ModelError
from pipeline.model.conditioning import Conditioning
from pipeline.model.sites import Layout, Site, flux_sites, stream_sites, unet_sites
from pipeline.steer.diversity import GroupRow, group_pushes
from pipeline.steer.features import capturing
from pipeline.steer.negtome import NegToMe, RowPush, pushing

ROWS = 4
OWN, REFERENCE = 0, 2  # row 0 is pushed from row 2; rows 1 and 3 are other samples'
SETTINGS = NegToMe(
    latents=(), noises=None, context=Conditioning(torch.zeros(1)), alpha=0.9, threshold=0.0, until_step=9, keep_norm=False
)


@dataclass(frozen=True)
class Tiny:
    """A denoiser and one batch for it."""

    network: Any
    run: Callable[[], torch.Tensor]
    sites: list[Site]

    @property
    def blocks(self) -> dict[str, Any]:
        return {site.block: self.network.get_submodule(site.block) for site in self.sites}

    def of(self, block: str) -> list[Site]:
        return [site for site in self.sites if site.block == block]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unet(**changes: Any) -> Tiny:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=4, norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **changes,
    )  # fmt: skip
    x, context = draw(ROWS, 4, 8, 8), draw(ROWS, 5, 16, seed=1)
    more = {"added_cond_kwargs": {"text_embeds": draw(ROWS, 16), "time_ids": draw(ROWS, 6)}} if changes else {}
    times = torch.tensor([900, 700, 900, 50])
    return Tiny(network.eval(), lambda: network(x, times, context, **more).sample, unet_sites(network))


def sdxl() -> Tiny:
    """The class of SDXL's UNet: linear projections, several transformer layers, text and time embeddings added."""
    return unet(
        use_linear_projection=True, transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip


def sd3() -> Tiny:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
        dual_attention_layers=(1,), qk_norm="rms_norm",
    )  # fmt: skip
    x, context, pooled = draw(ROWS, 4, 8, 8), draw(ROWS, 5, 16, seed=1), draw(ROWS, 16, seed=2)
    times = torch.tensor([900.0, 700.0, 900.0, 50.0])
    sites = stream_sites(network, JointTransformerBlock)
    return Tiny(network.eval(), lambda: network(x, context, pooled, times).sample, sites)


def flux() -> Tiny:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    x, context, pooled = draw(ROWS, 16, 16), draw(ROWS, 5, 16, seed=1), draw(ROWS, 16, seed=2)
    ids = torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    times = torch.tensor([0.9, 0.7, 0.9, 0.05])
    return Tiny(
        network.eval(),
        lambda: network(x, context, pooled, timestep=times, img_ids=ids, txt_ids=torch.zeros(5, 3)).sample,
        flux_sites(network, Layout(slice(5, None))),
    )  # fmt: skip


@pytest.fixture(scope="module", params=[unet, sdxl, sd3, flux], ids=lambda make: make.__name__)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    made: Tiny = request.param()
    return made


def run(tiny: Tiny, *pushes: RowPush) -> torch.Tensor:
    with torch.inference_mode(), pushing(tiny.sites, pushes):
        return tiny.run()


def output_of(tiny: Tiny, block: Any, silent: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
    """A block's text (if it has one) and image tokens in a run of the whole network; ``silent`` switches its MLP off."""
    seen: list[Any] = []
    handles = [block.register_forward_hook(lambda _m, _a, out: seen.append(out))]
    if silent:
        handles.append(block.ff.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out)))
    tiny.run()
    for handle in handles:
        handle.remove()
    return seen[0] if isinstance(seen[0], tuple) else (None, seen[0])


def hooks(network: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_every_block_is_found_by_class(tiny: Tiny) -> None:
    kinds = {type(block).__name__ for block in tiny.blocks.values()}
    assert kinds in (
        {"BasicTransformerBlock"}, {"JointTransformerBlock"}, {"FluxTransformerBlock", "FluxSingleTransformerBlock"},
    )  # fmt: skip
    with pytest.raises(ModelError, match="no transformer block"):
        unet_sites(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("placement", ["paper", "released"])
def test_only_the_pushed_row_changes_and_nothing_remains(tiny: Tiny, placement: str) -> None:
    plain = run(tiny)
    bytes_before = [p.detach().clone() for p in tiny.network.parameters()]
    for attention in ("last", "both"):
        settings = replace(SETTINGS, placement=placement, attention=attention)  # type: ignore[arg-type]
        pushed = run(tiny, RowPush(row=OWN, references=(REFERENCE,), settings=settings))
        assert not torch.equal(pushed[OWN], plain[OWN])
        assert torch.equal(pushed[1:], plain[1:])
        assert torch.isfinite(pushed).all()
    assert hooks(tiny.network) == 0 and torch.equal(run(tiny), plain)
    assert all(torch.equal(a, b) for a, b in zip(bytes_before, tiny.network.parameters(), strict=True))


def test_identities(tiny: Tiny) -> None:
    plain = run(tiny)
    same = {
        "alpha 0": replace(SETTINGS, alpha=0.0),
        "threshold 1": replace(SETTINGS, threshold=1.0),
        "a mask of nothing": replace(SETTINGS, masks=(torch.zeros(4, 4, dtype=torch.bool),)),
        "no such block": replace(SETTINGS, where="elsewhere"),
        "larger blocks only": replace(SETTINGS, min_tokens=10_000),
    }
    for name, settings in same.items():
        assert torch.equal(run(tiny, RowPush(row=OWN, references=(REFERENCE,), settings=settings)), plain), name
    own = run(tiny, RowPush(row=OWN, references=(OWN,), settings=SETTINGS))  # pushed from its own tokens: (1 + α)·h − α·h
    assert torch.allclose(own, plain, atol=1e-4)


def test_rows_in_another_order_are_the_same_rows(tiny: Tiny) -> None:
    """Two samples pushed in one call have the bytes each has when it is pushed alone in that call."""
    both = run(
        tiny,
        RowPush(row=0, references=(2,), settings=SETTINGS),
        RowPush(row=1, references=(3, 2), settings=replace(SETTINGS, placement="released")),
    )
    assert torch.equal(both[0], run(tiny, RowPush(row=0, references=(2,), settings=SETTINGS))[0])
    assert torch.equal(
        both[1], run(tiny, RowPush(row=1, references=(3, 2), settings=replace(SETTINGS, placement="released")))[1]
    )


def test_the_push_lands_between_attention_and_mlp(tiny: Tiny) -> None:
    """With α = −1 and an open threshold every token becomes its match. With the MLP silenced, what a block puts out *is* the
    stream between attention and MLP: it must hold the reference's tokens, and the block's text must not change."""
    pull = replace(SETTINGS, alpha=-1.0, threshold=-1.5)
    for name, block in tiny.blocks.items():
        silent = hasattr(block, "ff")
        with torch.inference_mode(), capturing(tiny.of(name), SETTINGS) as sites:
            text, plain = output_of(tiny, block, silent)
        with torch.inference_mode(), pushing(tiny.of(name), [RowPush(row=OWN, references=(REFERENCE,), settings=pull)]):
            text_after, pulled = output_of(tiny, block, silent)
        tokens = sites[name]
        assert torch.allclose(plain, tokens, atol=1e-5), name  # the MLP is silent
        which = (F.normalize(tokens[OWN], dim=1) @ F.normalize(tokens[REFERENCE], dim=1).T).argmax(1)
        assert torch.allclose(pulled[OWN], tokens[REFERENCE][which], atol=1e-4), name
        assert torch.equal(pulled[1:], plain[1:]), name
        assert text is None or torch.equal(text, text_after), name


def test_the_mlp_sees_the_pushed_stream_and_it_is_added_once(tiny: Tiny) -> None:
    """The block puts out h′ + MLP(h′): what the MLP's norm is shown is what comes out when the MLP is silent."""
    name, block = next(iter(tiny.blocks.items()))
    pull = replace(SETTINGS, alpha=-1.0, threshold=-1.5)
    inputs: list[torch.Tensor] = []
    norm = block.norm3 if hasattr(block, "norm3") else block.norm2
    with torch.inference_mode(), pushing(tiny.of(name), [RowPush(row=OWN, references=(REFERENCE,), settings=pull)]):
        handle = norm.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].clone()))
        _, out = output_of(tiny, block, silent=True)
        handle.remove()
    assert torch.allclose(out, inputs[0], atol=1e-5)


def test_released_placement_acts_on_what_attention_puts_out(tiny: Tiny) -> None:
    name, block = next(iter(tiny.blocks.items()))
    attention = block.attn2 if getattr(block, "attn2", None) is not None else block.attn
    seen: list[Any] = []
    pull = replace(SETTINGS, alpha=-1.0, threshold=-1.5, placement="released")
    with torch.inference_mode():
        handle = attention.register_forward_hook(lambda _m, _a, out: seen.append(out))
        tiny.run()
        handle.remove()
        with pushing(tiny.of(name), [RowPush(row=OWN, references=(REFERENCE,), settings=pull)]):
            handle = attention.register_forward_hook(lambda _m, _a, out: seen.append(out))
            tiny.run()
            handle.remove()
    plain, pulled = (out[0] if isinstance(out, tuple) else out for out in seen)
    which = (F.normalize(plain[OWN], dim=1) @ F.normalize(plain[REFERENCE], dim=1).T).argmax(1)
    assert torch.allclose(pulled[OWN], plain[REFERENCE][which], atol=1e-5) and torch.equal(pulled[1:], plain[1:])


@pytest.mark.parametrize("placement", ["paper", "released"])
def test_one_stream_blocks_are_pushed_in_their_image_part_only(placement: str) -> None:
    tiny = flux()
    name, block = next(pair for pair in tiny.blocks.items() if not hasattr(pair[1], "ff"))
    seen: list[torch.Tensor] = []
    settings = replace(SETTINGS, alpha=-1.0, threshold=-1.5, placement=placement)  # type: ignore[arg-type]
    for pushes in ([], [RowPush(row=OWN, references=(REFERENCE,), settings=settings)]):
        with torch.inference_mode(), pushing(tiny.of(name), pushes):
            handle = block.attn.register_forward_hook(lambda _m, _a, out: seen.append(out))
            tiny.run()
            handle.remove()
    text = 5
    assert torch.equal(seen[0][:, :text], seen[1][:, :text])
    assert torch.equal(seen[0], seen[1]) == (placement == "paper")  # the paper's place lies behind attention


def test_hooks_leave_no_trace_after_an_error(tiny: Tiny) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), pushing(
        tiny.sites, [RowPush(row=OWN, references=(REFERENCE,), settings=SETTINGS)]
    ):  # fmt: skip
        assert hooks(tiny.network) > 0
        raise RuntimeError("on purpose")
    assert hooks(tiny.network) == 0


def test_blocks_of_other_forms_are_refused() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=16, norm_type="ada_norm_single")
    with pytest.raises(ModelError, match="ada_norm_single"):
        unet_sites(block)


def test_a_group_is_pushed_apart_as_a_whole_and_from_no_other_row(tiny: Tiny) -> None:
    rows = [GroupRow(row=0, group="a", member=0, branch=1, step=3), GroupRow(row=2, group="a", member=1, branch=1, step=3)]
    pushes = group_pushes(rows, {"a": 2}, SETTINGS)
    assert [(p.row, p.references) for p in pushes] == [(0, (2,)), (2, (0,))]
    plain, pushed = run(tiny), run(tiny, *pushes)
    assert torch.equal(pushed[[1, 3]], plain[[1, 3]])
    # Both are pushed from the other's tokens as they were, not one from the other's pushed ones, in the first block at least.
    assert not torch.equal(pushed[0], plain[0]) and not torch.equal(pushed[2], plain[2])


def test_groups_look_at_their_own_branch_and_must_be_complete() -> None:
    rows = [GroupRow(row=2 * m + b, group="a", member=m, branch=b, step=3) for m in range(3) for b in range(2)]
    pushes = group_pushes(rows, {"a": 3}, SETTINGS)
    assert {p.row: p.references for p in pushes} == {0: (2, 4), 2: (0, 4), 4: (0, 2), 1: (3, 5), 3: (1, 5), 5: (1, 3)}
    assert group_pushes([replace(r, step=20) for r in rows], {"a": 3}, SETTINGS) == []  # outside the window
    with pytest.raises(ConfigError, match="2 of 3 members"):
        group_pushes(rows[:4], {"a": 3}, SETTINGS)
    with pytest.raises(ConfigError, match="steps"):
        group_pushes([*rows[:5], replace(rows[5], step=4)], {"a": 3}, SETTINGS)
