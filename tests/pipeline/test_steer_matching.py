"""Matching in tiles against the plain matrix of similarities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.steer.fused import available, fused_best_match
from pipeline.steer.masks import token_mask
from pipeline.steer.matching import Precision, best_match, best_pairs, directions_of, known_of, soft_match
from pipeline.steer.negtome import NegToMe, push_apart


def naive_push_apart(
    tokens: torch.Tensor, reference: torch.Tensor, *, alpha: float, threshold: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Eq. 3 with the whole matrix at once."""
    if reference.ndim == 2:
        reference = reference.expand(len(tokens), *reference.shape)
    similarity = F.normalize(tokens, dim=-1) @ F.normalize(reference, dim=-1).transpose(1, 2)
    if mask is not None:
        similarity = similarity.masked_fill(~mask, -2.0)
    best, which = similarity.max(2)
    matched = torch.gather(reference, 1, which[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.where((best > threshold)[..., None], (1 + alpha) * tokens - alpha * matched, tokens)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    chunk=st.integers(1, 50),
    alpha=st.floats(-2, 3),
    threshold=st.floats(-1, 0.9),
)
def test_tiles_equal_the_whole_matrix(seed: int, n: int, m: int, chunk: int, alpha: float, threshold: float) -> None:
    tokens, reference = drawn(seed, 2, n, 8), drawn(seed + 1, m, 8)
    mask = drawn(seed + 2, m) > -0.5
    found = push_apart(tokens, reference, alpha=alpha, threshold=threshold, mask=mask, chunk=chunk)
    expected = naive_push_apart(tokens, reference, alpha=alpha, threshold=threshold, mask=mask) if mask.any() else tokens
    best = (F.normalize(tokens, dim=-1) @ F.normalize(reference, dim=-1).T).masked_fill(~mask, -2).amax(2)
    clear = (best - threshold).abs() > 1e-5  # at the threshold itself the last bit decides
    assert torch.allclose(found[clear], expected[clear], atol=1e-5)


def test_references_of_a_batch_are_each_ones_own() -> None:
    tokens, reference = drawn(0, 3, 20, 8), drawn(1, 3, 15, 8)
    found = push_apart(tokens, reference, alpha=0.9, threshold=0.2, chunk=7)
    assert torch.allclose(found, naive_push_apart(tokens, reference, alpha=0.9, threshold=0.2), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"match": "soft"}, {"form": "kernel", "keep_norm": True}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_has_the_bytes_it_has_in_a_batch(options: dict[str, Any], dtype: torch.dtype) -> None:
    tokens, reference = drawn(0, 5, 33, 16).to(dtype), drawn(1, 21, 16).to(dtype)
    together = push_apart(tokens, reference, alpha=0.9, threshold=0.1, chunk=8, **options)
    assert together.dtype == dtype and not torch.equal(together, tokens)
    for i in range(5):
        alone = push_apart(tokens[i : i + 1].clone(), reference, alpha=0.9, threshold=0.1, chunk=8, **options)
        assert torch.equal(alone[0], together[i])


def test_the_matrix_is_never_made() -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(part, torch.Tensor):
                    self.elements = max(self.elements, part.numel())
            return out

    tokens, reference = drawn(0, 1, 128, 4), drawn(1, 192, 4)
    for options in ({}, {"match": "soft"}, {"precision": "bfloat16"}):
        with Largest() as largest:
            push_apart(tokens, reference, alpha=0.9, threshold=0.5, chunk=24, **options)  # type: ignore[arg-type]
        assert largest.elements <= 192 * 4 < 128 * 192


def test_bf16_proposes_what_is_almost_the_best_and_reports_its_exact_cosine() -> None:
    tokens, reference = drawn(0, 200, 32), drawn(1, 300, 32)
    exact, _ = best_match(tokens, reference)
    cosine, which = best_match(tokens, reference, precision="bfloat16", chunk=64)
    assert torch.allclose(cosine, F.cosine_similarity(tokens, reference[which]), atol=1e-6)
    assert (exact - cosine).max() < 0.02 and torch.isclose(exact, cosine, atol=1e-6).float().mean() > 0.8


def test_soft_match_is_a_softmax_and_hardens() -> None:
    tokens, reference = drawn(0, 30, 16), drawn(1, 50, 16)
    cosines = F.normalize(tokens, dim=1) @ F.normalize(reference, dim=1).T
    best, mean = soft_match(tokens, reference, temperature=0.2, chunk=7)
    assert torch.allclose(mean, torch.softmax(cosines / 0.2, 1) @ reference, atol=1e-5)
    assert torch.allclose(best, cosines.amax(1), atol=1e-6)
    _, hard = soft_match(tokens, reference, temperature=1e-4, chunk=7)
    assert torch.allclose(hard, reference[best_match(tokens, reference)[1]], atol=1e-4)


def test_the_first_of_equals_is_taken_whatever_the_tiles() -> None:
    same = drawn(0, 1, 8)
    reference = torch.cat([-same.expand(37, 8), same.expand(110, 8)])  # the first of them in the midst of a group of rows
    for chunk in (3, 20, 64, 100, 200):
        for precision in ("float32", "bfloat16"):
            _, which = best_match(same.expand(4, 8), reference, chunk=chunk, precision=precision)  # type: ignore[arg-type]
            assert which.tolist() == [37, 37, 37, 37]


@pytest.mark.parametrize("n", [5, 64, 200])
@pytest.mark.parametrize("m", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("chunk", [7, 64, 1024])
def test_the_best_is_found_in_and_behind_whole_groups_of_rows(n: int, m: int, chunk: int) -> None:
    tokens, reference = drawn(n, n, 16), drawn(m + 1, m, 16)
    cosines = F.normalize(tokens, dim=1) @ F.normalize(reference, dim=1).T
    best, which = best_match(tokens, reference, chunk=chunk)
    top = cosines.topk(min(2, m), dim=1).values
    clear = top[:, 0] - top[:, -1] > 1e-5 if m > 1 else torch.ones(n, dtype=torch.bool)
    assert torch.equal(which[clear], cosines.argmax(1)[clear]) and torch.allclose(best, top[:, 0], atol=1e-6)


@pytest.mark.parametrize("m", [5, 64, 65, 200])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_best_of_negative_cosines_is_found_too(m: int, precision: Precision) -> None:
    """Maxima are sought among the bits of the products, whose order is the other way round below zero."""
    tokens, reference = drawn(0, 40, 16), drawn(1, m, 16).abs()
    tokens[::3] = -drawn(2, len(tokens[::3]), 16).abs()
    cosines = F.normalize(tokens, dim=1) @ F.normalize(reference, dim=1).T
    top = cosines.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > (1e-5 if precision == "float32" else 2**-6)
    assert (top[:, 0] < 0).any() and (top[:, 0] > 0).any() and clear[top[:, 0] < 0].any()
    for chunk in (33, 1024):
        best, which = best_match(tokens, reference, chunk=chunk, precision=precision)
        assert torch.equal(which[clear], cosines.argmax(1)[clear])
        assert torch.allclose(best, cosines.gather(1, which[:, None])[:, 0], atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_known_directions_propose_the_same(precision: Precision, chunk: int) -> None:
    tokens, reference = drawn(0, 30, 16).bfloat16(), drawn(1, 100, 16).bfloat16()
    pieces = best_pairs(tokens, reference, directions_of(reference, precision), chunk=chunk, precision=precision)
    ((at, _, matched, _, cosine),) = list(pieces)
    best, which = best_match(tokens, reference, chunk=chunk, precision=precision)
    assert at == slice(0, 30) and torch.equal(cosine[:, 0], best) and torch.equal(matched, reference[which].float())


def test_tokens_of_zeros_match_nothing() -> None:
    tokens = torch.zeros(1, 4, 8)
    for options in ({}, {"match": "soft"}, {"form": "unit"}, {"form": "kernel", "keep_norm": True}, {"precision": "bfloat16"}):
        pushed = push_apart(tokens, drawn(0, 5, 8), alpha=0.9, threshold=0.3, **options)  # type: ignore[arg-type]
        assert torch.equal(pushed, tokens)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens"):
        push_apart(drawn(0, 4, 8), drawn(1, 4, 8), alpha=0.9, threshold=0.5)
    with pytest.raises(ValueError, match="tokens"):
        push_apart(drawn(0, 1, 4, 8), drawn(1, 4, 9), alpha=0.9, threshold=0.5)
    with pytest.raises(ValueError, match="chunk"):
        push_apart(drawn(0, 1, 4, 8), drawn(1, 4, 8), alpha=0.9, threshold=0.5, chunk=0)


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and available(torch.device("cuda:0"))),
    reason="needs Triton and a CUDA device of capability 8 or more",
)
@pytest.mark.parametrize("shape", [(64, 128, 64), (1000, 777, 640), (4096, 4096, 640)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_fused_kernel_finds_what_the_loop_finds(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, m, d = shape
    tokens, reference = drawn(0, n, d).to("cuda:0", dtype), drawn(1, m, d).to("cuda:0", dtype)
    known = known_of(reference, "float32")
    assert known is not None and known.shape == (m,)
    cosines = F.normalize(tokens.double(), dim=1) @ F.normalize(reference.double(), dim=1).T
    found = cosines.gather(1, fused_best_match(tokens, reference, known)[:, None])[:, 0]
    assert (cosines.amax(1) - found).max() < 1e-5


def test_a_reference_token_that_is_not_a_number_is_matched_in_any_tile() -> None:
    """As in the maximum of a single tile: what is pushed from it is not a number either, and its sample ends loudly."""
    reference = -drawn(1, 300, 8).abs()  # all products below zero: they are compared as floats
    reference[250, 3] = float("nan")
    for chunk in (20, 1024):
        _, which = best_match(drawn(2, 4, 8).abs(), reference, chunk=chunk)
        assert which.tolist() == [250] * 4


def test_where_masks_leave_tokens_is_worked_out_once_a_number_of_tokens() -> None:
    mask = drawn(0, 8, 8) > 0
    settings = NegToMe(latents=(), noises=None, context=drawn(1, 1), alpha=0.9, threshold=0.1, until_step=1, masks=(mask,))
    own, reference = drawn(2, 16, 4), drawn(3, 16, 4)
    first = settings.moves(own, reference)
    kept = settings._allowed(reference)
    assert settings._allowed(drawn(4, 16, 4)) is kept
    allowed = token_mask(mask, 16)
    plain = push_apart(own[None], reference, alpha=0.9, threshold=0.1, mask=allowed, keep_norm=True)[0]
    assert first is not None and torch.equal(own + first, plain)
