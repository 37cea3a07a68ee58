"""``clearance detect``: which marks a file carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.counted import counted
from jobs.cli.arguments import a_local_path, a_place
from jobs.console import grid, make_console, say, say_json

if TYPE_CHECKING:
    from jobs.detect import Detection, Looked

Place = Annotated[
    Path,
    typer.Argument(metavar="FILE|FOLDER", help="A picture, or a folder of pictures.", show_default=False, parser=a_local_path),
]


def detect(
    place: Place,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="A run folder whose released pictures to compare with; may be repeated.",
            parser=a_place,
        ),
    ] = None,
    keys: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folders of keys, earlier ones too; by default the one in CLEARANCE_KEYS.",
            parser=a_local_path,
        ),
    ] = None,
    watermark: Annotated[
        list[str] | None,
        typer.Option(
            "--watermark", metavar="NAME", help="Watermarks to look for; may be repeated. off: none, which is faster."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print data.")] = False,
) -> None:
    """Look for the marks of generated pictures: XMP, C2PA, watermark, fingerprint. Uses no network.

    Exits with 0 if every picture is identified as generated; with 1 if a mark does not hold or a picture cannot be read; with 3
    if neither, and a picture is not identified or there is none. One that is not identified may be generated all the same:
    every mark can be removed.
    """
    from jobs.cli.arguments import run_folder
    from jobs.detect import Detection
    from pipeline.keys import Keys
    from pipeline.marking.watermark import DEFAULT

    runs = [run_folder(one)[0] for one in run or []]
    folders = [Keys.find(str(one), base=Path.cwd()) for one in keys or []] or [Keys.find(base=Path.cwd())]
    schemes = [name for name in watermark or [DEFAULT] if name != "off"]
    detection = Detection(folders, runs, schemes)
    if json:
        looked = [one.plain() for one in detection.look(place)]
        say_json({"files": looked, "summary": detection.summary.plain()})
    elif place.is_dir():
        for one in detection.look(place):
            _line(one)
        _summary(detection)
    else:
        for one in detection.look(place):
            _table(one)
    raise typer.Exit(detection.summary.exit_code)


def _line(one: Looked) -> None:
    states = " · ".join(f"{layer.name} {layer.state}" for layer in one.layers)
    say(f"{one.verdict}: {one.file}: {one.problem or states}")
    for layer in one.layers:
        if layer.state == "fail":
            say(f"  {layer.name}: {layer.what}")


def _table(one: Looked) -> None:
    say(f"{one.verdict}: {one.file}" + (f": {one.problem}" if one.problem else ""))
    table = grid()
    for layer in one.layers:
        table.add_row(f"{layer.name}: {layer.state}", layer.what)
        table.add_row("", f"false alarms: {layer.false_alarms}")
    make_console().print(table)


def _summary(detection: Detection) -> None:
    summary = detection.summary
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(summary.verdicts.items()))
    other = f"; {counted(summary.other_files, 'other file')}" if summary.other_files else ""
    say(f"{counted(summary.files, 'picture')}: {counts or 'none'}{other}")
    table = grid()
    for name, states in summary.layers.items():
        table.add_row(name, ", ".join(f"{states[state]} {state}" for state in sorted(states)))
    make_console().print(table)
    if not summary.files and summary.other_files:
        say(
            "The pictures of a run are in its Parquet files: `clearance export RUN --format folder --to FOLDER` takes them out."
        )
