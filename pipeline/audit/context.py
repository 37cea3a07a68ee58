"""The columns that all rows of a run repeat, and what a shard's header names of the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.audit.commitments import default_salt
from pipeline.config import HARD_STOP, DiversityConfig
from pipeline.outcome import Adapter, Machine


@dataclass(frozen=True)
class Anchors:
    """What a shard names of the folder it was written in; neither can be changed while a run is stopped without being found.

    Attributes:
        plan_file_sha256: digest of ``plan.json``. events_head: digest of the event that the session began with.
    """

    plan_file_sha256: str = ""
    events_head: str = ""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What is the same for every row of a run.

    Attributes:
        run_id: this run. dataset_id: the data set it belongs to; part of every sample's identity.
        plan_sha256: digest of the plan (configuration, policy, model, index, requests).
        model_id, model_revision, model_digest, model_licence: the diffusion model.
        adapters: what was loaded on top of it. named_adapters: LoRAs for the rows that name them, by name.
        adapters_if_asked: the same of rows that ask for marks that the policy keeps, by the categories of these.
        scheduler, steps, guidance, dtype, device_kind, rows, threads: how pictures were drawn.
        machine: card, driver, libraries and settings of torch.
        index_id, embedder_id, calibration_id, copy_threshold: what copies were measured against.
        policy_id, policy_sha256, policy_name: the policy in force.
        actions: guard → what its triggered findings lead to; "guard category" where that of a category differs.
        image_format: ``webp`` (lossless), ``png`` or ``jpeg``.
        retention_days: 0 keeps without limit.
        salt: hex; keys the prompt commitments. Empty: derived from the data set's name, which makes commitments
            repeatable but not secret. Pass a secret one when prompts are personal data.
        embedding_dim: length of the stored embeddings; -1 stores them as lists of any length.
        keep_held: keep the full pictures of samples that were not released (:mod:`pipeline.audit.kept`).
        hard_stop: beginnings of categories of which, once rejected, digests alone are kept.
        preset: of few-step models, in force; empty: none.
        diversity: how the members of groups pushed one another apart.
        anchors: what the shards' headers name of the run folder.
    """

    run_id: str
    dataset_id: str
    plan_sha256: str
    model_id: str
    model_revision: str
    model_digest: str
    model_licence: str
    adapters: tuple[Adapter, ...] = ()
    named_adapters: Mapping[str, Adapter] = field(default_factory=dict)
    adapters_if_asked: Mapping[tuple[str, ...], tuple[Adapter, ...]] = field(default_factory=dict)
    scheduler: str
    steps: int
    guidance: float
    dtype: str
    device_kind: str
    rows: int
    threads: int
    index_id: str
    embedder_id: str
    calibration_id: str
    copy_threshold: float
    policy_id: str
    policy_sha256: str
    policy_name: str
    image_format: str = "webp"
    retention_days: int = 0
    salt: str = ""
    software_version: str = ""
    worker_id: str = ""
    embedding_dim: int = -1
    keep_held: bool = True
    hard_stop: tuple[str, ...] = HARD_STOP
    anchors: Anchors = field(default_factory=Anchors)
    actions: Mapping[str, str] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine)
    preset: str = ""
    diversity: DiversityConfig = field(default_factory=DiversityConfig)

    def action_of(self, guard: str, category: str) -> str:
        """What a triggered finding leads to; empty where it is not known."""
        return self.actions.get(f"{guard} {category}", self.actions.get(guard, ""))

    @property
    def prompt_salt(self) -> str:
        return self.salt or default_salt(self.dataset_id)

    @property
    def model_version(self) -> str:
        """What the marks name as the version of the AI system: the revision, or the digest of what was loaded."""
        return self.model_revision or (f"sha256:{self.model_digest[:16]}" if self.model_digest else "")
