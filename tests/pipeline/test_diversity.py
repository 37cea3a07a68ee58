"""Groups in the loop: mates are drawn together, one that is steered or fails leaves, and the rows say so."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from index.errors import ConfigError
from pipeline.audit.records import attempt_table, sample_table
from pipeline.config import DiversityConfig, GenerationConfig, RunConfig
from pipeline.model.interface import DiffusionModel
from pipeline.moderate import Moderation, moderate
from pipeline.next_attempt import first
from pipeline.outcome import Outcome, Request, Sample
from pipeline.policy import Policy
from pipeline.runtime import Runtime
from pipeline.steer.diversity import pushing_steps
from pipeline.steer.feature_memory import site_shapes
from tests.pipeline.loop import POLICY, REF, Copies, Index, by_key, sha

GROUP = DiversityConfig(size=3, alpha=0.9, token_threshold=0.1, window=0.6)


def runtime(model: DiffusionModel, copies: object, policy: Policy = POLICY, **generation: Any) -> Runtime:
    drawn = GenerationConfig(**{"steps": 5, "rows": 8, "diversity": GROUP} | generation)
    config = RunConfig(prompts="-", index="-", samples_per_prompt=3, generation=drawn)
    return Runtime(config, policy, model, copies=copies, index=Index(), calibration_id="c", threshold=0.8)  # type: ignore[arg-type]


def grouped(prompt: str = "a red apple", first: int = 0, group: str = "a#1-3") -> list[Request]:
    return [
        Request(row_no=first + i, key=f"{group[0]}#{i + 1}", prompt=prompt, seed=first + i, group=group, member=i, group_size=3)
        for i in range(3)
    ]


def drawn(model: DiffusionModel, requests: Sequence[Request], copies: Copies | None = None) -> dict[str, Sample]:
    return by_key(list(moderate(runtime(model, copies or Copies(lambda _: False)), requests)))


def digests(samples: dict[str, Sample]) -> dict[str, str]:
    return {key: sample.attempts[0].pixel_sha256 for key, sample in samples.items()}


def alone(requests: Sequence[Request]) -> list[Request]:
    return [replace(one, group="", member=0, group_size=0) for one in requests]


@pytest.fixture(scope="module")
def plain(exact: DiffusionModel) -> dict[str, str]:
    return digests(drawn(exact, grouped()))


def test_mates_are_pushed_apart(exact: DiffusionModel, plain: dict[str, str]) -> None:
    apart = digests(drawn(exact, alone(grouped())))
    assert all(plain[key] != apart[key] for key in plain)


def test_a_group_has_the_same_bytes_beside_other_requests(exact: DiffusionModel, plain: dict[str, str]) -> None:
    others = alone(grouped("a green pear", 10, "b#1-3"))
    among = digests(drawn(exact, [others[0], *grouped(), *others[1:], *grouped("a cat", 20, "c#1-3")]))
    assert {key: among[key] for key in plain} == plain


def test_a_member_that_is_steered_leaves_and_stands_alone(exact: DiffusionModel, plain: dict[str, str]) -> None:
    copies = Copies(lambda picture: sha(picture) == plain["a#2"])
    done = drawn(exact, grouped(), copies)
    assert [attempt.group for attempt in done["a#2"].attempts] == ["a#1-3", ""]
    assert done["a#2"].attempts[1].intervention is not None


def test_its_mates_keep_their_bytes(exact: DiffusionModel, plain: dict[str, str]) -> None:
    copies = Copies(lambda picture: sha(picture) == plain["a#2"])
    assert digests(drawn(exact, grouped(), copies)) == plain


def test_rows_hold_the_group_and_how_it_pushed(exact: DiffusionModel, plain: dict[str, str]) -> None:
    opened = runtime(exact, Copies(lambda picture: sha(picture) == plain["a#2"]))
    samples = sorted(moderate(opened, grouped()), key=lambda s: s.request.row_no)
    context = opened.context("run", "a" * 64, "w")
    row = sample_table(samples, context, "s").to_pylist()[1]["group"]
    assert row == {
        "id": "a#1-3", "member": 1, "size": 3, "alpha": 0.9, "token_threshold": 0.1, "window": 0.6, "rows": GROUP.rows,
        "placement": GROUP.placement, "attention": GROUP.attention, "resolution": GROUP.resolution, "window_from": 0.0,
    }  # fmt: skip
    groups = [(row["request_key"], row["group"]) for row in attempt_table(samples, context, "s").to_pylist()]
    assert groups == [("a#1", "a#1-3"), ("a#2", "a#1-3"), ("a#2", None), ("a#3", "a#1-3")]


def test_a_row_without_a_group_holds_none(exact: DiffusionModel) -> None:
    opened = runtime(exact, Copies(lambda _: False))
    samples = list(moderate(opened, alone(grouped())))
    assert {row["group"] for row in sample_table(samples, opened.context("r", "a" * 64, "w"), "s").to_pylist()} == {None}


def test_probes_sit_out_and_the_row_says_so(exact: DiffusionModel) -> None:
    opened = runtime(exact, Copies(lambda _: False))
    opened.early = _Never()  # type: ignore[assignment]
    done = by_key(list(moderate(opened, [*grouped(), Request(row_no=9, key="z", prompt="a cat", seed=9)])))
    assert done["a#1"].attempts[0].skipped_guards == (
        "early: members of a group are not probed, their mates need them in their calls",
    )
    assert done["z"].attempts[0].skipped_guards == () and opened.early.seen == {3}  # type: ignore[attr-defined]


class _Never:
    """Probes that look at every step and catch nothing."""

    def due(self, trajectory: Any) -> bool:
        return trajectory.step in (1, 2)

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def look(self, trajectories: Sequence[Any], _: Sequence[str]) -> list[None]:
        self.seen |= {t.tag for t in trajectories}
        return [None] * len(trajectories)


def test_a_member_past_its_deadline_takes_its_mates_along(exact: DiffusionModel) -> None:
    loop = Moderation(runtime(exact, Copies(lambda _: False)))
    one, two, three = grouped()
    other = Request(row_no=9, key="z", prompt="a cat", seed=9)
    assert not [sample for request in (one, two, other) for sample in loop.submit(request)]
    ended = [*loop.give_up(0, "error.deadline", "no verdict within 5 s"), *loop.submit(three)]
    assert [(s.request.key, s.outcome, s.reason) for s in ended] == [
        (f"a#{i}", Outcome.ERROR, "error.deadline") for i in (1, 2, 3)
    ]
    assert ended[2].error_class == "GroupBroken"
    assert ended[2].error_message == (
        "member 0 of group a#1-3 will not be drawn, and its mates cannot be without it: no verdict within 5 s"
    )
    while loop.busy:
        ended += loop.step()
    assert ended[-1].request.key == "z" and ended[-1].outcome is Outcome.ACCEPTED


def test_a_member_that_cannot_begin_takes_its_mates_along(exact: DiffusionModel) -> None:
    opened = runtime(exact, Copies(lambda _: False))
    real = opened.engine.initial_noise

    def noise(seed: int, *more: Any) -> torch.Tensor:
        if seed == 1:
            raise ValueError("no such seed")
        return real(seed, *more)

    opened.engine.initial_noise = noise  # type: ignore[method-assign]
    done = by_key(list(moderate(opened, grouped())))
    assert {key: (s.outcome, s.error_class) for key, s in done.items()} == {
        "a#1": (Outcome.ERROR, "GroupBroken"), "a#2": (Outcome.ERROR, "ValueError"), "a#3": (Outcome.ERROR, "GroupBroken"),
    }  # fmt: skip


def test_a_member_that_fails_in_a_call_ends_its_mates_too(exact: DiffusionModel, plain: dict[str, str]) -> None:
    opened = runtime(exact, Copies(lambda _: False))
    loop, other = Moderation(opened), Request(row_no=9, key="z", prompt="a cat", seed=9)
    for request in (*grouped(), other):
        loop.submit(request)
    loop.step()
    next(t for t in opened.engine.running if t.member == 2).latent.fill_(float("nan"))
    ended = []
    while loop.busy:
        ended += loop.step()
    assert {s.request.key: s.outcome for s in ended} == dict.fromkeys(("a#1", "a#2", "a#3"), Outcome.ERROR) | {
        "z": Outcome.ACCEPTED
    }


def test_memory_that_runs_out_leaves_room_for_a_group(exact: DiffusionModel) -> None:
    assert runtime(exact, Copies(lambda _: False), rows=16).engine.least_rows == 6


def test_a_call_that_holds_no_group_is_refused(exact: DiffusionModel) -> None:
    with pytest.raises(ConfigError, match="a call has 5 rows, and a group of 3 takes 6") as refused:
        runtime(exact, Copies(lambda _: False), rows=5)
    assert refused.value.fix == "Set it to 6 or more, or generation.diversity.size = 2"


def test_without_guidance_a_member_takes_one_row(exact: DiffusionModel) -> None:
    assert runtime(exact, Copies(lambda _: False), rows=4, guidance_scale=1.0).engine.rows == 4


@pytest.mark.parametrize(("window", "steps", "pushed"), [(0.3, 20, 6), (0.01, 20, 1), (1.0, 4, 4)])
def test_members_push_in_a_share_of_the_steps(window: float, steps: int, pushed: int) -> None:
    assert pushing_steps(DiversityConfig(size=2, window=window), steps) == range(pushed)


@pytest.mark.parametrize(
    ("begin", "end", "steps", "pushed"),
    [(0.3, 1.0, 20, range(6, 20)), (0.3, 0.5, 20, range(6, 10)), (0.3, 0.31, 4, range(1, 2)), (0.99, 1.0, 4, range(3, 4))],
)
def test_members_may_begin_to_push_later(begin: float, end: float, steps: int, pushed: range) -> None:
    assert pushing_steps(DiversityConfig(size=2, window_from=begin, window=end), steps) == pushed


def latents_before_steps(model: DiffusionModel, requests: Sequence[Request], **diversity: Any) -> list[list[torch.Tensor]]:
    """The latents of three samples before each of their five steps."""
    loop = Moderation(runtime(model, Copies(lambda _: False), diversity=replace(GROUP, **diversity)))
    for request in requests:
        loop.submit(request)
    seen: dict[int, list[torch.Tensor]] = {}
    while loop.busy:
        loop.step()
        seen |= {t.tag: [t.ring[step] for step in sorted(t.ring)] for t in loop.runtime.engine.running}
    return [seen[tag] for tag in sorted(seen)]


def test_before_their_window_mates_are_as_if_they_stood_alone(exact: DiffusionModel) -> None:
    apart = latents_before_steps(exact, alone(grouped()))
    late = latents_before_steps(exact, grouped(), window=1.0, window_from=0.4)
    same = [[torch.equal(one, other) for one, other in zip(a, b, strict=True)] for a, b in zip(apart, late, strict=True)]
    assert {tuple(each[:3]) for each in same} == {(True, True, True)}
    assert {tuple(each[3:]) for each in same} == {(False,) * (len(same[0]) - 3)} and len(same[0]) > 3


@pytest.mark.parametrize(
    ("begin", "end", "fix"),
    [
        (0.3, 0.3, "Set it below window. Both count from the first step: for a stretch of 0.3 set window = 0.6"),
        (0.9, 0.4, "Set it below window. Both count from the first step: for a stretch of 0.1 set window = 1"),
        (1.0, 1.0, "Set it below window, or to 0"),
    ],
)
def test_a_window_that_ends_before_it_begins_is_refused(begin: float, end: float, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"begin to push at {begin:g} of the steps and end at {end:g}") as refused:
        DiversityConfig(size=2, window_from=begin, window=end)
    assert refused.value.fix == fix


def coarse_first(model: DiffusionModel) -> DiffusionModel:
    """The model with another network: its first blocks with attention have fewer image tokens than its last ones."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    width = model.network.config.cross_attention_dim
    other: Any = copy.copy(model)
    other._sites, other.network = None, UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=width, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    return other  # type: ignore[no-any-return]


def pushed_blocks(model: DiffusionModel, resolution: str) -> set[str]:
    opened = runtime(model, Copies(lambda _: False), diversity=replace(GROUP, resolution=resolution))
    group = first(opened, 0, grouped()[0]).group
    assert group is not None
    shapes = site_shapes(model, opened.context_of(""), model.latent_shape[1:])
    return {s.site.block.split(".attentions")[0] for s in shapes if group.settings.selects(s.site.name, s.tokens)}


def test_only_the_finest_blocks_push_in_a_network_that_begins_with_coarser_ones(exact: DiffusionModel) -> None:
    assert pushed_blocks(coarse_first(exact), "finest") == {"up_blocks.1"}


def test_all_blocks_push_where_that_is_stated(exact: DiffusionModel) -> None:
    assert pushed_blocks(coarse_first(exact), "all") == {"down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"}


def test_a_network_whose_blocks_cannot_be_measured_is_refused(exact: DiffusionModel) -> None:
    def forward(*_: Any, **__: Any) -> Any:
        raise RuntimeError("depends on numbers")

    other: Any = copy.copy(exact)
    other.network = copy.deepcopy(exact.network)
    other.network.forward = forward
    with pytest.raises(ConfigError, match="which blocks have the most image tokens") as refused:
        runtime(other, Copies(lambda _: False))
    assert refused.value.where == "generation.diversity.resolution" and refused.value.fix == 'Set it to "all"'


@pytest.mark.parametrize("rows", ["both", "conditional"])
def test_which_rows_are_pushed(exact: DiffusionModel, rows: str) -> None:
    from pipeline.steer.diversity import GroupRow, group_pushes
    from pipeline.steer.negtome import NegToMe

    settings = NegToMe(latents=(), noises=None, context=torch.zeros(1), alpha=0.9, threshold=0.1, until_step=3, rows=rows)  # type: ignore[arg-type]
    two = [GroupRow(row=2 * m + b, group="a", member=m, branch=b, step=0) for m in range(2) for b in range(2)]
    pushed = sorted((push.row, push.references) for push in group_pushes(two, {"a": 2}, settings))
    assert pushed == ([(0, (2,)), (1, (3,)), (2, (0,)), (3, (1,))] if rows == "both" else [(1, (3,)), (3, (1,))])


def test_references_are_still_those_of_the_steered_member(exact: DiffusionModel, plain: dict[str, str]) -> None:
    done = drawn(exact, grouped(), Copies(lambda picture: sha(picture) == plain["a#2"]))
    assert done["a#2"].attempts[1].intervention.ref_ids == (REF,)  # type: ignore[union-attr]
    assert isinstance(done["a#2"].attempts[1].picture, np.ndarray)
