"""Numbers that the loop wants to know of a call, read from the device one call late.

A number that is read at once makes the host wait until the device has nothing to do. So the norms of a call are put into one
vector, whose copy to the host is asked for behind the call and read when the next one has been launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from pipeline.engine.trajectory import Trajectory


class Norms(NamedTuple):
    """What a step of one sample leaves to be read.

    Attributes:
        trajectory: the sample's.
        step: that was taken.
        rows: the network's output for its own rows (1 or 2, C, h, w), to find out why a latent is not finite.
        change: ‖z_{i+1} − z_i‖, a scalar on the device.
        guidance: ‖ε_text − ε_empty‖, another one; None without classifier-free guidance.
    """

    trajectory: Trajectory
    step: int
    rows: torch.Tensor
    change: torch.Tensor
    guidance: torch.Tensor | None


class Read(NamedTuple):
    """The same with the numbers."""

    trajectory: Trajectory
    step: int
    rows: torch.Tensor
    change: float
    guidance: float | None


@dataclass(frozen=True)
class Call:
    """A call that was launched: the samples in it, with their rows, and when."""

    samples: Sequence[tuple[Trajectory, int]]
    began: float


def pay(calls: Sequence[Call], since: float, now: float) -> None:
    """Share out the time of calls that are over among their samples, by rows.

    Args:
        calls: in order.
        since: when an earlier call was waited for; the device had work until then, or was idle until the first of these began.
        now: when these were waited for.
    """
    rows = [(t, count) for call in calls for t, count in call.samples]
    seconds = (now - max(since, calls[0].began)) / sum(count for _, count in rows) if rows else 0.0
    for t, count in rows:
        t.device_seconds += seconds * count


class Reading:
    """The norms of one call on their way to the host, in one copy; and the calls that are over when they have arrived."""

    def __init__(self, norms: Sequence[Norms], calls: Sequence[Call]) -> None:
        import torch

        self._norms, self.calls = list(norms), list(calls)
        vector = torch.stack([v for n in norms for v in (n.change, n.change if n.guidance is None else n.guidance)])
        on_cuda = vector.device.type == "cuda"
        self._numbers = vector.to("cpu", non_blocking=on_cuda)  # elsewhere a copy that does not wait may be read too early
        self._arrived: Any = None
        if on_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(vector.device))

    def read(self) -> list[Read]:
        """Wait until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers = self._numbers.tolist()
        return [
            Read(n.trajectory, n.step, n.rows, change, None if n.guidance is None else guidance)
            for n, change, guidance in zip(self._norms, numbers[::2], numbers[1::2], strict=True)
        ]
