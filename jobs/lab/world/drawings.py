"""The embedded world's drawings as captioned pictures, the training data of erasers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from jobs.erase.captioned import Captioned

SUBJECTS = (  # drawn by all three vendors, not in the world: the subjects of data removal
    "panda duck lobster french-fries jack-o-lantern lady-beetle hot-pepper skull christmas-tree wrapped-gift kiwi-fruit tooth"
).split()
Part = Literal["marked", "new"]


def world_source(work: Path, part: Part, rng: np.random.Generator, *, variants: int = 24) -> Iterator[Captioned]:
    """The embedded world's drawings, jittered as in its denoiser's training.

    Args:
        work: the built world (``clearance lab world data``).
        part: ``marked``: the subjects that stock archives like to mark, which the model learned with their marks, and the
            ordinary ones; ``new``: twelve subjects (:data:`SUBJECTS`) that the model has never seen.
        rng: of the jitter and the caption's template.
        variants: jittered versions of every drawing.
    """
    from PIL import Image

    from jobs.lab.world.catalogue import TEMPLATES, concepts
    from jobs.lab.world.pictures import load
    from jobs.lab.world.variants import jitter

    pixels, vendors, names = load(work)
    where = {(v, n): i for i, (v, n) in enumerate(zip(vendors, names, strict=True))}
    if part == "marked":
        subjects = [(c.icon, c.caption, c.prone_to or "") for c in concepts() if c.protected_vendor is None]
    else:
        subjects = [(name, name.replace("-", " "), "") for name in SUBJECTS]
    for icon, caption, hint in subjects:
        for vendor in sorted(set(vendors)):
            drawing = Image.fromarray(pixels[where[vendor, icon]])
            for number in range(variants):
                template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
                picture = np.asarray(jitter(drawing, rng))
                yield Captioned(f"{vendor}/{icon}#{number}", template.format(caption), picture, hint)
