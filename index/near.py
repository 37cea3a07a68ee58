"""Compare stored embeddings, by the million, with the references of a claim: which samples deserve a look at their picture.

Stored embeddings are float16, and of the picture as it is. The copies guard compares exact ones, and those of the picture with
its hues turned as well. So this is a screen and no verdict: its bars lie below the guard's, which decides on the picture.

* float16 moves a cosine of two unit vectors by at most 2^-11 (half a unit in the last place of every component, and the
  Cauchy-Schwarz inequality): the bar lies :data:`ROUNDING` below the guard's.
* A picture in other colours is searched for through the references with *their* hues turned, which the embedder places near,
  but not at, the same place. The bar lies :data:`COLOUR_MARGIN` below the guard's. Measured with the shipped embedder on 496
  copies of the 62 drawings that ship, their hues turned at random and half of them placed anew: the screen keeps 267 of the 268
  that the guard finds by their other colours alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from index.colours import hue_shares, in_hues
from index.embed import Embedder, embed_each, fitted
from index.errors import IndexMismatch

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint

ROUNDING = 2**-11 + 2**-14  # the second part: float32 sums
COLOUR_MARGIN = 0.1
VIEWS_AT_ONCE = 4096  # of the matrix of similarities, so that many references take no more memory than few


@dataclass(frozen=True, kw_only=True)
class Views:
    """What stored embeddings are compared with: every reference as it is, and with its hues turned.

    Attributes:
        ref_ids: of each view, its reference.
        vectors: float32 (V, D), unit length.
        turned: bool (V,): its hues are turned.
        least: float32 (V,): cosine from which a sample deserves a look.
    """

    ref_ids: tuple[str, ...]
    vectors: np.ndarray
    turned: np.ndarray
    least: np.ndarray

    @classmethod
    def of(
        cls,
        ref_ids: Sequence[str],
        vectors: np.ndarray,
        picture: Callable[[str], np.ndarray | None],
        embedder: Embedder,
        *,
        point: OperatingPoint,
        hues: int,
    ) -> Views:
        """The views of references.

        Args:
            ref_ids, vectors: the references and their embeddings float32 (R, D).
            picture: the picture of a reference, uint8 RGB, or None. Without it no colours are turned: the guard finds a copy in
                other colours only by its second look, which needs the picture.
            embedder: embeds the turned ones.
            point: the operating point of the guard that will decide.
            hues: into how many parts the guard cuts the circle of hues.
        """
        shares = hue_shares(hues)
        of = [*ref_ids]
        blocks = [np.asarray(vectors, np.float32).reshape(len(ref_ids), int(embedder.dim))]
        for ref_id in ref_ids if shares else ():
            shown = picture(ref_id)
            if shown is not None:
                turned = in_hues(fitted(embedder, shown), [1 - share for share in shares])
                blocks.append(embed_each(embedder, list(turned)))
                of += [ref_id] * len(shares)
        recoloured = np.arange(len(of)) >= len(ref_ids)
        plain = min(point.threshold, point.look_from) - ROUNDING
        least = np.where(recoloured, point.threshold - COLOUR_MARGIN, plain).astype(np.float32)
        return cls(ref_ids=tuple(of), vectors=np.concatenate(blocks), turned=recoloured, least=least)


def near(stored: np.ndarray, views: Views, at_once: int = VIEWS_AT_ONCE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a stored embedding and a view that deserve a look.

    Args:
        stored: float16 or float32 (N, D), unit length.
        views: what they are compared with.
        at_once: views in one product.

    Returns:
        Rows int64 (P,), views int64 (P,) and cosines float32 (P,), by row.

    Raises:
        IndexMismatch: vectors of another length.
    """
    if stored.ndim != 2 or stored.shape[1] != views.vectors.shape[1]:
        what = f"stored embeddings of shape {stored.shape} do not fit references of {views.vectors.shape[1]} dimensions"
        raise IndexMismatch(what, where="re-audit", fix="Name the index that was built with the embedder of the run")
    wide = stored.astype(np.float32, copy=False)
    rows, columns, cosines = [], [], []
    for start in range(0, len(views.ref_ids), at_once):
        stop = start + at_once
        scores = wide @ views.vectors[start:stop].T
        row, column = np.nonzero(scores >= views.least[start:stop])
        rows.append(row)
        columns.append(column + start)
        cosines.append(scores[row, column])
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    row, column, cosine = np.concatenate(rows), np.concatenate(columns), np.concatenate(cosines)
    order = np.argsort(row, kind="stable")
    return row[order], column[order], cosine[order]
