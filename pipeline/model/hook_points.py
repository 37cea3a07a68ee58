"""Places in a network where the rows of a call are read and changed, compiled or not.

A network that is not compiled is given forward hooks for one call (:func:`listen`), and runs without any in all others.
``torch.compile`` would leave such hooks out, or compile anew whenever they come and go. So a compiled network has
*hook points*, which are put in once, before its first call (:func:`add_point`): the module's class becomes a subclass whose
``forward`` shows its tensor to one opaque operator. That operator is in the compiled code of every call. It does nothing in a
plain one, and calls what listens in a steered one. So both run the same kernels, and a row that nothing acts on keeps its
bytes.

A class, and no wrapper and no hook: names, parameters and ``isinstance`` stay as they were. The operator is given the point's
number as a tensor, because a plain number would be compiled in, and every block of a class compiled for itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import torch

Shown = Literal["input", "output"]
Act = Callable[[Any, Any], "torch.Tensor | None"]
"""Is shown a module's first argument, or its output and its first argument; may change the tensor in place, or return
another in place of it."""

_POINTS: WeakValueDictionary[int, HookPoint] = WeakValueDictionary()
_numbers = itertools.count()


class Removable(Protocol):
    """What :func:`listen` returns."""

    def remove(self) -> None:
        """Listen no longer."""


class HookPoint:
    """One hook point of a module, and what listens at it."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.number = next(_numbers)
        _POINTS[self.number] = self

    def run(self, value: torch.Tensor, given: torch.Tensor | None) -> None:
        """Let everything that listens act on a tensor, in place."""
        for act in self.acts:
            changed = act(value, given)
            if changed is not None:
                value.copy_(changed)


class _Listening:
    def __init__(self, point: HookPoint, act: Act) -> None:
        self._point, self._act = point, act
        point.acts.append(act)

    def remove(self) -> None:
        self._point.acts.remove(self._act)


def points_of(module: Any) -> Mapping[Shown, HookPoint]:
    """The hook points of a module."""
    found: Mapping[Shown, HookPoint] = module.__dict__.get("hook_points", {})
    return found


def add_point(module: Any, shown: Shown, *, part: int = 0) -> None:
    """Put a hook point into a module, for good; without effect where it has that one.

    Args:
        module: whose class has a ``forward``.
        shown: its first argument, which callers state by position, or its output.
        part: which one, of several outputs.
    """
    import torch

    points = points_of(module)
    if shown in points:
        return
    point = HookPoint()
    # No buffer: it is to stay on the host, where reading it waits for nothing.
    setattr(module, f"hook_{shown}", torch.tensor(point.number))
    module.__dict__["hook_points"] = {**points, shown: point}
    if shown == "output":
        module.hook_part = part
    base: type[Any] = getattr(type(module), "without_points", type(module))
    module.__class__ = _with_points(base, "input" in points or shown == "input", "output" in points or shown == "output")  # type: ignore[arg-type]


def listen(module: Any, shown: Shown, act: Act) -> Removable:
    """Show a module's first argument or its output to ``act`` in every call, until the result's ``remove``.

    At a hook point it is shown the tensor itself; elsewhere a forward hook shows it whatever the module puts out.
    """
    point = points_of(module).get(shown)
    if point is not None:
        return _Listening(point, act)
    if shown == "input":
        return module.register_forward_pre_hook(lambda _module, args: act(args[0], None))  # type: ignore[no-any-return]
    return module.register_forward_hook(  # type: ignore[no-any-return]
        lambda _module, args, output: act(output, args[0] if args else None)
    )


@cache
def _operator() -> Any:
    import torch

    @torch.library.custom_op(
        "clearance::hook_point", mutates_args=("shown",), schema="(Tensor(a!) shown, Tensor? given, Tensor number) -> ()"
    )
    def hook_point(shown: Any, given: Any, number: Any) -> None:
        _POINTS[int(number)].run(shown, given)

    hook_point.register_fake(lambda shown, given, number: None)
    return hook_point


@cache
def _with_points(base: type, before: bool, after: bool) -> type:
    """A subclass of a class of modules with these hook points."""
    import torch

    run: Any = base.forward  # type: ignore[attr-defined]
    operator, compiling, layer = _operator(), torch.compiler.is_compiling, issubclass(base, torch.nn.Linear | torch.nn.Conv2d)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before:
            if compiling():
                operator(args[0], None, self.hook_input)
            else:
                self.hook_points["input"].run(args[0], None)
        output = run(self, *args, **kwargs)
        if after:
            value = output[self.hook_part] if isinstance(output, tuple) else output
            given = args[0] if layer else None  # low-rank weights want it; elsewhere it may be the output's own memory
            if compiling():
                operator(value, given, self.hook_output)
            else:
                self.hook_points["output"].run(value, given)
        return output

    # Of the same name: diffusers finds the blocks to compile by it.
    own = {"forward": forward, "without_points": base, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), own)
