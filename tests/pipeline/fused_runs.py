"""What :mod:`tests.pipeline.test_fused` runs in processes of their own: Triton settles at its import whether it interprets."""

from __future__ import annotations

import json
import sys
from typing import Any


def mend_bf16_products() -> None:
    """Triton 3.9's interpreter keeps bfloat16 as its bits, and multiplies the bits: widen them to float32 first."""
    import numpy as np
    import triton
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != triton.language.bfloat16:
            return handle
        values = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(values, triton.language.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


SHAPES = [(1, 1, 1), (5, 3, 7), (64, 128, 64), (65, 129, 65), (100, 333, 96), (33, 257, 640), (1024, 1, 64), (1, 1024, 1280)]


def compare() -> dict[str, Any]:
    """Interpret the kernel on the CPU, and hold what it finds against the plain loop and against exact cosines."""
    import torch

    from pipeline.steer.fused import fused_best_match
    from pipeline.steer.matching import Precision, best_match, inverse_lengths

    mend_bf16_products()
    torch.set_num_threads(1)

    def drawn(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def found(tokens: torch.Tensor, reference: torch.Tensor, *, narrow: bool = False) -> torch.Tensor:
        return fused_best_match(tokens, reference, inverse_lengths(reference), narrow=narrow)

    out: dict[str, Any] = {"lost": {}, "loop lost": {}}
    for kind, narrow in (("bfloat16", False), ("float16", False), ("float32", False), ("float32", True)):
        lost, loop = 0.0, 0.0
        for i, (n, m, d) in enumerate(SHAPES):
            dtype = getattr(torch, kind)
            tokens, reference = drawn(2 * i, n, d).to(dtype), drawn(2 * i + 1, m, d).to(dtype)
            a, b = (torch.nn.functional.normalize(x.double(), dim=1) for x in (tokens, reference))
            cosines = a @ b.T
            best = cosines.amax(1)
            precision: Precision = "bfloat16" if narrow or kind == "bfloat16" else "float32"
            ours, its = found(tokens, reference, narrow=narrow), best_match(tokens, reference, precision=precision)[1]
            lost = max(lost, (best - cosines.gather(1, ours[:, None])[:, 0]).max().item())
            loop = max(loop, (best - cosines.gather(1, its[:, None])[:, 0]).max().item())
        out["lost"][f"{kind}{' rounded' if narrow else ''}"] = lost
        out["loop lost"][f"{kind}{' rounded' if narrow else ''}"] = loop
    same = drawn(0, 1, 16).bfloat16()
    reference = torch.cat([-same.expand(37, 16), same.expand(300, 16)])
    out["first of equals"] = found(same.expand(70, 16), reference).unique().tolist()
    out["all below zero"] = found(same.expand(3, 16), torch.cat([-same, -same * 2])).tolist()
    out["of zeros"] = found(torch.zeros(3, 16).bfloat16(), drawn(1, 9, 16).bfloat16()).tolist()
    reference = drawn(2, 200, 16)
    reference[150, 3] = float("nan")
    tokens = drawn(3, 5, 16)
    tokens[4] = float("nan")
    out["not a number"] = found(tokens, reference).tolist()
    out["loop, not a number"] = best_match(tokens, reference)[1].tolist()
    strided, towards = drawn(4, 40, 64)[:, ::2], drawn(5, 90, 64)[::3, ::2]
    out["strided"] = torch.equal(found(strided, towards), best_match(strided, towards)[1])
    out["no tokens"] = tuple(found(tokens[:0], reference).shape)
    try:
        found(tokens, reference[:0])
    except ValueError as error:
        out["no references"] = str(error)
    return out


def compiled() -> dict[str, Any]:
    """Compile the kernel for three generations of cards; the size of the code and of the shared memory of each."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pipeline.steer.fused import FULL, HALF, kernel

    out: dict[str, Any] = {}
    for capability in (80, 90, 100):
        for kind, tiles in (("bf16", HALF), ("fp16", HALF), ("fp32", FULL)):
            edges = {"TOKENS": tiles.tokens, "REFERENCES": tiles.references, "CHANNELS": tiles.channels}
            signature = {"query": f"*{kind}", "towards": f"*{kind}", "inverse": "*fp32", "which": "*i32"}
            signature |= dict.fromkeys(("n", "m", "d"), "i32") | dict.fromkeys(edges, "constexpr")
            source = ASTSource(fn=kernel(), signature=signature, constexprs=edges)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": tiles.stages})
            out[f"sm_{capability} {kind}"] = {
                "bytes": len(made.asm["cubin"]),
                "shared": made.metadata.shared,
                "tensor cores": "wgmma" in made.asm["ptx"] or "mma.sync" in made.asm["ptx"] or "tcgen05" in made.asm["ptx"],
            }
    return out


if __name__ == "__main__":
    print(json.dumps({"compare": compare, "compiled": compiled}[sys.argv[1]]()))
