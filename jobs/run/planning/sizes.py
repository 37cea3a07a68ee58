"""The sizes of a run's pictures: the order of its requests by size, and how many there are of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from jobs.run.planning.stored_requests import StoredRequests
from pipeline.config import ModelConfig
from pipeline.outcome import AS_THE_RUN, Request, Stated

PictureSize = tuple[int | None, int | None]  # width and height in pixels; None: the model's own


def own_sides(model: ModelConfig) -> PictureSize:
    """Width and height of a run's pictures as far as its file states them."""
    return model.width or model.size, model.height or model.size


def by_size(requests: Sequence[Request], model: ModelConfig) -> Sequence[Request]:
    """The requests sorted by size, the first one's first, otherwise in their order; those of one size are left as they are."""
    if not _any_stated(requests):
        return requests
    sizes = list(_sizes(requests, own_sides(model)))
    order = {size: place for place, size in enumerate(dict.fromkeys(sizes))}
    if len(order) < 2:
        return requests
    places = sorted(range(len(sizes)), key=lambda place: order[sizes[place]])
    return requests.taken(places) if isinstance(requests, StoredRequests) else tuple(requests[place] for place in places)


def counted(requests: Sequence[Request], own: PictureSize) -> Counter[PictureSize]:
    """How many requests that can be drawn there are of each size; ``own``: of those that state none."""
    if isinstance(requests, StoredRequests) and not _any_stated(requests):
        many = requests.drawable()
        return Counter({own: many} if many else {})
    return Counter(_sizes([request for request in requests if request.problem is None], own))


def _any_stated(requests: Sequence[Request]) -> bool:
    if isinstance(requests, StoredRequests):
        return requests.has(Stated._fields[0])
    return any(request.stated is not AS_THE_RUN and request.stated for request in requests)


def _sizes(requests: Iterable[Request], own: PictureSize) -> Iterable[PictureSize]:
    width, height = own
    return ((request.stated.width or width, request.stated.height or height) for request in requests)
