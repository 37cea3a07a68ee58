"""Folders that cannot be drawn with are refused by file and reason before anything is loaded; what is swapped is noted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from index.errors import ConfigError, ModelError
from pipeline.config import ModelConfig
from pipeline.model.folder.tokenizer import check_tokenizer
from pipeline.model.load import check_model, load_model
from pipeline.model.sampling.choose import OF_SCHEDULER, sampler_of

FAMILIES = ["sd", "sdxl", "sd3", "flux"]
SCALES = ("scale_input", "scale_weight")  # of eight-bit weights
UNET, CLIP = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def config_of(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), size=16, text_tokens=24, **({"dtype": "float32"} | more))


@pytest.fixture
def broken(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


def reweigh(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder: Path, **more: Any) -> ModelError:
    """The same error from looking and from loading: a dry run sees what the run would."""
    with pytest.raises(ModelError) as looked:
        check_model(config_of(folder, **more))
    with pytest.raises(ModelError) as loaded:
        load_model(config_of(folder, **more))
    assert str(looked.value) == str(loaded.value)
    assert looked.value.where and looked.value.fix
    return looked.value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_folder_of_every_class_passes(family: str, request: pytest.FixtureRequest) -> None:
    checked = check_model(config_of(request.getfixturevalue(f"tiny_{family}")))
    assert checked.notes == () and checked.cls.family == family


@pytest.mark.parametrize("family", FAMILIES)
def test_the_memory_of_its_weights_is_that_of_the_loaded_model(family: str, request: pytest.FixtureRequest) -> None:
    import torch

    config = config_of(request.getfixturevalue(f"tiny_{family}"), dtype="bfloat16")
    parts: Any = load_model(config)._parts  # type: ignore[attr-defined]
    modules = [part for part in parts.components.values() if isinstance(part, torch.nn.Module)]
    loaded = sum(
        {p.data_ptr(): p.numel() * p.element_size() for m in modules for p in (*m.parameters(), *m.buffers())}.values()
    )
    assert check_model(config).parts.memory == pytest.approx(loaded, rel=0.02)


# --- model_index.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"_class_name": ["my_pipe", "MyPipe"]}, 'names its pipeline class as ["my_pipe", "MyPipe"]'),
        ({"_class_name": None}, "does not name its pipeline class"),
        ({"_class_name": 3}, "names its pipeline class as 3"),
        ({"_class_name": {"a": 1}}, 'names its pipeline class as {"a": 1}'),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "InpaintPipeline cannot be run: it is shown a picture"),
        ({"_class_name": "Ideogram4Pipeline"}, "Ideogram4Pipeline cannot be run: it guides with a second network"),
        ({"_class_name": "FutureImagePipeline"}, "pipelines of class FutureImagePipeline cannot be run"),
        ({"unet": None}, "has no unet"),
        ({"unet": "diffusers"}, "has no unet"),
        ({"unet": [None, None]}, "has no unet"),
        ({"unet": []}, "'unet' is [], not a library and a class"),
        ({"unet": ["diffusers"]}, "'unet' is [\"diffusers\"], not a library and a class"),
        ({"unet": [None, "UNet2DConditionModel"]}, "not a library and a class"),
        ({"unet": [["diffusers"], ["X"]]}, "not a library and a class"),
        ({"unet": [{"a": 1}, 2]}, "not a library and a class"),
        ({"unet": ["my_code", "MyNet"]}, "its unet is of class MyNet"),
        ({"unet": ["diffusers", "UNetMotionModel"]}, "draws with UNet2DConditionModel"),
        ({"vae": ["my_code", "MyVae"]}, "its vae is of class MyVae from 'my_code': code of its own, which is never run"),
        ({"vae": ["diffusers", "AutoencoderFuture"]}, "its vae is of class AutoencoderFuture, which diffusers"),
        ({"scheduler": ["diffusers", "FutureScheduler"]}, "its scheduler is of class FutureScheduler, which diffusers"),
        ({"tokenizer": ["transformers", "FutureTokenizer"]}, "its tokenizer is of class FutureTokenizer, which transformers"),
        ({"../x": ["diffusers", "Y"]}, "'../x' is not the name of a component"),
        ({"extra": ["diffusers", "ControlNetModel"]}, "model_index.json names extra, which is not there"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_odd_entries_of_the_index_are_named(broken: Path, change: dict[str, Any], what: str) -> None:
    edit(broken / "model_index.json", lambda index: index | change)
    error = refused(broken)
    assert what in error.what and str(broken) in error.where


@pytest.mark.parametrize(
    ("named", "fix"), [("StableDifusionPipeline", "Did you mean StableDiffusionPipeline? "), (3, "Write ")]
)
def test_the_classes_that_can_be_drawn_with_are_written_as_they_are_called(broken: Path, named: Any, fix: str) -> None:
    edit(broken / "model_index.json", lambda index: index | {"_class_name": named})
    error = refused(broken)
    assert error.fix.startswith(fix) and "se a model of class StableDiffusionPipeline, " in error.fix


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b""])
def test_an_index_that_is_no_table_is_refused(broken: Path, content: bytes) -> None:
    (broken / "model_index.json").write_bytes(content)
    assert "model_index.json" in refused(broken).where


def test_a_folder_in_the_place_of_the_index_is_refused(broken: Path) -> None:
    (broken / "model_index.json").unlink()
    (broken / "model_index.json").mkdir()
    assert refused(broken).what == "has no model_index.json"


def test_a_single_file_is_refused_with_the_way_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"")
    error = refused(tmp_path / "v1-5.safetensors")
    assert error.what == "is a file, not a folder" and "from_single_file" in error.fix


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 1}', "null", "[" * 100_000])
def test_a_list_of_digests_that_is_none_is_named(broken: Path, content: str) -> None:
    (broken.parent / "digests.json").write_text(content)
    assert refused(broken).where == str(broken.parent / "digests.json")


@pytest.mark.parametrize("path", ["models/sd15", "owner/name", "a", "owner/na me", "~x"])
def test_a_name_that_is_neither_folder_nor_download_is_named(path: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(ModelConfig(path=path))
    assert caught.value.what.startswith("no folder has this name, and no model of this id was downloaded")
    assert caught.value.where == path and "relative paths start from the run file" in caught.value.fix


# --- parts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["unet/config.json", "text_encoder/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_configuration_that_cannot_be_read_is_named(broken: Path, name: str, content: bytes | None) -> None:
    (broken / name).unlink()
    if content is not None:
        (broken / name).write_bytes(content)
    assert refused(broken).where == str(broken / name)


def test_a_tokenizer_without_a_vocabulary_is_named(broken: Path) -> None:
    (broken / "tokenizer" / "tokenizer.json").unlink()
    error = refused(broken)
    assert (error.what, error.where) == ("holds no vocabulary", str(broken / "tokenizer"))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("tokenizer.json", b"", "is not JSON (Expecting value"),
        ("tokenizer.json", None, "is not JSON ("),  # cut short
        ("tokenizer.json", b"[]", "is a list, not an object"),
        ("tokenizer.json", b"{}", "is no tokenizer ("),
        ("tokenizer_config.json", b"{", "is not JSON ("),
        ("special_tokens_map.json", b"", "is not JSON ("),
        ("vocab.json", b'{"a": 0, "b"', "is not JSON ("),
        ("vocab.json", b"{}", "holds no token"),
        ("vocab.json", b'{"a": "0"}', "gives token 'a' no whole number"),
        ("merges.txt", b"", "holds no pair of tokens"),
        ("merges.txt", b"#version: 0.2\n", "holds no pair of tokens"),
        ("merges.txt", b"#version: 0.2\na b\nab", "line 3 is no pair of tokens; it may be cut short"),
        ("merges.txt", b"#version: 0.2\na b\nb a\n", "its last line makes a token that vocab.json does not hold"),
        ("merges.txt", b"\xff", "is not UTF-8 text (byte 0)"),
        ("spiece.model", b"", "is empty"),
    ],
)
def test_a_broken_file_of_a_tokenizer_is_named(broken: Path, name: str, content: bytes | None, what: str) -> None:
    folder = broken / "tokenizer"
    if name in ("vocab.json", "merges.txt"):
        (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
        (folder / "merges.txt").write_text("#version: 0.2\na b\n")
        check_tokenizer(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-40] if content is None else content)
    with pytest.raises(ModelError) as caught:
        check_model(config_of(broken))
    assert caught.value.what.startswith(what) and caught.value.where == str(folder / name)
    assert caught.value.fix == "Restore the file: copy or download the folder again"


def test_a_vocabulary_without_its_merges_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ModelError, match=r"vocab\.json beside it needs it"):
        check_tokenizer(tmp_path)


def test_pickled_weights_are_never_opened(broken: Path) -> None:
    (broken / UNET).rename(broken / "unet" / "diffusion_pytorch_model.bin")
    error = refused(broken)
    assert "pickled (diffusion_pytorch_model.bin)" in error.what and "use_safetensors=False" in error.fix
    assert error.where == str(broken / "unet")


def test_quantised_weights_are_refused(broken: Path) -> None:
    edit(broken / "unet" / "config.json", lambda c: c | {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert "its unet is quantised (bitsandbytes)" in refused(broken).what


def test_weights_that_are_not_those_that_were_looked_at_are_refused(broken: Path) -> None:
    """transformers would load the other file, and draw at random what that one lacks."""
    edit(broken / "text_encoder" / "config.json", lambda c: c | {"transformers_weights": "other.safetensors"})
    assert "weights from another file (transformers_weights: 'other.safetensors')" in refused(broken).what


def test_eight_bit_weights_are_refused(broken: Path) -> None:
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    tensors = load(broken / UNET)
    save({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, broken / UNET)
    error = refused(broken)
    assert "is stored as F8_E4M3" in error.what and error.where == str(broken / UNET)


@pytest.mark.parametrize("name", [UNET, CLIP, "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_weights_that_are_cut_short_are_named(broken: Path, name: str, keep: int) -> None:
    (broken / name).write_bytes((broken / name).read_bytes()[:keep])
    error = refused(broken)
    assert "cut short" in error.what and error.where == str(broken / name)


def test_a_pointer_of_git_lfs_is_named(broken: Path) -> None:
    (broken / UNET).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refused(broken).fix


@pytest.mark.parametrize("name", [UNET, CLIP, "vae/diffusion_pytorch_model.safetensors"])
def test_a_missing_tensor_is_named(broken: Path, name: str) -> None:
    gone = sorted(load_file(broken / name))[0]
    reweigh(broken / name, lambda tensors: tensors.pop(gone))
    error = refused(broken)
    assert error.what.startswith("lacks 1 tensor of ") and error.what.endswith(f", first {gone}")
    assert error.where == str(broken / name)


@pytest.mark.parametrize("name", [UNET, CLIP, "vae/diffusion_pytorch_model.safetensors"])
def test_a_tensor_of_another_shape_is_named(broken: Path, name: str) -> None:
    changed = sorted(load_file(broken / name))[0]
    reweigh(broken / name, lambda tensors: tensors.update({changed: np.zeros((3, 5), np.float32)}))
    error = refused(broken)
    assert f"{changed} has shape (3, 5), config.json needs" in error.what and error.where == str(broken / name)


def test_a_configuration_of_another_network_is_named(broken: Path) -> None:
    edit(broken / "unet" / "config.json", lambda c: c | {"block_out_channels": "wide"})
    error = refused(broken)
    assert "UNet2DConditionModel cannot be built from it" in error.what and error.where == str(broken / "unet" / "config.json")


def test_tensors_that_the_network_has_no_place_for_are_noted(broken: Path) -> None:
    reweigh(broken / UNET, lambda tensors: tensors.update({name: np.zeros(2, np.float32) for name in SCALES}))
    reweigh(broken / CLIP, lambda tensors: tensors.update({"text_model.embeddings.position_ids": np.arange(3)}))
    assert [note.text for note in check_model(config_of(broken)).notes] == [
        "2 tensors in the weights of unet fit nowhere in UNet2DConditionModel, first scale_input"
    ]


def test_old_names_of_attention_tensors_are_known(broken: Path) -> None:
    """As in the autoencoders of Stable Diffusion 1.x."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if "mid_block.attentions" in name]:
            for new, was in old.items():
                if f".{new}." in name:
                    tensors[name.replace(f".{new}.", f".{was}.")] = tensors.pop(name)

    reweigh(broken / "vae" / "diffusion_pytorch_model.safetensors", rename)
    assert "encoder.mid_block.attentions.0.query.weight" in load_file(broken / "vae" / "diffusion_pytorch_model.safetensors")
    assert check_model(config_of(broken)).notes == ()
    load_model(config_of(broken))


def test_weights_in_pieces_are_read_and_a_missing_piece_is_named(broken: Path) -> None:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_pretrained(broken / "unet").save_pretrained(broken / "unet", max_shard_size="200KB")
    (broken / UNET).unlink(missing_ok=True)
    pieces = sorted((broken / "unet").glob("*-of-*.safetensors"))
    assert len(pieces) > 1
    load_model(config_of(broken))
    pieces[1].unlink()
    assert refused(broken).where == str(pieces[1])
    edit(broken / "unet" / "diffusion_pytorch_model.safetensors.index.json", lambda c: {"weight_map": {"a": "../../x"}})
    assert "outside its folder" in refused(broken).what


# --- variants --------------------------------------------------------------------------------------------------------------


def test_a_variant_that_no_part_has_is_refused_with_those_there(broken: Path) -> None:
    assert "there is none" in refused(broken, variant="fp16").what
    (broken / UNET).rename(broken / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    shutil.copy(broken / "unet" / "diffusion_pytorch_model.bf16.safetensors", broken / UNET)
    error = refused(broken, variant="fp16")
    assert "no part has weights of variant 'fp16'; there is 'bf16'" in error.what
    assert error.fix == 'Set model.variant = "bf16", or remove the key'


def test_a_part_without_the_variant_is_noted(broken: Path) -> None:
    shutil.copy(broken / UNET, broken / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (note,) = check_model(config_of(broken, variant="fp16")).notes
    assert (note.topic, note.text) == ("variant", "no fp16 weights for text_encoder, vae: the plain ones are used")


# --- notes -----------------------------------------------------------------------------------------------------------------


def test_parts_that_are_not_loaded_are_noted(broken: Path) -> None:
    edit(broken / "model_index.json", lambda i: i | {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]})
    (broken / "pytorch_lora_weights.safetensors").write_bytes(b"")
    assert [note.text for note in check_model(config_of(broken)).notes] == [
        "image_encoder of the folder is not used: Clearance draws from text",
        "pytorch_lora_weights.safetensors beside model_index.json is not used",
    ]


def test_weights_that_are_rounded_are_noted(tiny_sd: Path) -> None:
    (note,) = check_model(config_of(tiny_sd, dtype="bfloat16")).notes
    assert (note.topic, note.text) == (
        "dtype",
        "the weights of unet are stored as float32 and rounded to bfloat16 (model.dtype)",
    )


def test_to_look_at_the_files_of_a_folder_takes_no_torch(tiny_sd: Path) -> None:
    code = (
        "import sys\nfrom pipeline.model.load import look_at\nfrom pipeline.config import ModelConfig\n"
        f"look_at(ModelConfig(path={str(tiny_sd)!r}))\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


BIG = """
import resource, sys
from pathlib import Path
import torch
from pipeline.model.folder.fit import check_fit
from pipeline.model.folder.parts import Part
from index.torchvision_ops import ensure
ensure()
import transformers
from transformers import T5Config, T5EncoderModel
folder = Path(sys.argv[1])
config = T5Config(vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=6, num_heads=32)
config.save_pretrained(folder)
with torch.device("meta"):
    network = T5EncoderModel(config)
tensors = {name: ("F16", tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
part = Part(name=folder.name, folder=folder, library="transformers", class_name="T5EncoderModel", dtype="float32",
            tensors=tensors, files=(folder / "model.safetensors",))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
check_fit(part)
print(part.memory // 2**20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""


def test_to_compare_names_and_shapes_takes_no_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    weights, taken = map(int, done.stdout.split())
    assert weights > 1000 and taken < 100  # MiB


@pytest.mark.parametrize(
    ("named", "advice"), {"PNDMScheduler": "generation.scheduler chooses", "DDPMScheduler": "with eta = 1"}.items()
)
def test_a_scheduler_that_training_scripts_leave_behind_is_noted(named: str, advice: str) -> None:
    used, text = sampler_of({"_class_name": named}, flow=False)
    assert used == "ddim"
    assert text.startswith(f"the model's folder names {named}, which Clearance does not have; 'ddim' is used")
    assert advice in text


NOT_HERE = {
    "DEISMultistepScheduler": '"dpmpp_2m"', "HeunDiscreteScheduler": '"euler"', "DPMSolverSDEScheduler": '"dpmpp_2m_sde"',
    "SomethingNew": '"ddim"', "FlowMatchEulerDiscreteScheduler": '"ddim"',
}  # fmt: skip


@pytest.mark.parametrize(("named", "instead"), NOT_HERE.items())
def test_a_scheduler_that_is_not_here_is_refused_with_the_nearest(named: str, instead: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sampler_of({"_class_name": named}, flow=False)
    assert f"names {named}, which Clearance does not have" in refused.value.what
    assert f"Set it to {instead}" in refused.value.fix


def test_schedulers_of_flows_that_are_not_here_are_refused() -> None:
    with pytest.raises(ConfigError, match="FlowMatchHeun") as refused:
        sampler_of({"_class_name": "FlowMatchHeunDiscreteScheduler"}, flow=True)
    assert '"flow_match_euler"' in refused.value.fix and "two network calls" in refused.value.fix
    with pytest.raises(ConfigError, match="DEIS") as refused:
        sampler_of({"_class_name": "DEISMultistepScheduler", "use_flow_sigmas": True}, flow=True)
    assert '"dpmpp_2m"' in refused.value.fix


@pytest.mark.parametrize("named", OF_SCHEDULER)
def test_a_scheduler_that_is_here_is_no_note(named: str) -> None:
    assert sampler_of({"_class_name": named}, flow=named.startswith("Flow")) == (OF_SCHEDULER[named], "")


def test_other_forms_of_a_scheduler_that_is_here_are_noted() -> None:
    solver = {"_class_name": "DPMSolverMultistepScheduler"}
    assert sampler_of(solver | {"algorithm_type": "sde-dpmsolver++"}, flow=False) == ("dpmpp_2m_sde", "")
    assert sampler_of(solver | {"use_flow_sigmas": True}, flow=True) == ("dpmpp_2m", "")
    assert sampler_of(solver | {"algorithm_type": "dpmsolver"}, flow=False)[1] == (
        "the model's folder asks for dpmsolver of order 2; dpmsolver++ of order 2 is used"
    )
    assert "order 3; dpmsolver++ of order 2 is used" in sampler_of(solver | {"solver_order": 3}, flow=False)[1]


def test_other_forms_of_unipc_are_noted_or_refused() -> None:
    unipc = {"_class_name": "UniPCMultistepScheduler"}
    assert sampler_of(unipc | {"use_flow_sigmas": True}, flow=True) == ("unipc", "")
    assert sampler_of(unipc | {"solver_order": 3, "solver_type": "bh1", "predict_x0": False}, flow=False) == (
        "unipc", "the model's folder asks for UniPC of order 3 (bh1, noise); order 2 (bh2, x0) is used"
    )  # fmt: skip
    with pytest.raises(ConfigError, match="another predictor"):
        sampler_of(unipc | {"solver_p": {"_class_name": "DDIMScheduler"}}, flow=False)


# --- anything --------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize(
    ("part", "key"),
    [("unet", "transformer_layers_per_block"), ("unet", "layers_per_block"), ("vae", "layers_per_block"),
     ("text_encoder", "num_hidden_layers")],
)  # fmt: skip
def test_a_number_that_asks_for_a_million_layers_is_refused_at_once(tiny_sd: Path, tmp_path: Path, part: str, key: str) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "model")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: 10**6}))
    with pytest.raises(ModelError, match="asks for a network of more than"):
        load_model(config_of(folder))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_json_of_the_folder_is_taken_or_refused(
    tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(tiny_sd, folder)
    path = data.draw(st.sampled_from(sorted(folder.rglob("*.json"), key=str)))
    content = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(content)))
    path.write_text(json.dumps(content | {key: data.draw(JSON)}))
    try:
        load_model(config_of(folder))
    except (ModelError, ConfigError) as error:
        assert error.where and error.fix
