"""torchvision can be imported in every interpreter of the environment, not only by Clearance's own modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from index.torchvision_ops import ensure

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = """
from transformers import CLIPTextModel
from diffusers import StableDiffusionPipeline
import open_clip
"""
PLAIN = """
import torch, torchvision
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]])
print(torch.ops.torchvision.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist())
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What the wheel puts beside the packages, in a folder of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for source, target in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        shutil.copy(ROOT / source, tmp_path / target)
    return tmp_path


def run(code: str, *options: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.slow
def test_plain_imports_work_in_this_environment(tmp_path: Path) -> None:
    assert run(f"{LIBRARIES}{PLAIN}", cwd=tmp_path) == "[1, 2]"  # if not: make install


def test_plain_imports_work_with_the_installed_files(site: Path) -> None:
    assert run(f"import site; site.addsitedir({str(site)!r})\n{PLAIN}", "-I", cwd=site) == "[1, 2]"


def test_it_costs_nothing_until_torchvision_is_imported(site: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); before = set(sys.modules)\n"
        "import clearance_torchvision; clearance_torchvision.watch()\n"
        "print(sorted(set(sys.modules) - before))"
    )
    assert run(code, "-I", "-S", cwd=site) == "['__future__', 'clearance_torchvision']"


def test_to_look_whether_torchvision_is_there_does_not_import_torch(site: Path) -> None:
    code = (
        f"import site, sys; site.addsitedir({str(site)!r})\n"
        "from importlib.util import find_spec\n"
        "print(find_spec('torchvision') is not None, 'torch' in sys.modules)"
    )
    assert run(code, "-I", cwd=site) == "True False"


def test_one_watch_is_enough(site: Path) -> None:
    code = (
        f"import site, sys; site.addsitedir({str(site)!r})\n"
        "import clearance_torchvision as c; c.watch(); c.watch()\n"
        "print(sum(type(f).__name__ == 'TorchvisionWatch' for f in sys.meta_path))"
    )
    assert run(code, "-I", cwd=site) == "1"


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_every_way_of_installing_brings_the_files(version: str, tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=[version])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        hook = archive.read("clearance_torchvision.py")
    assert {"clearance_torchvision.py", "clearance_torchvision.pth"} <= names
    assert ("index/torchvision_ops.py" in names) == (version == "standard")
    assert hook == (ROOT / "index" / "torchvision_ops.py").read_bytes()


def test_it_knows_whether_the_stand_in_is_in_use() -> None:
    import torch
    import torchvision

    folder = Path(torchvision.__file__).parent
    compiled = [path for path in torch.ops.loaded_libraries if Path(path).parent == folder and Path(path).name.startswith("_C")]
    assert ensure() == (not compiled)
