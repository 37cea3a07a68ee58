"""How many devices a night needs, what an accepted picture costs, what is written and what an index takes: with every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from index.errors import ConfigError
from jobs.capacity.inputs import MOST_OF_ALL, WHOLE, Known
from jobs.capacity.simulate import Machine, Outcome, Work, simulate
from jobs.run.lease.lock import BEAT_SECONDS

SIMULATED_REQUESTS, SIMULATED_WORKERS = 6000, 4
SIMULATED_DEATHS = 6  # deaths are rare: they are simulated often, and what one of them costs is scaled down
OBJECTS_PER_SHARD = 3  # samples, attempts, commit marker; a fourth where pictures are kept that were not released


@dataclass(frozen=True)
class Step:
    """One number of the arithmetic.

    Attributes:
        name: what it is. value: with its unit. how: the inputs that it is made of.
    """

    name: str
    value: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked: accepted pictures in one night of so many hours, against an index of so many references.

    ``price`` is of a device in an hour, in any currency; 0: unknown.

    Raises:
        ConfigError: a number that is none, or too large for the arithmetic.
    """

    pictures: int
    hours: float
    references: int
    price: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("pictures", 1), ("hours", 0.1), ("references", 0), ("price", 0)):
            if not least <= getattr(self, name) <= MOST_OF_ALL:  # false for NaN
                fix = f"Give a number from {least:g} to {MOST_OF_ALL:g}"
                raise ConfigError(f"{getattr(self, name)!s:.20} is out of range", where=f"--{name}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The whole answer: what was asked, what it starts from, the simulation, and the steps."""

    order: Order
    inputs: Mapping[str, Known]
    guard_processors: int
    simulated: Outcome
    devices: int
    steps: tuple[Step, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "order": asdict(self.order),
            "inputs": {name: asdict(known) for name, known in self.inputs.items()},
            "simulated": asdict(self.simulated),
            "devices": self.devices,
            "guard_processors_per_device": self.guard_processors,
            "steps": [asdict(step) for step in self.steps],
        }


def capacity(order: Order, inputs: Mapping[str, Known], *, seed: int = 0) -> Capacity:
    """Simulate a few workers, and scale what they do to what is asked.

    Raises:
        ConfigError: with these inputs nothing is drawn, or nothing is accepted, with any number of devices.
    """
    x = {name: int(known.value) if name in WHOLE else known.value for name, known in inputs.items()}
    x["guard_seconds"] += x["embed_seconds"]
    if x["rows"] < 2 + x["reference_rows"]:
        what = f"a steered sample takes {2 + x['reference_rows']:g} rows, a call has {x['rows']:g}"
        raise ConfigError(what, where="--set rows", fix="Give a call more rows")
    # As many processors as the guards need at the device's full speed, a third free for bursts.
    processors = max(1, math.ceil(x["rate"] * x["guard_seconds"] * 1.5))
    undisturbed = Machine(
        rate=x["rate"], steps=int(x["steps"]), rows=int(x["rows"]), reference_rows=int(x["reference_rows"]),
        guard_seconds=x["guard_seconds"], guard_processors=min(processors, SIMULATED_REQUESTS),
        commit_seconds=x["picture_seconds"] * x["shard_size"], deaths=0, restart_seconds=x["restart_seconds"],
    )  # fmt: skip
    work = Work(
        requests=SIMULATED_REQUESTS, shard_size=int(x["shard_size"]), flagged=x["flagged"], again=x["again"],
        tries=int(x["tries"]), caught=x["caught"], probe_at=x["probe_at"], back=int(x["back"]), from_step=int(x["from_step"]),
    )  # fmt: skip
    seen = simulate(undisturbed, work, workers=SIMULATED_WORKERS, seed=seed)
    if not seen.accepted:
        what = f"not one of {seen.requests:,} simulated requests is accepted: all pictures are flagged, again and again"
        raise ConfigError(what, where="--set flagged, --set again", fix="Give smaller shares, or more tries (--set tries)")
    lost, redrawn = 0.0, 0.0
    if x["deaths"]:
        often = SIMULATED_DEATHS * 3600 / (seen.seconds * SIMULATED_WORKERS)
        deadly = simulate(replace(undisturbed, deaths=often), work, workers=SIMULATED_WORKERS, seed=seed)
        each_death = max(0.0, deadly.seconds - seen.seconds) * SIMULATED_WORKERS / max(1, deadly.deaths)
        lost = each_death * x["deaths"] / 3600
        redrawn = deadly.redrawn / max(1, deadly.deaths) * x["deaths"] / (3600 * seen.yield_ * x["rate"])
    if lost >= 1:
        what = f"workers die {x['deaths']:g} times an hour, and what that costs is more than they draw"
        raise ConfigError(what, where="--set deaths", fix="Give fewer deaths, smaller shards or a shorter restart_seconds")
    seen = replace(seen, yield_=seen.yield_ * (1 - lost))
    accepted = seen.accepted / seen.requests
    requests = order.pictures / accepted
    each = seen.yield_ * x["rate"] * 3600 * order.hours * accepted
    devices = math.ceil(order.pictures / each)
    steps = [*_speed(order, x, seen, devices, each), *_deaths(lost, redrawn), *_guards(x, processors, devices)]
    steps += [*_storage(order, x, requests), *_index(order, x, devices)]
    return Capacity(
        order=order, inputs=dict(inputs), guard_processors=processors, simulated=seen, devices=devices, steps=tuple(steps)
    )


def _speed(order: Order, x: Mapping[str, float], seen: Outcome, devices: int, each: float) -> list[Step]:
    seconds = 1 / (seen.yield_ * x["rate"] * seen.accepted / seen.requests)
    steps = [
        Step("yield", f"{seen.yield_:.1%}", "simulated: of `rate`, what remains with flags, guards, commits and deaths"),
        Step(
            "denoiser busy",
            f"{seen.busy:.1%}",
            "simulated, never measured on an accelerator: the rest of the time it waits for commits and restarts",
        ),
        Step("evaluations", f"{seen.evaluations:.3f} × steps", "simulated: of the denoiser, for an accepted picture"),
        Step("accepted", f"{seen.accepted / seen.requests:.2%}", "simulated: of the requests; the rest is held back"),
        Step("a device draws", f"{each:,.0f} accepted a night", "rate × yield × hours × 3,600 × accepted"),
        Step("devices", f"{devices:,}", "pictures ÷ what a device draws, rounded up"),
        Step("device seconds", f"{seconds:.2f} an accepted picture", "1 ÷ (rate × yield × accepted)"),
        Step(
            "shards a second",
            f"{devices * x['rate'] * seen.yield_ / x['shard_size']:,.1f}",
            "for the one driver; beyond a few dozen nobody has measured it: raise shard_size, or run several parts",
        ),
    ]
    if order.price:
        steps.append(
            Step("cost", f"{order.price * seconds / 3600:.5f} an accepted picture", "price of a device hour × device seconds")
        )
    return steps


def _deaths(lost: float, redrawn: float) -> list[Step]:
    how = f"simulated with {SIMULATED_DEATHS} deaths expected, scaled to `deaths`"
    return [
        Step("lost to deaths", f"{lost:.4%} of the time", how),
        Step("drawn again", f"{redrawn:.4%} of the requests", f"open shards of a worker that died; {how}"),
    ]


def _guards(x: Mapping[str, float], processors: int, devices: int) -> list[Step]:
    return [
        Step(
            "guards", f"{processors} processors a device",
            "rate × (guard_seconds + embed_seconds) × 1.5, rounded up: [guards] workers",
        ),
        Step("guards in all", f"{processors * devices:,} processors", "× devices"),
        Step(
            "marking", f"{x['picture_seconds'] * x['rate']:.0%} of a processor a device",
            "rate × picture_seconds; in a thread beside the denoiser, which waits where that is above 100 %",
        ),
    ]  # fmt: skip


def _storage(order: Order, x: Mapping[str, float], requests: float) -> list[Step]:
    size = order.pictures * x["picture_bytes"] + requests * x["row_bytes"]
    shards = requests / x["shard_size"]
    beats = order.hours * 3600 / BEAT_SECONDS
    return [
        Step("bytes", _bytes(size), "pictures × picture_bytes + requests × row_bytes"),
        Step("bytes a second", f"{_bytes(size / (order.hours * 3600))}/s", "÷ the night"),
        Step("objects", f"{shards * OBJECTS_PER_SHARD:,.0f}", "requests ÷ shard_size × 3, before parts are put together"),
        Step(
            "write requests", f"{shards * OBJECTS_PER_SHARD + beats:,.0f}", f"objects, and the lease every {BEAT_SECONDS:g} s"
        ),
    ]


def _index(order: Order, x: Mapping[str, float], devices: int) -> list[Step]:
    queries = devices * x["rate"] * x["looks"]
    anonymous, mapped = order.references * x["anonymous_bytes"], order.references * x["mapped_bytes"]
    steps = [
        Step("index, a worker", _bytes(anonymous), "references × anonymous_bytes"),
        Step("index, a node", _bytes(mapped), "references × mapped_bytes: disk, and page cache once for all workers of a node"),
        Step("searches a second", f"{queries:,.0f}", "devices × rate × looks"),
    ]
    if order.references <= 1_000_000:
        cores = max(1, math.ceil(queries / x["queries_per_core"]))
        steps.append(Step("search", f"{cores:,} of a node's processors", "searches a second ÷ queries_per_core"))
    else:
        parts = math.ceil(order.references / 62_500_000)
        what = f"{parts} parts of at most 62,500,000, on NVMe or GPUs" if parts > 1 else "one part"
        steps.append(Step("search", what, "not measured at this size; a search asks every part"))
    return steps


def _bytes(count: float) -> str:
    """Decimal units, as clouds bill them."""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:.0f} B"
