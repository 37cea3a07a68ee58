"""Look at finished pictures: decode latents, and let every guard report. The same in every process that does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from guards.base import Finding, Guard
from index.padding import PaddedCalls, out_of_memory
from index.reference import Match
from pipeline.looking.answers import answered, shown
from pipeline.model.decoder import PictureCalls
from pipeline.outcome import PaddedRows

if TYPE_CHECKING:
    import torch

    from guards.copies import CopiesGuard

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished picture and all findings of the guards.

    Attributes:
        picture: uint8 RGB (H, W, 3).
        embedding: float32 (D,), unit length; empty without an index.
        findings: of every guard.
        nearest: the nearest references, best first.
        guard_seconds: by guard, shared out over the pictures looked at together.
        shapes: network → rows that its calls have had so far, in the process that looked; see :mod:`index.padding`.
    """

    picture: np.ndarray
    embedding: np.ndarray
    findings: tuple[Finding, ...]
    nearest: tuple[Match, ...]
    guard_seconds: tuple[tuple[str, float], ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A look that failed, as plain text: an exception of a guard need not survive the way between two processes.

    Attributes:
        error_class: name of the exception's class.
        message: its notes and its text.
        memory: whether memory ran out.
    """

    error_class: str
    message: str
    memory: bool = False

    @classmethod
    def of(cls, error: Exception) -> Failed:
        message = ": ".join([*getattr(error, "__notes__", ()), str(error)])
        return cls(error_class=type(error).__name__, message=message, memory=out_of_memory(error))


class Looker:
    """Decoder and guards of one process.

    Args:
        decode: latents (N, C, h, w) → pictures uint8 RGB (N, H, W, 3).
        copies: the copies guard; None for a run without an index.
        guards: all others, in the order in which they look.
        identity: what determines the findings; a process beside the denoiser must have the same.
        decoder_calls: the decoder's calls.
    """

    def __init__(
        self,
        decode: Callable[[torch.Tensor], np.ndarray],
        copies: CopiesGuard | None,
        guards: Sequence[Guard],
        *,
        identity: Mapping[str, str] | None = None,
        decoder_calls: PaddedCalls | None = None,
    ) -> None:
        self.decode, self.copies, self.guards = decode, copies, tuple(guards)
        self.identity, self._decoder_calls = dict(identity or {}), decoder_calls

    def __call__(self, latents: Sequence[torch.Tensor | np.ndarray], own: Sequence[Sequence[str]] = ()) -> list[Study]:
        """N latents float32 (C, h, w) of one size, and the ids of every sample's own references (or nothing) → N studies."""
        import torch

        pictures = self.decode(torch.stack([torch.as_tensor(latent) for latent in latents]))
        findings: list[list[Finding]] = [[] for _ in pictures]
        embeddings: list[np.ndarray] = [np.zeros(0, np.float32) for _ in pictures]
        nearest: list[tuple[Match, ...]] = [() for _ in pictures]
        spent: dict[str, float] = {}
        if self.copies is not None:
            with _named("copies"), _timed("copies", spent):
                examined = zip(range(len(pictures)), self.copies.examine(shown(pictures), own), strict=True)
                for i, examination in examined:
                    findings[i] += examination.findings
                    embeddings[i], nearest[i] = examination.embedding, tuple(examination.nearest)
        for guard in self.guards:
            with _named(guard.name), _timed(guard.name, spent):
                for mine, found in zip(findings, answered(guard, pictures), strict=True):
                    mine += found
        each, shapes = tuple((name, seconds / len(pictures)) for name, seconds in spent.items()), self.shapes(latents[0])
        return [
            Study(picture=picture, embedding=embedding, findings=tuple(found), nearest=near, guard_seconds=each, shapes=shapes)
            for picture, embedding, found, near in zip(pictures, embeddings, findings, nearest, strict=True)
        ]

    def shapes(self, latent: torch.Tensor | np.ndarray | None = None) -> dict[str, tuple[int, ...]]:
        """Network → rows that its calls have had so far, of the networks that an attempt's row names.

        The decoder's are those for latents (C, h, w) of that size, or of the model's own.
        """
        networks = {"embed": getattr(self.copies, "embedder", None), **{guard.name: guard for guard in self.guards}}
        calls = {name: getattr(network, "calls", None) for name, network in networks.items()} | {
            "decode": self._calls_at(latent)
        }
        return {
            name: padded.shapes
            for name, padded in calls.items()
            if name in PaddedRows._fields and isinstance(padded, PaddedCalls)
        }

    def _calls_at(self, latent: torch.Tensor | np.ndarray | None) -> PaddedCalls | None:
        calls = self._decoder_calls
        if latent is None or not isinstance(calls, PictureCalls):
            return calls
        return calls.known((int(latent.shape[-2]), int(latent.shape[-1])))


def together_or_alone(
    look: Callable[[list[T]], Sequence[U]], those: list[T]
) -> tuple[list[tuple[T, U]], list[tuple[T, Exception]]]:
    """Look at things together, or, if that fails, at each alone; returns the results, and the failures."""
    if not those:
        return [], []
    try:
        return list(zip(those, look(those), strict=True)), []
    except Exception as error:
        if len(those) == 1:
            return [], [(those[0], error)]
    alone = [together_or_alone(look, [one]) for one in those]
    return [pair for seen, _ in alone for pair in seen], [pair for _, failed in alone for pair in failed]


def each_study(
    study: Callable[[list[Any], list[Sequence[str]]], list[Study]],
    latents: Sequence[torch.Tensor] | Sequence[np.ndarray],
    own: Sequence[Sequence[str]],
) -> list[Study | Failed]:
    """The study of every latent, or why there is none; a latent that fails does not affect the others."""
    places = list(range(len(latents)))
    seen, failures = together_or_alone(lambda some: study([latents[i] for i in some], [own[i] for i in some]), places)
    found: dict[int, Study | Failed] = dict(seen)
    found |= {i: Failed.of(error) for i, error in failures}
    return [found[i] for i in places]


@contextmanager
def _timed(guard: str, spent: dict[str, float]) -> Iterator[None]:
    """Write down the seconds of the clock that a block took, under the guard's name."""
    start = time.perf_counter()
    yield
    spent[guard] = spent.get(guard, 0.0) + time.perf_counter() - start


@contextmanager
def _named(guard: str) -> Iterator[None]:
    """Add the guard's name to its exceptions."""
    try:
        yield
    except Exception as error:
        error.add_note(f"guard {guard}")
        raise
