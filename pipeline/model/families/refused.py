"""Pipelines of diffusers that Clearance does not draw with, and why; read before anything is loaded."""

from __future__ import annotations

import re

PICTURE = "it is shown a picture, and Clearance draws from text"
FILM = "it draws films"
UNTRIED = "Clearance has no class for it yet"
REFUSED = {
    "Flux3ModularPipeline": "it has modular blocks alone, without a pipeline that pictures could be compared with",
    "Ideogram4Pipeline": "it guides with a second network (unconditional_transformer)",
    "HunyuanImagePipeline": "it guides with an object of its own (guider)",
    "HunyuanDiTPipeline": UNTRIED,
    "HiDreamImagePipeline": "it has four text encoders, of which a Llama of 8 billion parameters comes from another folder",
    "KolorsPipeline": "its text encoder (ChatGLM) and tokenizer are of classes that transformers does not have",
    "Cosmos2TextToImagePipeline": "it scales latents by sigma_data, and its autoencoder is one of films",
    "LuminaPipeline": UNTRIED,
    "Lumina2Pipeline": "its picture's tokens begin at another place in every row",
    "AuraFlowPipeline": UNTRIED,
    "CogView4Pipeline": UNTRIED,
    "Krea2Pipeline": UNTRIED,
    "QwenImage21Pipeline": UNTRIED,
    "SanaSprintPipeline": "it samples by angles (SCM), which Clearance's samplers do not",
    "StableCascadeCombinedPipeline": "it draws in two stages",
    "WuerstchenCombinedPipeline": "it draws in two stages",
    "KandinskyCombinedPipeline": "it draws in two stages",
    "KandinskyV22CombinedPipeline": "it draws in two stages",
    **dict.fromkeys(
        ("AmusedPipeline", "BriaPipeline", "BriaFiboPipeline", "BriaFibo2Pipeline", "CogView3PlusPipeline", "DreamLitePipeline",
         "ErnieImagePipeline", "GlmImagePipeline", "Kandinsky3Pipeline", "Kandinsky5T2IPipeline", "LongCatImagePipeline",
         "NucleusMoEImagePipeline", "OmniGenPipeline", "OvisImagePipeline", "PRXPipeline", "ZImageOmniPipeline"),
        UNTRIED,
    ),
    **dict.fromkeys(
        ("StableDiffusionPipelineSafe", "SemanticStableDiffusionPipeline", "StableDiffusionSAGPipeline",
         "StableDiffusionPanoramaPipeline", "StableDiffusionAttendAndExcitePipeline"),
        "it is Stable Diffusion drawn in another way; name StableDiffusionPipeline in model_index.json to draw without",
    ),
    **dict.fromkeys(("IFPipeline", "PRXPixelPipeline"), "it draws pixels, and Clearance draws latents"),
}  # fmt: skip
"""Pipeline class → why."""
KINDS = (
    (r"Img2Img|Inpaint|Edit|Upscale|Depth2Img|InstructPix2Pix|Refiner|I2I|Layered|Kontext|Fill|Redux|KVPipeline", PICTURE),
    (r"Control|Adapter", "it takes a control picture beside the text; remove the control network and use its base model"),
    (r"Video|Animate|I2V|T2V|^Wan|^LTX|^Mochi|^Helios", FILM),
    (r"Modular", "it is made of modular blocks; save it as a pipeline of diffusers"),
    (r"PAG", "it guides by perturbed attention; name its base pipeline in model_index.json to draw without"),
)


def why_refused(pipeline: str) -> str:
    """Why pictures cannot be drawn with that class; empty where nothing is known of it."""
    if pipeline in REFUSED:
        return REFUSED[pipeline]
    return next((why for pattern, why in KINDS if re.search(pattern, pipeline)), "")
