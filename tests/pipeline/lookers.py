"""Guards for tests of the processes beside the denoiser: plain numpy, so that such a process starts in a moment.

A picture is made from its latent, and what the guards do with it is written in the latent's first number or in the number of
its picture.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Finding
from index.reference import Match
from pipeline.looking.study import Study

REF = hashlib.sha256(b"reference").hexdigest()[:16]  # as in tests/pipeline/loop.py, which imports more
CRASH, HANG, RAISE, LOCKED, MEMORY = 101.0, 102.0, 103.0, 104.0, 105.0


@dataclass
class Looker:
    """Answers with what it was sent; obeys a latent whose first number is one of the words above.

    Attributes:
        folder: where it leaves a file for every look, named after the process.
        slow: seconds for a look.
        flags: of the digests of pictures that are copies.
        once: a picture that crashes does so only once.
    """

    folder: Path
    slow: float = 0.0
    flags: frozenset[str] = frozenset()
    once: bool = False
    identity: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, latents: Sequence[Any], own: Sequence[Sequence[str]] = ()) -> list[Study]:
        (self.folder / f"looked-{os.getpid()}").touch()
        time.sleep(self.slow)
        return [self._one(np.asarray(latent), ids) for latent, ids in zip(latents, own, strict=True)]

    def _one(self, latent: np.ndarray, own: Sequence[str]) -> Study:
        word = float(latent.flat[0])
        if word == CRASH and not (self.once and (self.folder / "crashed").exists()):
            (self.folder / "crashed").touch()
            os._exit(7)
        if word == HANG:
            time.sleep(3600)
        if word == LOCKED:
            ctypes.PyDLL(None).sleep(3600)  # keeps Python's lock
        if word == RAISE:
            error = ValueError("cannot look at this one")
            error.add_note("guard marks")
            raise error
        if word == MEMORY:
            raise MemoryError("no room")
        picture = (np.abs(latent[:3]) * 60).astype(np.uint8).transpose(1, 2, 0).copy()
        copied = hashlib.sha256(picture.tobytes()).hexdigest() in self.flags
        score = 0.95 if copied else 0.1
        finding = Finding(
            guard="copies", version="1", category="copy.protected", score=score, threshold=0.8, ref_id=REF, detail=",".join(own)
        )
        return Study(
            picture=picture, embedding=np.ones(4, np.float32) / 2, findings=(finding,),
            nearest=(Match(ref_id=REF, title="grey", similarity=score),), guard_seconds=(("copies", 0.5),),
            shapes={"embed": (8,)},
        )  # fmt: skip


@dataclass
class Opening:
    """Opens such guards in another process.

    ``fails``: it cannot. ``only_first``: no later one can. ``fails_second``: the second try does, and no other.
    """

    looker: Callable[..., Any]
    fails: str = ""
    only_first: Path | None = None
    fails_second: Path | None = None

    def __call__(self) -> Any:
        if self.fails_second is not None:
            self.fails_second.mkdir(exist_ok=True)
            (self.fails_second / str(os.getpid())).touch()
            if len(list(self.fails_second.iterdir())) == 2:
                raise MemoryError("no room for a moment")
        if self.fails:
            raise RuntimeError(self.fails)
        if self.only_first is not None:
            self.only_first.mkdir()  # fails for the second
        return self.looker
