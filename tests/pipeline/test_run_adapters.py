"""LoRAs and textual inversions in the loop: for every row, or for the rows that name them; and what rows and plan state."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from guards.prompt import PromptGuard, PromptLook
from index.errors import ConfigError, ModelError
from pipeline.audit.ledger import run_predicate
from pipeline.audit.records import sample_table
from pipeline.config import AdapterConfig, GenerationConfig, ModelConfig, RunConfig
from pipeline.guard_settings import BlockedPolicy, PromptPolicy
from pipeline.identity import identity_of
from pipeline.model.adapters.file import look_at_adapters
from pipeline.model.adapters.opened import Adapters, open_adapters
from pipeline.model.libraries import quiet
from pipeline.model.load import load_model
from pipeline.moderate import Moderation, moderate
from pipeline.outcome import Outcome, Request, Sample
from pipeline.policy import Policy
from pipeline.respond.marks import open_erasers
from pipeline.runtime import Runtime
from pipeline.steer.erase_tokens import Vocabulary
from tests.pipeline.families import diffusers_pipeline

from .adapters import write_adapter
from .lora_files import UNET, halves, kohya_file, pairs_for, write
from .test_respond_marks import MARKS, Marks

STEPS = 3
Drawn = dict[str, Sample]


@pytest.fixture(scope="module")
def folder(tiny_sdxl: Path) -> Path:
    return tiny_sdxl


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs: `style` with the text encoders, `ink` without."""
    pipe = diffusers_pipeline(folder, "StableDiffusionXLPipeline")
    made = tmp_path_factory.mktemp("loras")
    kohya_file(made / "style.safetensors", pipe, **{"modelspec.license": "CC-BY-4.0"})
    write(made / "ink.safetensors", halves("unet", pairs_for(pipe.unet, UNET, seed=5)))
    return made


def config_of(folder: Path, *adapters: AdapterConfig, **generation: Any) -> RunConfig:
    return RunConfig(
        prompts="-", model=ModelConfig(path=str(folder), dtype="float32"), adapters=adapters,
        generation=GenerationConfig(**{"steps": STEPS, "rows": 6} | generation),
    )  # fmt: skip


def opened(config: RunConfig, base: Path, **more: Any) -> Runtime:
    model: Any = load_model(config.model)
    adapters = open_adapters(config.adapters, model, base=base, weights=config.generation.prompt_weighting)
    return Runtime(config, more.pop("policy", Policy()), model, adapters=adapters, **more)


def draw(runtime: Runtime, adapters: Sequence[str], prompt: str = "a red cat") -> Drawn:
    requests = [Request(row_no=i, key=str(i), prompt=prompt, seed=i, adapter=one) for i, one in enumerate(adapters)]
    return {sample.request.key: sample for sample in moderate(runtime, requests)}


def shas(drawn: Drawn) -> list[str]:
    return [drawn[key].attempts[0].pixel_sha256 for key in sorted(drawn)]


@pytest.fixture(scope="module")
def plain(folder: Path, files: Path) -> list[str]:
    return shas(draw(opened(config_of(folder), files), [""] * 4))


@pytest.fixture(scope="module")
def named(folder: Path, files: Path) -> Runtime:
    entries = [AdapterConfig(path=f"{name}.safetensors", rows="named") for name in ("style", "ink")]
    return opened(config_of(folder, *entries), files)


@pytest.fixture(scope="module")
def mixed(named: Runtime) -> Drawn:
    return draw(named, ["", "style", "ink:0.5", "style, ink"])


def theirs(folder: Path, files: Path, seed: int, **strengths: float) -> torch.Tensor:
    """The picture of diffusers' own pipeline with these LoRAs, as numbers around 0 to 255."""
    pipe = diffusers_pipeline(folder, "StableDiffusionXLPipeline")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are several
        for name in strengths:
            pipe.load_lora_weights(str(files), weight_name=f"{name}.safetensors", adapter_name=name)
        pipe.set_adapters(list(strengths), list(strengths.values()))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    with quiet():
        out = pipe(
            "a red cat", num_inference_steps=STEPS, guidance_scale=3.0, latents=noise, output_type="pt", height=16, width=16
        )
    return (out.images[0].permute(1, 2, 0) * 255).round()


def test_rows_without_an_adapter_are_byte_equal_to_a_plain_run(mixed: Drawn, plain: list[str]) -> None:
    assert shas(mixed)[0] == plain[0]


def test_rows_with_one_are_not(mixed: Drawn, plain: list[str]) -> None:
    assert len({*shas(mixed), *plain}) == 7


def test_a_row_has_the_same_bytes_alone(mixed: Drawn, named: Runtime) -> None:
    alone = [Request(row_no=3, key="3", prompt="a red cat", seed=3, adapter="style, ink")]
    assert next(iter(moderate(named, alone))).attempts[0].pixel_sha256 == shas(mixed)[3]


@pytest.mark.parametrize(("key", "strengths"), [("1", {"style": 1.0}), ("2", {"ink": 0.5}), ("3", {"style": 1.0, "ink": 1.0})])
def test_a_row_is_the_picture_of_diffusers(
    key: str, strengths: dict[str, float], mixed: Drawn, folder: Path, files: Path
) -> None:
    ours = torch.from_numpy(mixed[key].attempts[0].picture.astype("float32"))
    assert (ours - theirs(folder, files, int(key), **strengths)).abs().max() <= 1


def test_a_row_states_its_adapters(mixed: Drawn, named: Runtime, files: Path) -> None:
    context = named.context("run", "0" * 64, "worker")
    table = sample_table([mixed[key] for key in sorted(mixed)], context, "shard")
    stated = [[(one["name"], one["kind"], one["weight"]) for one in row] for row in table["adapters"].to_pylist()]
    assert stated == [[], [("style", "lora", 1.0)], [("ink", "lora", 0.5)], [("style", "lora", 1.0), ("ink", "lora", 1.0)]]
    digests = {one["digest"] for row in table["adapters"].to_pylist() for one in row}
    assert digests == {hashlib.sha256((files / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("style", "ink")}


def test_the_statement_of_the_run_names_all_of_them_with_licence(named: Runtime) -> None:
    stated = run_predicate(named.context("run", "0" * 64, "worker"))["adapters"]
    assert [(one["name"], one.get("licence")) for one in stated] == [("style", "CC-BY-4.0"), ("ink", None)]


def test_an_adapter_for_all_rows_is_merged(folder: Path, files: Path) -> None:
    runtime = opened(config_of(folder, AdapterConfig(path="style.safetensors", weight=0.8)), files)
    drawn = draw(runtime, [""] * 2)
    ours = torch.from_numpy(drawn["1"].attempts[0].picture.astype("float32"))
    assert (ours - theirs(folder, files, 1, style=0.8)).abs().max() <= 1
    assert not any(trajectory.lowrank for trajectory in runtime.engine.running)
    row = sample_table(list(drawn.values()), runtime.context("run", "0" * 64, "worker"), "shard")["adapters"][0].as_py()
    assert [(one["name"], one["weight"]) for one in row] == [("style", 0.8)]


def test_the_identity_holds_every_file(folder: Path, files: Path, named: Runtime) -> None:
    config = named.config
    assert identity_of(config, Policy(), base=files)["adapters_sha256"] == named.identity()["adapters_sha256"]
    one = config_of(folder, config.adapters[0])
    assert identity_of(one, Policy(), base=files)["adapters_sha256"] != named.identity()["adapters_sha256"]


def test_the_digest_in_a_row_leads_to_the_licence(mixed: Drawn, named: Runtime) -> None:
    context = named.context("run", "0" * 64, "worker")
    licences = {one["digest"]: one.get("licence") for one in run_predicate(context)["adapters"]}
    table = sample_table([mixed[key] for key in sorted(mixed)], context, "shard")
    found = [[licences[one["digest"]] for one in row] for row in table["adapters"].to_pylist()]
    assert found == [[], ["CC-BY-4.0"], [None], ["CC-BY-4.0", None]]


def test_an_unknown_name_ends_as_an_error_row(named: Runtime) -> None:
    sample = draw(named, ["lost"])["0"]
    assert (sample.outcome, sample.reason) == (Outcome.ERROR, "error.prompt")
    assert "there is no adapter 'lost'" in sample.error_message


def test_a_lora_of_another_base_is_refused_with_both_names(folder: Path, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    state = {f"{key}.lora_down.weight": torch.zeros(2, 768), f"{key}.lora_up.weight": torch.zeros(32, 2)}
    write(tmp_path / "old.safetensors", state)
    with pytest.raises(ModelError, match=r"LoRA for Stable Diffusion 1\.x, and the model is a StableDiffusionXLPipeline"):
        opened(config_of(folder, AdapterConfig(path="old.safetensors")), tmp_path)


def test_without_entries_nothing_is_read() -> None:
    class NoModel:
        """Has no parts: reading one of them fails."""

    assert open_adapters((), NoModel(), base=Path()) == Adapters()  # type: ignore[arg-type]


def test_prompts_are_weighted_where_the_run_file_asks(folder: Path, files: Path, plain: list[str]) -> None:
    runtime = opened(config_of(folder, prompt_weighting=True), files)
    requests = [Request(row_no=i, key=str(i), prompt=p, seed=i) for i, p in enumerate(("a red cat", "a (red:1.6) cat"))]
    drawn = {sample.request.key: sample for sample in moderate(runtime, requests)}
    assert shas(drawn)[0] == plain[0] and shas(drawn)[1] != plain[1]


@pytest.mark.parametrize(
    ("action", "drawn"), [("reject", ""), ("rewrite", r"a red pear \(big\)"), ("observe", r"a red c(at:1.2) \(big\)")]
)
def test_brackets_of_weights_hide_no_word_from_the_guard_of_prompts(folder: Path, files: Path, action: Any, drawn: str) -> None:
    """The text encoders read `c(at:1.2)` as `cat`, and so does the guard; a rewritten prompt is text and has no weights."""
    runtime = opened(config_of(folder, prompt_weighting=True), files)
    rule = BlockedPolicy(words=("cat",), action=action, instead="pear" if action == "rewrite" else "")
    runtime.prompts = PromptGuard.open(PromptPolicy(enabled=True, titles="off"), [rule])
    look = runtime.look_at_prompt(r"a red c(at:1.2) \(big\)")
    assert look is not None and look.findings[0].triggered
    assert (look.rejected == "prompt.blocked.reject") == (action == "reject")
    assert action == "reject" or look.drawn == drawn


def test_without_weights_the_guard_of_prompts_reads_brackets_as_they_stand(folder: Path, files: Path) -> None:
    runtime = opened(config_of(folder), files)
    runtime.prompts = PromptGuard.open(PromptPolicy(enabled=True, titles="off"), [BlockedPolicy(words=("red cat",))])
    look = runtime.look_at_prompt("a (red:1.2) cat")
    assert look is not None and (look.rejected, look.drawn) == ("", "a (red:1.2) cat")


def test_a_title_is_no_weight_in_a_negative_prompt(folder: Path, files: Path) -> None:
    found = opened(config_of(folder, prompt_weighting=True), files).adapters
    title = r"Cat (1920) [detail: 30] \ (x:99)"
    assert found.plain(found.quoted(title)) == title
    assert opened(config_of(folder), files).adapters.quoted(title) == title


def test_a_wrong_weight_ends_as_an_error_row(folder: Path, files: Path) -> None:
    sample = draw(opened(config_of(folder, prompt_weighting=True), files), [""], "(cat:99)")["0"]
    assert sample.outcome is Outcome.ERROR and "the weight 99 is not from 0 to 10" in sample.error_message


def test_prompts_that_cannot_be_read_end_as_error_rows_and_no_other_with_them(folder: Path, files: Path) -> None:
    """Those to come are read ahead, to share the text encoder's calls: what one of them raises there concerns it alone."""

    class Failing:
        """In the place of the guard of prompts: fails in a way that no guard should."""

        def check(self, prompt: str) -> PromptLook:
            if prompt == "a green cat":
                raise RecursionError("too deep")
            return PromptLook((), prompt, "")

    runtime = opened(config_of(folder, prompt_weighting=True), files)
    runtime.prompts = Failing()  # type: ignore[assignment]
    prompts = ["a red cat", "(" * 2000 + "cat" + ")" * 2000, "((cat:10):10)", "a green cat"]
    loop = Moderation(runtime)
    loop.expect(prompts)
    samples = [one for i, p in enumerate(prompts) for one in loop.submit(Request(row_no=i, key=str(i), prompt=p, seed=i))]
    while loop.busy:
        samples += loop.step()
    ended = {sample.request.key: sample for sample in samples}
    assert [ended[key].outcome for key in "0123"] == [Outcome.ACCEPTED, *[Outcome.ERROR] * 3]
    messages = [ended[key].error_message for key in "123"]
    assert "more than 50 deep" in messages[0] and "multiply to 100" in messages[1] and "too deep" in messages[2]


# --- beside erasers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(tiny_sd: Path, tmp_path: Path) -> tuple[RunConfig, Path]:
    """A run with an eraser and a LoRA for the rows that name it."""
    model: Any = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    write_adapter(tmp_path / "eraser", model, Vocabulary(("qr",), "corners", 2), weights=True)
    kohya_file(tmp_path / "style.safetensors", model.parts)
    entries = (AdapterConfig(path="eraser", lowrank="flagged"), AdapterConfig(path="style.safetensors", rows="named"))
    return config_of(tiny_sd, *entries, rows=8), tmp_path


def erasing(both: tuple[RunConfig, Path], guards: Sequence[Any]) -> Runtime:
    config, base = both
    model: Any = load_model(config.model)
    erasers = open_erasers(config.adapters, model, base=base)
    adapters = open_adapters(config.adapters, model, base=base)
    return Runtime(config, MARKS, model, guards=guards, erasers=erasers, adapters=adapters)


def test_an_erased_row_keeps_its_lora(both: tuple[RunConfig, Path]) -> None:
    first = shas(draw(erasing(both, []), ["style", ""]))
    marked = Marks({first[0]})
    with_lora = draw(erasing(both, [marked]), ["style", ""])
    again = with_lora["0"].attempts[1]
    assert again.intervention is not None and again.intervention.kind == "erase"
    config, base = both
    gone: Any = load_model(config.model)
    bare = Runtime(
        config, MARKS, gone, guards=[Marks(set(shas(draw(erasing(both, []), [""]))))],
        erasers=open_erasers(config.adapters, gone, base=base),
    )  # fmt: skip
    without = draw(bare, [""])["0"].attempts[1]
    assert again.pixel_sha256 != without.pixel_sha256
    assert [a.pixel_sha256 for a in with_lora["1"].attempts] == [first[1]]


def test_a_lora_does_not_switch_off_the_erasers_that_ship(tmp_path: Path, tiny_sd: Path) -> None:
    from index.shipped import STICKERS
    from pipeline.model.folder.digest import folder_digest
    from pipeline.respond.marks import adapter_folders

    lora = write(
        tmp_path / "style.safetensors", {"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)}
    )
    base = folder_digest(STICKERS / "model")
    assert adapter_folders([AdapterConfig(path=str(lora))], base, base=tmp_path) == adapter_folders([], base, base=tmp_path)


def test_erasers_alone_have_the_digest_of_before(both: tuple[RunConfig, Path]) -> None:
    from pipeline.respond.marks import adapters_digest
    from pipeline.settings import digest

    config, base = both
    eraser = hashlib.sha256((base / "eraser" / "adapter.json").read_bytes()).hexdigest()
    assert adapters_digest(config.adapters[:1], "m", base=base) == digest([eraser])


def test_an_eraser_has_no_negative_weight(both: tuple[RunConfig, Path]) -> None:
    with pytest.raises(ConfigError, match="cannot have a negative weight"):
        look_at_adapters([AdapterConfig(path="eraser", weight=-1)], base=both[1])
