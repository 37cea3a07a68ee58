"""Refuse to hook a network that was compiled: the hooks would not run, and nothing would say so.

``torch.compile`` leaves out hooks that are set after it: ``torch._dynamo.config.skip_nnmodule_hook_guards`` is True by default.
Token merging and row adapters are such hooks: they would be recorded as done, and the pictures would be the unsteered ones.
"""

from __future__ import annotations

from typing import Any

from index.errors import ModelError


def refuse_compiled(network: Any, what: str) -> None:
    """Before hooks are set on a denoiser.

    Args:
        network: the denoiser.
        what: is to be hooked, for people.

    Raises:
        ModelError: it, or a part of it, was compiled.
    """
    from torch._dynamo.eval_frame import OptimizedModule

    for name, module in network.named_modules():
        if isinstance(module, OptimizedModule) or module._compiled_call_impl is not None:
            part = f"its part {name} " if name else ""
            raise ModelError(
                f"{part}was compiled, and {what} would silently do nothing",
                where=type(network).__name__,
                fix="Load the model without torch.compile",
            )
