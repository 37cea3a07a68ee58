"""What a run was held against, read from its plan, so that it can be looked at again as it was looked at then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import at_uri
from index.errors import IndexMismatch, InputError, IntegrityError, RunStopped
from index.second_look import ALIGNMENT
from index.storage import digest_of, is_folder
from pipeline.policy import CONFIRM, Policy

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint
    from index.store import ReferenceIndex
    from pipeline.audit.committed_files import CommittedFiles

UNDER_WAY = "Wait until the run has ended, then give the same command again"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run that can be looked at again.

    Attributes:
        folder: the run folder. run_id: the run.
        embedder_id: of its stored embeddings.
        point: the operating point of its copies guard.
        policy: its policy.
        committed, shards: shards that are committed, and that it has.
        stored: its plan.json. plan_file_sha256: the file's digest.
    """

    folder: Path
    run_id: str
    embedder_id: str
    point: OperatingPoint
    policy: Policy
    committed: int
    shards: int
    stored: Mapping[str, Any] = field(repr=False)
    plan_file_sha256: str

    @classmethod
    def of(cls, folder: Path, embedder_id: str) -> RunFacts:
        """Read a run. Its plan decides what it is held against, so that it has to be the one that its events name.

        Args:
            folder: the run folder.
            embedder_id: the embedder that its embeddings must be of.

        Raises:
            InputError: there is no run, or it has no embeddings.
            IndexMismatch: its embeddings are of another embedder.
            RunStopped: it is under way.
            IntegrityError: its plan, its events or the index of its parts was changed.
        """
        from jobs.run.folder import require_plan_of
        from jobs.run.lease.lock import holder
        from jobs.run.planning.stored_plan import stored_plan
        from pipeline.audit.binding import PLAN_FILE
        from pipeline.audit.events import read_events
        from pipeline.audit.shards import markers
        from pipeline.settings import from_dict

        if not is_folder(folder):
            raise InputError("there is no such folder", where=str(folder), fix="Name where the run lies now")
        stored = stored_plan(folder)
        if held := holder(folder):
            raise RunStopped(f"is under way ({held})", where=str(folder), fix=UNDER_WAY)
        digest = digest_of(folder, PLAN_FILE)
        require_plan_of(read_events(folder), folder, str(stored["run_id"]), digest)
        theirs = str(stored["identity"].get("embedder_id", ""))
        if not theirs:
            fix = "Run it again with an index; its pictures were never compared with anything"
            raise InputError("has no embeddings: it was made without a reference index", where=str(folder), fix=fix)
        if theirs != embedder_id:
            what = f"its embeddings are of embedder {theirs}, the index has {embedder_id}"
            raise IndexMismatch(what, where=str(folder), fix="Name an index that was built with the embedder of the run")
        policy = from_dict(Policy, stored["policy"], where=f"{folder}/plan.json: policy")
        return cls(
            folder=folder,
            run_id=str(stored["run_id"]),
            embedder_id=theirs,
            point=point_of_plan(stored, policy, where=str(folder)),
            policy=policy,
            committed=len(markers(folder)),
            shards=len(stored["shards"]),
            stored=stored,
            plan_file_sha256=digest,
        )

    def files(self) -> CommittedFiles:
        """The run's data files, each held against what was committed when it is opened. Ask while the run is held.

        Raises:
            IntegrityError: events, statement or the index of parts was changed, or the shards are another plan's.
        """
        from pipeline.audit.committed_files import CommittedFiles

        header = {
            "run_id": self.run_id, "plan_sha256": self.stored["plan_sha256"],
            "policy_sha256": self.stored["parts"].get("policy", ""), "dataset_id": self.stored["config"].get("dataset_id", ""),
        }  # fmt: skip
        return CommittedFiles.of(self.folder, header, self.plan_file_sha256)


def point_of_plan(stored: Mapping[str, Any], policy: Policy, *, where: str) -> OperatingPoint:
    """The operating point that a run's plan records.

    Raises:
        InputError: the plan records none (runs of early versions).
        IntegrityError: what it records cannot be read.
    """
    from index.calibrate import NEVER, RECOLOURED, OperatingPoint
    from pipeline.copy_check import POLICY

    record = stored["copy_check"]
    if not record:
        fix = "Name the rules to use: --policy or --threshold of clearance reaudit"
        raise InputError("its plan does not record a copy threshold", where=where, fix=fix)
    try:
        threshold = float(record["threshold"])
        if record["set_by"] == POLICY:
            agrees = policy.copies.confirm_threshold
            return OperatingPoint(threshold=threshold, confirm_threshold=CONFIRM if agrees is None else agrees)
        return OperatingPoint(
            threshold=threshold,
            confirm_threshold=float(record["confirm_threshold"]),
            look_from=min(float(record.get("look_from", NEVER)), threshold),
            alone_threshold=float(record.get("alone_threshold", NEVER)),
            veto_below=float(record["veto_below"]),
            recoloured_threshold=float(record.get("recoloured_threshold", RECOLOURED)),
            second_look=str(record.get("second_look", ALIGNMENT)),
            look_id=str(record.get("second_look_id", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"the record of its copy check cannot be read ({type(error).__name__}: {error})"
        raise IntegrityError(what, where=where, fix="Restore plan.json from a copy") from None


def point_of_policy(policy: Policy, index: ReferenceIndex) -> OperatingPoint:
    """The operating point that a policy has with an index today: its own threshold, else the calibration beside the index.

    Raises:
        ConfigError: there is neither.
    """
    from pipeline.config import RunConfig
    from pipeline.opening import operating_point

    config = RunConfig(prompts=("prompts.csv",), index=str(at_uri.place_of(index.folder.resolve())))
    return operating_point(config, policy, index.embedder_id, base=Path())[1]


def in_force(policy: Policy, facts: RunFacts) -> Policy:
    """A policy with the action that each guard has for the model of a run.

    Raises:
        GuardUnavailable: a guard that the policy requires is not on this machine.
    """
    from pipeline.config import RunConfig
    from pipeline.identity import guards_in_force, policy_in_force
    from pipeline.settings import from_dict

    if policy == facts.policy:
        return policy
    config = from_dict(RunConfig, facts.stored["config"], where=f"{facts.folder}/plan.json: config")
    model = str(facts.stored["identity"].get("model_digest", ""))
    base = facts.folder / str(facts.stored["base"])
    found = guards_in_force(
        config, policy, model, facts.embedder_id, index_id=str(facts.stored["identity"].get("index_id", "")), base=base
    )
    return policy_in_force(policy, found)
