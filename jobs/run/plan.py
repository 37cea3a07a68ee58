"""The plan of a run, bound by digests: the requests, cut into shards, and everything that determines their pictures.

A plan names neither runner nor place: the same plan gives the same pictures on any runner and number of workers. Its
digest is what resuming checks, so it covers the configuration, the policy, the requests and the identity of model, embedder,
index and calibration. It leaves out paths, workers and output folder: a project that moved can be resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import storage
from index.counted import counted
from index.embedder_source import LOCAL
from index.errors import ConfigError, InputError, IntegrityError, ModelError
from index.places.cache import local_copy, named_as
from index.storage import digest_of, entry_of
from jobs.run.openers import openers
from jobs.run.planning.begun import drawn_alike, holds_requests, prompts_digest, read_requests, requests_begun
from jobs.run.planning.bound import bound
from jobs.run.planning.groups import in_groups, pieces_of, require_rows, whole_groups
from jobs.run.planning.preset_rows import held_to_preset
from jobs.run.planning.sizes import by_size, own_sides
from jobs.run.planning.stored_plan import RESTORE, check_plan, difference, read_plan, stored_plan
from jobs.run.planning.stored_requests import StoredRequests, digests_of, requests_digest, requests_table, row_numbers
from jobs.run.prompts.requests import AdapterColumn, adapter_column, read_sources
from jobs.run.prompts.sources import Source, sources_of
from pipeline.audit.binding import PLAN_FILE, REQUESTS_FILE
from pipeline.config import RunConfig
from pipeline.fields import stored as stored_entry
from pipeline.methods import STEERING
from pipeline.notes import Note
from pipeline.outcome import Request
from pipeline.policy import Policy, policy_digest
from pipeline.settings import digest, from_dict, read_toml

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.model.sides import Sides

REQUESTS_GROUP = 65_536  # rows of a row group: a million in groups of 64 take 2 s to read, and .3 in these


@dataclass(frozen=True)
class Shard:
    """A piece of the requests, of one size where it can be: the unit of work, of resuming and of commit.

    ``shard_id`` is the first row's number and a digest of the requests: "000032-9f86d081".
    """

    shard_id: str
    requests: Sequence[Request]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A frozen, picklable description of a run.

    Attributes:
        config: the run file.
        policy: the policy in force.
        base: absolute folder that relative paths in ``config`` start from.
        requests: every request, in order.
        identity: digests of model, embedder, index, calibration and policy; of the guards, and versions of libraries.
        parent: plan digest of the run that this one continues, with new requests or repeats of failed ones; empty: none.
        guards: the guards in force: name, version, digests of weights, action (see :mod:`pipeline.identity`).
        copy_check: what the copy check is worth, for people (see :mod:`pipeline.copy_check`); empty without index.
        notes: what the run does differently from what its files let expect; goes into the run's events, binds nothing.
        prompts_sha256: digest of the prompt files as they were read; binds nothing. Empty: unknown, or not all of them are
            requests of this run.
    """

    config: RunConfig
    policy: Policy
    base: Path
    requests: Sequence[Request]
    identity: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    copy_check: Mapping[str, Any] = field(default_factory=dict)
    guards: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[Note, ...] = field(default=(), compare=False)
    prompts_sha256: str = field(default="", compare=False)

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
        notes: list[Note] | None = None,
        begun: Path | None = None,
    ) -> Plan:
        """Read the prompts and bind everything by digest.

        Args:
            config: the run file.
            policy: the policy in force.
            base: folder that relative paths in ``config`` start from.
            identity: digests of models and index; computed from the configuration when not given. Empty: it is not
                known, and the configuration stays as it is written.
            only: keys to restrict the plan to (see :mod:`jobs.run.dataset.which`).
            parent: plan digest of the run that this one continues.
            notes: receives what the prompts were read as; see :func:`jobs.run.prompts.requests.read_prompts`.
            begun: folder of a run that is to go on. Where its prompt files have not changed, its requests are taken from it.

        Raises:
            InputError: the prompts cannot be used, or a key of ``only`` is not among them.
        """
        base = base.resolve()
        sources = sources_of(config.prompts, base, [] if notes is None else notes)
        prompts_sha256 = "" if only is not None else prompts_digest(config, sources, adapter_column_of(config))
        there, given = requests_begun(begun, prompts_sha256) if begun is not None else None, config
        requests: Sequence[Request] = requests_of(config, base, notes, sources) if there is None else there
        if only is not None:
            keys = set(only)
            absent = keys - {request.key for request in requests}
            if absent:
                raise InputError(
                    f"key {sorted(absent)[0]!r} is no longer in the prompts",
                    where=", ".join(config.prompts),
                    fix="Keep the keys of failed rows",
                )
            chosen = [request for request in requests if request.key in keys]
            requests = whole_groups(chosen)
            if notes is not None and (alone := sum(a.group != b.group for a, b in zip(requests, chosen, strict=True))):
                many = counted(alone, "request")
                notes.append(Note("diversity", f"drawn without all of their group, so that each stands alone: {many}"))
        if identity is None:
            config = in_full(config, notes)
            require_rows(config, requests if config.generation.diversity.size else ())
        elif identity:
            config = dataclasses.replace(config, generation=config.generation.filled())
        copy_check: Mapping[str, Any] = {}
        guards: tuple[Mapping[str, Any], ...] = ()
        if identity is None:
            from pipeline.copy_check import copy_check_record
            from pipeline.identity import guards_in_force

            identity = openers().identity(config, policy, base)
            copy_check = copy_check_record(config, policy, identity.get("embedder_id", ""), base=base)
            ids = identity.get("model_digest", ""), identity.get("embedder_id", ""), copy_check.get("second_look_id", "")
            in_force = guards_in_force(config, policy, *ids, index_id=identity.get("index_id", ""), base=base)
            guards = tuple(guard.plain() for guard in in_force)
        if begun is not None and there is not None and not drawn_alike(begun, config, identity):
            there, requests = None, requests_of(given, base, notes, sources)
        return cls(
            config=config, policy=policy, base=base, requests=requests if there is not None else tuple(requests),
            identity=dict(identity), parent=parent, copy_check=copy_check, guards=guards, prompts_sha256=prompts_sha256,
        )  # fmt: skip

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self._cut[0]

    @cached_property
    def _cut(self) -> tuple[tuple[Shard, ...], str]:
        """The shards, and the digest of all requests: in one pass where the shards have the order of the requests."""
        ordered = by_size(self.requests, self.config.model)
        pieces = pieces_of(ordered, self.config.shard_size)
        each, whole = digests_of(ordered, map(len, pieces))
        numbers, start, shards = row_numbers(ordered), 0, list[Shard]()
        for piece, one in zip(pieces, each, strict=True):
            shards.append(Shard(f"{numbers[start]:06d}-{one[:8]}", piece))
            start += len(piece)
        return tuple(shards), whole if ordered is self.requests else requests_digest(self.requests)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Digest of each thing the plan binds, by name: what a mismatch can point at."""
        parts = {"config": digest(bound(self.config)), "policy": policy_digest(self.policy), "requests": self._requests_sha256}
        parts |= {name: value for name, value in self.identity.items() if name not in parts}
        parts |= {"copy_check": digest(self.copy_check)} if self.copy_check else {}
        parts |= {"guards": digest(list(self.guards))} if self.guards else {}
        return parts | ({"parent": self.parent} if self.parent else {})

    @cached_property
    def _requests_sha256(self) -> str:
        return self._cut[1]

    @cached_property
    def plan_sha256(self) -> str:
        return digest(self.parts)

    @cached_property
    def requests_file(self) -> bytes:
        """The requests as a Parquet file; the same requests give the same bytes."""
        from pipeline.audit.shards import write_parquet

        stream = io.BytesIO()
        write_parquet(self._table, stream, group=REQUESTS_GROUP)
        return stream.getvalue()

    @cached_property
    def _table(self) -> pa.Table:
        return self.requests.table if isinstance(self.requests, StoredRequests) else requests_table(self.requests)

    def portable(self, folder: Path) -> dict[str, Any]:
        """Configuration and policy as they stand in a run folder: without the paths of this machine.

        Paths inside the run file's folder are relative to it; of others only the name is kept. ``base`` leads from the run
        folder to the run file's folder where that is above it, and is empty elsewhere.
        """
        config = dataclasses.asdict(self.config)
        config["out"] = ""
        del config["metrics"]  # of this machine alone
        names = [self._portable(name) for name in config["prompts"]]
        config["prompts"] = names[0] if len(names) == 1 else names
        for name in ("index", "policy"):
            config[name] = self._portable(config[name])
        for section, name in ((config["model"], "path"), (config["embedder"], "pretrained")):
            section[name] = self._portable(section[name])
        model = config["embedder"]["model"]
        prefix = LOCAL if model.startswith(LOCAL) else ""
        config["embedder"]["model"] = prefix + self._portable(model.removeprefix(LOCAL))
        for adapter in config["adapters"]:
            adapter["path"] = self._portable(adapter["path"])
        config["marks"]["keys"], config["marks"]["signer"] = self._portable(config["marks"]["keys"]), ""
        up = folder.resolve()
        steps = [".."] * (len(up.parts) - len(self.base.parts)) if up.is_relative_to(self.base) else []
        base = "/".join(steps) or ("." if up == self.base else "")
        return {"config": config, "policy": dataclasses.asdict(self.policy), "base": base}

    def _portable(self, path: str) -> str:
        place = Path(path).expanduser() if path else Path()
        if not place.is_absolute():
            return path
        for whole, base in ((Path(os.path.abspath(place)), self.base), (place.resolve(), self.base)):
            if whole.is_relative_to(base):
                return whole.relative_to(base).as_posix()
        return place.name

    def __getstate__(self) -> dict[str, Any]:
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return state | {"requests": StoredRequests(self._table)}  # a million take 17 s as objects, and 1.3 so

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @classmethod
    def load(cls, folder: Path, known: Plan | None = None) -> Plan:
        """The plan that a run folder was made for, checked against the digests stored beside it.

        It holds what is to be drawn; the places of models and index on this machine are in the run file alone.

        Args:
            folder: the run folder.
            known: a plan that may be the same. Where its requests are those of the folder, column by column, they are taken
                from it: a million requests are compared in .3 s, and made in 6.

        Raises:
            InputError: the folder holds no plan.
            IntegrityError: plan or requests were changed after the run was created.
        """
        digests = tuple(digest_of(folder, name) for name in (PLAN_FILE, REQUESTS_FILE) if entry_of(folder, name) is not None)
        if known is not None and (before := known.__dict__.get("_loaded")) is not None and before[:2] == (folder, digests):
            loaded: Plan = before[2]  # a run looks before its models are loaded, and again when it begins
            return loaded
        stored, fix = read_plan(folder), RESTORE
        file_sha256 = stored["requests_sha256"]
        same = known is not None and holds_requests(folder, file_sha256, known.requests, lambda: known._table)
        requests = known.requests if known is not None and same else read_requests(folder, file_sha256)
        try:
            config = from_dict(RunConfig, stored["config"], where=PLAN_FILE)
            policy = from_dict(Policy, _readable(stored["policy"], stored["identity"]), where=PLAN_FILE)
            base = (folder / stored["base"]).resolve()
            identity, guards = stored["identity"], tuple(stored["guards"])
            plan = cls(
                config=config, policy=policy, base=base, requests=requests, identity=identity, parent=stored["parent"],
                copy_check=stored["copy_check"], guards=guards, prompts_sha256=str(stored.get("prompts_sha256", "")),
            )  # fmt: skip
            if known is not None and same:
                plan.__dict__["_requests_sha256"] = known._requests_sha256
                cut = [(one.shard_size, own_sides(one.model)) for one in (config, known.config)]
                plan.__dict__.update({"_cut": known._cut} if cut[0] == cut[1] else {})
            parts, sha256 = plan.parts, plan.plan_sha256
        except ConfigError as error:
            what = f"plan holds what this version does not accept ({error.where}: {error.what})"
            other = "Another version made it, or it was changed: read it with that version, or start again in a new folder"
            raise IntegrityError(what, where=str(folder / PLAN_FILE), fix=other) from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError) as error:
            what = f"plan cannot be read ({type(error).__name__}: {error})"
            raise IntegrityError(what, where=str(folder / PLAN_FILE), fix=fix) from None
        shards = [{"shard_id": shard.shard_id, "rows": len(shard.requests)} for shard in plan.shards]
        if sha256 != stored["plan_sha256"] or parts != stored["parts"] or shards != stored["shards"]:
            changed = difference(parts, stored["parts"])
            raise IntegrityError(f"stored plan does not match its digest ({changed})", where=str(folder / PLAN_FILE), fix=fix)
        check_plan(folder, stored)
        if known is not None:
            known.__dict__["_loaded"] = (folder, digests, plan)
            known.__dict__.pop("_table", None)
        return plan


def in_full(config: RunConfig, notes: list[Note] | None = None) -> RunConfig:
    """The run file with everything stated that its preset or its model's folder decides; loads nothing.

    A folder that cannot be drawn with decides nothing: it is refused when the model is looked at. ``notes`` receives what was
    filled in.

    Raises:
        ConfigError: a key contradicts the preset.
    """
    from pipeline.model.sampling.decided import decided

    try:
        found, more = decided(config)
    except ModelError:
        return dataclasses.replace(config, generation=config.generation.filled())
    if notes is not None:
        notes += more
    return found


def adapter_column_of(config: RunConfig) -> AdapterColumn:
    """The column in which rows name adapters; raises as :func:`jobs.run.prompts.requests.adapter_column`."""
    return adapter_column(config.adapters, config.columns.adapter)


def requests_of(
    config: RunConfig, base: Path, notes: list[Note] | None = None, sources: Sequence[Source] | None = None
) -> list[Request]:
    """The requests that a run file's prompts make; errors as :func:`jobs.run.prompts.requests.read_sources`.

    ``sources``: the prompt files, where they were looked for already.
    """
    seeds = {"base_seed": config.base_seed, "samples_per_prompt": config.samples_per_prompt}

    @functools.cache
    def sides() -> Sides | None:
        from pipeline.model.load import sides_of

        return sides_of(config.model)

    columns = dataclasses.asdict(config.columns)
    del columns["adapter"]
    adapters, places = adapter_column_of(config), dict[str, str]()
    if sources is None:
        sources = sources_of(config.prompts, base.resolve(), [] if notes is None else notes)
    with _no_search_for_cycles():
        requests = read_sources(sources, columns=columns, notes=notes, sides=sides, adapters=adapters, places=places, **seeds)
    return in_groups(held_to_preset(requests, config, notes, places), config.generation.diversity.size)


@contextlib.contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Let Python not look through a growing million of objects again and again for cycles that they do not form."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def shipped_policies() -> dict[str, Path]:
    """The files of the policies that ship, by name."""
    from pipeline import policies

    return {path.stem: path for folder in policies.__path__ for path in Path(folder).glob("*.toml")}


def ships(policy: Policy) -> bool:
    """Whether a policy has the rules of the policy that ships under its name."""
    return policy.name in shipped_policies() and policy_digest(policy) == policy_digest(read_policy(policy.name, Path()))


def read_policy(name: str, base: Path) -> Policy:
    """The policy of that name among those that ship, or the policy file at that path (relative to ``base``) or URI.

    A run folder stands for the policy that the run was planned with: it can be resumed after the file, or a policy that
    ships, has changed.

    Raises:
        ConfigError: there is no such policy, or it holds an unknown key.
        IntegrityError: the plan of that run was changed.
    """
    shipped = shipped_policies()
    if name in shipped:
        return read_toml(Policy, shipped[name])
    if storage.is_folder(run := storage.place(name, base)) and storage.entry_of(run, PLAN_FILE) is not None:
        return from_dict(Policy, stored_plan(run)["policy"], where=str(run / PLAN_FILE))
    if storage.is_uri(name):
        there = storage.place(name)
        path = local_copy(there)
        with named_as(there, path):
            return read_toml(Policy, path, other=RunConfig, other_name="run file")
    path = base / name
    if not path.is_file():
        known = dict.fromkeys(shipped) | {file.stem: file.name for file in base.glob("*.toml")}
        near = get_close_matches(name.removesuffix(".toml"), known, 1, cutoff=0.75)
        guess = f"Write {known[near[0]] or near[0]}" if near else "Name a policy file"
        fix = f"{guess}, or one of {', '.join(sorted(shipped))}"
        raise ConfigError(f"there is no policy {name!r}", where=str(path), fix=fix)
    return read_toml(Policy, path, other=RunConfig, other_name="run file")


def run_place(uri: str, base: Path) -> Path:
    """The place that an output URI names: a local folder (relative ones start from ``base``), or one on an object store.

    Raises:
        ConfigError: no output given, or a scheme that nothing here opens.
    """
    if not uri:
        raise ConfigError("no output folder", where="out", fix='Add --out FOLDER, or out = "FOLDER" to the run file')
    if storage.is_uri(uri):
        return storage.place(uri)
    place = os.path.expanduser(uri)
    if place.startswith("~"):
        user = place.split("/")[0]
        raise ConfigError(f"there is no home folder {user!r}", where="out", fix=f"Name another folder, or write ./{place}")
    return Path(os.path.abspath(base / place))


def _readable(policy: Mapping[str, Any], identity: Mapping[str, str]) -> dict[str, Any]:
    """A stored policy that can be read without the packages of its steering methods; they may be absent here."""
    outside = [name.removeprefix(STEERING) for name in identity if name.startswith(STEERING)]
    return {**policy, "ladder": [stored_entry(rung) if rung["kind"] in outside else rung for rung in policy["ladder"]]}
