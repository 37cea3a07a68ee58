"""A run as a table in memory: one line for pandas, polars or anything else that reads Arrow.

>>> from jobs.export.load import load
>>> frame = load("runs/monday").to_pandas()
>>> frame = polars.from_arrow(load("runs/monday", pictures=False))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def load(
    run: str | Path, only: str = "accepted", columns: Sequence[str] | None = None, *, pictures: bool = True,
    keys: str | Path = "",
) -> pa.Table:  # fmt: skip
    """The samples of a run that are accepted now, with the caller's own columns as columns.

    A picture that was accepted in review is marked now, as ``clearance export`` marks it.

    Args:
        run: the run folder.
        only, columns: see :class:`jobs.export.select.Selection`.
        keys: the deployment's folder of keys; empty: that of the environment, if it names one. Without the run's keys a picture
            that was accepted in review is neither signed nor marked with a secret key.
        pictures: with the column ``image`` (``{"bytes", "path"}``); all of them are in memory then.

    Raises:
        InputError: there is no such folder, or an unknown outcome or column.
        ConfigError: there is no such folder of keys.
        ClearanceError: a shard cannot be read, or was changed.
    """
    import pyarrow as pa

    from index.storage import is_folder, place
    from jobs.export.select import Selection, Source
    from jobs.export.write import marker_of
    from pipeline.keys import Keys

    folder = place(run) if isinstance(run, str) else run
    if not is_folder(folder):
        raise InputError("there is no such run folder", where=str(folder), fix="Name the --out folder of a run")
    selection = Selection([Source(folder=folder, mark=marker_of(folder, Keys.find(str(keys), base=Path.cwd())))], only, columns)
    rows = (
        {**item.values, **({"image": {"bytes": item.image, "path": f"{item.sample_id}.{item.suffix}"}} if pictures else {})}
        for item in selection.items()
    )
    schema = selection.schema
    return pa.Table.from_pylist(list(rows), schema=schema if pictures else schema.remove(0).remove_metadata())
