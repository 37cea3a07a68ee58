"""``clearance demo``: the whole job on the embedded world, from a folder of protected drawings to a verified report.

It makes two runs over the same prompts and seeds: one whose policy only observes, which shows the model's own behaviour, and
one under the default policy. The printed numbers are counted from the runs' Parquet files.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import InputError, IntegrityError, PlanMismatch
from index.rate import Rate
from index.shipped import STICKERS

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.config import RunConfig

WORKERS = 2
DRAWINGS = STICKERS / "references"
WORDINGS = ("{}", "a sticker of a {}", "a drawing of a {}", "an icon of a {}", "a {}", "{} sticker")  # of the training captions

RUN_TOML = """\
# The run file. `clearance run run.toml` runs it; `clearance run --help` lists what can be overridden.
# Paths are relative to this file.

prompts = "prompts.csv"   # columns: prompt, and optionally key, seed, negative_prompt
out = "steered"           # the run folder
index = "index"           # the works that must not be copied: built from the protected drawings
policy = "policy.toml"    # which pictures are released: your own file, or a name that ships (default, observe)
claims_contact = "claims@example.org (an example: set your own)" # where a claim about a picture is filed; reports show it
dataset_id = "demo"
base_seed = 20            # seeds of rows that have none are derived from this and the row's key
shard_size = {shard_size:<12} # requests per shard: the unit of work, of commit and of resuming
workers = {workers:<15} # Ray actors; the pictures do not depend on it

[model]
path = "stickers"         # the embedded world; or a diffusers folder, or a hub id
dtype = "{dtype}"        # this machine's fastest format; float32 and bfloat16 draw different bytes

[generation]
steps = 20
guidance_scale = 3.0
rows = 16                 # rows of every denoiser call, fixed: that makes pictures reproducible one by one
threads = 1

[embedder]
model = "stickers"
"""

ABOUT_TOML = """
# Who answers for this policy. Reports show it; it is no part of the policy's digest, so the rules are those that ship.
[about]
owner = "head of synthetic data (an example)"
approver = "general counsel (an example)"
approved_on = 2026-11-28
"""


@dataclasses.dataclass(frozen=True)
class DemoPrompt:
    """One row of the demo's prompts; ``kind``: protected, ordinary, or prone (a subject that tends to carry marks)."""

    kind: str
    key: str
    prompt: str


def demo_prompts(samples: int) -> list[DemoPrompt]:
    """Half protected captions, a third ordinary ones, the rest captions of subjects that tend to draw marks."""
    protected, ordinary = max(1, samples // 2), max(1, samples // 3)
    concepts = json.loads((STICKERS / "manifest.json").read_text(encoding="utf-8"))["concepts"]
    kinds = dict.fromkeys(concept["prone_to"] for concept in concepts if concept["prone_to"])
    prone = [[concept["name"] for concept in concepts if concept["prone_to"] == kind] for kind in kinds]
    counts = {"protected": protected, "ordinary": ordinary, "prone": max(1, samples - protected - ordinary)}
    names = {
        "protected": [concept["name"] for concept in concepts if concept["protected_vendor"]],
        "ordinary": [concept["name"] for concept in concepts if not concept["protected_vendor"] and not concept["prone_to"]],
        "prone": [name for group in zip(*prone, strict=True) for name in group],  # each kind of mark in turn
    }
    prompts = []
    for kind, count in counts.items():
        for number in range(count):
            name = names[kind][number % len(names[kind])]
            wording = WORDINGS[(number + number // len(names[kind])) % len(WORDINGS)]
            prompts.append(DemoPrompt(kind, f"{kind}-{number:03d}-{name}", wording.format(name.replace("-", " "))))
    return prompts


def run_demo(out: Path, *, samples: int, runner: str, console: Console) -> dict[str, dict[str, Any]]:
    """Run the demo in a folder; a second time in the same folder it continues what is there.

    Args:
        out: the demo's folder.
        samples: number of prompts.
        runner: ``local`` or ``ray``.
        console: where to print.

    Returns:
        The two runs in numbers, ``observed`` and ``steered``, as in their report.json (:func:`pipeline.audit.summary.plain`).

    Raises:
        ClearanceError: the folder holds something else, weights are missing, a run had to stop, a digest does not match.
    """
    from jobs.run.local_runner import RUNNERS
    from jobs.run.plan import Plan, read_policy
    from jobs.run.progress import Watch, duration
    from jobs.run.ray.cluster import cluster
    from jobs.run.ray.placement import Need
    from pipeline.config import RunConfig
    from pipeline.settings import read_toml

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    began = time.monotonic()
    prompts = demo_prompts(samples)
    out.mkdir(parents=True, exist_ok=True)
    _write_inputs(out, prompts)
    base = out.resolve()
    config = read_toml(RunConfig, out / "run.toml")
    if config.index:
        build_index(base / config.index, config, say)

    folders = {"observed": base / "observed", "steered": base / config.out}
    policies = {"observed": "observe", "steered": config.policy}
    with ExitStack() as stack:
        if runner == "ray":
            stack.enter_context(cluster(Need.of(config), WORKERS))  # one Ray for both runs
        for name, folder in folders.items():
            settings = dataclasses.replace(config, policy=policies[name], out=str(folder))
            plan = Plan.make(settings, read_policy(policies[name], base), base)
            with Watch(console, name) as watch:
                result = RUNNERS[runner](plan, folder, watch)
            say(f"{name}: {result.requests} requests, {result.attempts} pictures, {duration(result.seconds)}")

    counted = show(folders, prompts, console)
    say(f"the demo took {duration(time.monotonic() - began)}")
    return counted


def show(folders: Mapping[str, Path], prompts: Sequence[DemoPrompt], console: Console) -> dict[str, dict[str, Any]]:
    """Print the results of the two runs, verify them and write their reports; returns their numbers.

    Raises:
        ClearanceError: a file cannot be read, a digest does not match.
    """
    from jobs.funnel import LABELS, funnel, read_counts
    from jobs.report import report_run
    from pipeline.audit.numbers import count_run
    from pipeline.audit.summary import plain, sentences
    from pipeline.audit.verify import verify

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    counted = {name: read_counts(folder) for name, folder in folders.items()}
    console.print(funnel({name: counts for name, (counts, _) in counted.items()}))
    protected = count_run(folders["observed"], {prompt.key for prompt in prompts if prompt.kind == "protected"})
    copies = Rate.of(protected.too_near_first, protected.requested)
    say(f"without steering: {copies.hits} of {copies.n} protected captions copy ({copies.text}, 95\u00a0%)")
    about_check: dict[str, str] = {}  # both runs have the same check
    for name, (counts, check) in counted.items():
        for topic, text in sentences(counts, check).items():
            if topic in ("warning", "check", "measured_on"):
                about_check[topic] = text
            else:
                say(f"{name}, {LABELS[topic]}: {text}")
    for topic, text in about_check.items():
        say(f"{LABELS[topic]}: {text}")
    same, total = same_first_pictures(folders["observed"], folders["steered"])
    say(f"reproducible: {same} of {total} first pictures are byte-equal in both runs")
    for name, folder in folders.items():
        verification = verify(folder)
        if not verification.ok:
            first = verification.problems[0]
            raise IntegrityError(first.what, where=f"{name}: {first.where}", fix=f"See clearance verify {folder}")
        say(f"verified: {name}: {', '.join(f'{count} {what}' for what, count in sorted(verification.counts.items()))}")
        path, _, remark = report_run(folder)
        say(f"report:   {path}" + (f" ({remark})" if remark else ""))
    return {name: plain(counts, check) for name, (counts, check) in counted.items()}


def same_first_pictures(one: Path, other: Path) -> tuple[int, int]:
    """The number of first attempts with equal pixels in both runs, and the number that both runs drew unsteered."""
    from pipeline.audit.ledger import attempt_rows

    def firsts(folder: Path) -> dict[str, str]:
        rows = attempt_rows(folder, ["request_key", "attempt", "pixel_sha256", "caught"])
        return {row["request_key"]: row["pixel_sha256"] for row in rows if row["attempt"] == 0 and not row["caught"]}

    left, right = firsts(one), firsts(other)
    both = left.keys() & right.keys()
    return sum(left[key] == right[key] for key in both), len(both)


def _write_inputs(out: Path, prompts: list[DemoPrompt]) -> None:
    """Write prompts.csv, run.toml and policy.toml, or check that those of an earlier demo are the same prompts."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["prompt", "key", "kind"])
    writer.writerows([prompt.prompt, prompt.key, prompt.kind] for prompt in prompts)
    path = out / "prompts.csv"
    if not path.exists() and any(out.iterdir()):
        raise PlanMismatch("is not a demo folder and not empty", where=str(out), fix="Name a new folder with --out")
    if path.exists() and path.read_text(encoding="utf-8") != sheet.getvalue():
        raise PlanMismatch("the folder holds a demo with other prompts", where=str(path), fix="Name a new folder with --out")
    path.write_text(sheet.getvalue(), encoding="utf-8")
    if not (out / "run.toml").exists():
        # Two shards per worker: the end of a run, when one worker idles, stays short.
        shard_size = max(1, -(-len(prompts) // (2 * WORKERS)))
        from pipeline.model.device import native_dtype

        text = RUN_TOML.format(shard_size=shard_size, workers=WORKERS, dtype=native_dtype())
        (out / "run.toml").write_text(text, encoding="utf-8")
    if not (out / "policy.toml").exists():
        from jobs.run.plan import shipped_policies

        rules = shipped_policies()["default"].read_text(encoding="utf-8")
        (out / "policy.toml").write_text(f"{rules.rstrip()}\n{ABOUT_TOML}", encoding="utf-8")


def build_index(folder: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """Build the index of the protected drawings that ship, unless an earlier demo did."""
    from index.collect import read_references
    from index.embed import OpenCLIPEmbedder
    from index.embedder_source import SHIPPED
    from index.store import ReferenceIndex

    if folder.exists():
        try:
            ReferenceIndex.open(folder)
            return
        except InputError:
            pass  # an empty folder: an earlier demo was stopped here
    # Their licences (Apache-2.0, MIT) allow a copy, and steering away from a drawing needs its picture.
    references = [dataclasses.replace(work, keep_picture=True) for work in read_references(DRAWINGS)]
    e = config.embedder
    embedder = OpenCLIPEmbedder.open(e.model or SHIPPED, e.pretrained, base=folder.parent)
    index = ReferenceIndex.build(folder, references, embedder)
    say(f"index: {len(index)} protected drawings, {index.index_id[:12]}")
