"""Undoing edits: what was turned, inverted or put into a larger picture comes back."""

from __future__ import annotations

import numpy as np
import pytest

from index.undone import EDITS, FORMS, INSET, NEGATIVE, TURNED, WINDOWS, undone

PICTURE = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_one_of_the_turns_brings_a_turned_picture_back(turns: int) -> None:
    forms = list(undone(np.rot90(PICTURE, turns), TURNED))
    assert sum(form.shape == PICTURE.shape and (form == PICTURE).all() for form in forms) == 1


def test_a_negative_inverted_is_the_picture() -> None:
    (form,) = undone(255 - PICTURE, NEGATIVE)
    assert (form == PICTURE).all()


def test_what_was_put_where_a_window_lies_is_cut_out_whole() -> None:
    page = np.full_like(PICTURE, 255)
    high, wide = (round(0.6 * side) for side in PICTURE.shape[:2])
    page[48 - high :, 64 - wide :] = PICTURE[:high, :wide]
    assert any(form.shape == (high, wide, 3) and (form == PICTURE[:high, :wide]).all() for form in undone(page, INSET))


@pytest.mark.parametrize("shape", [(48, 64), (64, 64), (1, 1), (3, 100)])
def test_windows_reach_every_border_and_lie_inside(shape: tuple[int, int]) -> None:
    where = np.stack(np.mgrid[: shape[0], : shape[1]].astype(np.uint8), 2)
    forms = list(undone(np.dstack([where, where[..., 0]]), INSET))
    for axis in (0, 1):
        seen = np.concatenate([form[..., axis].ravel() for form in forms])
        assert (seen.min(), seen.max()) == (0, shape[axis] - 1)


@pytest.mark.parametrize("edit", EDITS)
def test_the_number_of_forms_is_known_ahead_and_all_can_be_read_by_opencv(edit: str) -> None:
    forms = list(undone(PICTURE, edit))
    assert len(forms) == FORMS[edit]
    assert all(form.flags["C_CONTIGUOUS"] and form.dtype == np.uint8 for form in forms)


def test_parts_have_the_shape_of_the_picture() -> None:
    shapes = {form.shape[:2] for form in undone(PICTURE, INSET)}
    assert shapes == {(round(48 * share), round(64 * share)) for share, _ in WINDOWS}


def test_an_unknown_edit_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="framed"):
        list(undone(PICTURE, "framed"))
