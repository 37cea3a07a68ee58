"""Everything one process needs to draw and clear pictures, loaded once: model, engine, embedder, index, guards."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from guards.base import Guard
from index.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.engine.engine import Engine
from pipeline.identity import Compared, GuardInForce, guards_in_force, identity, policy_in_force
from pipeline.keys import Keys
from pipeline.looking.activity import Activity
from pipeline.looking.beside import guard_processes, looker_identity, open_looker
from pipeline.looking.pool import Pool
from pipeline.looking.study import Looker, Study
from pipeline.marking.markers import Markers, open_markers
from pipeline.model.adapters.opened import Adapters, Read, open_adapters, texts
from pipeline.model.compiled import add_layer_points, compile_now
from pipeline.model.contexts import TOGETHER
from pipeline.model.device import check_device
from pipeline.model.folder.resolve import model_name
from pipeline.model.graphs import PlainCalls
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.model.machine import machine
from pipeline.model.sampling.presets import Facts, filled_in
from pipeline.opening import Copies, count_together, open_copies, open_faithfulness, open_policy_guards, open_prompts, prepare
from pipeline.outcome import Adapter, PaddedRows, Request
from pipeline.policy import Policy, action_of, asked_and_kept, asked_sets, kept_if_asked
from pipeline.references import References
from pipeline.respond.early import EarlyDetector, wanted
from pipeline.respond.marks import Erasers, Erasure, negative_conditioning, open_erasers
from pipeline.respond.reference_latents import ReferenceLatents, fits
from pipeline.respond.steered_probe import SteeredProbe
from pipeline.rungs import NegToMeRung
from pipeline.salt import salt_parts, secret_salt
from pipeline.settings import digest
from pipeline.steer.diversity import too_few_rows
from pipeline.steer.erase_tokens import CONCEPTS
from pipeline.steer.feature_memory import site_shapes
from pipeline.steer.features import FeatureCache

if TYPE_CHECKING:
    import torch

    from guards.copies import CopiesGuard
    from guards.faithfulness import FaithfulnessGuard
    from guards.prompt import PromptGuard, PromptLook
    from index.store import ReferenceIndex
    from pipeline.audit.context import RunContext
    from pipeline.engine.trajectory import Size, Trajectory
    from pipeline.model.adapters.reading import Worn
    from pipeline.model.conditioning import Conditioning
    from pipeline.model.contexts import Contexts
    from pipeline.steer.embedder_space import EmbedderSpace

CONTEXT_BYTES = 2**30  # conditionings kept
COLOURED = 1024  # references in all colours that probes search, each encoded once: seconds on a CPU
PROMPT_LOOKS = 65_536  # prompts whose look is remembered


class Runtime:
    """The opened parts of one worker. Open it once per process: loading takes seconds, a shard takes minutes."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        model: DiffusionModel,
        *,
        copies: CopiesGuard | None = None,
        guards: Sequence[Guard] = (),
        skipped: Sequence[str] = (),
        index: ReferenceIndex | None = None,
        calibration_id: str = "",
        threshold: float = 0.0,
        erasers: Erasers | None = None,
        adapters: Adapters | None = None,
        in_force: Sequence[GuardInForce] = (),
    ) -> None:
        self.config, self.model = config, model
        self.pool: Pool | None = None  # guards beside this process; set it before the loop begins
        self.spent = Activity()
        self.prompts: PromptGuard | None = None
        self.faithfulness: FaithfulnessGuard | None = None
        self._counted: Path | None = None  # where the processes of this worker count what answers cost
        self.salt, self.markers = "", Markers()  # the deployment's, set where keys were looked for
        self.stated_policy, self.policy, self.in_force = policy, policy_in_force(policy, in_force), tuple(in_force)
        self.copies, self.guards, self.skipped, self.index = copies, tuple(guards), tuple(skipped), index
        self.calibration_id, self.copy_threshold = calibration_id, threshold
        drawn = filled_in(config.generation, Facts.of_model(model))
        self.preset, g = drawn.preset, drawn.generation
        references = max((rung.references for rung in policy.ladder if isinstance(rung, NegToMeRung)), default=0)
        self.engine = Engine(
            model, rows=g.rows, steps=g.drawn_steps, guidance_scale=g.drawn_guidance, true_guidance_scale=g.true_guidance_scale,
            scheduler=g.scheduler, eta=g.eta, spacing=g.timestep_spacing or "", guidance_until=g.guidance_until,
            references=references,
        )  # fmt: skip
        if (size := g.diversity.size) and size * (2 if self.engine.guided else 1) > g.rows:
            raise too_few_rows(size, guided=self.engine.guided, rows=g.rows)
        self.engine.least_rows = max(self.engine.least_rows, size * (2 if self.engine.guided else 1))
        features = config.feature_mib * 2**20
        self.engine.features = FeatureCache(features, most=features)
        kept = max(8, min(4096, CONTEXT_BYTES // max(1, model.conditioning_bytes)))  # Flux: 8 MiB a prompt
        self.adapters = adapters or Adapters()
        ahead = kept if config.model.text_encoders == "offload" else TOGETHER
        self.read = Read(model, self.adapters, kept, together=ahead)
        self.context_of = self.contexts = self.read.contexts()
        self.negative_context_of = self.read.contexts(negative=True)
        self._most_tokens: dict[Size, int] = {}
        if g.diversity.size and g.diversity.resolution == "finest":
            self.most_tokens_at(model.latent_shape[1:])  # refused now, where it cannot be found out
        self.references = References(index, model, hues=policy.copies.hues)
        self._references = {model.latent_shape[1:]: self.references}
        self.early = self._early(self.references)
        self._earlies: dict[Size, EarlyDetector | None] = {}  # of other sizes
        self.steered_probe = self._steered_probe()
        self.engine.looked_at = self._looked_at
        self.erasers = erasers or Erasers()
        self._prompt_looks = lru_cache(maxsize=PROMPT_LOOKS)(lambda guard, prompt: guard.check(prompt))
        self._standing_of = lru_cache(maxsize=kept)(lambda text, worn: self._negative(text, self.standing, worn))
        self.standing = self.erasers.standing(model.word_room()) if self.erasers.loaded else None
        if self.standing is not None and not self.engine.guided:
            guide = self.engine.how_to_guide()
            fix = f"{guide}, or leave the key out" if guide else "Leave the key out"
            raise ConfigError("without guidance there is no negative prompt", where='adapters: tokens = "always"', fix=fix)
        if config.model.compile == "blocks":
            self._compile()
        if config.model.graphs == "plain":
            self.engine.plain = plain = PlainCalls(self.model)
            plain.record_now(*self._padding())

    def _compile(self) -> None:
        """Compile the denoiser's blocks for calls of the run's own size, with hook points for what its adapters change."""
        loras = (lora.denoiser for lora, _ in self.adapters.named.values())
        weights = (*loras, *(eraser.lowrank for eraser, _ in self.erasers.loaded))
        add_layer_points(self.model.network, (name for one in weights if one is not None for name in one.pairs))
        compile_now(self.model, *self._padding())

    def _padding(self) -> tuple[int, torch.Tensor, Conditioning, float]:
        """Of a call of the run's own size without samples: its rows, a row's time and conditioning, the guidance inside."""
        time = self.engine.sampler.time(0, self.model.device)
        return self.engine.rows, time, self.context_of(""), self.engine.inner_guidance

    @classmethod
    def open(cls, config: RunConfig, policy: Policy, *, base: Path) -> Runtime:
        """Load model, index and guards, and start the processes that look beside this one; :meth:`close` ends them.

        Raises:
            ConfigError: the device is not there; or no calibrated threshold for this embedder, and none in the policy.
            ModelError: the model or embedder cannot be loaded, or the model's blocks not be compiled.
            IndexMismatch: the index was built with another embedder.
            GuardUnavailable: a guard the policy requires cannot run here.
            IntegrityError: an adapter's weights are not the ones it was saved with.
            ConfigError: a key is damaged, or a required mark cannot be made.
        """
        check_device(config.model.device)  # before guards and embedder, which have its device where they state none
        prepare(config)
        counted = count_together(policy)
        guards, skipped = open_policy_guards(policy, config.guard_device, base=base)
        copies = open_copies(config, policy, base=base, device=config.embedder_device)
        runtime = cls.with_looks(config, policy, guards, skipped, copies, base=base)
        runtime._counted = counted
        if workers := guard_processes(config):
            opening = partial(open_looker, config, policy, base, runtime.model.decoder)
            here, seconds = looker_identity(runtime.copies, runtime.guards), config.guards.deadline_seconds
            runtime.pool = Pool(opening, workers, deadline=seconds, identity=here, activity=runtime.spent)
        return runtime

    @classmethod
    def with_looks(
        cls, config: RunConfig, policy: Policy, guards: Sequence[Guard], skipped: Sequence[str], copies: Copies | None, *,
        base: Path,
    ) -> Runtime:  # fmt: skip
        """Load the model for guards that are open already; arguments as from :func:`open_policy_guards` and
        :func:`open_copies`."""
        keys = Keys.find(config.marks.keys, base=base)  # before anything takes long
        markers, salt = open_markers(config.marks, keys), secret_salt(keys)
        model = load_model(config.model)
        adapters = open_adapters(config.adapters, model, base=base, weights=config.generation.prompt_weighting)
        erasers = open_erasers(config.adapters, model, base=base)
        ids = ("", "") if copies is None else (copies.index.embedder_id, copies.guard.point.look_id)
        index_id = copies.index.index_id if copies is not None else ""
        found = guards_in_force(config, policy, model.digest, *ids, index_id=index_id, base=base)
        prompts, unlooked = open_prompts(policy, copies)
        faithfulness, skipped = open_faithfulness(policy, copies), [*skipped, *unlooked]
        # One that is here and cannot be opened is not in force.
        opened = {"copies", "prompt", "faithfulness", *(guard.name for guard in guards)}
        in_force = [guard for guard in found if guard.name in opened]
        if copies is None:
            runtime = cls(
                config, policy, model, guards=guards, skipped=[*skipped, "copies: no index in the run file"],
                threshold=policy.copies.threshold or 0.0, erasers=erasers, adapters=adapters, in_force=in_force,
            )  # fmt: skip
        else:
            runtime = cls(
                config, policy, model, copies=copies.guard, guards=guards, skipped=skipped, index=copies.index,
                calibration_id=copies.calibration_id, threshold=copies.threshold, erasers=erasers, adapters=adapters,
                in_force=in_force,
            )  # fmt: skip
        runtime.salt, runtime.markers = salt, markers
        runtime.prompts, runtime.faithfulness = prompts, faithfulness
        return runtime

    def size_of(self, request: Request) -> Size:
        """(h, w) of the latent of a request.

        Raises:
            ConfigError: the model cannot draw the size that it states.
        """
        stated, model = request.stated, self.config.model
        return self.model.shape_of(stated.width or model.width or model.size, stated.height or model.height or model.size)[1:]

    def most_tokens_at(self, size: Size) -> int:
        """Image tokens of the denoiser's blocks that have the most of them, in latents of that size.

        Raises:
            ConfigError: they cannot be worked out for this class of model.
        """
        if size not in self._most_tokens:
            try:
                shapes = site_shapes(self.model, self.context_of(""), size)
            except Exception as error:  # a network whose shapes depend on numbers
                why = f"{type(error).__name__}: {error}"
                what = f"which blocks have the most image tokens cannot be worked out for this model ({why})"
                raise ConfigError(what, where="generation.diversity.resolution", fix='Set it to "all"') from None
            self._most_tokens[size] = max(shape.tokens for shape in shapes)
        return self._most_tokens[size]

    def references_at(self, size: Size) -> References:
        """The references in latents of that size."""
        if size not in self._references:
            self._references[size] = References(self.index, self.model, hues=self.policy.copies.hues, size=size)
        return self._references[size]

    def early_at(self, size: Size) -> EarlyDetector | None:
        """The probes of samples of that size; None: they are off."""
        if size == self.model.latent_shape[1:]:
            return self.early
        if size not in self._earlies:
            self._earlies[size] = self._early(self.references_at(size))
        return self._earlies[size]

    def _early(self, references: References) -> EarlyDetector | None:
        copies, policy = self.copies, self.policy
        if copies is None or not wanted(policy):
            return None
        latents = None
        numbers = math.prod(references.shape)
        if ReferenceLatents.possible(copies.index, numbers):
            coloured = copies.index.matching * policy.copies.hues
            many = len(copies.index) * policy.copies.hues > COLOURED or not fits(coloured, numbers)
            latents = ReferenceLatents(
                copies.index, references.latent, lambda: references.centre,
                *(() if many else (references.recoloured, references.encode_ahead)),
            )  # fmt: skip
        size = references.shape[1:]
        return EarlyDetector.open(policy.early, self.model, self.engine.sampler, copies, latents=latents, size=size)

    def _steered_probe(self) -> SteeredProbe | None:
        shares, copies = self.policy.early.steered, self.copies
        return SteeredProbe(shares, self.model.decoder.alone, copies) if shares and copies and wanted(self.policy) else None

    def _looked_at(self, t: Trajectory) -> bool:
        """Whether a probe may look at a sample after the step that it has just taken."""
        return any(probe is not None and probe.due(t) for probe in (self.early, self.steered_probe))

    @property
    def looker(self) -> Looker:
        """Decoder and guards of this process."""
        calls = getattr(self.model, "decode_calls", None)
        return Looker(lambda latents: self.model.decode(latents), self.copies, self.guards, decoder_calls=calls)

    def study(self, latents: Sequence[torch.Tensor], own: Sequence[Sequence[str]] = ()) -> list[Study]:
        """Decode finished latents and let every guard of this process look; see :class:`pipeline.looking.study.Looker`."""
        return self.looker(latents, own)

    def look_at_prompt(self, prompt: str) -> PromptLook | None:
        """What the guard of prompts finds in a prompt as the text encoders read it; None where the policy has none.

        Raises:
            PromptUnread: a pattern of the policy took too long.
            InputError: a weight in the prompt is out of range.
        """
        if self.prompts is None:
            return None
        read = self.adapters.plain(prompt)  # brackets of weights would hide words: "ap(ple:1)" is drawn as "apple"
        look = cast("PromptLook", self._prompt_looks(self.prompts, read))
        return look._replace(drawn=prompt if look.drawn == read else self.adapters.quoted(look.drawn))

    def drawn(self, prompts: Iterable[str]) -> Iterator[str]:
        """What will be drawn for prompts, without those that are rejected."""
        for prompt in prompts:
            try:
                look = self.look_at_prompt(prompt)
            except Exception:  # its request says so; whatever it is, one prompt ends no run
                continue
            if look is None or not look.rejected:
                yield prompt if look is None else look.drawn

    def activity(self) -> dict[str, Any]:
        """What this worker's time went into so far, as plain numbers; see :class:`pipeline.looking.activity.Activity`."""
        return self.spent.plain() | {"sizes": self.filled()}

    def filled(self) -> dict[str, dict[str, int]]:
        """By size of picture, such as "1024 × 768": the denoiser's calls, their rows, and how many of these had an owner."""
        sizes = {" × ".join(map(str, self.model.decode_size(size))): one for size, one in self.engine.filled.items()}
        return {name: one._asdict() for name, one in sizes.items()}

    def close(self) -> None:
        """End the processes beside this one."""
        if self.pool is not None:
            self.pool.close()
        if self._counted is not None:
            self._counted.unlink(missing_ok=True)

    def padded_rows(
        self, shapes: Mapping[str, tuple[int, ...]] | None = None, latent: torch.Tensor | None = None
    ) -> PaddedRows:
        """Rows that the calls of model, embedder and mark detectors have had so far; ``shapes``: those of the process that
        looked; ``latent``: of that size, if not the model's own."""
        return self.model.padded_rows(latent)._replace(**(self.looker.shapes() if shapes is None else shapes))

    def context_for(self, worn: Worn) -> Contexts:
        """Prompt → conditioning, for a row with these LoRAs."""
        return self.read.contexts(worn) if texts(worn) else self.context_of

    def asked(self, prompt: str, negative_prompt: str) -> frozenset[str]:
        """Categories of the marks that a prompt, as the text encoders read it, asks for and the policy keeps."""
        if not kept_if_asked(self.policy):
            return frozenset()
        return asked_and_kept(self.policy, self.adapters.plain(prompt), self.adapters.plain(negative_prompt))

    def erasers_for(self, asked: Collection[str]) -> Erasers:
        """The erasers of a request that asks for marks of these categories."""
        return self.erasers.sparing({CONCEPTS[category] for category in asked if category in CONCEPTS})  # no eraser knows logos

    def standing_for(self, asked: Collection[str]) -> Erasure | None:
        """The tokens in the negative conditioning of such a request from the start."""
        if self.standing is None or not asked:
            return self.standing
        return self.erasers_for(asked).standing(self.model.word_room())

    def negative_of(self, text: str, erasure: Erasure | None, worn: Worn = ()) -> Conditioning:
        """Conditioning of a negative prompt, with the words of an eraser behind it, for a row with these LoRAs."""
        if erasure is not None and erasure is self.standing:
            return self._standing_of(text, texts(worn))
        return self._negative(text, erasure, worn)

    def _negative(self, text: str, erasure: Erasure | None, worn: Worn) -> Conditioning:
        with self.adapters.reads(worn):
            return negative_conditioning(self.model, text, erasure, self.read.contexts(worn, negative=True))

    def truncated(self, prompt: str) -> bool:
        """Whether every text encoder drops the prompt's end."""
        return self.adapters.truncated(self.model, prompt)

    def embedder_space(self) -> EmbedderSpace:
        """The embedder's space as nudging takes it, with gradients."""
        from pipeline.steer.embedder_space import EmbedderSpace

        if self.copies is None:
            raise ConfigError("there is no embedder to nudge in", where='ladder, space = "embedder"', fix="Name an index")
        return EmbedderSpace.of(self.model, self.copies.embedder)

    def identity(self) -> dict[str, str]:
        """What determines this worker's pictures and findings; :func:`pipeline.identity.identity_of` gives the same."""
        index = self.index
        loaded = [*(adapter.digest for adapter, _ in self.erasers.loaded), *(one.digest for one in self.adapters.files)]
        return identity(
            self.stated_policy,
            model_digest=self.model.digest,
            adapters_sha256=digest(loaded) if loaded else "",
            compared=Compared()
            if index is None
            else Compared(embedder_id=index.embedder_id, index_id=index.index_id, calibration_id=self.calibration_id),
            guards=self.in_force,
            secrets={**self.markers.parts, **salt_parts(self.salt)},
        )

    def _recorded(self, asked: Collection[str] = ()) -> tuple[Adapter, ...]:
        return (*self.erasers_for(asked).recorded(self.standing_for(asked)), *self.adapters.recorded)

    def _actions(self) -> dict[str, str]:
        """What findings lead to, by guard; and by guard and category, where a guard has several actions."""
        named = {guard.name: guard.action for guard in self.in_force if guard.name != "prompt"}
        several = [guard for guard in (*self.guards, self.prompts) if guard is not None and guard.name in self._several]
        return named | {
            f"{guard.name} {category}": action_of(self.policy, guard.name, category)
            for guard in several
            for category in guard.categories
        }

    @property
    def _several(self) -> set[str]:
        return {"prompt", *(f"question:{one.name}" for one in self.policy.questions)}

    def context(self, run_id: str, plan_sha256: str, worker_id: str) -> RunContext:
        """The values that every audit row of this worker repeats."""
        from pipeline.audit.context import RunContext

        c, parts = self.config, self.identity()
        return RunContext(
            run_id=run_id,
            dataset_id=c.dataset_id,
            plan_sha256=plan_sha256,
            model_id=model_name(c.model),
            model_revision=c.model.revision,
            model_digest=parts["model_digest"],
            model_licence=c.model.licence or ("Apache-2.0" if c.model.path == "stickers" else ""),
            adapters=self._recorded(),
            named_adapters=self.adapters.recorded_named,
            adapters_if_asked={asked: self._recorded(asked) for asked in asked_sets(self.policy)},
            scheduler=self.engine.sampler.name,
            steps=self.engine.steps,
            guidance=self.engine.inner_guidance,
            preset=self.preset,
            dtype=c.model.dtype,
            device_kind=c.model.device,
            machine=machine(c.model),
            rows=c.generation.rows,
            threads=c.generation.threads,
            diversity=c.generation.diversity,
            index_id=parts["index_id"],
            embedder_id=parts["embedder_id"],
            calibration_id=self.calibration_id,
            copy_threshold=self.copy_threshold,
            policy_id=f"{self.policy.name}@{self.policy.version}",
            policy_name=self.policy.name,
            policy_sha256=parts["policy_sha256"],
            actions=self._actions(),
            image_format=c.image_format,
            retention_days=c.retention_days,
            salt=self.salt,
            keep_held=c.keep.held,
            hard_stop=c.keep.hard_stop,
            software_version=importlib.metadata.version("clearance"),
            worker_id=worker_id,
        )
