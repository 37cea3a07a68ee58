"""The run file: prompts, model and generation, index and policy, and the run folder."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from pipeline.fields import AUTO, REQUIRED, choice, entry, flag, line, number, number_or_auto, several, table
from pipeline.other_samplers import nearest_sampler
from pipeline.settings import contradiction, settings

SEEDS = 2**63 - 1  # what the tables' columns hold
STEPS, GUIDANCE = 20, 3.0  # where neither run file nor preset states them
HARD_STOP = ("unsafe.",)
LATER_ADAPTER_KEYS = {"kind": "auto", "name": "", "rows": "all"}  # that came after the others
Scheduler = Literal["auto", "ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd", "flow_match_euler"]

Spacing = Literal["leading", "trailing", "linspace"]


@settings
class ModelConfig:
    """The diffusion model."""

    path: str = line("stickers", "`stickers` (the embedded world), a diffusers folder, or a hub id", least=1)
    name: str = line("", "name in rows and pictures; empty: the folder's name, or the hub id")
    revision: str = line("", "revision on the hub")
    variant: str = line("", 'one of several sets of weights in the folder ("fp16")')
    size: int | None = number(None, 8, 4096, "picture's side in pixels; absent: the model's own", absent="the model's own")
    width: int | None = number(None, 8, 4096, "picture's width in pixels, in place of `size`", absent="`size`")
    height: int | None = number(None, 8, 4096, "picture's height in pixels, in place of `size`", absent="`size`")
    snap: bool = flag(
        False,
        "draw the nearest width and height that the model can draw, where another one is stated; false: it is refused",
    )
    text_tokens: int | None = number(
        None, 1, 512, "tokens of T5 or of the language model; absent: the class's own (SD3 and FLUX.1 schnell 256, PixArt-Σ "
        "and Sana 300, PixArt-α 120, others 512)",
        absent="the model class's own",
    )  # fmt: skip
    dtype: Literal["float32", "bfloat16", "float16"] = choice(
        "bfloat16", "number format of the denoiser; latents and sampler stay in float32"
    )
    device: str = line("cpu", "torch device: `cpu`, `cuda`, `cuda:1`, `mps`", least=1)
    attention: Literal["auto", "native", "math", "flash", "efficient", "cudnn", "flash2", "flash3"] = choice(
        "auto",
        "attention backend of a transformer; auto: torch chooses. flash2 and flash3 want the package flash-attn. Backends that "
        "multiply in fewer bits (sage) are not among them",
    )
    compile: Literal["off", "blocks"] = choice(
        "off",
        "blocks: torch compiles the denoiser's repeated blocks (see [Compiled blocks](#compiled-blocks)). Part of the plan, "
        "because the pictures differ in their last bits",
    )
    graphs: Literal["off", "plain"] = choice(
        "off",
        "plain: on a CUDA device, calls in which nothing is steered are recorded as CUDA graphs (see "
        "[Recorded calls](#recorded-calls)). Not part of the plan: a recording that gives other bytes is refused",
    )
    vae_dtype: Literal["float32", "bfloat16", "float16"] = choice(
        "float32", "number format of the autoencoder; SDXL's own gives black pictures in float16"
    )
    vae_tiling: bool = flag(False, "decode large pictures tile by tile, in less memory; seams may be seen")
    text_encoders: Literal["keep", "offload"] = choice(
        "keep",
        "offload: the text encoders are on the device only while a shard's prompts are encoded, which are then encoded "
        "together. Not part of the plan",
    )
    licence: str = line("", "recorded in every row")
    allow_download: bool = flag(False, "fetch weights that are not on this machine")


@settings
class DiversityConfig:
    """Samples of one prompt push one another apart, in groups (negative token merging in batch mode, arXiv 2412.01339).

    A group is drawn together, from its first step to its last: the bytes of each member depend on all of them, and on nothing
    else. A member that is steered leaves the group.
    """

    size: int = number(
        0, 0, 64,
        "samples of one prompt in a group; `samples_per_prompt` is a multiple of it; a call has rows for a whole group (two a "
        "member with guidance). 0: off",
    )  # fmt: skip
    alpha: float = number(0.33, 0, 100, "strength α: how far a token is pushed from the mates' best matching token", above=True)
    token_threshold: float = number(0.65, -1, 1, "cosine above which a token is pushed")
    window: float = number(
        1.0, 0, 1, "share of the steps, counted from the first, after which members push no longer", above=True
    )
    window_from: float = number(
        0.0, 0, 1, "share of the steps, counted from the first, before which members do not push yet; below `window`"
    )
    rows: Literal["both", "conditional"] = choice("conditional", "which rows of a guided sample are pushed")
    placement: Literal["paper", "released"] = choice("paper", "push after the residual, or before it")
    attention: Literal["last", "both"] = choice("last", "push after cross-attention, or after self-attention as well")
    resolution: Literal["finest", "all"] = choice("finest", "push in the blocks with the most image tokens, or in all")

    def __post_init__(self) -> None:
        if self.size == 1:
            raise contradiction("size", "a group of one has nobody to be pushed from", "Set it to 2 or more, or to 0: off")
        if self.window_from >= self.window:
            what = f"members would begin to push at {self.window_from:g} of the steps and end at {self.window:g} (window)"
            until = min(1.0, self.window_from + self.window)
            fix = f"Set it below window. Both count from the first step: for a stretch of {until - self.window_from:g} set "
            late = self.window_from == 1  # nothing is left behind it
            raise contradiction("window_from", what, "Set it below window, or to 0" if late else f"{fix}window = {until:g}")


@settings
class GenerationConfig:
    """How pictures are drawn."""

    preset: Literal["auto", "none", "turbo", "lightning", "lcm", "hyper"] = choice(
        "auto",
        "how a few-step model is drawn (see [Few steps](#few-steps)): fills in steps, guidance_scale, scheduler and "
        "timestep_spacing, and refuses what contradicts it. auto: the one that the model's folder asks for; none: none",
    )
    steps: int | None = number(
        None, 1, 1000, "denoising steps", absent="the preset's, else the model class's: 20 for SD, SDXL, SD3 and Flux.1"
    )
    guidance_scale: float | None = number(
        None, 0, 100, "classifier-free guidance, up to 1 none; Flux and LCMs take the number as an input",
        absent="the preset's, else the model class's: 3 for SD, SDXL, SD3 and Flux.1",
    )  # fmt: skip
    true_guidance_scale: float = number(1.0, 0, 100, "Flux: classifier-free guidance on top; 1: none")
    guidance_until: float = number(
        1.0, 0, 1,
        "share of the steps with classifier-free guidance; from then on a sample takes one row, the other is free. Rounded to "
        "no step it is no guidance: a sample has no negative row, and `guidance_norms` of its attempts is empty",
    )  # fmt: skip
    scheduler: Scheduler = choice(
        "auto", "auto: the one that the model's folder names; a folder that names another one is refused, with the nearest",
        nearest=nearest_sampler,
    )  # fmt: skip
    timestep_spacing: Spacing | None = choice(
        None, "how a diffusion model's steps are spread over its timesteps", absent="the folder's own, or the preset's"
    )
    eta: float = number(0.0, 0, 1, "ddim: share of fresh noise per step, 0 to 1; tcd: γ, for which its authors use 0.3")
    rows: int = number(
        16, 4, 1024,
        "rows of every denoiser call, fixed; a sample takes two, and one more per reference it is pushed away from",
    )  # fmt: skip
    threads: int = number(
        1, 1, 1024, "threads of a worker's libraries (torch, BLAS, OpenCV, Arrow); in the plan, as it may change the last bits"
    )  # fmt: skip
    diversity: DiversityConfig = table(DiversityConfig)
    prompt_weighting: bool = flag(
        False,
        "read `(word:1.3)`, `(word)` and `[word]` in prompts as weights; false: brackets are part of the prompt. See "
        "[Prompts](#prompts)",
    )

    @property
    def drawn_steps(self) -> int:
        """Denoising steps in force, where no preset is."""
        return STEPS if self.steps is None else self.steps

    @property
    def drawn_guidance(self) -> float:
        """The guidance scale in force, where no preset is."""
        return GUIDANCE if self.guidance_scale is None else self.guidance_scale

    def filled(self) -> GenerationConfig:
        """The same table with steps and guidance stated."""
        return dataclasses.replace(self, steps=self.drawn_steps, guidance_scale=self.drawn_guidance)


@settings
class EmbedderConfig:
    """The OpenCLIP embedder; empty: the index's own. See :func:`index.bound_embedder.embedder_of`."""

    model: str = line(
        "",
        "`stickers`, an OpenCLIP architecture, a folder (`local-dir:FOLDER`) or `hf-hub:OWNER/NAME`; empty: the one that the "
        "index was built with",
    )
    pretrained: str = line("", "for an architecture: a checkpoint file or a tag of open_clip")
    allow_download: bool = flag(False, "fetch weights that are not on this machine")
    device: str = line(
        AUTO,
        "torch device; `auto`: the model's where that is CUDA, else `cpu`. Part of the plan: it changes the last bits",
        least=1,
    )


@settings
class GuardsConfig:
    """Where guards look at finished pictures. Nothing here changes a picture; a device changes the last bits of scores."""

    device: str = line(
        AUTO, "torch device of the guards' networks (`marks`, `yolo`), as `embedder.device`. The decoder stays on the model's",
        least=1,
    )  # fmt: skip
    workers: int | Literal["auto"] = number_or_auto(
        AUTO, 0, 64,
        "processes of each worker that decode, embed and look while the denoiser draws on; 0: its own does. `auto`: the "
        "CPUs that its threads leave free, at most 1 beside a CPU model and 4 beside a GPU; on Ray 0, and for a number the "
        "cluster is asked for as many CPUs more. Not part of the plan",
    )  # fmt: skip
    deadline_seconds: float = number(
        600.0, 1, 86_400,
        "seconds for one look of such a process (8 pictures), then it is ended and its pictures are looked at again, each "
        "alone; the second time they end as error rows. Not part of the plan",
    )  # fmt: skip


@settings
class AdapterConfig:
    """An adapter: a LoRA, a textual inversion, or an eraser of marks."""

    path: str = line(
        REQUIRED,
        "a LoRA or textual inversion (`.safetensors`, or a folder that holds one such file), an eraser's folder "
        "(`clearance erase train`), or `stickers:NAME`, an eraser that ships; a path or URI. Without an eraser in the list "
        "those that ship for the model are used",
        least=1,
    )
    kind: Literal["auto", "lora", "embedding", "eraser"] = choice(
        "auto", "what it is; auto: what its file holds. Another word is checked against the file"
    )
    name: str = line(
        "",
        "name in rows and prompt files; of an `embedding` the word in prompts that stands for its vectors. Empty: the file's "
        "name without its ending; of an embedding that names its word, that word",
    )
    weight: float = number(1.0, -10, 10, "strength of its low-rank weights; below 0 only for a `lora`")
    rows: Literal["all", "named"] = choice(
        "all",
        "of a `lora`, the requests it acts on. all: every one, and it is merged into the model's weights; named: those "
        "whose column `adapter` names it",
    )
    lowrank: Literal["auto", "always", "flagged"] = choice(
        "auto",
        "of an `eraser`, the samples its low-rank weights act on: all, or those a mark was found on; auto: always after data "
        "removal, flagged after model removal",
    )
    tokens: Literal["flagged", "always"] = choice(
        "flagged",
        "of an `eraser`, its tokens in the negative conditioning: where a mark was found, or in every sample's, for the "
        "places of its training set",
    )

    @property
    def bound(self) -> dict[str, Any]:
        """What a plan binds of it beside its content: not its place, and a later key only where it is in use, so that older
        plans keep their digests."""
        stated = dataclasses.asdict(self)
        return {key: value for key, value in stated.items() if key != "path" and value != LATER_ADAPTER_KEYS.get(key)}

    @property
    def called(self) -> str:
        """Its name in rows and prompt files."""
        return self.name or self.path.rstrip("/").rpartition("/")[2].removeprefix("stickers:").removesuffix(".safetensors")


@settings
class MarksConfig:
    """The marks of accepted pictures."""

    keys: str = line(
        "",
        "folder of keys (`clearance keys new`), outside every run; empty: the one that the environment's `CLEARANCE_KEYS` "
        "names, else none",
    )
    c2pa: Literal["auto", "off", "required"] = choice(
        "auto",
        "signed C2PA manifest. auto: where the folder of keys can sign; required: a run without a key that signs is refused",
    )
    signer: str = line(
        "",
        "key service that signs C2PA manifests with the key of `c2pa.pem`, as securesystemslib names it (`awskms:…`, "
        "`gcpkms:…`, `azurekms:…`, `hv:…`, `hsm:…`); empty: `c2pa.key` signs",
    )
    training: Literal["not_allowed", "allowed", "unstated"] = choice(
        "not_allowed",
        "what C2PA manifests state of training and data mining with the picture (`cawg.training-mining`); unstated: nothing",
    )
    watermark: str = line(
        "auto",
        "imperceptible watermark: `auto` (the tile, from 128 pixels of the shorter side on), `off`, or a scheme's name; its "
        "key is `watermark.key` in the folder of keys, else a published one that everybody can find and imitate",
        least=1,
    )
    label: Literal["off", "AI generated", "KI-generiert", "Généré par IA", "Generado por IA", "Generato con IA"] = choice(
        "off", "visible label drawn into the lower right corner of accepted pictures, from 64 pixels of the shorter side on"
    )
    allow_download: bool = flag(False, "a watermark may fetch its weights (`trustmark`)")


@settings
class KeepConfig:
    """What is kept of samples that were not released."""

    held: bool = flag(
        True, "keep the full pictures of samples in review, rejected or quarantined, apart from the released ones, for review"
    )
    hard_stop: tuple[Annotated[str, entry()], ...] = several(
        HARD_STOP, 100,
        "categories, or how they begin, of which nothing but digests is kept once a guard whose action is `reject` confirmed "
        "them: no picture and no thumbnail",
    )  # fmt: skip


@settings
class ColumnsConfig:
    """The columns of the prompt files, where they have other names than ours."""

    prompt: str = line("", "column of the prompts; empty: `prompt`")
    key: str = line(
        "",
        'column of the keys, text or integers, each once; empty: `key`, where the file has it. "none", here and at the keys '
        "below: a column of the usual name is your own",
    )
    seed: str = line("", "column of the seeds, whole numbers; empty: `seed`, where the file has it")
    negative_prompt: str = line("", "column of the negative prompts; empty: `negative_prompt`, where the file has it")
    adapter: str = line(
        "",
        'column of the adapters with `rows = "named"`, as `NAME`, `NAME:STRENGTH` or several with commas; empty: `adapter`, '
        "where the file has it and there are such adapters",
    )
    width: str = line("", "column of the widths in pixels; empty: `width`, where the file has it")
    height: str = line("", "column of the heights in pixels; empty: `height`, where the file has it")
    steps: str = line("", "column of the numbers of denoising steps; empty: `steps`, where the file has it")
    guidance_scale: str = line("", "column of the guidance scales; empty: `guidance_scale`, where the file has it")


def _one_or_many(value: Any) -> Any:
    return ([value] if value else []) if isinstance(value, str) else value


@settings
class MetricsConfig:
    """Metrics for Prometheus, of the local runner; on Ray they leave through Ray's own exporter. Not part of the plan."""

    port: int = number(0, 0, 65535, "serve them at this port while the run goes; 0: nowhere")
    address: str = line("127.0.0.1", "of the interface that the port is opened at; `0.0.0.0`: every one, as in a pod", least=1)
    textfile: str = line(
        "", "write them to this file, which ends in `.prom`, for node_exporter's textfile collector; empty: to none"
    )


@settings
class RunConfig:
    """One run file. Relative paths start from its folder."""

    prompts: Annotated[tuple[Annotated[str, entry()], ...], BeforeValidator(_one_or_many)] = several(
        REQUIRED, 10_000,
        "prompt files: `.parquet`, `.csv`, `.tsv`, `.jsonl` or `.txt` (one prompt a line); one name or several, of files, "
        "folders or patterns. See [Prompts](#prompts)",
        least=1,
    )  # fmt: skip
    out: str = line(
        "",
        "run folder or URI; `--out` overrides it. It may hold `{date}`, `{number}` and `{dataset}`; see "
        "[Data sets of several runs](#data-sets-of-several-runs)",
    )
    dataset_id: str = line("default", "the data set the samples belong to; part of every `sample_id`")
    base_seed: int = number(
        0, 0, SEEDS, "seeds of rows that have none are derived from this and the row's key",
        hint="No number stands for a random seed.",
    )  # fmt: skip
    samples_per_prompt: int = number(1, 1, 10_000, "pictures per row; above 1 the keys end in `#1`, `#2`, …")
    shard_size: int = number(16, 1, 10_000, "requests per shard: the unit of work, of commit and of resuming")
    workers: int | Literal["auto"] = number_or_auto(
        "auto", 1, 1024,
        'Ray actors. "auto": one for each share of a GPU in the cluster, or, on CPUs, one for each CPU that its threads need, '
        "and never more than there are open shards. The local runner has one worker. Not part of the plan",
    )  # fmt: skip
    device_share: float = number(
        1.0, 0, 1, "share of a GPU that each Ray actor takes: 0.5 puts two on one GPU. Not part of the plan", above=True
    )
    feature_mib: int = number(
        512, 0, 2**20,
        "MiB for the token features of references that a worker keeps, and the most that one steered attempt may take: where "
        "it would take more, its references are drawn as rows of the calls instead. Not part of the plan: the same pictures",
    )  # fmt: skip
    deadline_seconds: float = number(
        0, 0, 604_800,
        "seconds after which a request without a verdict ends as an error row `error.deadline`; 0: none. Not part of the plan",
    )  # fmt: skip
    max_error_rate: float = number(
        0.25, 0, 1,
        "share of requests that may end as errors: a run beyond it exits with 4, and stops early once 100 requests and 4 "
        "shards have ended; 1: no limit. Not part of the plan",
    )  # fmt: skip
    index: str = line("", "index folder; empty: the copies guard does not run, and every row records it")
    policy: str = line(
        "default",
        "a policy that ships (`default`, `observe`), a policy file, or a run folder for the policy that its run began with; "
        "`--policy` overrides it",
        least=1,
    )
    image_format: Literal["webp", "png", "jpeg"] = choice(
        "webp", "WebP is lossless; JPEG has quality 95, and its pixels cannot be verified from the file"
    )
    retention_days: int = number(0, 0, 36_500, "fills `retain_until`; 0: no limit")
    retention_days_held: int = number(
        90,
        0,
        36_500,
        "days after which pictures that were not released are due to be erased, thumbnails too; 0: as retention_days",
    )
    claims_contact: str = line(
        "", "where someone files a claim about a picture (an address, a page); reports show it. Not part of the plan"
    )
    columns: ColumnsConfig = table(ColumnsConfig)
    model: ModelConfig = table(ModelConfig)
    generation: GenerationConfig = table(GenerationConfig)
    embedder: EmbedderConfig = table(EmbedderConfig)
    guards: GuardsConfig = table(GuardsConfig)
    adapters: tuple[AdapterConfig, ...] = several(
        (), 16, "LoRAs, textual inversions, and erasers of marks; without an eraser: those that ship for the model"
    )
    marks: MarksConfig = table(MarksConfig)
    keep: KeepConfig = table(KeepConfig)
    metrics: MetricsConfig = table(MetricsConfig)

    def __post_init__(self) -> None:
        size = self.generation.diversity.size
        if size and self.samples_per_prompt % size:
            fewer, more = self.samples_per_prompt // size * size, -(-self.samples_per_prompt // size) * size
            what = f"samples_per_prompt is {self.samples_per_prompt}, which is no multiple of a group of {size}"
            fix = f"Set samples_per_prompt = {more}" + (f" or {fewer}" if fewer else "")
            raise contradiction("samples_per_prompt", f"{what} (generation.diversity.size)", fix)
        if size > self.shard_size:
            what = (
                f"a shard holds {self.shard_size} requests, and a group of {size} (generation.diversity.size) is in one shard"
            )
            raise contradiction("shard_size", what, f"Set shard_size = {size} or more")

    def device_of(self, key: str) -> str:
        """The device that `embedder.device` or `guards.device` comes to: a word, whatever machine this is."""
        if key != AUTO:
            return key
        return self.model.device if self.model.device.startswith("cuda") else "cpu"

    @property
    def embedder_device(self) -> str:
        return self.device_of(self.embedder.device)

    @property
    def guard_device(self) -> str:
        return self.device_of(self.guards.device)
