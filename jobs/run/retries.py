"""Why a shard has to be done again, how often it may, and what its requests end as when it may not any more."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from index.errors import ClearanceError

T = TypeVar("T")


class Cause(StrEnum):
    """Why a worker died."""

    DEATH = "death"
    MEMORY = "memory"
    MACHINE = "machine"


# A shard may be what kills its workers; a machine that leaves the cluster is seldom its fault.
MOST_DEATHS = {Cause.DEATH: 3, Cause.MEMORY: 3, Cause.MACHINE: 10}
REASONS = {Cause.DEATH: "worker.died", Cause.MEMORY: "worker.memory", Cause.MACHINE: "worker.machine"}
STORAGE_WAITS = (1.0, 5.0, 15.0)  # seconds before a commit is tried again on storage that is away for a moment
_PASSING = frozenset({errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN, errno.EHOSTUNREACH})


def passes(error: BaseException | None) -> bool:
    """Whether a failure of the storage may be over in a moment: a network folder that went away, and not a full disk."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno in _PASSING
        error = error.__cause__
    return False


def with_retries(do: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """Do something with the storage, and again while its failure may pass.

    Args:
        do: what can be done twice.
        pause: waits for so many seconds.

    Raises:
        RunStopped, InputError: the storage failed each time, or in a way that does not pass.
    """
    for wait in STORAGE_WAITS:
        try:
            return do()
        except (ClearanceError, OSError) as error:  # what is read for a commit is an InputError
            if not passes(error):
                raise
            pause(wait)
    return do()
