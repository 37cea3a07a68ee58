"""Open the guards that a policy enables, and the copies guard with its index."""

from __future__ import annotations

import heapq
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guards.base import Guard, OnDevice
from guards.chat import BUDGET_FILE
from index.at_uri import beside
from index.errors import ClearanceError
from index.loading import loading
from index.storage import place
from pipeline.config import RunConfig
from pipeline.copy_check import calibration_in_force
from pipeline.model.device import check_device
from pipeline.model.machine import settle
from pipeline.policy import CONFIRM, Policy, guard_tables

if TYPE_CHECKING:
    from guards.copies import CopiesGuard
    from guards.faithfulness import FaithfulnessGuard
    from guards.prompt import PromptGuard
    from index.calibrate import OperatingPoint
    from index.store import ReferenceIndex

# What OpenMP (torch, FAISS), OpenBLAS (NumPy, FAISS), MKL and OpenCV read when they are loaded; Arrow reads the first.
GONE_THROUGH = 200_000  # references that are gone through one by one when a run begins
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


@dataclass(frozen=True)
class Copies:
    """The copies guard with what it compares with, and its operating point."""

    guard: CopiesGuard
    index: ReferenceIndex
    calibration_id: str
    threshold: float


@loading()
def prepare(config: RunConfig) -> None:
    """Settings of the libraries that hold for the whole process; call it before the first model is loaded."""
    hold_threads(config.generation.threads)
    settle()
    import torch

    torch.set_num_threads(config.generation.threads)


def hold_threads(number: int) -> None:
    """Let every library of this process use so many threads: those that are loaded, and those that will be.

    Left alone, OpenBLAS (NumPy has one of its own, FAISS another), OpenMP, OpenCV and Arrow each start a thread for every
    processor, and OpenBLAS's wait for more work by turning in a loop.
    """
    from threadpoolctl import threadpool_limits

    os.environ |= dict.fromkeys(THREADS, str(number))  # read when a library is loaded, by child processes too
    threadpool_limits(limits=number)
    for name, setter in (("cv2", "setNumThreads"), ("pyarrow", "set_cpu_count")):
        if name in sys.modules:
            getattr(sys.modules[name], setter)(number)


def count_together(policy: Policy) -> Path | None:
    """Begin to count what questions to a model spend, in a file that this worker's processes share through the environment; its
    path, or None where there is no question. Call it before guards are opened."""
    os.environ.pop(BUDGET_FILE, None)
    if not any(question.enabled for question in policy.questions):
        return None
    handle, path = tempfile.mkstemp(prefix="clearance-answers-")
    os.close(handle)
    os.environ[BUDGET_FILE] = path
    return Path(path)


@loading()
def open_policy_guards(policy: Policy, device: str = "cpu", *, base: Path = Path()) -> tuple[list[Guard], list[str]]:
    """The guards that a policy enables, with their networks on a device, and why optional ones are left out.

    ``base``: the folder that relative paths in the policy start from.

    Raises:
        GuardUnavailable: a required one cannot run here.
        ConfigError: there is no such device here.
    """
    from guards.registry import open_guards

    check_device(device, where="guards.device")
    guards, skipped = open_guards(guard_tables(policy, base))
    for guard in guards:
        if isinstance(guard, OnDevice):
            guard.to(device)
    return guards, skipped


def open_copies(config: RunConfig, policy: Policy, *, base: Path, device: str = "cpu") -> Copies | None:
    """Index, embedder (on a device) and operating point of the copies guard; None for a run without an index.

    Raises:
        ModelError: the embedder cannot be loaded.
        IndexMismatch: the index was built with another embedder.
        ConfigError: no calibrated threshold for this embedder, and none in the policy; or there is no such device here.
    """
    if not config.index:
        return None
    check_device(device, where="embedder.device")
    from guards.copies import CopiesGuard
    from index.bound_embedder import embedder_of
    from index.store import ReferenceIndex

    e = config.embedder
    index = ReferenceIndex.open(place(config.index, base))
    embedder = embedder_of(index, e.model, e.pretrained, allow_download=e.allow_download, device=device, base=base)
    calibration_id, point = operating_point(config, policy, embedder.embedder_id, base=base)
    looks = policy.copies
    guard = CopiesGuard(index, embedder, point=point, k=looks.k, hues=looks.hues, edits=looks.edits, device=device)
    return Copies(guard, index, calibration_id, point.threshold)


def open_prompts(policy: Policy, copies: Copies | None) -> tuple[PromptGuard | None, list[str]]:
    """The guard of prompts, and what of it is left out; None where the policy does not enable it.

    Raises:
        ConfigError: prompts are to be compared with titles, and there is no index, or it has too many.
        GuardUnavailable: a package that it needs is missing.
    """
    if not policy.prompt.enabled:
        return None, []
    from guards.copies import HARMLESS
    from guards.prompt import PromptGuard

    index = copies.index if copies is not None else None
    titles = () if index is None else ((r.ref_id, r.title) for r in index.in_force() if r.status not in HARMLESS)
    guard = PromptGuard.open(
        policy.prompt, policy.blocked, titles=titles, embedder=copies.guard.embedder if copies is not None else None,
        index_id=index.index_id if index is not None else "",
    )  # fmt: skip
    unlooked = index is None and policy.prompt.titles != "off"
    return guard, (["prompt: titles are not looked for, there is no index in the run file"] if unlooked else [])


def open_faithfulness(policy: Policy, copies: Copies | None) -> FaithfulnessGuard | None:
    """The guard of faithfulness; None where the policy does not enable it.

    Raises:
        ConfigError: there is no index, or what is usual cannot be measured on it.
    """
    if not policy.faithfulness.enabled:
        return None
    from guards.copies import HARMLESS
    from guards.faithfulness import PAIRS, FaithfulnessGuard, UsualRange

    settings = policy.faithfulness
    ids = {"embedder_id": copies.index.embedder_id, "index_id": copies.index.index_id} if copies is not None else {}
    version = FaithfulnessGuard.probe(settings, **ids).version
    assert copies is not None  # else probing refused it
    index, embedder = copies.index, copies.guard.embedder
    if settings.shown is not None and settings.other is not None:
        usual = UsualRange(shown=settings.shown, other=settings.other)
    else:
        first = heapq.nsmallest(PAIRS, ((r.ref_id, r.title) for r in index.in_force() if r.title and r.status not in HARMLESS))
        usual = UsualRange.measured(first, embedder, index.compare)
    return FaithfulnessGuard(usual, embedder, threshold=settings.threshold, version=version)


def operating_point(config: RunConfig, policy: Policy, embedder_id: str, *, base: Path) -> tuple[str, OperatingPoint]:
    """Calibration id and operating point in force.

    A threshold in the policy wins; else the calibration beside the index, else the one shipped with the embedded world.
    """
    from index.calibrate import OperatingPoint

    found = calibration_in_force(config, policy, embedder_id, base=base)
    if found is not None:
        return found.calibration_id, found.point
    agrees = policy.copies.confirm_threshold
    assert policy.copies.threshold is not None  # else there is a calibration, or an error
    return "policy", OperatingPoint(threshold=policy.copies.threshold, confirm_threshold=CONFIRM if agrees is None else agrees)


def stale_calibration(config: RunConfig, policy: Policy, *, base: Path) -> str:
    """A sentence if the calibration was measured on another state of the index; empty if it was not."""
    if not config.index or policy.copies.threshold is not None:
        return ""
    folder = place(config.index, base)
    path = beside(folder, "calibration.json")
    if not path.exists():
        return ""
    from index.calibrate import Calibration
    from index.store import ReferenceIndex

    found, index = Calibration.load(path), ReferenceIndex.open(folder)
    if found.embedder_id != index.embedder_id or found.index_id in ("", index.index_id):
        return ""
    return (
        f"{folder / path.name} was measured on index {found.index_id}, which is now {index.index_id}: with more references "
        "there are more false alarms; calibrate again (clearance index calibrate)"
    )


def nothing_protected(config: RunConfig, *, base: Path) -> str:
    """A sentence if no reference of the index can match; empty if one can, or if the index cannot be opened, which is said
    elsewhere."""
    if not config.index:
        return ""
    from guards.copies import HARMLESS
    from index.store import ReferenceIndex

    try:
        counts = ReferenceIndex.open(place(config.index, base)).counts("status")
    except ClearanceError:
        return ""
    if sum(many for status, many in counts.items() if status not in HARMLESS):
        return ""
    listed = ", ".join(f"{many} {status}" for status, many in sorted(counts.items()) if many) or "no reference at all"
    return f"the index protects nothing ({listed}): no picture can be found to be a copy"


def without_pictures(config: RunConfig, policy: Policy, *, base: Path) -> str:
    """A sentence if the index keeps no picture of some references, and so cannot do all that the policy says; else empty."""
    if not config.index:
        return ""
    from guards.copies import HARMLESS
    from index.store import ReferenceIndex

    try:
        index = ReferenceIndex.open(place(config.index, base))
    except ClearanceError:
        return ""
    bare, there = len(index) - index.kept, len(index)
    if bare and there <= GONE_THROUGH:  # of a larger one every reference counts, in force or not
        kept = [keeps for reference, keeps in index.listed() if reference.status not in HARMLESS]
        bare, there = kept.count(False), len(kept)
    if not bare:
        return ""
    lost = ["the embedder alone finds their copies, without a second look"]
    lost += ["copies in other colours are not found"] if policy.copies.hues > 1 else []
    lost += ["copies.edits finds no copy of them"] if policy.copies.edits else []
    lost += ["to steer away from them is a new seed"] if policy.copies.action == "steer" and policy.ladder else []
    how = "build the index again with --keep-pictures"  # an addition of the same works keeps none
    return f"the index keeps no picture of {bare:,} of {there:,} references ({how}): {'; '.join(lost)}"


def early_set_aside(config: RunConfig, policy: Policy, model_digest: str, *, base: Path) -> str:
    """A sentence if the policy's probes are to compare latents and do not; else empty."""
    from index.store import ReferenceIndex
    from pipeline.respond.early import set_aside, wanted

    if not config.index or not wanted(policy):
        return ""
    return set_aside(policy, ReferenceIndex.open(place(config.index, base)), model_digest)
