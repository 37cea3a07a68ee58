"""``clearance lab …``: the embedded world, the benches and the judges. Nothing of the product imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.lab.bench.cli import app as bench_app
from jobs.lab.world.cli import app as world_app

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The laboratory: rebuild the embedded world, fit the judges, run the benches behind the documents (extra 'lab').",
)
app.add_typer(world_app, name="world")
app.add_typer(bench_app, name="bench")
judges_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Independent judges of generated pictures.")
app.add_typer(judges_app, name="judges")


@judges_app.callback()
def root() -> None:
    pass


@judges_app.command()
def fit(
    work: Annotated[Path, typer.Option(help="The built world.")] = Path("world"),
    target: Annotated[Path, typer.Option(help="Folder that ships.")] = Path("pipeline/weights/stickers/judges"),
) -> None:
    """Fit the judges that the benches ask.

    Example: clearance lab judges fit --work world
    """
    from jobs.lab.judges.train import make

    make(work, target)
    print(f"wrote {target}")
