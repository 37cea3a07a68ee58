"""Open the guards that a policy enables, and the copies guard with its index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guards.base import Guard, OnDevice
from index.at_uri import beside
from index.storage import place
from pipeline.config import RunConfig
from pipeline.copy_check import calibration_in_force
from pipeline.model.device import check_device
from pipeline.model.machine import settle
from pipeline.policy import CONFIRM, Policy, guard_tables

if TYPE_CHECKING:
    from guards.copies import CopiesGuard
    from index.calibrate import OperatingPoint
    from index.store import ReferenceIndex


@dataclass(frozen=True)
class Copies:
    """The copies guard with what it compares with, and its operating point."""

    guard: CopiesGuard
    index: ReferenceIndex
    calibration_id: str
    threshold: float


def prepare(config: RunConfig) -> None:
    """Settings of torch that hold for the whole process; call it before the first model is loaded."""
    settle()
    import torch

    torch.set_num_threads(config.generation.threads)


def open_policy_guards(policy: Policy, device: str = "cpu") -> tuple[list[Guard], list[str]]:
    """The guards that a policy enables, with their networks on a device, and why optional ones are left out.

    Raises:
        GuardUnavailable: a required one cannot run here.
        ConfigError: there is no such device here.
    """
    from guards.registry import open_guards

    check_device(device, where="guards.device")
    guards, skipped = open_guards(guard_tables(policy))
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
    guard = CopiesGuard(index, embedder, point=point, k=policy.copies.k, hues=policy.copies.hues, device=device)
    return Copies(guard, index, calibration_id, point.threshold)


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
