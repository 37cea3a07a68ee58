"""``clearance index doctor``: references that fire where they should not, and what else is odd about an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import ConfigError
from jobs.cli.again import open_embedder
from jobs.cli.arguments import IndexFolder, a_local_path, a_place, run_folder
from jobs.cli.index_arguments import OfIndex, open_index
from jobs.console import busy, say, say_json

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint
    from index.store import ReferenceIndex

app = typer.Typer()


@app.command("doctor", epilog="Example: clearance index doctor index/ --harmless stock-photos/ --run runs/monday")
def index_doctor(
    index: IndexFolder,
    harmless: Annotated[
        Path | None,
        typer.Option(
            help="Pictures that are no copies of anything: references that fire on them are named.", parser=a_local_path
        ),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="A run folder, whose rows show what fires often; once for each run.", parser=a_place),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Copy threshold for the harmless pictures.", show_default="the calibrated one"),
    ] = None,
    embedder: OfIndex = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print data, with every name.")] = False,
) -> None:
    """Name references that fire on harmless pictures, stand there twice or have no right on record; changes nothing.

    Exits with 1 if there is a problem. Each problem comes with the command that takes the reference out of force.
    """
    from index.doctor import PROBLEM, look_over
    from jobs.index_doctor import in_runs, on_harmless

    store = open_index(index)
    fired = None
    if harmless is not None:
        from index.collect import Works

        point = _point(store, threshold)
        model = open_embedder(store, embedder)
        with busy("looking at the harmless pictures"):
            fired = on_harmless(store, model, Works(harmless), point=point)
    found = look_over(store, harmless=fired, runs=in_runs([run_folder(one)[0] for one in run]) if run else None)
    problems = sum(remark.level == PROBLEM for remark in found)
    if as_json:
        say_json({"index": str(index), "index_id": store.index_id, "problems": problems, "remarks": [r.plain() for r in found]})
    else:
        for remark in found:
            say(f"{remark.level}: {remark.topic}: {remark.what}")
            if remark.fix:
                say(f"  {remark.fix}")
        say(f"{len(store)} references; problems: {problems}, notes: {len(found) - problems}")
    if problems:
        raise typer.Exit(1)


def _point(store: ReferenceIndex, threshold: float | None) -> OperatingPoint:
    """The calibrated operating point, at another threshold where one is given.

    Raises:
        ConfigError: there is neither a calibration nor a threshold.
    """
    from index.calibrate import OperatingPoint
    from jobs.reaudit.facts import point_of_policy
    from pipeline.policy import CONFIRM, Policy

    try:
        point = point_of_policy(Policy(), store)
    except ConfigError:
        if threshold is None:
            raise
        return OperatingPoint(threshold=threshold, confirm_threshold=CONFIRM)
    return point if threshold is None else point.at(threshold)
