"""Shared fixtures: tiny random models of the real classes, one thread, no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("CLEARANCE_KEYS", None)  # a test names its keys

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from index.torchvision_ops import ensure

ensure()

# The same inputs each time, so that a change fails by its own fault; new ones are looked for with CLEARANCE_FUZZ.
hypothesis.settings.register_profile("suite", derandomize=True)
if "CLEARANCE_FUZZ" not in os.environ:
    hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    yield


WORDS = ["red-apple", "cat", "lemon"]
SIDE = 16  # pixels of every tiny model's pictures; latents are 8×8


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    from jobs.lab.world.tokenizer import make_tokenizer

    make_tokenizer(folder, WORDS)
    return CLIPTokenizer.from_pretrained(folder)


def _clip(tokenizer: Any, *, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    end = tokenizer.eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=32,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5(width: int) -> dict[str, Any]:
    """A tokenizer of single letters and an encoder of one layer."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=64)
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "encoder": T5EncoderModel(config)}


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **more,
    )


def autoencoder(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=0.5,
        **more,
    )


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion folder, small enough for a unit test, of the classes the real ones have."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = _tokenizer(folder / "words")
    torch.manual_seed(0)
    StableDiffusionPipeline(
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=32),
        vae=autoencoder(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            timestep_spacing="trailing",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL folder: two text encoders, a pooled embedding, size conditions, the scheduler of SDXL base."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    folder = tmp_path_factory.mktemp("tiny-xl")
    tokenizer = _tokenizer(folder / "words")
    torch.manual_seed(1)
    StableDiffusionXLPipeline(
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, projected=True),
        tokenizer_2=tokenizer,
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        vae=autoencoder(),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    ).save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SD3 folder: three text encoders, joint attention, a shifted flow."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    folder = tmp_path_factory.mktemp("tiny-3")
    tokenizer = _tokenizer(folder / "words")
    torch.manual_seed(2)
    t5 = _t5(64)
    StableDiffusion3Pipeline(
        text_encoder=_clip(tokenizer, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, projected=True),
        tokenizer_2=tokenizer,
        text_encoder_3=t5["encoder"],
        tokenizer_3=t5["tokenizer"],
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
        ),
        vae=autoencoder(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Flux folder, of dev's kind: guidance embedded, dynamic shift. It needs ``size``: Flux has no size of its own."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("tiny-flux")
    tokenizer = _tokenizer(folder / "words")
    torch.manual_seed(3)
    t5 = _t5(32)
    FluxPipeline(
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5["encoder"],
        tokenizer_2=t5["tokenizer"],
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        vae=autoencoder(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ).save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


# --- object stores ---------------------------------------------------------------------------------------------------------

BUCKET = "clearance-tests"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server of this process, with one bucket."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    known = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **known).create_bucket(Bucket=BUCKET)  # type: ignore[call-overload]
    yield endpoint
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URI of a folder on that server, of this test's own, with the credentials in the environment."""
    from tests.object_stores import s3_environment

    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{_own(request)}"


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> str:
    """The URI of a folder in the memory of this process, of this test's own."""
    return f"memory://tests/{_own(request)}"


def _own(request: pytest.FixtureRequest) -> str:
    import re
    import secrets

    return f"{re.sub('[^A-Za-z0-9_.-]+', '-', request.node.name)}-{secrets.token_hex(4)}"
