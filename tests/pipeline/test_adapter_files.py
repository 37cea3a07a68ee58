"""Adapters looked at by their headers: what they are, what they were trained for, and everything that is refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from index.errors import ClearanceError, ConfigError, ModelError
from index.storage import place, write_file
from pipeline.config import AdapterConfig
from pipeline.model.adapters.file import AdapterFile, check_base, look_at_adapter, look_at_adapters

PAIR = {"unet.mid.attn1.to_q.lora_A.weight": (3, 8), "unet.mid.attn1.to_q.lora_B.weight": (8, 3)}


def file(folder: Path, shapes: dict[str, tuple[int, ...]], name: str = "style.safetensors", **stated: str) -> Path:
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / name, metadata=stated or None)
    return folder / name


def look(path: Path | str, **keys: str | float) -> AdapterFile:
    return look_at_adapter(AdapterConfig(path=str(path), **keys), base=Path())  # type: ignore[arg-type]


def refused(path: Path | str, **keys: str | float) -> ClearanceError:
    with pytest.raises((ModelError, ConfigError)) as caught:
        look(path, **keys)
    assert caught.value.fix and str(path) in caught.value.where
    return caught.value


def test_a_lora_and_what_its_file_states(tmp_path: Path) -> None:
    path = file(tmp_path, PAIR, **{"modelspec.license": "CC-BY-4.0"})
    found = look(path)
    assert (found.kind, found.layers, found.name, found.licence) == ("lora", 1, "style", "CC-BY-4.0")
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("shapes", "name"),
    [({"emb_params": (2, 8)}, "style"), ({"<cat>": (8,)}, "<cat>"), ({"clip_l": (2, 8), "clip_g": (2, 12)}, "style")],
)
def test_textual_inversions(shapes: dict[str, tuple[int, ...]], name: str, tmp_path: Path) -> None:
    found = look(file(tmp_path, shapes))
    assert (found.kind, found.name) == ("embedding", name)


REFUSED = {
    "DoRA": "unet.mid.attn1.to_q.dora_scale",
    "DoRA (peft)": "unet.mid.attn1.to_q.lora_magnitude_vector",
    "LoHa": "lora_unet_mid_attn1_to_q.hada_w1_a",
    "LoKr": "lora_unet_mid_attn1_to_q.lokr_w1",
    "IP-Adapter": "image_proj.proj.weight",
    "IP-Adapter (attention)": "ip_adapter.1.to_k_ip.weight",
    "ControlNet": "controlnet_cond_embedding.conv_in.weight",
    "ControlNet (original)": "control_model.input_blocks.0.0.weight",
    "control LoRA": "double_blocks.0.img_attn.norm.query_norm.scale",
    "Tucker": "lora_unet_mid_conv.lora_mid.weight",
    "lora_bias": "unet.mid.attn1.to_q.lora_B.bias",
    "full differences": "lora_unet_mid_norm.diff",
    "rotations": "lora_unet_mid_attn1_to_q.oft_blocks",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_drawn_with_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    error = refused(file(tmp_path, PAIR | {REFUSED[kind]: (8, 8)}))
    assert kind.partition(" (")[0].casefold() in error.what.casefold()
    assert REFUSED[kind] in error.what


DORA = {
    "diffusers": {"lora_adapter_metadata": '{"unet.r": 3, "unet.use_dora": true}'},
    "kohya": {"ss_network_args": '{"algo": "lora", "dora_wd": "True"}'},
}


@pytest.mark.parametrize("trainer", DORA)
def test_a_dora_without_its_magnitudes_is_not_taken_for_a_lora(trainer: str, tmp_path: Path) -> None:
    error = refused(file(tmp_path, PAIR, **DORA[trainer]))
    assert error.what.startswith("is a DoRA by its metadata") and next(iter(DORA[trainer])) in error.what


def test_a_dora_of_peft_is_one_by_the_file_beside_it(tmp_path: Path) -> None:
    path = file(tmp_path, PAIR, "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 3, "use_dora": true}')
    assert "(adapter_config.json: use_dora)" in refused(path).what


@pytest.mark.parametrize("text", ['{"unet.use_dora": false}', "[true]", "use_dora", '{"a": ' * 100_000])
def test_metadata_that_states_no_dora_refuses_nothing(text: str, tmp_path: Path) -> None:
    assert look(file(tmp_path, PAIR, lora_adapter_metadata=text)).kind == "lora"


def test_the_configuration_of_peft_counts_for_its_own_file_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"use_dora": true}')
    assert look(file(tmp_path, PAIR)).kind == "lora"


def test_tensors_beside_pairs_are_not_lost_in_silence(tmp_path: Path) -> None:
    assert "holds 1 tensor beside low-rank pairs" in refused(file(tmp_path, PAIR | {"unet.mid.norm.weight": (8,)})).what


@pytest.mark.parametrize("half", list(PAIR))
def test_half_a_pair_is_refused_before_the_model_is_touched(half: str, tmp_path: Path) -> None:
    shapes = PAIR | {half.replace("to_q", "to_k"): PAIR[half]}
    error = refused(file(tmp_path, shapes))
    assert "of 1 low-rank pairs it holds one half alone (first unet.mid.attn1.to_k" in error.what


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shapes", [PAIR, {"emb_params": (2, 8)}], ids=["lora", "embedding"])
def test_values_that_are_no_numbers_are_refused_with_their_tensor(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    tensors = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
    last = list(tensors)[-1]
    tensors[last].view(-1)[-1] = value
    save_file(tensors, tmp_path / "style.safetensors")
    assert refused(tmp_path / "style.safetensors").what == f"has values in {last} that are not finite"


@pytest.mark.parametrize(
    "shapes",
    [
        {"emb_params": (0, 8)},
        {"unet.mid.attn1.to_q.lora_A.weight": (0, 8), "unet.mid.attn1.to_q.lora_B.weight": (8, 0)},
    ],
    ids=["embedding", "lora"],
)
def test_an_empty_tensor_is_refused(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    assert refused(file(tmp_path, shapes)).what.startswith(f"has no numbers in {next(iter(shapes))}")


def test_a_whole_checkpoint_is_none(tmp_path: Path) -> None:
    error = refused(file(tmp_path, {"model.diffusion_model.out.2.weight": (4, 8), "cond_stage_model.x": (8, 8)}))
    assert "whole checkpoint" in error.what and "from_single_file" in error.fix


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "style.pt").write_bytes(b"pickle")
    assert "never opened" in refused(tmp_path / "style.pt").what


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    assert "no file or folder of this name" in refused(tmp_path / "lost.safetensors").what


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    assert look(file(tmp_path, PAIR).parent).path == tmp_path / "style.safetensors"


def test_a_folder_with_several_names_them(tmp_path: Path) -> None:
    file(tmp_path, PAIR), file(tmp_path, PAIR, "other.safetensors")
    assert "2 weight files (other.safetensors, style.safetensors)" in refused(tmp_path).what


def test_an_eraser_is_not_taken_for_a_lora(tmp_path: Path) -> None:
    path = file(tmp_path, PAIR, "pytorch_lora_weights.safetensors")
    (tmp_path / "adapter.json").write_text("{}")
    assert look(tmp_path).kind == "eraser"
    assert "part of an eraser" in refused(path).what


def test_an_eraser_without_its_settings_is_still_one(tmp_path: Path) -> None:
    file(tmp_path, PAIR, "pytorch_lora_weights.safetensors"), file(tmp_path, {"<qr>": (8,)}, "tokens.safetensors")
    assert look(tmp_path).kind == "eraser"


def test_a_lora_is_not_taken_for_an_eraser(tmp_path: Path) -> None:
    error = refused(file(tmp_path, PAIR), kind="eraser")
    assert error.what == "is a LoRA, not an eraser of marks" and 'kind = "lora"' in error.fix


@pytest.mark.parametrize(
    ("shapes", "keys", "key"),
    [(PAIR, {"tokens": "always"}, "tokens"), (PAIR, {"lowrank": "flagged"}, "lowrank"),
     ({"emb_params": (2, 8)}, {"rows": "named"}, "rows"), ({"emb_params": (2, 8)}, {"weight": 0.5}, "weight")],
)  # fmt: skip
def test_keys_of_other_kinds_are_refused(
    shapes: dict[str, tuple[int, ...]], keys: dict[str, str | float], key: str, tmp_path: Path
) -> None:
    assert refused(file(tmp_path, shapes), **keys).what.startswith(f"`{key}` is a key of")


def test_names_are_told_apart(tmp_path: Path) -> None:
    paths = [file(tmp_path, PAIR), file(tmp_path, PAIR, "Style.safetensors")]
    with pytest.raises(ConfigError, match="two of them are called 'style'"):
        look_at_adapters([AdapterConfig(path=str(path)) for path in paths], base=Path())


@pytest.mark.parametrize(
    ("name", "what"),
    [(" ink", "begins or ends with a blank"), ("ink ", "begins or ends with a blank"), ("a:b", "holds a comma or a colon")],
)
def test_names_that_no_row_can_write_are_refused(name: str, what: str, tmp_path: Path) -> None:
    assert refused(file(tmp_path, PAIR), name=name).what == f"its name {name!r} {what}"


DOWNS = {
    "Stable Diffusion 1.x": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)},
    "Stable Diffusion 2.x": {"unet.down.attn2.to_k.lora_A.weight": (4, 1024)},
    "SDXL": {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)},
    "Stable Diffusion 3": {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 64)},
    "Flux": {"transformer.single_transformer_blocks.0.proj_out.lora_A.weight": (4, 64)},
    "Qwen-Image": {"transformer_blocks.0.img_mlp.net.2.lora_A.weight": (4, 64)},
    "Z-Image": {"diffusion_model.context_refiner.0.attention.to_q.lora_A.weight": (4, 64)},
}


def up(name: str) -> str:
    return name.replace("lora_down", "lora_up").replace("lora_A", "lora_B")


BASES = {base: downs | {up(name): (8, rank) for name, (rank, _) in downs.items()} for base, downs in DOWNS.items()}


@pytest.mark.parametrize("name", BASES)
def test_the_base_is_read_from_names_and_shapes(name: str, tmp_path: Path) -> None:
    assert look(file(tmp_path, BASES[name])).base.name == name


def test_the_base_is_read_from_what_a_trainer_wrote(tmp_path: Path) -> None:
    assert look(file(tmp_path, PAIR, ss_base_model_version="sdxl_base_v1-0")).base.name == "SDXL"


@pytest.mark.parametrize(("name", "family"), [("SDXL", "sd"), ("Stable Diffusion 1.x", "sdxl"), ("Flux", "sd3")])
def test_another_base_is_refused_and_both_are_named(name: str, family: str, tmp_path: Path) -> None:
    found = look(file(tmp_path, BASES[name]))
    with pytest.raises(ModelError, match=f"is a LoRA for {name}, and the model is a SomePipeline"):
        check_base(found, family, "SomePipeline")


@pytest.mark.parametrize(("name", "family"), [("SDXL", "sdxl"), ("Stable Diffusion 2.x", "sd"), ("Flux", "flux")])
def test_its_own_base_is_taken(name: str, family: str, tmp_path: Path) -> None:
    check_base(look(file(tmp_path, BASES[name])), family, "SomePipeline")


def test_a_file_on_an_object_store_is_the_same_file(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    path = file(tmp_path, PAIR)
    write_file(place(memory), "ink.safetensors", path.read_bytes())
    there, here = look(f"{memory}/ink.safetensors"), look(path)
    assert (there.kind, there.name, there.digest) == ("lora", "ink", here.digest)
