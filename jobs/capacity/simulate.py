"""Simulate workers that draw, check, repair and commit, event by event, to learn what a device yields beside its plain speed.

Workers share nothing but the list of open shards, so that what some of them do for some thousand requests is what any number
does for any number. Time is in seconds of the run, not of this machine.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

from jobs.run.commits import MOST


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one worker is.

    Attributes:
        rate: pictures a second that its device draws when every call is full and nothing is flagged.
        steps: denoising steps of a picture.
        rows: of a call; a sample takes two. reference_rows: more that a steered one takes (token merging: 1; nudging: 0).
        guard_seconds: seconds of a processor that all guards take for a picture. guard_processors: that work at them.
        commit_seconds: that a commit of a shard takes, in a thread beside the worker.
        deaths: of a worker, in an hour. restart_seconds: from a death until its successor draws.
    """

    rate: float
    steps: int
    rows: int
    reference_rows: int
    guard_seconds: float
    guard_processors: int
    commit_seconds: float
    deaths: float
    restart_seconds: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked of it.

    Attributes:
        requests: how many. shard_size: of them make a shard.
        flagged: share of first pictures that a guard flags. again: share of repaired ones.
        tries: pictures a request may have; then it is held back.
        caught: share of flagged pictures that a probe catches. probe_at: share of the steps at which it looks.
        back: steps that a caught sample goes back.
        from_step: step that a flagged picture is drawn again from; two fifths of the steps where that is less.
    """

    requests: int
    shard_size: int
    flagged: float
    again: float
    tries: int
    caught: float
    probe_at: float
    back: int
    from_step: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: until 95 % of the requests were committed.
        requests, accepted: committed by then.
        evaluations: of the denoiser, waste included, for each accepted picture, in units of the steps of a picture.
        busy: share of the workers' time in which the denoiser computed.
        yield_: requests a second by what the devices draw when nothing is flagged and nothing dies; between 5 and 95 % of the
            requests, because begin and end, where calls are not full, are nothing in a long run.
        redrawn: requests that were drawn again because their worker died.
        deaths: of workers. commits: of shards.
    """

    seconds: float
    requests: int
    accepted: int
    evaluations: float
    busy: float
    yield_: float
    redrawn: int
    deaths: int
    commits: int


@dataclass(eq=False, kw_only=True)
class _Sample:
    shard: int
    left: int  # steps to go
    doomed: bool  # its picture will be flagged
    attempt: int = 1
    steered: bool = False
    caught_at: int = -1  # the step, counted by what is left, at which a probe catches it


@dataclass(eq=False, kw_only=True)
class _Worker:
    open_: deque[_Sample] = field(default_factory=deque)  # leased and not begun
    running: list[_Sample] = field(default_factory=list)
    shards: dict[int, int] = field(default_factory=dict)  # leased → requests that have not ended
    guards: list[float] = field(default_factory=list)  # when each processor is free: a heap
    calling: bool = False
    commits_end: float = 0.0  # when all commits that it has begun are made
    life: int = 0  # events of an earlier life are void


class _Simulation:
    def __init__(self, machine: Machine, work: Work, workers: int, seed: int) -> None:
        self.machine, self.work, self.draw = machine, work, random.Random(seed)
        count = -(-work.requests // work.shard_size)
        self.todo: deque[int] = deque(range(count))
        self.size = {n: min(work.shard_size, work.requests - n * work.shard_size) for n in range(count)}
        self.from_step = min(work.from_step, 2 * machine.steps // 5)
        self.call_seconds = machine.rows / 2 / (machine.steps * machine.rate)
        self.now, self.events, self.order = 0.0, list[tuple[float, int, str, int, int, _Sample | None]](), 0
        self.workers = [_Worker() for _ in range(workers)]
        self.accepted = dict.fromkeys(range(count), 0)
        self.spent = dict.fromkeys(range(count), 0.0)  # evaluations by shard, those of a worker that died included
        self.ended = self.committed = self.committed_accepted = self.calls = self.deaths = self.commits = self.redrawn = 0
        self.evaluations = 0.0  # of committed shards
        self.first = (0.0, 0)  # when 5 % of the requests were committed, and how many they were

    def push(self, delay: float, kind: str, number: int, sample: _Sample | None = None) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + delay, self.order, kind, number, self.workers[number].life, sample))

    def run(self) -> None:
        for number in range(len(self.workers)):
            self.begin(number)
        first, until = 0.05 * self.work.requests, 0.95 * self.work.requests
        while self.events and self.committed < until:
            if self.committed < first:
                self.first = (self.now, self.committed)
            self.now, _, kind, number, life, sample = heapq.heappop(self.events)
            if life == self.workers[number].life:
                {"call": self.called, "checked": self.checked, "death": self.died, "begin": self.began}[kind](number, sample)

    def begin(self, number: int) -> None:
        self.workers[number].guards = [0.0] * self.machine.guard_processors
        if self.machine.deaths:
            self.push(self.draw.expovariate(self.machine.deaths / 3600), "death", number)
        self.go_on(number)

    def began(self, number: int, _: _Sample | None) -> None:
        self.begin(number)

    def fresh(self, shard: int) -> _Sample:
        work, steps = self.work, self.machine.steps
        doomed = self.draw.random() < work.flagged
        caught = doomed and self.draw.random() < work.caught
        at = steps - max(1, round(work.probe_at * steps)) if caught else -1
        return _Sample(shard=shard, left=steps, doomed=doomed, caught_at=at)

    def takes(self, sample: _Sample) -> int:
        """Rows of a call."""
        return 2 + (self.machine.reference_rows if sample.steered else 0)

    def go_on(self, number: int) -> None:
        """Fill the next call and make it."""
        worker, rows = self.workers[number], self.machine.rows
        if worker.calling:
            return
        while len(worker.open_) < rows // 2 and self.todo:
            shard = self.todo.popleft()
            worker.shards[shard] = self.size[shard]
            worker.open_.extend(self.fresh(shard) for _ in range(self.size[shard]))
        used = sum(map(self.takes, worker.running))
        while worker.open_ and used + self.takes(worker.open_[0]) <= rows:
            used += self.takes(worker.open_[0])
            worker.running.append(worker.open_.popleft())
        if worker.running:
            worker.calling = True
            self.calls += 1
            for one in worker.running:
                self.spent[one.shard] += self.takes(one) / 2
            self.push(self.call_seconds, "call", number)

    def called(self, number: int, _: _Sample | None) -> None:
        worker, work = self.workers[number], self.work
        worker.calling = False
        still = []
        for one in worker.running:
            one.left -= 1
            if one.left == one.caught_at:  # a probe catches it: some steps back, and on from there
                one.left = min(self.machine.steps, one.left + work.back)
                one.caught_at, one.steered, one.attempt = -1, True, one.attempt + 1
                one.doomed = self.draw.random() < work.again
            if one.left > 0:
                still.append(one)
                continue
            done = max(self.now, worker.guards[0]) + self.machine.guard_seconds
            heapq.heapreplace(worker.guards, done)
            self.push(done - self.now, "checked", number, one)
        worker.running = still
        self.go_on(number)

    def checked(self, number: int, sample: _Sample | None) -> None:
        assert sample is not None
        worker, work = self.workers[number], self.work
        if sample.doomed and sample.attempt < work.tries:
            sample.attempt, sample.steered = sample.attempt + 1, True
            sample.left, sample.doomed = self.machine.steps - self.from_step, self.draw.random() < work.again
            worker.open_.appendleft(sample)
        else:
            worker.shards[sample.shard] -= 1
            self.accepted[sample.shard] += not sample.doomed
            if not worker.shards[sample.shard]:
                self.commit(number, sample.shard)
                return
        self.go_on(number)

    def commit(self, number: int, shard: int) -> None:
        worker = self.workers[number]
        del worker.shards[shard]
        self.commits += 1
        self.committed += self.size[shard]
        self.committed_accepted += self.accepted[shard]
        self.evaluations += self.spent[shard]
        # A thread beside makes the commits; a worker waits for it where more than MOST would be under way.
        worker.commits_end = max(self.now, worker.commits_end) + self.machine.commit_seconds
        wait = worker.commits_end - self.now - MOST * self.machine.commit_seconds
        if wait > 0 and not worker.calling:
            worker.calling = True
            self.push(wait, "call", number)
            for one in worker.running:
                one.left += 1  # that event is no step
            return
        if wait > 0:
            self.delay_call(number, wait)
        self.go_on(number)

    def delay_call(self, number: int, seconds: float) -> None:
        """The call under way ends that much later, as the worker makes no other meanwhile."""
        for place, event in enumerate(self.events):
            if event[2] == "call" and event[3] == number and event[4] == self.workers[number].life:
                self.events[place] = (event[0] + seconds, *event[1:])
                heapq.heapify(self.events)
                return

    def died(self, number: int, _: _Sample | None) -> None:
        worker = self.workers[number]
        self.deaths += 1
        for shard, left in worker.shards.items():
            self.redrawn += self.size[shard] - left + sum(one.shard == shard for one in worker.running)
            self.accepted[shard] = 0
            self.todo.append(shard)
        life = worker.life + 1
        self.workers[number] = _Worker(life=life)
        self.push(self.machine.restart_seconds, "begin", number)


def simulate(machine: Machine, work: Work, *, workers: int, seed: int = 0) -> Outcome:
    """Let workers do the work; the same arguments give the same outcome. A call must have rows for a steered sample."""
    simulation = _Simulation(machine, work, workers, seed)
    simulation.run()
    seconds = simulation.now
    busy = simulation.calls * simulation.call_seconds / (seconds * workers)
    began, before = simulation.first if simulation.first[0] < seconds else (0.0, 0)  # all came at once
    per_accepted = simulation.evaluations / machine.steps / max(1, simulation.committed_accepted)
    return Outcome(
        seconds=seconds,
        requests=simulation.committed,
        accepted=simulation.committed_accepted,
        evaluations=per_accepted,
        busy=min(1.0, busy),
        yield_=(simulation.committed - before) / (seconds - began) / (machine.rate * workers),
        redrawn=simulation.redrawn,
        deaths=simulation.deaths,
        commits=simulation.commits,
    )
