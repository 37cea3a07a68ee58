"""How prompts are read: words of textual inversions are diffusers' own, weights move tokens, and nothing is edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from index.errors import ConfigError, ModelError
from pipeline.config import AdapterConfig, ModelConfig
from pipeline.model.adapters.file import look_at_adapter
from pipeline.model.adapters.reading import Reading
from pipeline.model.adapters.textual_inversion import load_embedding
from pipeline.model.load import load_model

from .test_lora import encoded

PIPELINES = {
    "tiny_sd": "StableDiffusionPipeline", "tiny_sdxl": "StableDiffusionXLPipeline", "tiny_sd3": "StableDiffusion3Pipeline",
    "tiny_flux": "FluxPipeline", "tiny_chroma": "ChromaPipeline", "tiny_pixart": "PixArtSigmaPipeline",
}  # fmt: skip
FAMILIES = tuple(PIPELINES)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {}


def model_of(request: pytest.FixtureRequest, name: str) -> Any:
    models = request.getfixturevalue("models")
    if name not in models:
        folder = request.getfixturevalue("tiny_model")(PIPELINES[name])
        models[name] = load_model(ModelConfig(path=str(folder), dtype="float32", size=16))
    return models[name]


def vectors(width: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def embedding(folder: Path, model: Any, state: dict[str, torch.Tensor], name: str = "") -> Any:
    path = folder / "style.safetensors"
    save_file(state, path)
    return load_embedding(look_at_adapter(AdapterConfig(path=str(path), name=name), base=Path()), model.parts)


# --- words of one's own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_word_of_ones_own_is_what_diffusers_makes_of_it(count: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, given = model_of(request, "tiny_sd"), vectors(32, count)
    reading = Reading(model.parts, [embedding(tmp_path, model, {"emb_params": given}, "<style>")])
    with reading.reading():
        ours = encoded(model, ["a <style> cat", "lemon"])
    theirs = load_model(ModelConfig(path=str(request.getfixturevalue("tiny_sd")), dtype="float32"))
    theirs.parts.load_textual_inversion({"<style>": given}, token="<style>")
    text = theirs.parts.maybe_convert_prompt("a <style> cat", theirs.parts.tokenizer)
    assert torch.equal(ours[0], encoded(theirs, [text])[0])
    assert torch.equal(ours[1], encoded(model, ["lemon"])[0])


def test_both_encoders_of_sdxl_get_their_vectors(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = model_of(request, "tiny_sdxl")
    first, second = vectors(32, seed=1), vectors(32, seed=2)
    reading = Reading(model.parts, [embedding(tmp_path, model, {"clip_l": first, "clip_g": second})])
    with reading.reading():
        ours = encoded(model, ["a Style cat"])[0]  # in capitals or not
    theirs = load_model(ModelConfig(path=str(request.getfixturevalue("tiny_sdxl")), dtype="float32"))
    for given, number in ((first, ""), (second, "_2")):
        tokenizer, encoder = (getattr(theirs.parts, f"{part}{number}") for part in ("tokenizer", "text_encoder"))
        theirs.parts.load_textual_inversion({"<s>": given}, token="<s>", tokenizer=tokenizer, text_encoder=encoder)
    assert torch.equal(ours, encoded(theirs, ["a <s> cat"])[0])


def test_nothing_is_edited(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = model_of(request, "tiny_sd")
    before, tokenizer, words = encoded(model, ["a style cat"]), model.parts.tokenizer, len(model.parts.tokenizer)
    reading = Reading(model.parts, [embedding(tmp_path, model, {"emb_params": vectors(32)})], weights=True)
    with reading.reading():
        inside = encoded(model, ["a style cat"])
    assert not torch.equal(inside, before)
    assert model.parts.tokenizer is tokenizer and len(tokenizer) == words
    assert torch.equal(encoded(model, ["a style cat"]), before)


def test_a_word_stands_alone(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = model_of(request, "tiny_sd")
    reading = Reading(model.parts, [embedding(tmp_path, model, {"emb_params": vectors(32)}, "cat")])
    plain = encoded(model, ["concatenate", "a cat"])
    with reading.reading():
        ours = encoded(model, ["concatenate", "a cat"])
    assert torch.equal(ours[0], plain[0]) and not torch.equal(ours[1], plain[1])


def test_a_long_prompt_is_cut_at_its_end(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = model_of(request, "tiny_sd")
    room = model.parts.tokenizer.model_max_length
    reading = Reading(model.parts, [embedding(tmp_path, model, {"emb_params": vectors(32, room)})])
    with reading.reading():
        assert model.truncated("style cat") and not model.truncated("cat")
        assert encoded(model, ["style cat"]).shape == (1, room * 32)


def test_vectors_of_another_width_are_refused_with_both(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="width text_encoder 24; the model's text encoders take text_encoder 32"):
        embedding(tmp_path, model_of(request, "tiny_sd"), {"emb_params": vectors(24)})


def test_one_encoder_is_not_enough_for_sdxl(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="text_encoder 32, text_encoder_2 32"):
        embedding(tmp_path, model_of(request, "tiny_sdxl"), {"emb_params": vectors(32)})


def test_models_with_t5_take_no_words(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="need CLIP text encoders"):
        embedding(tmp_path, model_of(request, "tiny_flux"), {"clip_l": vectors(32)})


# --- weights ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_without_marks_keep_their_bytes(name: str, request: pytest.FixtureRequest) -> None:
    model = model_of(request, name)
    prompts = ["a red cat", "lemon", ""]
    plain = encoded(model, prompts)
    with Reading(model.parts, weights=True).reading():
        mixed = encoded(model, [*prompts, "a (red:1.5) cat", "a (red:1.0) cat"])
    assert torch.equal(mixed[:3], plain) and torch.equal(mixed[4], plain[0])
    assert not torch.equal(mixed[3], plain[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_weight_moves_its_tokens_from_the_empty_prompts(name: str, request: pytest.FixtureRequest) -> None:
    model = model_of(request, name)
    plain, empty = encoded(model, ["a cat"])[0], _empty(model)
    with Reading(model.parts, weights=True).reading():
        once, twice = (encoded(model, [f"a (cat:{weight})"])[0] for weight in (1.5, 2.0))
    moved = once != plain
    assert 0 < moved.float().mean() < 0.5  # the tokens of one word
    assert torch.allclose(once[moved], (empty + 1.5 * (plain - empty))[moved], atol=1e-5)
    assert torch.allclose(twice - plain, 2 * (once - plain), atol=1e-5)


def _empty(model: Any) -> torch.Tensor:
    """The tokens of the empty prompt, also where the class draws it from zeros."""
    zeros = model.parts.config.get("force_zeros_for_empty_prompt")
    if zeros:
        model.parts.register_to_config(force_zeros_for_empty_prompt=False)
    found = encoded(model, [""])[0]
    if zeros:
        model.parts.register_to_config(force_zeros_for_empty_prompt=True)
    return found  # type: ignore[no-any-return]


def test_a_prompt_has_the_same_bytes_in_any_company(request: pytest.FixtureRequest) -> None:
    model = model_of(request, "tiny_sdxl")
    with Reading(model.parts, weights=True).reading():
        alone = encoded(model, ["a (cat:1.4)"])[0]
        beside = encoded(model, ["lemon", "(lemon:0.3)", "a (cat:1.4)"])[2]
        after = encoded(model, ["a cat"])[0]
    assert torch.equal(alone, beside)
    assert torch.equal(after, encoded(model, ["a cat"])[0])  # weights of a call before are forgotten


def test_words_and_weights_together(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = model_of(request, "tiny_sd")
    one = embedding(tmp_path, model, {"emb_params": vectors(32, 2)})
    with Reading(model.parts, [one]).reading():
        plain = encoded(model, ["a style cat"])[0]
    with Reading(model.parts, [one], weights=True).reading():
        weighted = encoded(model, ["a (style:1.5) cat"])[0]
    moved = (weighted != plain).view(-1, 32).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [2, 3]  # behind the beginning and "a"


def test_weights_stay_where_an_eraser_adds_its_tokens(request: pytest.FixtureRequest) -> None:
    model, tokens = model_of(request, "tiny_sd"), vectors(32, 3)
    plain, empty = model.encode_words("a red cat", tokens).tokens, encoded(model, [""])[0].view(-1, 32)
    red = 2  # behind the beginning and "a"
    with Reading(model.parts, weights=True).reading():
        weighted = model.encode_words("a (red:1.5) cat", tokens).tokens
        unweighted = model.encode_words("a red cat", tokens).tokens
        again = model.encode_words("a (red:1.5) cat", tokens).tokens
        without = encoded(model, ["a red cat"])[0].view(-1, 32)
    expected = plain.clone()
    expected[red] = empty[red] + 1.5 * (plain[red] - empty[red])
    assert torch.allclose(weighted, expected, atol=1e-5) and not torch.allclose(weighted, plain, atol=1e-3)
    assert torch.equal(weighted, again) and torch.equal(unweighted, plain)  # weights of a call before are forgotten
    assert torch.equal(without, encoded(model, ["a red cat"])[0].view(-1, 32))


def test_weights_of_what_is_cut_off_are_cut_off_with_it(request: pytest.FixtureRequest) -> None:
    model, tokens = model_of(request, "tiny_sd"), vectors(32, 3)
    text = "a cat " * 40
    with Reading(model.parts, weights=True).reading():
        weighted = model.encode_words(f"(a:1.5) {text[2:]}(cat:3)", tokens).tokens
    moved = (weighted != model.encode_words(text, tokens).tokens).any(dim=-1)
    assert moved.nonzero().flatten().tolist() == [1]


def test_brackets_are_text_without_the_key(request: pytest.FixtureRequest) -> None:
    model = model_of(request, "tiny_sd")
    plain = encoded(model, ["a (cat:1.5)"])
    with Reading(model.parts).reading():
        assert torch.equal(encoded(model, ["a (cat:1.5)"]), plain)


def test_other_text_encoders_are_refused(request: pytest.FixtureRequest) -> None:
    class Qwen(torch.nn.Module):
        pass

    class Pipeline:
        components, text_encoder = {"text_encoder": None}, Qwen()

    with pytest.raises(ConfigError, match="cannot be weighted for text encoders of class Qwen"):
        Reading(Pipeline(), weights=True)
