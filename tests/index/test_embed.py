"""The OpenCLIP embedder: rows that do not depend on each other, an honest id, and clear refusals. Uses the shipped weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from index.embed import OpenCLIPEmbedder, Preprocessing, weights_folder
from index.embedder_source import EmbedderSource
from index.errors import InputError, ModelError, OutOfMemory
from index.picture import read_picture

from .conftest import drawing


@pytest.fixture(scope="module")
def shipped() -> OpenCLIPEmbedder:
    import torch

    torch.set_num_threads(1)
    return OpenCLIPEmbedder.open("stickers")


def test_a_row_does_not_depend_on_its_neighbours(shipped: OpenCLIPEmbedder) -> None:
    pictures = np.stack([drawing(seed) for seed in range(11)])
    together = shipped.images(pictures)
    assert together.shape == (11, shipped.dim) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert np.array_equal(shipped.images(pictures[::-1])[::-1], together)
    for row in (0, 7, 8, 10):
        assert np.array_equal(shipped.images(pictures[row : row + 1])[0], together[row])
    captions = ["red apple", "a cat", "an icon of a crab", "x"] * 3
    texts = shipped.texts(captions)
    assert np.array_equal(shipped.texts(["a cat"])[0], texts[1]) and np.array_equal(texts[1], texts[5])
    assert shipped.images(pictures[:0]).shape == (0, shipped.dim) and shipped.texts([]).shape == (0, shipped.dim)


def test_values_enter_as_openclip_normalises_them(shipped: OpenCLIPEmbedder) -> None:
    import torch

    entering = Preprocessing(size=(1, 256), mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
                             interpolation="bicubic", fit="squash", fill=0)  # fmt: skip
    every = np.arange(256, dtype=np.float32)[:, None].repeat(3, 1)
    wanted = (every / 255 - np.array(entering.mean, np.float32)) / np.array(entering.std, np.float32)
    pixels = torch.from_numpy(every.T.reshape(1, 3, 1, 256).copy()) / 255
    assert np.array_equal(entering.normalised(pixels)[0, :, 0].numpy().T, wanted)


class Small:
    """A tower on a device that holds so many rows."""

    def __init__(self, real: Any, rows: int) -> None:
        self.real, self.rows, self.seen = real, rows, list[int]()

    def __call__(self, rows: Any) -> Any:
        import torch

        self.seen.append(len(rows))
        if len(rows) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.real(rows)


@pytest.mark.parametrize("tower", ["encode_image", "encode_text"])
def test_memory_that_runs_out_halves_the_call_for_good(
    shipped: OpenCLIPEmbedder, tower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = OpenCLIPEmbedder.open("stickers")  # its calls stay halved
    inputs: Any = np.stack([drawing(seed) for seed in range(11)]) if tower == "encode_image" else ["red apple", "a cat"] * 5
    run = (lambda e: e.images) if tower == "encode_image" else (lambda e: e.texts)
    small = Small(getattr(embedder.network, tower), 4)
    monkeypatch.setattr(embedder.network, tower, small)
    halved = run(embedder)(inputs)
    assert small.seen == [8] + [4] * 3 and np.allclose(halved, run(shipped)(inputs), atol=1e-6)
    assert [calls.shapes for calls in (embedder.calls, embedder.text_calls)].count((8, 4)) == 1
    assert embedder.calls.shapes == ((8, 4) if tower == "encode_image" else (8,))
    # What is promised then: the same bytes for the same shape, whoever else is in it.
    assert np.array_equal(run(embedder)(inputs[6:7])[0], halved[6])
    small.rows = 0
    with pytest.raises(OutOfMemory, match=r"embedder.*: not even one row .*CUDA out of memory.*smaller weights") as refused:
        run(embedder)(inputs[:1])
    assert refused.value.where.startswith("embedder") and refused.value.fix


def test_a_vector_without_a_direction_is_refused(shipped: OpenCLIPEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be near to nothing, and whatever it is of would pass."""
    real = shipped.network.encode_image
    for broken in (float("nan"), float("inf"), 0.0):
        monkeypatch.setattr(shipped.network, "encode_image", lambda x, by=broken: real(x) * by)
        with pytest.raises(ModelError, match="no direction"):
            shipped.images(drawing(1)[None])


def test_a_mirrored_copy_is_nearer_than_another_drawing(shipped: OpenCLIPEmbedder) -> None:
    pictures = np.stack([drawing(seed) for seed in range(8)])
    cosine = shipped.images(pictures) @ shipped.images(pictures[:, :, ::-1]).T
    assert (np.argmax(cosine, axis=1) == np.arange(8)).all()


def test_a_turned_photograph_is_as_near_as_the_upright_one(shipped: OpenCLIPEmbedder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(drawing(4, 128))
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=92, exif=exif)
    turned, plain = shipped.images(read_picture(tmp_path / "turned.jpg")[None]), shipped.images(drawing(4, 128)[None])
    assert float(turned[0] @ plain[0]) > 0.99


def test_the_id_follows_weights_and_preprocessing(shipped: OpenCLIPEmbedder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(weights_folder(), copy)
    same = OpenCLIPEmbedder.open(f"local-dir:{copy}")
    assert same.embedder_id == shipped.embedder_id == OpenCLIPEmbedder.open(str(copy)).embedder_id
    config = json.loads((copy / "open_clip_config.json").read_text(encoding="utf-8"))
    changed = {**config, "preprocess_cfg": {**config["preprocess_cfg"], "mean": [0.4, 0.5, 0.5]}}
    (copy / "open_clip_config.json").write_text(json.dumps(changed), encoding="utf-8")
    assert OpenCLIPEmbedder.open(str(copy)).embedder_id != shipped.embedder_id
    (copy / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(copy / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0, 0, 0, 0] += 0.5
    save_file(weights, copy / "open_clip_model.safetensors")
    assert OpenCLIPEmbedder.open(str(copy)).embedder_id != shipped.embedder_id


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder nor an architecture"):
        OpenCLIPEmbedder.open("no-such-model")
    with pytest.raises(ModelError, match="would have to be downloaded"):
        OpenCLIPEmbedder.open("ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(ModelError, match="would have to be downloaded"):
        OpenCLIPEmbedder.open("hf-hub:nobody/nothing")
    with pytest.raises(ModelError, match="has no weights"):
        OpenCLIPEmbedder.open("ViT-B-32")
    with pytest.raises(ModelError, match="is not a folder"):
        OpenCLIPEmbedder.open(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(ModelError, match=r"no open_clip_config\.json"):
        OpenCLIPEmbedder.open(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(weights_folder(), copy)
    (copy / "open_clip_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        OpenCLIPEmbedder.open(str(copy))
    (copy / "open_clip_model.safetensors").unlink()
    (copy / "epoch_32.pt").write_bytes(b"what open_clip passes over: the network would have random weights")
    with pytest.raises(ModelError, match="has no weights"):
        OpenCLIPEmbedder.open(str(copy))


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)]
)
def test_pictures_that_are_none_are_refused(shipped: OpenCLIPEmbedder, bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        shipped.images(bad)


def test_the_folder_is_in_open_clips_own_format() -> None:
    from index.torchvision_ops import ensure

    ensure()
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{weights_folder()}")
    picture = drawing(3)
    with torch.inference_mode():
        theirs = model.eval().encode_image(transform(Image.fromarray(picture))[None].expand(8, -1, -1, -1), normalize=True)[0]
        tokens = open_clip.get_tokenizer(f"local-dir:{weights_folder()}")(["red apple"])
        caption = model.encode_text(tokens, normalize=True)[0]
    ours = OpenCLIPEmbedder.open("stickers")
    assert np.allclose(ours.images(picture[None])[0], theirs.numpy(), atol=1e-5)
    assert np.allclose(ours.texts(["red apple"])[0], caption.numpy(), atol=1e-5)


def test_preprocessing_pads_or_squashes() -> None:
    import torch

    wide = np.zeros((10, 40, 3), np.uint8)
    pad = Preprocessing(size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", fit="pad", fill=255)
    squash = Preprocessing(size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", fit="squash", fill=255)

    def entered(how: Preprocessing, picture: np.ndarray) -> np.ndarray:
        pixels = how.fitted(picture).transpose(2, 0, 1)[None].astype(np.float32) / 255
        return np.asarray(how.normalised(torch.from_numpy(pixels))[0])

    padded = entered(pad, wide)
    assert padded.shape == (3, 64, 64) and padded[:, 32, 32].max() == -1 and padded[:, 0].min() == padded[:, -1].min() == 1
    assert entered(squash, wide).shape == (3, 64, 64) and entered(squash, wide).max() == -1
    exact = drawing(1)
    assert np.allclose(entered(pad, exact), exact.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


# --- where an embedder comes from -------------------------------------------------------------------------------------------


def test_relative_paths_start_from_the_folder_they_are_read_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(weights_folder(), tmp_path / "project" / "mine")
    monkeypatch.chdir(tmp_path)
    opened = OpenCLIPEmbedder.open("local-dir:mine", base=tmp_path / "project")
    assert opened.source == EmbedderSource(f"local-dir:{tmp_path / 'project' / 'mine'}")
    assert OpenCLIPEmbedder.open("mine", base=tmp_path / "project").source == opened.source
    with pytest.raises(ModelError, match="is not a folder"):
        OpenCLIPEmbedder.open("local-dir:mine")


def test_an_index_remembers_paths_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a" / "index").mkdir(parents=True)
    (tmp_path / "a" / "mine").mkdir()
    (tmp_path / "a" / "weights.pt").touch()
    source = EmbedderSource(f"local-dir:{tmp_path / 'a' / 'mine'}", str(tmp_path / "a" / "weights.pt"))
    kept = source.seen_from(tmp_path / "a" / "index")
    assert kept == EmbedderSource("local-dir:../mine", "local-file:../weights.pt")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert kept.starting_from(tmp_path / "moved" / "index") == EmbedderSource(
        f"local-dir:{tmp_path / 'moved' / 'mine'}", str(tmp_path / "moved" / "weights.pt")
    )


@pytest.mark.parametrize(
    "source", [EmbedderSource("stickers"), EmbedderSource("ViT-B-32", "openai"), EmbedderSource("hf-hub:a/b")]
)
def test_names_stay_as_they_are(source: EmbedderSource, tmp_path: Path) -> None:
    assert source.seen_from(tmp_path).starting_from(tmp_path / "elsewhere") == source


@pytest.mark.parametrize("stored", [[], "stickers", {"model": 1}])
def test_data_that_is_not_a_record_is_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="does not name an embedder"):
        EmbedderSource.of_record(stored)


def test_what_was_downloaded_before_needs_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same embedder, to the last bit of its id, as with the tag; found where the hub's own client puts files."""
    import huggingface_hub.constants
    import open_clip

    own = json.loads((weights_folder() / "open_clip_config.json").read_text(encoding="utf-8"))
    own["model_cfg"]["text_cfg"].pop("hf_tokenizer_name", None)
    (tmp_path / "tiny-of-ours.json").write_text(json.dumps(own["model_cfg"]), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tiny-of-ours.json")
    tag = {"hf_hub": "owner/tiny/", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "interpolation": "bilinear"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-of-ours", {"ours": {"resize_mode": "longest", **tag}})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="would have to be downloaded"):
        OpenCLIPEmbedder.open("tiny-of-ours", "ours")
    kept = tmp_path / "cache" / "models--owner--tiny"
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    shutil.copy(weights_folder() / "open_clip_model.safetensors", kept / "snapshots" / "abc")
    opened = OpenCLIPEmbedder.open("tiny-of-ours", "ours")
    assert (opened.preprocessing.mean, opened.preprocessing.std) == (tag["mean"], tag["std"])
    assert opened.preprocessing.interpolation == "bilinear"
    assert opened.source == EmbedderSource("tiny-of-ours", "ours")


def test_code_that_lies_beside_an_embedder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration itself says that its code may be trusted: that is not for it to say."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "embedder", tmp_path / "ran"
    shutil.copytree(weights_folder(), folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    path.write_text(json.dumps(config), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    tokens = json.loads(path.read_text(encoding="utf-8"))
    tokens |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps(tokens), encoding="utf-8")
    own = f"open({str(ran)!r}, 'w').close()\nfrom transformers import CLIPTokenizer\n\n\nclass Own(CLIPTokenizer): ...\n"
    (folder / "own.py").write_text(own, encoding="utf-8")
    with pytest.raises(ModelError, match="custom code") as refused:
        OpenCLIPEmbedder.open(str(folder))
    assert "code that comes with a model is never run" in refused.value.fix
    assert not ran.exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_folder_makes_no_library_ask_the_hub(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration may name a repository (``timm_model_name``, ``hf_model_name``), which libraries look up unasked."""
    import open_clip
    from huggingface_hub import constants, is_offline_mode

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = []

    def create(*_: Any, **__: Any) -> Any:
        seen.append(is_offline_mode())
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    with pytest.raises(ModelError) as refused:
        OpenCLIPEmbedder.open(str(weights_folder()), allow_download=allowed)
    assert seen == [not allowed] and not is_offline_mode()
    assert "allow_download" in refused.value.fix
