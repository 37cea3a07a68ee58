"""Show how a run goes: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from jobs.console import draws, volume

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from jobs.run.event import Event

T = TypeVar("T")
LINE_EVERY, LINE_AT_LEAST = 10.0, 300.0  # seconds between plain lines: at the start, and later in a long run
SLOWER = 0.02  # of the time so far: a run of a night writes hundreds of lines, not thousands
TOLD = ("started", "worker", "retried", "waiting", "note")  # events that have a sentence of their own


class Watch:
    """A listener for :class:`jobs.run.session.Event`; use it in ``with``.

    Args:
        console: where to write; a bar when it is a terminal, nothing when quiet.
        label: what is running.
        clock: gives seconds.
    """

    def __init__(self, console: Console, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._label, self._clock = console, label, clock
        self._began = clock()
        self._first: int | None = None  # what was done before this session
        self._lines = _Lines(clock)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Watch:
        if draws(self._console):
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            label, state = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}"))
            columns = (SpinnerColumn(), label, BarColumn(), state)
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=None, state="loading models")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if self._first is None:
            self._first = event.done
        if event.kind == "worker" and event.done == self._first:
            self._began = self._clock()  # the rate is that of drawing, not of loading models
        state = self._state(event)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=event.total, completed=event.done, state=state)
            if event.kind in ("retried", "waiting", "note"):
                self._bar.print(f"{self._label}: {event.detail}", markup=False)
            return
        if not self._lines.due(always=event.kind in (*TOLD, "finished")):
            return
        detail = event.detail if event.kind in TOLD else state
        self._console.print(f"{self._label}: {event.kind}: {detail}", markup=False, highlight=False, soft_wrap=True)

    def _state(self, event: Event) -> str:
        return describe(event.done, event.total, event.outcomes, event.done - (self._first or 0), self._clock() - self._began)


class _Lines:
    """When the next plain line is due. Quiet: never; verbose: always."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._last = clock()

    def due(self, *, always: bool = False) -> bool:
        now = self._clock()
        wait = min(max(LINE_EVERY, SLOWER * (now - self._began)), LINE_AT_LEAST)
        if volume() == "quiet" or not (always or volume() == "verbose" or now - self._last >= wait):
            return False
        self._last = now
        return True


class Steps:
    """Progress through a long list: a bar on a terminal, a plain line now and then elsewhere; use it in ``with``.

    Args:
        console: where to write.
        label: what is done.
        total: how many steps there are; None where that is unknown.
    """

    def __init__(self, console: Console, label: str, total: int | None) -> None:
        self._console, self._label, self._total = console, label, total
        self._began, self._lines = time.monotonic(), _Lines()
        self._bar: Progress | None = None

    def __enter__(self) -> Steps:
        if draws(self._console):
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[how]}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._bar.add_task(self._label, total=self._total, how="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def over(self, items: Iterable[T], done: Callable[[], int] | None = None) -> Iterator[T]:
        """The items, one by one; ``done`` gives the steps of an item where it is not one."""
        count = 0
        for count, item in enumerate(items, start=1):
            yield item
            self.at(done() if done is not None else count)

    def at(self, done: int, total: int | None = None) -> None:
        """So many steps are done; ``total``: there are so many, where that was not known before."""
        if total is not None and total != self._total:
            self._total = total
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], total=total)
        how = pace(done, self._total, time.monotonic() - self._began)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, how=how)
        elif self._lines.due():
            self._console.print(f"{self._label}: {how}", soft_wrap=True)


def pace(done: int, total: int | None, seconds: float) -> str:
    """ "320/1000 · 12.30/s · 55 s left"; without the total, how far and how fast."""
    parts = [str(done) if total is None else f"{done}/{total}"]
    if done and seconds > 0:
        parts.append(f"{done / seconds:.2f}/s")
        if total is not None and done < total:
            parts.append(f"{duration((total - done) * seconds / done)} left")
    return " · ".join(parts)


def describe(done: int, total: int, outcomes: Mapping[str, int], done_here: int, seconds: float) -> str:
    """ "12/48 · 1.9/s · 83 % accepted · 19 s left"; rate and time left count this session only."""
    from pipeline.outcome import ACCEPTED

    parts = [f"{done}/{total}"]
    if done_here and seconds > 0:
        parts.append(f"{done_here / seconds:.2f}/s")
    if done:
        parts.append(f"{100 * sum(outcomes.get(name, 0) for name in ACCEPTED) / done:.0f} % accepted")
    if done_here and seconds > 0 and done < total:
        parts.append(f"{duration((total - done) * seconds / done_here)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for display: "45 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
