"""What a run will do, bound by digests: the requests, cut into shards, and everything that decides how they are drawn.

A plan does not know who runs it or where to: the same plan gives the same pictures on any runner and number of workers. Its
digest is what resuming checks, so it covers the configuration, the policy, the requests and the identity of model, embedder,
index and calibration, and leaves out paths, workers and output folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from index.errors import ConfigError, InputError, IntegrityError, PlanMismatch
from jobs.prompts import read_prompts
from pipeline.config import RunConfig
from pipeline.outcome import Request
from pipeline.policy import Policy
from pipeline.settings import digest, from_dict, read_toml

PLAN_FILE = "plan.json"
REQUESTS_FILE = "requests.parquet"

# What says where things are or who does the work. What the files hold is bound by the other digests.
_NOT_BOUND = ("workers", "out", "prompts", "index", "policy")


@dataclass(frozen=True)
class Shard:
    """A contiguous piece of the requests: the unit of work, of resuming and of commit.

    ``shard_id`` is the first row's number and a digest of the requests: "000032-9f86d081".
    """

    shard_id: str
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Plan:
    """A frozen, picklable description of a run.

    Attributes:
        config: the run file.
        policy: the policy in force.
        base: absolute folder that relative paths in ``config`` start from.
        requests: every request, in order.
        identity: digests of model, embedder, index, calibration and policy.
        parent: plan digest of the run whose failed requests this plan repeats; empty otherwise.
        copy_check: what the copy check is worth, for people (see :mod:`pipeline.copy_check`); empty without index.
    """

    config: RunConfig
    policy: Policy
    base: Path
    requests: tuple[Request, ...]
    identity: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    copy_check: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        config: RunConfig,
        policy: Policy,
        base: Path,
        *,
        identity: Mapping[str, str] | None = None,
        only: Iterable[str] | None = None,
        parent: str = "",
    ) -> Plan:
        """Read the prompts and bind everything by digest.

        Args:
            config: the run file.
            policy: the policy in force.
            base: folder that relative paths in ``config`` start from.
            identity: digests of models and index; computed from the configuration when not given.
            only: keys to restrict the plan to (see ``--only-failed``).
            parent: plan digest of the run those keys failed in.

        Raises:
            InputError: the prompts cannot be used, or a key of ``only`` is not among them.
        """
        base = base.resolve()
        path = base / config.prompts
        requests = read_prompts(path, base_seed=config.base_seed, samples_per_prompt=config.samples_per_prompt)
        if only is not None:
            keys = set(only)
            absent = keys - {request.key for request in requests}
            if absent:
                raise InputError(
                    f"key {sorted(absent)[0]!r} is no longer in the prompts",
                    where=str(path),
                    fix="Keep the keys of failed rows",
                )
            requests = [request for request in requests if request.key in keys]
        copy_check: Mapping[str, Any] = {}
        if identity is None:
            from pipeline.copy_check import copy_check_record
            from pipeline.studio import identity_of

            identity = identity_of(config, policy, base=base)
            copy_check = copy_check_record(config, policy, identity.get("embedder_id", ""), base=base)
        return cls(config, policy, base, tuple(requests), dict(identity), parent, copy_check)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        size = self.config.shard_size
        pieces = [self.requests[start : start + size] for start in range(0, len(self.requests), size)]
        return tuple(Shard(f"{piece[0].row_no:06d}-{_requests_digest(piece)[:8]}", piece) for piece in pieces)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Digest of each thing the plan binds, by name: what a mismatch can point at."""
        settings = dataclasses.asdict(self.config)
        for name in _NOT_BOUND:
            del settings[name]
        for section in ("model", "embedder"):
            del settings[section]["allow_download"]
        parts = {"config": digest(settings), "policy": digest(self.policy), "requests": _requests_digest(self.requests)}
        parts |= {name: value for name, value in self.identity.items() if name not in parts}
        parts |= {"copy_check": digest(self.copy_check)} if self.copy_check else {}
        return parts | ({"parent": self.parent} if self.parent else {})

    @cached_property
    def plan_sha256(self) -> str:
        return digest(self.parts)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan that a run folder was made for, checked against the digest stored beside it.

        Raises:
            InputError: the folder holds no plan.
            IntegrityError: plan or requests were changed after the run was created.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        stored = stored_plan(folder)
        path = folder / REQUESTS_FILE
        try:
            config = from_dict(RunConfig, stored["config"], where=PLAN_FILE)
            policy = from_dict(Policy, stored["policy"], where=PLAN_FILE)
            requests = tuple(_request(row) for row in pq.ParquetFile(path).read().to_pylist())
            plan = cls(
                config,
                policy,
                Path(stored["base"]),
                requests,
                stored["identity"],
                stored["parent"],
                stored.get("copy_check", {}),
            )
        except ConfigError as error:
            raise IntegrityError(
                f"plan holds what this version does not accept ({error.where}: {error.what})",
                where=str(folder),
                fix="Another version made it, or it was changed: read it with that version, or start again in a new folder",
            ) from None
        except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
            raise IntegrityError(
                f"plan cannot be read ({error})", where=str(folder), fix="Start the run again in a new folder"
            ) from None
        if plan.plan_sha256 != stored["plan_sha256"]:
            changed = _difference(plan.parts, stored["parts"])
            raise IntegrityError(
                f"stored plan does not match its digest ({changed})",
                where=str(folder / PLAN_FILE),
                fix="Restore the files or start in a new folder",
            )
        return plan


def stored_plan(folder: Path) -> dict[str, Any]:
    """The content of a run folder's plan.json.

    Raises:
        InputError: not a run folder.
        IntegrityError: plan.json cannot be read.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        raise InputError("not a run folder (no plan.json)", where=str(folder), fix="Name the --out folder of a run")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise IntegrityError(f"cannot be read ({error})", where=str(path), fix="Restore the file") from None
    if not isinstance(stored, dict) or "plan_sha256" not in stored or "run_id" not in stored:
        raise IntegrityError("is not a plan", where=str(path), fix="Restore the file")
    return stored


def open_folder(out: Path, plan: Plan, *, resume: bool = False) -> tuple[Path, str]:
    """Make the run folder for a plan, or find the one that is there.

    Args:
        out: the run folder.
        plan: what is to be run in it.
        resume: continue a folder of the same plan.

    Returns:
        The folder and the run's id (kept when resuming).

    Raises:
        PlanMismatch: the folder belongs to another plan, holds this plan but ``resume`` is not set, or holds other files.
    """
    from pipeline.shard import write_atomically

    if (out / PLAN_FILE).exists():
        stored = stored_plan(out)
        if stored["plan_sha256"] != plan.plan_sha256:
            raise PlanMismatch(
                f"the folder belongs to another plan ({_difference(plan.parts, stored.get('parts', {}))})",
                where=str(out),
                fix="Name another --out, or bring back what changed and use --resume",
            )
        if not resume:
            raise PlanMismatch(
                "the folder already holds this plan", where=str(out), fix="Add --resume to continue it, or name another --out"
            )
        return out, str(stored["run_id"])
    # A folder that was left between its first and its last file is taken up again.
    if out.exists() and (not out.is_dir() or any(not _left_over(path) for path in out.iterdir())):
        raise PlanMismatch("is not a run folder and not empty", where=str(out), fix="Name a new folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    run_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
    _write_requests(out / REQUESTS_FILE, plan.requests)
    body = {
        "run_id": run_id,
        "created_at": time.time(),
        "plan_sha256": plan.plan_sha256,
        "parts": plan.parts,
        "parent": plan.parent,
        "config": dataclasses.asdict(plan.config),
        "policy": dataclasses.asdict(plan.policy),
        "base": str(plan.base),
        "identity": dict(plan.identity),
        "copy_check": dict(plan.copy_check),
        "shards": [{"shard_id": shard.shard_id, "rows": len(shard.requests)} for shard in plan.shards],
        "requests": len(plan.requests),
    }
    # plan.json is written last: a folder without it is not a run yet.
    write_atomically(out / PLAN_FILE, json.dumps(body, indent=2, ensure_ascii=False).encode() + b"\n")
    return out, run_id


def _left_over(path: Path) -> bool:
    return path.name == REQUESTS_FILE or path.name.startswith(".tmp-")


def failed_keys(folder: Path) -> list[str]:
    """Keys of the requests of a finished run that ended as errors, in the order of the run.

    Raises:
        InputError: the run is not finished, or nothing failed.
    """
    import pyarrow.parquet as pq

    from pipeline.shard import committed

    plan, done = Plan.load(folder), committed(folder)
    open_shards = [shard for shard in plan.shards if shard.shard_id not in done]
    if open_shards:
        raise InputError(
            f"the run is not finished ({len(open_shards)} shards are open)",
            where=str(folder),
            fix="Finish it with --resume first",
        )
    keys: list[str] = []
    for shard in plan.shards:
        for file in done[shard.shard_id].files:
            if file.table == "samples":
                table = pq.ParquetFile(folder / file.path).read(columns=["request_key", "outcome"])
                keys += [row["request_key"] for row in table.to_pylist() if row["outcome"] == "error"]
    if not keys:
        raise InputError("no request of this run failed", where=str(folder), fix="There is nothing to repeat")
    return keys


def read_policy(name: str, base: Path) -> Policy:
    """The policy of that name among those that ship, or the policy file at that path (relative to ``base``).

    Raises:
        ConfigError: there is no such policy, or it holds an unknown key.
    """
    from pipeline import policies

    shipped = {path.stem: path for folder in policies.__path__ for path in Path(folder).glob("*.toml")}
    if name in shipped:
        return read_toml(Policy, shipped[name])
    path = base / name
    if not path.is_file():
        raise ConfigError(
            f"there is no policy {name!r}", where=str(path), fix=f"Name a policy file, or one of {', '.join(sorted(shipped))}"
        )
    return read_toml(Policy, path)


def local_folder(uri: str, base: Path) -> Path:
    """The folder an output URI names; relative ones start from ``base``.

    Raises:
        ConfigError: no output given, or a scheme this version does not write to.
    """
    if not uri:
        raise ConfigError("no output folder", where="out", fix='Add --out FOLDER, or out = "FOLDER" to the run file')
    if "://" in uri:
        scheme, _, rest = uri.partition("://")
        if scheme != "file":
            raise ConfigError(f"cannot write to {scheme}:// yet", where="out", fix="Name a local or mounted folder")
        return Path(rest)
    return Path(os.path.abspath(base / Path(uri).expanduser()))


def _difference(now: Mapping[str, str], stored: Mapping[str, str]) -> str:
    names = [name for name in (*now, *(n for n in stored if n not in now)) if now.get(name) != stored.get(name)]
    told = [
        f"{name} {stored.get(name, 'none')[:8] or 'none'} there, {now.get(name, 'none')[:8] or 'none'} here" for name in names
    ]
    return "changed: " + "; ".join(told) if told else "same parts, other digest"


def _requests_digest(requests: Sequence[Request]) -> str:
    rows = [[r.row_no, r.key, r.prompt, r.negative_prompt, r.seed, list(r.problem) if r.problem else None] for r in requests]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _request(row: Mapping[str, Any]) -> Request:
    problem = (row["problem_code"], row["problem"]) if row["problem_code"] else None
    return Request(row["row_no"], row["key"], row["prompt"], row["negative_prompt"], row["seed"], problem)


def _write_requests(path: Path, requests: Sequence[Request]) -> None:
    import pyarrow as pa

    from pipeline.shard import write_atomically, write_parquet

    columns = {
        "row_no": pa.array([r.row_no for r in requests], pa.int64()),
        "key": pa.array([r.key for r in requests], pa.string()),
        "prompt": pa.array([r.prompt for r in requests], pa.string()),
        "negative_prompt": pa.array([r.negative_prompt for r in requests], pa.string()),
        "seed": pa.array([r.seed for r in requests], pa.int64()),
        "problem_code": pa.array([r.problem[0] if r.problem else "" for r in requests], pa.string()),
        "problem": pa.array([r.problem[1] if r.problem else "" for r in requests], pa.string()),
    }
    stream = io.BytesIO()
    write_parquet(pa.table(columns), stream)
    write_atomically(path, stream.getvalue())
