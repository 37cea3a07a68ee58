"""What a report shows beside the content of its run folder: the index, the default policy, earlier runs, measurements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipeline.audit.verify import Verification

PictureOf = Callable[[str], "np.ndarray | None"]


@dataclass(frozen=True, kw_only=True)
class Unsteered:
    """The picture that the same request and seed gave without steering, in another run of the data set.

    Attributes:
        run_id: that run. folder: its name.
        nearest: the nearest references of the picture, as in its row.
        thumbnail: its small picture, a WebP file.
    """

    run_id: str
    folder: str
    nearest: tuple[Mapping[str, Any], ...]
    thumbnail: bytes


def _nothing(ref_id: str) -> Mapping[str, str]:
    return {}


def _none_known(sample_ids: Collection[str]) -> Mapping[str, Unsteered]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Beside:
    """All of it may be absent: a report without it is still a report.

    Attributes:
        verification: the verdict on the run folder, where the caller knows more than the folder's own digests; the report
            verifies the folder itself otherwise.
        planned: plan.json of a run that was not sealed; a sealed one has its policy and configuration in ``run.json``.
        default_policy: the policy that ships, to compare with.
        previous: the run of the data set before this one: ``run_id``, ``folder``, ``run_sha256``, ``named`` (this run names
            it) and ``predicate``; None where none was found.
        index: what the index holds now: ``index_id``, ``references``, ``rightsholders``, ``bases``, ``statuses``, ``history``.
        about: rightsholder, licence, source and claim of a reference, by ref_id.
        unsteered: pictures of the same requests and seeds without steering, by sample_id.
        robustness: what the marks bench measured of the watermark schemes; None where none ships.
    """

    verification: Verification | None = None
    planned: Mapping[str, Any] = field(default_factory=dict)
    default_policy: Mapping[str, Any] = field(default_factory=dict)
    previous: Mapping[str, Any] | None = None
    index: Mapping[str, Any] | None = None
    about: Callable[[str], Mapping[str, str]] = _nothing
    unsteered: Callable[[Collection[str]], Mapping[str, Unsteered]] = _none_known
    robustness: Mapping[str, Any] | None = None
