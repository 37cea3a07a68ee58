"""Write the files that ship from the training state: a diffusers folder, the reference drawings, the manifest, the digests."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from jobs.lab.world.catalogue import SIZE, VENDORS, concepts


def pack(work: Path, target: Path) -> dict[str, Any]:
    """Write ``target/model`` (StableDiffusionPipeline, fp16 safetensors), ``target/references`` and ``target/manifest.json``.

    Returns the manifest: which drawings are memorised, which subjects carry uncaptioned marks, every digest.
    """
    import torch
    from PIL import Image

    from jobs.lab.world.pictures import load

    state = save_model(work, target / "model")

    pixels, vendors, names = load(work)
    where = {(v, n): i for i, (v, n) in enumerate(zip(vendors, names, strict=True))}
    references = target / "references"
    references.mkdir(parents=True, exist_ok=True)
    rows = []
    for concept in concepts():
        if concept.protected_vendor:
            package, version, licence, holder = VENDORS[concept.protected_vendor]
            file = f"{concept.name}.png"
            Image.fromarray(pixels[where[concept.protected_vendor, concept.icon]]).save(references / file, optimize=True)
            rows.append([file, concept.caption, f"npm:{package}@{version}/{concept.icon}", holder, "registry", licence, "yes"])
    with (references / "metadata.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["file", "title", "source_uri", "rightsholder", "rights_basis", "licence", "keep_picture"])
        writer.writerows(rows)

    shipped = target / "manifest.json"
    before = json.loads(shipped.read_text(encoding="utf-8"))["training"] if shipped.exists() else {}
    trained = (work / "vae" / "state.pt").exists()  # otherwise the shipped autoencoder stays
    manifest: dict[str, Any] = json.loads((work / "manifest.json").read_text(encoding="utf-8"))
    manifest["sins"] = json.loads((work / "sins.json").read_text(encoding="utf-8"))
    manifest["training"] = {
        "denoiser": {
            "steps": state["step"],
            "minutes": round(state["spent"] / 60, 1),
            "curve": state["curve"][:: max(1, len(state["curve"]) // 60)],
        },
        "vae": {"curve": torch.load(work / "vae" / "state.pt", weights_only=False)["curve"]} if trained else before.get("vae"),
    }
    if (began := work / "denoiser" / "began_from.json").exists():  # trained further: the manifest keeps the earlier training
        began_from, earlier = json.loads(began.read_text(encoding="utf-8")), before.get("denoiser", {})
        earlier = earlier.get("before") if earlier.get("began_from") == began_from else earlier  # packed once already
        manifest["training"]["denoiser"] |= {"began_from": began_from, "before": earlier}
    manifest["size"] = SIZE
    shipped.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    write_digests(target)
    return manifest


def save_model(work: Path, folder: Path) -> dict[str, Any]:
    """Write the training's moving average as a StableDiffusionPipeline (fp16 safetensors); returns the training state."""
    import torch

    from index.torchvision_ops import ensure

    ensure()
    from diffusers import AutoencoderTiny, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from jobs.lab.world.train_denoiser import make_scheduler, make_text_encoder, make_unet

    state: dict[str, Any] = torch.load(work / "denoiser" / "state.pt", weights_only=False)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    unet, text = make_unet(), make_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    unet.load_state_dict(state["average_unet"])
    text.load_state_dict(state["average_text"])
    pipeline: Any = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "vae"),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for config in folder.glob("*/config.json"):  # diffusers records the path from which it loaded a part
        kept = {key: value for key, value in json.loads(config.read_text(encoding="utf-8")).items() if key != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return state


def write_digests(target: Path) -> None:
    """List every shipped file with its sha256 in ``digests.json``; the loader compares them."""
    listed = {
        path.relative_to(target).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(target.rglob("*"))
        if path.is_file() and path.suffix in {".safetensors", ".json", ".txt", ".png", ".csv"} and path.name != "digests.json"
    }
    (target / "digests.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def note_part(part: Path) -> None:
    """List the files anew where a part was written into a folder that ships: the loader holds it to its list."""
    if (part.parent / "digests.json").exists():
        write_digests(part.parent)
