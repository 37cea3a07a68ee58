"""The one tree of exceptions. A message names what was wrong, where, and what to do."""

from __future__ import annotations


class ClearanceError(Exception):
    """Base of every error Clearance raises on purpose.

    Args:
        what: what was wrong.
        where: the file, row, key or setting concerned.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.fix}" if self.fix else text

    def __reduce__(self) -> tuple[object, ...]:
        # The default would hand where and fix over by position; errors cross process borders.
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[ClearanceError], what: str, where: str, fix: str) -> ClearanceError:
    return kind(what, where=where, fix=fix)


class ConfigError(ClearanceError):
    """A configuration or policy that cannot be used: unknown key, wrong type, value out of range."""


class InputError(ClearanceError):
    """Input that cannot be read: missing column, duplicate key, unreadable picture."""


class IndexMismatch(ClearanceError):
    """The reference index and the embedder (or the plan) do not belong together."""


class GuardUnavailable(ClearanceError):
    """A guard that the policy requires cannot run here (missing package, missing weights)."""


class WatermarkUnavailable(ClearanceError):
    """A watermark that the run file demands cannot run here (missing package, missing weights)."""


class ModelError(ClearanceError):
    """A model that cannot be loaded or does not fit its role."""


class OutOfMemory(ClearanceError, MemoryError):
    """What does not fit into memory: a network call of however few rows, or stored bytes while they are read."""


class SteeringFailed(ClearanceError):
    """The steering of one sample failed or drove its latent out of all bounds; the sample ends, the others continue."""


class PlanMismatch(ClearanceError):
    """The output folder belongs to another plan, or the plan changed between start and resume."""


class IntegrityError(ClearanceError):
    """Stored bytes do not match the digest recorded for them."""


class RunStopped(ClearanceError):
    """A run that cannot continue: disk full, no worker starts, another run holds the folder. Committed shards are kept."""


class TooManyErrors(RunStopped):
    """More of a run's requests ended as errors than the run file allows."""
