"""What a dry run notes about adapters and about what rows state: what is not used, and what cannot be drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from guards.asked import CATEGORIES, NAMES, asked_for
from index.counted import counted
from index.errors import ClearanceError, InputError
from jobs.run.error_budget import percent
from pipeline.config import RunConfig
from pipeline.notes import Note
from pipeline.outcome import Request
from pipeline.policy import Policy
from pipeline.rungs import NegativeRung

if TYPE_CHECKING:
    from jobs.run.plan import Plan
    from pipeline.model.adapters.file import AdapterFile
    from pipeline.model.load import CheckedModel
    from pipeline.runtime import Runtime

NUMBERS_NAMED = 12  # of steps, of groups
PROMPTS_READ = 10_000  # seconds; a million would take minutes


def adapter_notes(config: RunConfig, requests: Sequence[Request], model: CheckedModel | None, *, base: Path) -> list[Note]:
    """Look at every adapter's file by its header, and name those that no request uses.

    Args:
        config: the run file. requests: of the run. base: the run file's folder.
        model: that was looked at; None: it could not be.

    Raises:
        ClearanceError: a file is refused, or was trained for another class of models.
    """
    from pipeline.model.adapters.file import check_base, look_at_adapters

    notes = []
    named = any(one.rows == "named" for one in config.adapters)
    if config.adapters and not named and any('"adapter":' in request.columns for request in requests):
        text = 'the column `adapter` is kept as a column of your own, and chooses nothing: no adapter has rows = "named"'
        notes.append(Note("adapters", text))
    for one in look_at_adapters(config.adapters, base=base):
        if model is not None:
            check_base(one, model.cls.family, model.cls.pipeline)
        if one.config.rows == "named" and not any(one.name in _names(request) for request in requests):
            notes.append(Note("adapters", f"no row names {one.name!r} in the column `adapter`: it is not used"))
        texts = (text.lower() for request in requests for text in (request.prompt, request.negative_prompt))
        if one.kind == "embedding" and not any(one.name.lower() in text for text in texts):
            notes.append(Note("adapters", f"the word {one.name!r} stands in no prompt: its vectors are not used"))
    return notes


def _names(request: Request) -> list[str]:
    return [part.partition(":")[0] for part in request.adapter.split(", ")]


def adapter_in_words(one: AdapterFile) -> str:
    """One LoRA or textual inversion for people: name, what it is, what its file states."""
    how = {"all": "merged into the model", "named": "for the rows that name it"}[one.config.rows]
    what = f"LoRA of {one.layers} layers, {how}" if one.kind == "lora" else "a word in prompts"
    return f"{one.name} ({what}{f', licence {one.licence}' if one.licence else ''})"


def groups_in_words(plan: Plan, steps: int) -> str:
    """How many groups push apart, and at which steps; ``steps``: of rows that state none."""
    from pipeline.steer.diversity import pushing_steps

    d, steps_of = plan.config.generation.diversity, {one.group: one.stated.steps or steps for one in plan.requests if one.group}
    early = "; the policy's probes do not look at them" if plan.policy.early.threshold != 1 else ""
    parts = []
    for own, groups in Counter(steps_of.values()).most_common() or [(steps, 0)]:
        acting = pushing_steps(d, own)
        which = f"the first {len(acting)}" if acting.start == 0 else f"steps {acting.start + 1} to {acting.stop}"
        pushing = f"{counted(groups, 'group')} of {d.size} {'pushes' if groups == 1 else 'push'} apart"
        parts.append(f"{pushing} in {which} of {counted(own, 'step')}")
    more = f", and {len(parts) - NUMBERS_NAMED} more numbers of steps" if len(parts) > NUMBERS_NAMED else ""
    return f"{', '.join(parts[:NUMBERS_NAMED])}{more}{early}"


def stated_notes(todo: Sequence[Request], runtime: Runtime) -> list[Note]:
    """Whether the model can draw what requests state of their pictures; each that it cannot draw would end as an error row."""
    failing: dict[ClearanceError, int] = {}
    known: dict[object, ClearanceError | None] = {}
    for request in todo:
        states = (request.stated, request.group_size)
        if request.problem is None and request.stated and states not in known:
            known[states] = _refusal(runtime, request)
        if request.problem is None and (error := known.get(states)) is not None:
            failing[error] = failing.get(error, 0) + 1
    return [
        Note("prompts", f"{many} of {len(todo)} requests will end as error rows: {error}") for error, many in failing.items()
    ]


def length_notes(todo: Sequence[Request], runtime: Runtime) -> list[Note]:
    """How many prompts are longer than the text encoders take, and how many cannot be read (their weights are out of range)."""
    cut, unread = 0, Counter[str]()
    for request in todo:
        if request.problem is None:
            try:
                cut += runtime.truncated(request.prompt)
                if runtime.engine.guides(request.stated.guidance_scale, request.stated.steps):
                    runtime.adapters.plain(request.negative_prompt)
            except ClearanceError as error:
                unread[str(error)] += 1
    notes = [
        Note("prompts", f"{many} of {len(todo)} requests will end as error rows: {error}")
        for error, many in unread.most_common(NUMBERS_NAMED)
    ]
    if cut:
        text = f"{cut} of {len(todo)} prompts are longer than the text encoder takes: their ends are cut off"
        notes.append(Note("prompts", text))
    return notes


def _refusal(runtime: Runtime, request: Request) -> ClearanceError | None:
    from pipeline.next_attempt import drawn_with

    try:
        drawn_with(runtime, request)
    except ClearanceError as error:
        return error
    return None


def check_bad_rows(requests: Sequence[Request], most: float) -> None:
    """Whether the rows that cannot be drawn are already more than a run may have as errors.

    Args:
        requests: of the run. most: the share of them that may be errors.

    Raises:
        InputError: they are.
    """
    bad = sum(request.problem is not None for request in requests)
    if requests and bad / len(requests) > most:
        share = f"{bad} of {len(requests)} requests are bad rows ({percent(bad / len(requests))})"
        what = f"{share}; max_error_rate allows {percent(most)}, so the run would end with exit code 4"
        raise InputError(what, where="prompts", fix="Mend these rows, or raise max_error_rate (1: no limit)")


def unguided_notes(todo: Sequence[Request], runtime: Runtime, scale: float) -> list[Note]:
    """What run file, policy and prompts ask for and this model's guidance does not do; ``scale``: of the run."""
    notes, engine, own = list[Note](), runtime.engine, runtime.config.generation.true_guidance_scale

    def guides(one: Request) -> bool:
        return engine.guides(one.stated.guidance_scale, one.stated.steps)

    if own != 1 and not (runtime.model.distilled and engine.how_to_guide()):
        why = "this class of model has no classifier-free guidance" if runtime.model.distilled else "it is for Flux and LCMs"
        notes.append(Note("guidance", f"generation.true_guidance_scale = {own:g} has no effect: {why}"))
    unguided = [one for one in todo if one.problem is None and not guides(one)]
    of_steps = any(engine.asks_for_guidance(one.stated.guidance_scale) for one in unguided)
    for number, rung in enumerate(runtime.policy.ladder, 1):
        if isinstance(rung, NegativeRung) and not engine.guided:
            fix = engine.how_to_guide() or "Use another kind of rung"
            what = (
                f"rung {number} (negative) needs a negative row, and samples have none: those that it steers end as error rows"
            )
            notes.append(Note("policy", f"{what}. {fix}"))
        elif isinstance(rung, NegativeRung) and unguided:
            have = "has none" if len(unguided) == 1 else "have none"
            stated, steps = unguided[0].stated.guidance_scale, unguided[0].stated.steps or engine.steps
            asks = stated is None or engine.asks_for_guidance(stated)
            at = f"of {counted(steps, 'step')}" if asks else f"at {stated:g}"
            by = "guidance_scale or steps" if of_steps else "guidance_scale"
            which = f"{len(unguided)} of {len(todo)} requests {have} at the {by} of their rows"
            first = f"the first is {unguided[0].key!r}, {at}"
            text = (
                f"rung {number} (negative) needs a negative row, and {which}; {first}: those that it steers end as error rows"
            )
            notes.append(Note("policy", text))
    if not engine.asks_for_guidance(None) and not runtime.model.distilled and scale > 1:
        text = f"generation.guidance_scale = {scale:g} has no effect: this model is distilled to need none"
        notes.append(Note("guidance", text))
    negative = [request for request in todo if request.negative_prompt]
    if ignored := sum(not guides(request) for request in negative):
        text = f"{ignored} of {len(todo)} rows have a negative prompt, which has no effect without guidance"
        notes.append(Note("prompts", text))
    return notes


def asked_notes(todo: Sequence[Request], policy: Policy) -> list[Note]:
    """How many prompts ask for each kind of mark, and what the policy does with such a mark; of many, the first are read."""
    read = [one for one in todo[:PROMPTS_READ] if one.problem is None]
    asked = Counter(kind for one in read for kind in asked_for(one.prompt, one.negative_prompt))
    of = str(len(read)) if len(todo) <= PROMPTS_READ else f"the first {len(read):,}"
    notes = []
    for kind in (kind for kind in CATEGORIES if asked[kind]):
        if getattr(policy.asked, kind) == "keep":
            what = f'nothing follows where the picture shows it (asked.{kind} = "keep")'
        else:
            what = f'it is treated as a mark that nobody asked for (asked.{kind} = "act"; "keep" lets it stay)'
        notes.append(Note("prompts", f"{asked[kind]} of {of} prompts ask for {NAMES[kind]}: {what}"))
    return notes


def largest_note(todo: Sequence[Request], measured: tuple[int, int]) -> list[Note]:
    """That a request's picture is larger than the one that was measured; ``measured``: width and height in pixels."""
    width, height = measured
    sizes = [(one.stated.width or width, one.stated.height or height) for one in todo if one.problem is None]
    largest = max(sizes, key=lambda size: size[0] * size[1], default=measured)
    if largest[0] * largest[1] <= width * height:
        return []
    text = f"memory was measured at {width} × {height}; the largest pictures, {largest[0]} × {largest[1]}, take more"
    return [Note("memory", f"{text}: set model.width and model.height to theirs for a dry run of its own")]
