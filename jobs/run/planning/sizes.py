"""The sizes of a run's pictures: the order of its requests by size, and how many there are of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pipeline.config import ModelConfig
from pipeline.outcome import AS_THE_RUN, Request

PictureSize = tuple[int | None, int | None]  # width and height in pixels; None: the model's own


def own_sides(model: ModelConfig) -> PictureSize:
    """Width and height of a run's pictures as far as its file states them."""
    return model.width or model.size, model.height or model.size


def by_size(requests: tuple[Request, ...], model: ModelConfig) -> tuple[Request, ...]:
    """The requests sorted by size, the first one's first, otherwise in their order; those of one size are left as they are."""
    if not any(request.stated is not AS_THE_RUN and request.stated for request in requests):
        return requests
    sizes = list(_sizes(requests, own_sides(model)))
    order = {size: place for place, size in enumerate(dict.fromkeys(sizes))}
    if len(order) < 2:
        return requests
    return tuple(request for _, request in sorted(zip(sizes, requests, strict=True), key=lambda pair: order[pair[0]]))


def counted(requests: Iterable[Request], own: PictureSize) -> Counter[PictureSize]:
    """How many requests that can be drawn there are of each size; ``own``: of those that state none."""
    return Counter(_sizes([request for request in requests if request.problem is None], own))


def _sizes(requests: Iterable[Request], own: PictureSize) -> Iterable[PictureSize]:
    width, height = own
    return ((request.stated.width or width, request.stated.height or height) for request in requests)
