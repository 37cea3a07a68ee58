"""Collect the notes of a run: what it does differently from what its files let a reader expect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from index.counted import counted
from jobs.run.planning.sizes import counted as counted_sizes
from jobs.run.planning.sizes import own_sides
from pipeline.config import HARD_STOP, GenerationConfig, ModelConfig, RunConfig
from pipeline.keys import Keys
from pipeline.notes import Note
from pipeline.outcome import Request
from pipeline.policy import Policy
from pipeline.rungs import EraseRung
from pipeline.steer.filters import rollback_step

SOON = timedelta(days=14)  # a certificate that ends within this time is warned of


def notes_of(
    config: RunConfig, policy: Policy, base: Path, requests: Sequence[Request] = (), *, model_digest: str = ""
) -> list[Note]:
    """Every silent substitution that model, policy and index bring with them. Reads names and headers; loads nothing.

    Args:
        config: the run file. policy: its policy. base: its folder.
        requests: of the run; they may state sizes of their own.
        model_digest: as the plan binds it.

    Raises:
        ModelError: the model's folder cannot be drawn with.
    """
    from pipeline.model.load import look_at
    from pipeline.model.sampling.choose import sampler_of
    from pipeline.model.sampling.decided import decided
    from pipeline.opening import early_set_aside, nothing_protected, stale_calibration, without_pictures
    from pipeline.policy import remarks

    folder, cls, parts = look_at(config.model)
    notes = list(parts.notes)
    drawn, more = decided(config)
    notes += [*more, *guidance_notes(drawn.generation, requests, distilled=cls.distilled)]
    notes += erase_notes(drawn.generation, requests, policy)
    if config.generation.scheduler == "auto":
        _, text = sampler_of(parts.scheduler, flow=cls.flow)
        notes += [Note("scheduler", text)] if text else []
    notes += _safety(folder, policy)
    notes += [Note("policy", remark) for remark in (*remarks(policy), *idle_in_a_run(policy))]
    if stale := stale_calibration(config, policy, base=base):
        notes.append(Note("calibration", stale))
    if probes := early_set_aside(config, policy, model_digest, base=base):
        notes.append(Note("early", probes))
    if nothing := nothing_protected(config, base=base):
        notes.append(Note("copies", nothing))
    if bare := without_pictures(config, policy, base=base):
        notes.append(Note("copies", bare))
    if not config.index:
        notes.append(Note("copies", "the run file names no index: the copies guard does not run, and every row records it"))
    notes += hard_stop_notes(config.keep.hard_stop, policy)
    return [*notes, *key_notes(config, base), *watermark_notes(config, base, _largest_side(config.model, folder, requests))]


def guidance_notes(drawn: GenerationConfig, requests: Sequence[Request], *, distilled: bool = False) -> list[Note]:
    """That a share of the steps rounds to none, so that guidance which is asked for acts in no step.

    Args:
        drawn: with steps and scale in force.
        requests: of the run.
        distilled: whether the network takes the scale as an input: guidance is then that of ``true_guidance_scale``.
    """
    share, usual = drawn.guidance_until, drawn.drawn_steps
    if not 0 < share <= 0.5:  # 0 says so itself, and more than a half of one step is that step
        return []

    def asks(own: float | None) -> bool:
        return (drawn.true_guidance_scale if distilled else drawn.drawn_guidance if own is None else own) > 1

    there = [one for one in requests if one.problem is None]
    taken = [one.stated.steps or usual for one in there if asks(one.stated.guidance_scale)]
    none = [steps for steps in (taken if there else [usual] if asks(None) else []) if not round(share * steps)]
    if not none:
        return []
    which = f" in {len(none)} of {len(requests)} requests" if taken else ""
    what = (
        f"generation.guidance_until = {share:g} of {counted(min(none), 'step')} rounds to none: guidance acts in no step{which}"
    )
    return [Note("guidance", f"{what}, and negative prompts have no effect there. Set it above {0.5 / min(none):g}")]


def erase_notes(drawn: GenerationConfig, requests: Sequence[Request], policy: Policy) -> list[Note]:
    """Rungs of the mark ladder that put words where no guidance acts any more: they draw the end of the same picture again.

    Args:
        drawn: with steps and scale in force. requests: of the run. policy: its policy.
    """
    there = {one.stated.steps or drawn.drawn_steps for one in requests if one.problem is None} or {drawn.drawn_steps}
    guided = {steps: round(drawn.guidance_until * steps) for steps in there}
    notes = []
    for number, rung in enumerate(policy.mark_ladder, 1):
        if not isinstance(rung, EraseRung):
            continue
        begins = {steps: rollback_step(steps, 1, resume_fraction=rung.resume_fraction) for steps in there}
        for steps in [one for one in sorted(there) if 0 < guided[one] <= begins[one]][:1]:  # without guidance it is a re-seed
            what = f"mark_ladder rung {number} (erase) begins at step {begins[steps]} of {steps}"
            why = f"guidance acts in the first {guided[steps]} (generation.guidance_until): what it leaves out changes nothing"
            notes.append(Note("policy", f"{what}, and {why}. Lower its resume_fraction below {guided[steps] / steps:g}"))
    return notes


def idle_in_a_run(policy: Policy) -> list[str]:
    """Its safeguards that do not act; nothing of a policy that ships, whose name says what it does."""
    from jobs.run.plan import ships
    from pipeline.idle import idle

    return [] if ships(policy) else idle(policy)


def hard_stop_notes(hard_stop: Sequence[str], policy: Policy) -> list[Note]:
    """Entries of ``keep.hard_stop`` with which no finding begins, so that pictures are kept after all, or with which all do."""
    if tuple(hard_stop) == HARD_STOP:
        return []
    from guards.copies import UNDONE, CopiesGuard
    from guards.registry import describe

    brought = [one.category or f"classifier.{one.name}" for one in policy.classifiers]
    brought += [one.category or f"question.{one.name}" for one in policy.questions]
    ships = (one for guard in describe() for one in guard.categories if not one.endswith(".NAME"))
    known = [*CopiesGuard.categories, *(UNDONE[edit] for edit in policy.copies.edits), *ships, *brought]
    notes = []
    for begins in hard_stop:
        if not begins:
            notes.append(Note("keep", "keep.hard_stop has an empty entry: no picture is kept of anything that is rejected"))
        elif not any(category.startswith(begins) for category in known):
            text = f"keep.hard_stop has {begins!r}, and no guard finds such a category: it changes nothing. Categories: "
            notes.append(Note("keep", text + ", ".join(dict.fromkeys(known))))
    return notes


def watermark_notes(config: RunConfig, base: Path, side: int | None = None) -> list[Note]:
    """That the watermark's key is the published one, where pictures are large enough to be marked.

    Args:
        config: the run file. base: its folder.
        side: the shorter one of the picture whose shorter side is the longest, in pixels; None: not known.

    Raises:
        ConfigError: the key is damaged, or there is no such watermark.
    """
    from pipeline.marking.watermark import chosen, watermark_class

    scheme = chosen(config.marks.watermark)
    if not scheme or (side is not None and side < watermark_class(scheme).least_side):
        return []
    if Keys.find(config.marks.keys, base=base).watermark() is not None:
        return []
    text = (
        "there is no watermark.key: the published key marks the pictures, so that everybody can find the mark and imitate it; "
        "`clearance keys new FOLDER` makes a key of your own"
    )
    return [Note("watermark", text)]


def _largest_side(model: ModelConfig, folder: Path, requests: Sequence[Request]) -> int | None:
    """The largest shorter side of a run's pictures, in pixels; None where one of them is not known."""
    trained = None if None not in own_sides(model) else _trained_side(folder)
    width, height = (side or trained for side in own_sides(model))
    every = [*counted_sizes(requests, (width, height))] or [(width, height)]
    sides = [None if wide is None or high is None else min(wide, high) for wide, high in every]
    return max((side for side in sides if side is not None), default=None) if None not in sides else None


def _trained_side(folder: Path) -> int | None:
    """Side in pixels of the pictures that a model was trained on; None where its folder does not state it in the usual way."""
    try:
        (network,) = [path for name in ("unet", "transformer") if (path := folder / name / "config.json").is_file()]
        latent = json.loads(network.read_text(encoding="utf-8"))["sample_size"]
        blocks = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["block_out_channels"]
        side: int = int(min(latent) if isinstance(latent, list) else latent) * 2 ** (len(blocks) - 1)
        return side
    except (OSError, ValueError, KeyError, TypeError):
        return None


def key_notes(config: RunConfig, base: Path) -> list[Note]:
    """What to know of the keys of a run: who signs, until when, and what is unsafe about the folder.

    Raises:
        ConfigError: a key is damaged.
    """
    keys = Keys.find(config.marks.keys, base=base)
    key = keys.c2pa(elsewhere=bool(config.marks.signer)) if config.marks.c2pa != "off" else None
    notes = [Note("keys", warning) for warning in keys.warnings()]
    if key is None:
        return notes
    if key.test:
        notes.append(Note("C2PA", f"pictures are signed by {key.subject}: a test certificate, nobody else trusts it"))
    if key.not_after - datetime.now(UTC) < SOON:
        text = f"the certificate ends on {key.not_after:%Y-%m-%d %H:%M} UTC: from then on readers call its manifests invalid"
        notes.append(Note("C2PA", text))
    return notes


def device_notes_of(config: ModelConfig) -> list[Note]:
    """The same of the device; imports torch, and looks at this machine alone."""
    from pipeline.model.device import device_notes

    return device_notes(config)


def check_devices(config: RunConfig) -> None:
    """Whether this machine has every device that a run file names and the run needs.

    Raises:
        ConfigError: it lacks one.
    """
    from pipeline.model.device import check_device

    named = {"model": config.model.device, "embedder": config.embedder_device, "guards": config.guard_device}
    if not config.index:
        del named["embedder"]  # nothing is embedded
    for table, device in named.items():
        check_device(device, where=f"{table}.device")


def _safety(folder: Path, policy: Policy) -> list[Note]:
    from guards.registry import describe
    from pipeline.model.folder.components import read_index

    named = read_index(folder).get("safety_checker")
    if not isinstance(named, list) or named[0] is None:
        return []
    unsafe, here = policy.unsafe, {guard.name: guard for guard in describe()}["unsafe"]
    if not unsafe.enabled:
        state = "is off (unsafe.enabled in the policy)"
    elif not here.available:
        state = f"is not available here: {here.reason}"
    else:
        state = f"is on, with action {unsafe.action}"
    text = f"the folder's safety checker is not loaded; Clearance's own guard for unsafe content {state}"
    return [Note("safety checker", text)]
