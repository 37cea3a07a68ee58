"""Compile a denoiser's blocks, with hook points for all that acts on rows; and refuse to hook one that was compiled otherwise.

``torch.compile`` leaves out hooks that are set after it: ``torch._dynamo.config.skip_nnmodule_hook_guards`` is True by default.
Token merging and row adapters as such hooks would be recorded as done, and the pictures would be the unsteered ones. So they
act at hook points (:mod:`pipeline.model.hook_points`), and a compiled module without them is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from index.errors import ClearanceError, ConfigError, ModelError, OutOfMemory
from index.padding import first_line, out_of_memory
from pipeline.model.hook_points import add_point, points_of

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning
    from pipeline.model.interface import DiffusionModel
    from pipeline.model.sites import Site

WHERE, EAGER = "model.compile", 'Set it to "off"'
# Every shape of a block is compiled once: its class, the level of a UNet, each size of picture and number of rows. Beyond the
# limit torch would run on uncompiled, with other bytes; with whole graphs it raises an error.
SHAPES = 128

_WITH_POINTS: WeakSet[Any] = WeakSet()  # the blocks that were compiled here


def check_compiles(denoiser_class: Any, device: str) -> None:
    """Whether the blocks of such a denoiser can be compiled for that device here.

    Raises:
        ConfigError: its class names no blocks that repeat, or a compiler is missing.
    """
    if not getattr(denoiser_class, "_repeated_blocks", None):
        what = f"diffusers compiles no blocks of a {denoiser_class.__name__}: it names none that repeat"
        raise ConfigError(what, where=WHERE, fix=EAGER)
    kind = device.partition(":")[0]
    if kind == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            what = f"torch compiles for a CPU with a C++ compiler, and finds none ({first_line(error)})"
            raise ConfigError(
                what, where=WHERE, fix=f"Install g++, or name one in the variable CXX. {EAGER} otherwise"
            ) from error
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        what = f"torch compiles for {kind} with Triton, which does not run here"
        raise ConfigError(what, where=WHERE, fix=f"Install triton. {EAGER} otherwise")


def compile_blocks(network: Any, sites: Iterable[Site], *, backend: str = "inductor") -> None:
    """Let torch compile the blocks that repeat in a denoiser, each shape at its first call, with a hook point at every site.

    Args:
        network: of diffusers, not yet called.
        sites: where its tokens are read and changed.
        backend: of torch.compile.

    Raises:
        ConfigError: its class names no blocks that repeat, or it has none of them.
    """
    import torch

    for site in sites:
        add_point(site.module, site.shown, part=site.part)
    # A hook of somebody else's is then seen: its block is compiled anew, with it.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    # Kernels chosen by a race would be others in every process, as with cudnn.benchmark.
    options = {"options": {"deterministic": True}} if backend == "inductor" else {}
    try:
        network.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend, recompile_limit=SHAPES, **options)
    except ValueError as error:
        raise ConfigError(first_line(error), where=WHERE, fix=EAGER) from error
    _WITH_POINTS.update(block for _, block in _compiled(network))


def add_layer_points(network: Any, names: Iterable[str]) -> None:
    """Hook points for low-rank weights of these layers, in the compiled blocks alone; before the network's first call.

    Put in later they would change the code of their block, and with it the bytes of plain calls.
    """
    inside = {name for block, part in _compiled(network) for name, _ in part.named_modules(prefix=block)}
    for name in names:
        if name in inside:
            add_point(network.get_submodule(name), "output")


def compile_now(
    model: DiffusionModel, rows: int, time: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor
) -> None:
    """Make a call of padding rows, so that what cannot be compiled ends the opening, and not one sample after the other.

    Args:
        model: whose blocks are to be compiled.
        rows: of the call.
        time: of one row, as the sampler states it.
        context: any prompt's.
        guidance: as in :meth:`pipeline.model.interface.DiffusionModel.denoise`.

    Raises:
        ModelError: they cannot be.
    """
    try:
        model.denoise(*padding(model, rows, time, context), guidance)
    except ClearanceError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise OutOfMemory(first_line(error), where=WHERE, fix=EAGER) from error
        what = f"the blocks of {type(model.network).__name__} cannot be compiled: {first_line(error)}"
        raise ModelError(what, where=WHERE, fix=EAGER) from error


def padding(
    model: DiffusionModel, rows: int, time: torch.Tensor, context: Conditioning
) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """Latents, timesteps and conditionings of a call of the model's own size, in which no row has an owner."""
    import torch

    latents = torch.zeros(rows, *model.latent_shape, device=model.device)
    return latents, time.expand(rows).contiguous(), context.map(lambda part: part.expand(rows, *part.shape).contiguous())


def refuse_compiled(network: Any, what: str, layers: Iterable[Any] = ()) -> None:
    """Before something listens in a denoiser.

    Args:
        network: the denoiser.
        what: is to listen, for people.
        layers: the modules whose output it changes, beside the sites.

    Raises:
        ModelError: it, or a part of it, was compiled without hook points for that.
    """
    parts = list(_compiled(network))
    if not parts:
        return
    wanted = {id(layer) for layer in layers if "output" not in points_of(layer)}
    for name, part in parts:
        if part not in _WITH_POINTS or any(id(module) in wanted for module in part.modules()):
            named = f"its part {name} " if name else ""
            raise ModelError(
                f"{named}was compiled, and {what} would silently do nothing",
                where=type(network).__name__,
                fix='Load the model without torch.compile, or with model.compile = "blocks"',
            )


def _compiled(network: Any) -> Iterator[tuple[str, Any]]:
    from torch._dynamo.eval_frame import OptimizedModule

    for name, module in network.named_modules():
        if isinstance(module, OptimizedModule) or module._compiled_call_impl is not None:
            yield name, module
