"""The identity of a plan: everything that determines pictures and findings, part by part; a worker must have the same.

A part is a digest or a version. Two runs with equal parts draw the same pictures and find the same in them. Where identities
differ, the message names the part that changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from index.shipped import STICKERS
from index.storage import place
from pipeline.config import RunConfig
from pipeline.guard_settings import GuardPolicy, OutsideGuard
from pipeline.keys import Keys
from pipeline.marking.markers import marks_parts
from pipeline.methods import STEERING, versions
from pipeline.model.folder.digest import folder_digest
from pipeline.model.folder.resolve import resolve
from pipeline.policy import Policy, guard_tables, policy_digest
from pipeline.respond.early import early_id
from pipeline.respond.marks import adapters_digest
from pipeline.salt import salt_parts, secret_salt

LIBRARIES = (
    "clearance", "torch", "torchvision", "diffusers", "transformers", "tokenizers", "open-clip-torch", "numpy", "faiss-cpu",
    "opencv-python-headless", "pillow", "pdqhash", "onnxruntime", "rapidocr", "zxing-cpp",
)  # fmt: skip
FAMILY = "stickers"  # the embedded world's


@dataclass(frozen=True, kw_only=True)
class GuardInForce:
    """One guard of a run.

    Attributes:
        name: the guard's.
        version: of its code and weights.
        weights: name → digest of everything that decides its findings.
        action: what a triggered finding leads to in this run.
        note: why the action differs from the guard's usual one; for people.
    """

    name: str
    version: str
    weights: Mapping[str, str] = field(default_factory=dict)
    action: str
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def parts(self) -> dict[str, str]:
        """Its parts of a plan's identity."""
        weights = hashlib.sha256(json.dumps(dict(self.weights), sort_keys=True).encode()).hexdigest() if self.weights else ""
        at = f"guard.{self.name}"
        return {f"{at}.version": self.version, f"{at}.weights": weights, f"{at}.action": self.action}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The embedder, index and calibration of the copy check; empty for a run without an index."""

    embedder_id: str = ""
    index_id: str = ""
    calibration_id: str = ""


def guards_in_force(
    config: RunConfig, policy: Policy, model_digest: str, embedder_id: str, look_id: str = "", *, index_id: str = "",
    base: Path = Path(),
) -> list[GuardInForce]:  # fmt: skip
    """The guards of a run as they are on this machine, found without loading them; ``look_id``: of the second look in force,
    ``base``: the folder that relative paths in the policy start from.

    Raises:
        GuardUnavailable: a required guard cannot run here.
        IntegrityError: a guard's weights are damaged.
    """
    from guards.registry import guard_class, probe_guards

    found = []
    if embedder_id:
        from guards.copies import CopiesGuard

        probe = CopiesGuard.probe(embedder_id, look_id)
        found.append(GuardInForce(name="copies", version=probe.version, weights=probe.weights, action=policy.copies.action))
    tables = guard_tables(policy, base)
    probes, _ = probe_guards(tables)
    for name, probe in probes.items():
        action: str | None = tables[name].action
        note = ""
        if action is None:
            at_home = not probe.calibrated_on or probe.calibrated_on == _family(config, model_digest)
            action = guard_class(name).defaults.action if at_home else "observe"
            if not at_home:
                note = (
                    f"the guard {name} only observes: it was calibrated on pictures of {probe.calibrated_on!r}, not of this "
                    "model; state its action in the policy to act on what it finds"
                )
        found.append(GuardInForce(name=name, version=probe.version, weights=probe.weights, action=action, note=note))
    return [*found, *_beside_pictures(policy, embedder_id, index_id)]


def _beside_pictures(policy: Policy, embedder_id: str, index_id: str) -> list[GuardInForce]:
    """The guards that need more than pictures: of prompts, and of prompts and pictures together."""
    found = []
    if policy.prompt.enabled:
        from guards.prompt import PromptGuard

        probe = PromptGuard.probe(policy.prompt, policy.blocked, index_id=index_id)
        actions = dict.fromkeys([*(one.action for one in policy.blocked), policy.prompt.titles, policy.prompt.near_action])
        stated = ", ".join(action for action in actions if action != "off")
        found.append(GuardInForce(name="prompt", version=probe.version, weights=probe.weights, action=stated))
    if policy.faithfulness.enabled:
        from guards.faithfulness import FaithfulnessGuard

        probe = FaithfulnessGuard.probe(policy.faithfulness, embedder_id=embedder_id, index_id=index_id)
        action = policy.faithfulness.action
        found.append(GuardInForce(name="faithfulness", version=probe.version, weights=probe.weights, action=action))
    return found


def policy_in_force(policy: Policy, guards: Sequence[GuardInForce]) -> Policy:
    """The policy with the action that each guard has in this run."""
    actions: dict[str, Any] = {guard.name: guard.action for guard in guards}
    tables: dict[str, Any] = {
        name: replace(table, action=table.action or actions.get(name, "steer"))
        for name, table in guard_tables(policy).items()
        if isinstance(table, GuardPolicy | OutsideGuard)
    }
    outside = tuple(tables.pop(guard.name) for guard in policy.guards)
    return replace(policy, guards=outside, **tables)


def identity(
    policy: Policy, *, model_digest: str, adapters_sha256: str, compared: Compared, guards: Sequence[GuardInForce],
    secrets: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """Every part of the identity, by name; ``secrets``: those of :func:`pipeline.marking.markers.marks_parts` and
    :func:`pipeline.salt.salt_parts`."""
    parts = {
        "model_digest": model_digest,
        "embedder_id": compared.embedder_id,
        "index_id": compared.index_id,
        "calibration_id": compared.calibration_id,
        "adapters_sha256": adapters_sha256,
        "early_id": early_id(policy, model_digest, compared.embedder_id) if compared.embedder_id else "",
        "policy_sha256": policy_digest(policy),
    }
    for guard in guards:
        parts |= guard.parts()
    outside = versions({rung.kind for rung in policy.ladder})
    parts |= {f"{STEERING}{kind}": version for kind, version in outside.items()}
    return parts | dict(secrets) | {f"library.{name}": _version(name) for name in LIBRARIES}


def identity_of(config: RunConfig, policy: Policy, *, base: Path) -> dict[str, str]:
    """The identity that a run has on this machine, found without loading a model.

    Raises:
        ClearanceError: model, index, adapter or a required guard cannot be used here.
    """
    model_digest, compared, look_id = folder_digest(resolve(config.model)), Compared(), ""
    if config.index:
        from index.store import ReferenceIndex
        from pipeline.copy_check import calibration_in_force

        index = ReferenceIndex.open(place(config.index, base))
        found = calibration_in_force(config, policy, index.embedder_id, base=base)
        calibration_id = found.calibration_id if found is not None else "policy"
        look_id = found.second_look_id if found is not None else ""
        compared = Compared(embedder_id=index.embedder_id, index_id=index.index_id, calibration_id=calibration_id)
    guards = guards_in_force(config, policy, model_digest, compared.embedder_id, look_id, index_id=compared.index_id, base=base)
    adapters_sha256 = adapters_digest(config.adapters, model_digest, base=base)
    keys = Keys.find(config.marks.keys, base=base)
    secrets = marks_parts(config.marks, keys) | salt_parts(secret_salt(keys))
    return identity(
        policy, model_digest=model_digest, adapters_sha256=adapters_sha256, compared=compared, guards=guards, secrets=secrets
    )


def _family(config: RunConfig, model_digest: str) -> str:
    """The family of models that a guard may have been calibrated on; empty: none that is known."""
    return FAMILY if config.model.path == FAMILY or model_digest == _shipped_digest() else ""


@cache
def _shipped_digest() -> str:
    return folder_digest(STICKERS / "model")


def _version(library: str) -> str:
    """The version without its build ("+cpu"): the driver of a cluster may have another build than its workers."""
    try:
        return importlib.metadata.version(library).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""
