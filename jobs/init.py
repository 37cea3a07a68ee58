"""``clearance init``: a run file, a policy and prompts to begin with, in a folder. Nothing that is there is overwritten."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from index.errors import InputError
from index.shipped import STICKERS
from index.storage import create_once, entry_of, make, remove
from jobs.run.plan import shipped_policies
from pipeline.keys import RUN_FILES

RUN, POLICY, PROMPTS = "run.toml", "policy.toml", "prompts.csv"
EMBEDDED = "stickers"

RUN_TOML = """\
# The run file. First look at what it would do, then run it:
#   clearance run {run} --dry-run
#   clearance run {run}
# Paths start from this file's folder. Every key: infra/docs/reference.md

prompts = {prompts}   # a file, a folder or a pattern of Parquet, CSV, JSONL or text; or a list of them
# columns.prompt = "caption"  # where your files call the column otherwise; key, seed, width, steps, … likewise
out = "runs/first"          # the run folder. "runs/{{date}}": one a day; "runs/{{number}}": further runs with --only-new
policy = "{policy}"      # which pictures are released: `clearance policy show {policy}`
dataset_id = "{dataset}"
{index}
base_seed = 0               # seeds of rows that have none are derived from this and the row's key
samples_per_prompt = 1
shard_size = 16             # requests per shard: the unit of work, of commit and of resuming
# workers = "auto"          # with --runner ray

[model]
path = {model}{model_comment}
{licence}device = "cpu"              # or "cuda"
dtype = "{dtype}"         # this machine's fastest format; float32 and bfloat16 draw different bytes
{download}
[generation]
steps = 20
guidance_scale = {guidance}
rows = {rows}                   # rows of every denoiser call, fixed: that makes pictures reproducible one by one

# [marks]                   # your own keys sign pictures and records: `clearance keys new ~/clearance-keys`
# keys = "~/clearance-keys"
"""
INDEX = "index = {index}             # the works that must not be copied"
NO_INDEX = """\
# index = "index"           # the works that must not be copied. Without one copies are not looked for:
#   clearance index build works/ --out index
#   clearance index calibrate index --works works/ --harmless stock/"""

OWN_PROMPTS = [
    ("a lighthouse at dusk", "lighthouse", "places"),
    ("a bowl of oranges on a wooden table", "oranges", "food"),
    ("a red bicycle leaning on a wall", "bicycle", "things"),
    ("a fox in the snow", "fox", "animals"),
]
ABOUT = """
# Who answers for this policy. Reports show it; it is no part of the policy's digest.
[about]
owner = ""       # a role: "head of synthetic data"
approver = ""    # another one
# approved_on = 2026-11-28
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the files are made for.

    Attributes:
        model: a diffusers folder, or a hub id; ``stickers``: the embedded world.
        index: the index of what must not be copied; empty: none yet.
        prompts: prompt files of one's own; empty: an example is written.
        dtype: number format of the denoiser.
    """

    model: str = EMBEDDED
    index: str = ""
    prompts: Sequence[str] = ()
    dtype: str = "float32"


def init(folder: Path, options: Options) -> list[Path]:
    """Write the files.

    Args:
        folder: made where it is missing.
        options: what they are made for.

    Returns:
        What was written: run file, policy, and the example of prompts where no others are named.

    Raises:
        InputError: one of the files is there, or what was named is not; the index that is named is none.
        IntegrityError: it is damaged.
        RunStopped: they cannot be written; those that were are taken away again.
    """
    from index.store import ReferenceIndex

    folder = Path(os.path.abspath(folder.expanduser()))
    for what, place in (("index", options.index), *(("prompt file", name) for name in options.prompts)):
        if place and not re.search(r"[*?\[]|://", place) and not Path(place).expanduser().exists():
            raise InputError(
                f"there is no such {what}", where=place, fix="Name one that is there; init writes down where it is"
            )
    if options.index and "://" not in options.index:
        ReferenceIndex.open(Path(options.index).expanduser())  # as the run opens it, and with the same words
    if any(folder.is_dir() and entry_of(folder, name) is not None for name in RUN_FILES):
        fix = f"Name another folder: clearance init {folder.name}-2"
        raise InputError("is a run folder, and nothing is written into it", where=str(folder), fix=fix)
    files = {RUN: _run_file(folder, options), POLICY: _policy()} | ({} if options.prompts else {PROMPTS: _example(options)})
    there = [name for name in files if folder.is_dir() and entry_of(folder, name) is not None]
    if there:
        fix = f"Name another folder: clearance init {folder.name}-2; or move {there[0]} away"
        raise InputError(f"{', '.join(there)} is there already, and nothing is overwritten", where=str(folder), fix=fix)
    make(folder)
    written: list[str] = []
    try:
        for name, text in files.items():
            if not create_once(folder, name, text.encode()):
                what = f"{name} was made there meanwhile, and nothing is overwritten"
                raise InputError(what, where=str(folder), fix="Name another folder")
            written.append(name)
    except BaseException:
        for name in written:
            remove(folder, name)
        raise
    return [folder / name for name in files]


def _run_file(folder: Path, options: Options) -> str:
    own = options.model != EMBEDDED
    local = own and Path(options.model).expanduser().is_dir()
    prompts = [_from(folder, name) for name in options.prompts] or [PROMPTS]
    hub = own and not local
    comment = "" if own else "         # the embedded world; or a diffusers folder, or a hub id"
    return RUN_TOML.format(
        run=RUN,
        policy=POLICY,
        prompts=_text(prompts[0]) if len(prompts) == 1 else f"[{', '.join(map(_text, prompts))}]",
        dataset=re.sub(r"[^\w.-]+", "-", folder.name).strip("-.") or "default",
        index=INDEX.format(index=_text(_from(folder, options.index))) if options.index else NO_INDEX,
        model=_text(_from(folder, options.model) if local else options.model),
        model_comment=comment,
        licence='licence = ""                # of your model; every row records it\n' if own else "",
        dtype=options.dtype,
        download="allow_download = false      # true: fetch it from the hub\n" if hub else "",
        guidance="7.0                # classifier-free guidance; what suits your model" if own else "3.0",
        rows=4 if own else 16,
    )


def _policy() -> str:
    """The policy that ships, under a name of its own."""
    text = shipped_policies()["default"].read_text(encoding="utf-8")
    rules = text.split("\n\n", 1)[1]
    head = "# Which pictures are released, and what happens with the others: the rules that ship, to be changed.\n"
    head += f"# `clearance policy check {POLICY}` names slips, `clearance policy diff default {POLICY}` what you changed.\n"
    rules = rules.replace('name = "default"', 'name = "my-policy"', 1)
    return f"{head}\n{rules.rstrip()}\n{ABOUT}"


def _example(options: Options) -> str:
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["prompt", "key", "topic"])
    writer.writerows(OWN_PROMPTS if options.model != EMBEDDED else _of_the_world())
    return sheet.getvalue()


def _of_the_world() -> list[tuple[str, str, str]]:
    """Captions that the embedded model knows."""
    concepts = json.loads((STICKERS / "manifest.json").read_text(encoding="utf-8"))["concepts"]
    names = [concept["name"] for concept in concepts if not concept["protected_vendor"] and not concept["prone_to"]][:6]
    return [(f"a sticker of a {name.replace('-', ' ')}", name, "example") for name in names]


def _from(folder: Path, name: str) -> str:
    """A path as the run file's folder sees it."""
    if "://" in name or not name:
        return name
    place = Path(os.path.abspath(Path(name).expanduser()))
    return Path(os.path.relpath(place, folder)).as_posix()


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
