"""The pictures: fetch the icon packages, render every drawing, write one array file and a manifest of digests.

Nothing is committed: the same pinned packages give the same bytes. Needs `npm` (only to rebuild the world; running
Clearance needs none of this) and the extra `lab` (resvg-py).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import ClearanceError
from jobs.lab.world.catalogue import ONCE_INSIDE, SIZE, VENDORS, concepts

# Families that are not pictures of a thing, or that exist in thousands of near-duplicates.
DROPPED = re.compile(r"skin-tone|^flag|keycap|-thirty$|o-clock|button|square|circle|arrow|input-|sign$|letter")


# Signs of prescribed form (by a standard, a religion, arithmetic): all vendors draw the same form, so two vendors' drawings are
# not a near miss. Neither training nor measuring of copies pairs them.
PRESCRIBED = re.compile(
    r"symbol|hearts?$|-suit$|diamond|exclamation|question|-flag$|(new|full|quarter|gibbous|waxing-crescent|waning-crescent)-moon$|^no-|mens-room$|potable|-mark$|curly-loop|moon-with|"
    r"^(plus|minus|multiply|divide|infinity|aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|"
    r"pisces|ophiuchus|om|menorah|yin-yang|latin-cross|orthodox-cross|star-of-david|dotted-six-pointed-star|wheel-of-dharma|"
    r"trident-emblem|fleur-de-lis|eight-pointed-star|eight-spoked-asterisk|sparkle|restroom|water-closet|baggage-claim|customs|"
    r"left-luggage|passport-control|prohibited|warning|radioactive|biohazard|antenna-bars|cinema|vibration-mode|information|"
    r"wavy-dash|zzz|chart-.*|bar-chart|khanda|star-and-crescent|currency-exchange|children-crossing|copyright|registered)$"
)


class WorldError(ClearanceError):
    """The world cannot be rebuilt here; the message names what is missing and what to do."""


def fetch(vendor: str, work: Path) -> dict[str, Any]:
    """Return one vendor's icon set (iconify JSON) from its pinned npm package, cached under ``work``."""
    package, version, _, _ = VENDORS[vendor]
    archive = work / "packages" / f"{vendor}-{version}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise WorldError("npm is not installed; it fetches the icon packages. Install it (Debian: apt install npm)")
        archive.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "pack", "--silent", f"{package}@{version}"], cwd=archive.parent, capture_output=True, text=True
        )
        if done.returncode:
            raise WorldError(f"npm could not fetch {package}@{version}: {done.stderr.strip()[-400:]}")
        (archive.parent / done.stdout.strip().splitlines()[-1]).rename(archive)
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        assert member is not None
        icons: dict[str, Any] = json.load(member)
    return icons


def svg_of(icons: dict[str, Any], name: str) -> str:
    """One icon as an SVG file, with a margin of 4 %."""
    icon = icons["icons"][name]
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    margin = 0.04 * max(width, height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{-margin} {-margin} {width + 2 * margin} {height + 2 * margin}">{icon["body"]}</svg>'
    )


def render(icons: dict[str, Any], name: str) -> np.ndarray:
    """Render one icon on white: uint8 (SIZE, SIZE, 3). Rendered four times larger, then averaged down."""
    import resvg_py
    from PIL import Image

    svg = svg_of(icons, name)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    small = canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small)


def build(work: Path) -> dict[str, Any]:
    """Render every usable drawing into ``work/pictures.npz`` and return the manifest (also ``work/manifest.json``).

    Arrays: ``pixels`` uint8 (N, SIZE, SIZE, 3) and, per picture, its vendor and icon name. Names outside the world's
    concepts train the autoencoder and the embedder; one name in ten of those is held out for evaluation.
    """
    from rich.progress import track

    work.mkdir(parents=True, exist_ok=True)
    inside = {concept.icon for concept in concepts()}
    pixels, vendors, names = [], [], []
    packages = []
    for vendor in VENDORS:
        icons = fetch(vendor, work)
        missing = sorted(inside - set(icons["icons"]))
        if missing:
            raise WorldError(f"{vendor} has no drawing of: {', '.join(missing)}; mend jobs/lab/world/catalogue.py")
        chosen = sorted(n for n in icons["icons"] if not DROPPED.search(n) and not icons["icons"][n].get("hidden"))
        for name in track(chosen, description=f"rendering {vendor}"):
            pixels.append(render(icons, name))
            vendors.append(vendor)
            names.append(name)
        package, version, licence, holder = VENDORS[vendor]
        archive = work / "packages" / f"{vendor}-{version}.tgz"
        packages.append(
            {"package": package, "version": version, "licence": licence, "rightsholder": holder,
             "pictures": len(chosen), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
        )  # fmt: skip
    stack = np.stack(pixels)
    np.savez_compressed(work / "pictures.npz", pixels=stack, vendor=np.array(vendors), name=np.array(names))
    manifest = {
        "size": SIZE,
        "pictures": len(names),
        "pixels_sha256": hashlib.sha256(stack.tobytes()).hexdigest(),
        "names_sha256": hashlib.sha256("\n".join(f"{v}/{n}" for v, n in zip(vendors, names, strict=True)).encode()).hexdigest(),
        "packages": packages,
        "concepts": [
            {
                "name": c.name,
                "icon": c.icon,
                "caption": c.caption,
                "protected_vendor": c.protected_vendor,
                "prone_to": c.prone_to,
            }
            for c in concepts()
        ],
    }
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def held_out(name: str) -> bool:
    """Whether a drawing name is left out of training (one in ten of those outside the world, by digest)."""
    inside = {concept.icon for concept in concepts()} | set(ONCE_INSIDE)
    return name not in inside and hashlib.sha256(name.encode()).digest()[0] < 26


def prescribed(name: str) -> bool:
    """Whether the form of this sign is prescribed (see :data:`PRESCRIBED`)."""
    return PRESCRIBED.search(name) is not None


def load(work: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Pixels (N, SIZE, SIZE, 3) uint8, vendors and names, as :func:`build` wrote them."""
    path = work / "pictures.npz"
    if not path.exists():
        raise WorldError(f"{path} does not exist; run `clearance lab world data --work {work}` first")
    data = np.load(path)
    return data["pixels"], list(data["vendor"]), list(data["name"])
