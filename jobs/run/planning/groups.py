"""Groups of samples of one prompt that are drawn together (``[generation.diversity]``): members, and where shards are cut.

A group is part of the plan: its id, its size and the number of each member stand beside the requests. It is never cut: by a
shard, or by a further run that draws some of its members only; these then stand alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from index.errors import ModelError
from jobs.run.planning.stored_requests import StoredRequests
from pipeline.config import RunConfig
from pipeline.outcome import Request


def in_groups(requests: Sequence[Request], size: int) -> list[Request]:
    """Put the samples of each prompt into groups.

    Args:
        requests: of all prompts, in order; each prompt has a multiple of ``size``.
        size: members of a group; 0: none are made.

    Returns:
        The same requests. The id of a group is the key of its first member and the number of its last: ``cat#1-4``.
    """
    if not size:
        return list(requests)
    made = []
    for first in range(0, len(requests), size):
        members = requests[first : first + size]
        name = f"{members[0].key}-{members[-1].key.rpartition('#')[2]}"
        made += [
            one if one.problem else replace(one, group=name, member=number, group_size=size)
            for number, one in enumerate(members)
        ]
    return made


def whole_groups(requests: Sequence[Request]) -> list[Request]:
    """The same requests, without a group where a member of it is not among them: they stand alone."""
    there = Counter(one.group for one in requests if one.group)
    return [
        replace(one, group="", member=0, group_size=0) if one.group and there[one.group] < one.group_size else one
        for one in requests
    ]


def pieces_of(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    """Cut requests into shards of at most ``size``, none of them through a group (which has at most ``size`` members)."""
    if isinstance(requests, StoredRequests) and not requests.has("group"):
        return [requests[start : start + size] for start in range(0, len(requests), size)]
    pieces, start = list[Sequence[Request]](), 0
    groups = [one.group for one in requests]
    while start < len(groups):
        end = min(start + size, len(groups))
        while end < len(groups) and groups[end] and groups[end] == groups[end - 1] and end > start + 1:
            end -= 1
        pieces.append(requests[start:end])
        start = end
    return pieces


def require_rows(config: RunConfig, requests: Sequence[Request] = ()) -> None:
    """Refuse a run whose calls do not hold a whole group. Reads the model's class; loads nothing.

    A folder that cannot be drawn with is refused when the model is looked at.

    Args:
        config: the run file. requests: of the run, of which some may state a guidance scale of their own.

    Raises:
        ConfigError: the group needs more rows than ``generation.rows``.
    """
    g = config.generation
    if not g.diversity.size:
        return
    from pipeline.model.families.latent import LatentDiffusion
    from pipeline.model.load import look_at
    from pipeline.steer.diversity import too_few_rows

    try:
        _, cls, _ = look_at(config.model)
    except ModelError:
        return
    guided, by = (g.true_guidance_scale if cls.distilled else g.drawn_guidance) > 1, "guidance"
    if not guided and not cls.distilled:  # a distilled network takes the scale as an input
        own = [one for one in requests if one.group and (one.stated.guidance_scale or 0) > 1]
        if own:
            guided, by = True, f"the guidance_scale {own[0].stated.guidance_scale:g} of {own[0].key!r}"
    steps = [one.stated.steps or g.drawn_steps for one in requests if one.group]
    guided = guided and round(g.guidance_until * max(steps, default=g.drawn_steps)) > 0
    if cls.guided is not LatentDiffusion.guided:  # it depends on more than the class: the opened model decides
        guided = False
    if g.diversity.size * (2 if guided else 1) > g.rows:
        raise too_few_rows(g.diversity.size, guided=guided, rows=g.rows, by=by)
