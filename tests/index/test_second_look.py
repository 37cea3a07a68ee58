"""The kinds of second look: key points on photographs, descriptors in files, and which of them is chosen."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from index.confirm import confirm, second_look_id
from index.descriptor import ENTERING, Descriptor, entering
from index.errors import ConfigError, IndexMismatch, InputError, ModelError
from index.keypoints import Keypoints
from index.second_look import best_of, compared, look_id, named, open_look, open_looks, why

from .conftest import drawing


def photograph(seed: int, side: int = 256) -> np.ndarray:
    """Noise at several sizes: textured like a photograph, with the same points nowhere else."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.normal(0, 1, (n, n, 3)), (side, side), interpolation=cv2.INTER_CUBIC) for n in (4, 12, 32, 90)]
    return np.clip(128 + 28 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)


def turned(picture: np.ndarray) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((picture.shape[1] / 2, picture.shape[0] / 2), 20, 0.8)
    return np.asarray(cv2.warpAffine(picture, matrix, picture.shape[1::-1], borderValue=(90, 90, 90)), np.uint8)


def inset(picture: np.ndarray) -> np.ndarray:
    ground = photograph(999)
    ground[60:220, 30:190] = cv2.resize(picture, (160, 160), interpolation=cv2.INTER_AREA)
    return ground


COPIES = {
    "itself": lambda p: p,
    "cropped": lambda p: cv2.resize(p[40:200, 70:230], (256, 256), interpolation=cv2.INTER_CUBIC),
    "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1]),
    "turned and shrunk": turned,
    "inset": inset,
    "grey and darker": lambda p: np.repeat((0.6 * p.mean(2, keepdims=True)).astype(np.uint8), 3, 2),
}


@pytest.mark.parametrize("how", COPIES)
def test_key_points_find_an_edited_copy(how: str) -> None:
    look = Keypoints()
    copy = look(COPIES[how](photograph(1)), photograph(1))
    assert copy > 0.7 > 0.45 > look(COPIES[how](photograph(1)), photograph(2)), copy


def test_alignment_does_not_find_an_inset_of_a_photograph_and_key_points_do() -> None:
    assert confirm(inset(photograph(3)), photograph(3)) < 0.5 < Keypoints()(inset(photograph(3)), photograph(3))


@pytest.mark.parametrize("side", [1, 7, 64])
def test_pictures_without_points_score_nothing(side: int) -> None:
    blank = np.full((side, side, 3), 200, np.uint8)
    assert Keypoints()(blank, photograph(1)) == 0


@pytest.mark.parametrize("side", [1, 7, 64, 300])
def test_a_reference_without_points_is_not_judged(side: int) -> None:
    """Not 0: that would clear every copy of it."""
    blank = np.full((side, side, 3), 200, np.uint8)
    assert np.isnan([Keypoints()(shown, blank) for shown in (photograph(1), blank)]).all()


def test_the_same_picture_is_confirmed_wherever_it_is_judged() -> None:
    for side in (16, 32, 64, 256):
        picture = drawing(side, side)
        score = Keypoints()(picture, picture)
        assert np.isnan(score) or score > 0.25, side


def test_key_points_are_deterministic_whatever_was_looked_at_before() -> None:
    warm = Keypoints()
    for seed in range(3):
        warm(photograph(seed), photograph(seed + 1))
    assert warm(turned(photograph(1)), photograph(1)) == Keypoints()(turned(photograph(1)), photograph(1))


# --- descriptors ------------------------------------------------------------------------------------------------------------


def torchscript(path: Path) -> Path:
    """A descriptor: mean-free grey values of an 8×8 grid."""
    import torch

    class Grid(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 8).flatten(1)
            return grid - grid.mean(1, keepdim=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch recommends torch.export; the published files are these
        torch.jit.save(torch.jit.trace(Grid(), torch.zeros(1, 3, 64, 64)), str(path))  # type: ignore[no-untyped-call]
    path.with_suffix(".json").write_text(json.dumps({"size": 64}), encoding="utf-8")
    return path


def _number(value: int) -> bytes:
    low = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([part | 128 for part in low[:-1]] + low[-1:])


def _field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return _number(number << 3) + _number(content)
    return _number(number << 3 | 2) + _number(len(content)) + content


def onnx(path: Path, kind: int = 1) -> Path:
    """A descriptor as ONNX, written by hand (onnx.proto): one node, Flatten, so that the vector is the picture itself.
    ``kind``: of its numbers; 1 is float32, 10 float16."""

    def value(name: bytes, *sizes: int) -> bytes:
        shape = b"".join(_field(1, _field(1, size)) for size in sizes)
        return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))

    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Flatten")
    graph = _field(1, node) + _field(2, b"g") + _field(11, value(b"x", 1, 3, 8, 8)) + _field(12, value(b"y", 1, 192))
    path.write_bytes(_field(1, 7) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13)))
    path.with_suffix(".json").write_text(json.dumps({"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}), encoding="utf-8")
    return path


@pytest.mark.parametrize("make", [torchscript, onnx])
def test_a_descriptor_is_the_cosine_of_its_vectors_the_better_of_both_sides(make: object, tmp_path: Path) -> None:
    file = make(tmp_path / ("mine.pt" if make is torchscript else "mine.onnx"))  # type: ignore[operator]
    look = Descriptor(file)
    assert look(photograph(1), photograph(1)) == pytest.approx(1)
    assert look(np.ascontiguousarray(photograph(1)[:, ::-1]), photograph(1)) > 0.98
    assert look(photograph(1), photograph(2)) < 0.9


def test_onnx_scores_are_those_of_the_arithmetic(tmp_path: Path) -> None:
    look, a, b = Descriptor(onnx(tmp_path / "mine.onnx")), drawing(1, 8), drawing(2, 8)
    one, two, other = (x.astype(np.float64).ravel() / 127.5 - 1 for x in (a, b, b[:, ::-1]))
    wanted = max(one @ side / np.linalg.norm(one) / np.linalg.norm(side) for side in (two, other))
    assert look(a, b) == pytest.approx(max(0.0, wanted), abs=1e-6)


def test_a_descriptor_of_half_precision_looks_as_well(tmp_path: Path) -> None:
    import torch

    a, b = drawing(1, 8), drawing(2, 8)
    whole, half = Descriptor(onnx(tmp_path / "whole.onnx")), Descriptor(onnx(tmp_path / "half.onnx", kind=10))
    assert half(a, b) == pytest.approx(whole(a, b), abs=2e-3)

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(192, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mix(x.flatten(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    network, looks = Mixed(), []
    for name, like in (("whole.pt", torch.float32), ("half.pt", torch.float16)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            made = torch.jit.trace(network.to(like), torch.zeros(1, 3, 8, 8, dtype=like))  # type: ignore[no-untyped-call]
            torch.jit.save(made, str(tmp_path / name))  # type: ignore[no-untyped-call]
        (tmp_path / name).with_suffix(".json").write_text('{"size": 8}')
        looks.append(Descriptor(tmp_path / name))
    assert looks[1](a, b) == pytest.approx(looks[0](a, b), abs=2e-3)


def test_a_descriptors_id_follows_file_and_entering(tmp_path: Path) -> None:
    file = torchscript(tmp_path / "mine.pt")
    before = look_id(f"descriptor:{file}")
    file.with_suffix(".json").write_text(json.dumps({"size": 96}), encoding="utf-8")
    assert look_id(f"descriptor:{file}") != before and entering(file).mean == ENTERING.mean
    file.with_suffix(".json").unlink()
    assert entering(file) == ENTERING


def test_a_descriptors_id_follows_the_files_that_hold_its_weights(tmp_path: Path) -> None:
    file = onnx(tmp_path / "mine.onnx")
    alone = look_id(f"descriptor:{file}")
    entry = _field(2, b"weights.bin") + _field(1, b"location")  # protobuf allows any order
    in_tensor = _field(5, _field(6, _field(5, _field(13, entry))))  # attribute, its graph, a tensor of that
    file.write_bytes(file.read_bytes() + _field(7, _field(1, in_tensor)))
    with pytest.raises(ModelError, match="cannot be read"):
        look_id(f"descriptor:{file}")
    (tmp_path / "weights.bin").write_bytes(b"one")
    first = look_id(f"descriptor:{file}")
    (tmp_path / "weights.bin").write_bytes(b"other")
    assert len({alone, first, look_id(f"descriptor:{file}")}) == 3


def test_a_descriptor_hides_no_weights_behind_a_tag_that_readers_cut_off(tmp_path: Path) -> None:
    """ONNX Runtime takes such a field for the one that its lower 32 bits name."""
    file = onnx(tmp_path / "mine.onnx")
    entry = _field(1, b"location") + _field(2, b"weights.bin")
    tensor = _number(13 << 3 | 2 | 1 << 32) + _number(len(entry)) + entry
    file.write_bytes(file.read_bytes() + _field(7, _field(5, tensor)))
    with pytest.raises(ModelError, match="no field begins at byte"):
        look_id(f"descriptor:{file}")


def test_a_descriptor_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    """The digest of a device would never end, and that of a file of this machine would stand in the plan."""
    file = onnx(tmp_path / "mine.onnx")
    whole = file.read_bytes()
    for place in (b"/dev/zero", b"../secret"):
        entry = _field(1, b"location") + _field(2, place)
        file.write_bytes(whole + _field(7, _field(5, _field(13, entry))))
        with pytest.raises(ModelError, match="outside its folder"):
            look_id(f"descriptor:{file}")
    (tmp_path / "weights.bin").symlink_to("/dev/zero")
    file.write_bytes(whole + _field(7, _field(5, _field(13, _field(1, b"location") + _field(2, b"weights.bin")))))
    with pytest.raises(ModelError, match=r"no file weights\.bin"):
        look_id(f"descriptor:{file}")


def test_descriptors_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither TorchScript nor ONNX"):
        look_id(f"descriptor:{tmp_path / 'mine.safetensors'}")
    with pytest.raises(ModelError, match="cannot be read"):
        open_look(f"descriptor:{tmp_path / 'nowhere.onnx'}")
    for name in ("broken.onnx", "broken.pt"):
        (tmp_path / name).write_bytes(b"not a network")
        with pytest.raises(ModelError, match="cannot be opened"):
            open_look(f"descriptor:{tmp_path / name}")
    file = onnx(tmp_path / "mine.onnx")
    for stated, what in (('{"side": 8}', "'side' is none of"), ('{"size": 4}', "within 8 and 2048"), ("[1]", "no object")):
        file.with_suffix(".json").write_text(stated, encoding="utf-8")
        with pytest.raises(InputError, match=what):
            Descriptor(file)
    file.with_suffix(".json").write_text('{"size": 16}', encoding="utf-8")
    with pytest.raises(ModelError, match="fails on a picture of 16×16"):
        Descriptor(file)(photograph(1), photograph(1))


def test_a_vector_without_a_direction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no direction"):
        Descriptor(torchscript(tmp_path / "mine.pt"))(np.full((64, 64, 3), 9, np.uint8), photograph(1))


# --- names, and which look is chosen -----------------------------------------------------------------------------------------


def test_names_are_checked_and_files_start_from_where_they_are_named(tmp_path: Path) -> None:
    assert [named(look) for look in ("auto", "alignment", "keypoints")] == ["auto", "alignment", "keypoints"]
    assert named("descriptor:sscd.pt", base=tmp_path) == f"descriptor:{tmp_path / 'sscd.pt'}"
    for wrong in ("aligment", "descriptor:", "descriptor"):
        with pytest.raises(ConfigError, match="no second look"):
            named(wrong)


def test_a_look_with_other_scores_than_measured_is_refused() -> None:
    assert open_look("alignment", expected=second_look_id()) is confirm
    with pytest.raises(IndexMismatch, match="not the one that was calibrated"):
        open_look("keypoints", expected=second_look_id())


def test_auto_compares_both_kinds_and_alignment_comes_first() -> None:
    assert list(open_looks(["keypoints", "auto"], where="here")) == ["alignment", "keypoints"]


COPY = np.arange(80) % 2 == 0
WORKS = [f"work {i // 4}" for i in range(80)]


def noisy(size: float, seed: int) -> np.ndarray:
    return COPY + np.random.default_rng(seed).normal(0, size, 80)


def test_a_look_that_is_better_with_certainty_wins() -> None:
    worth = compared({"alignment": noisy(3, 1), "keypoints": noisy(0.05, 2)}, COPY, WORKS)
    assert worth[1].precision == 1 and worth[1].gain_low > 0 and best_of(worth).look == "keypoints"
    assert why(worth).startswith("keypoints: its average precision lies")


def test_without_certainty_the_first_look_stays() -> None:
    worth = compared({"alignment": noisy(1, 1), "keypoints": noisy(1, 3)}, COPY, WORKS)
    assert worth[1].gain_low <= 0 and best_of(worth).look == "alignment"
    assert why(worth).startswith("alignment: no other look is better with certainty")


def test_pairs_without_a_second_look_are_left_out_of_the_comparison() -> None:
    scores = noisy(0.05, 2)
    assert compared({"alignment": np.where(COPY, np.nan, scores)}, COPY, WORKS) == []
    (worth,) = compared({"alignment": np.where(np.arange(80) < 8, np.nan, scores)}, COPY, WORKS)
    assert worth.precision == 1 and why([worth]) == "alignment: no other look was compared"
