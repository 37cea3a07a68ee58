"""CUDA graphs of plain calls: a denoiser's kernels are recorded once for each shape of a call, and later started together.

In a plain call nothing acts on single rows: no token merging, no low-rank weights. All other calls run as without graphs, as
hooks are Python, and a graph repeats kernels alone. A sample must draw the same bytes in either, whoever shares its calls; so
every graph is played twice when it is recorded, on what it was recorded with and on something else, and its answers compared,
bit by bit, with those of the call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, ConfigError, ModelError
from index.padding import first_line, out_of_memory
from pipeline.model.compiled import padding
from pipeline.model.conditioning import Conditioning, scales_of

if TYPE_CHECKING:
    import torch

    from pipeline.model.interface import DiffusionModel

WHERE, EAGER = "model.graphs", 'Set it to "off"'
MOST = 8  # graphs that are kept: sizes of pictures times numbers of rows; each holds the memory of its inputs and its answer
WARM = 3  # calls before a recording: libraries choose their kernels and take their memory in the first ones

Call = Callable[[], "torch.Tensor"]
Record = Callable[[Call], tuple["torch.Tensor", Callable[[], None]]]
"""A call that reads and writes the same memory every time → where its answer will be, and what plays it again."""


def check_graphs(device: str, denoiser: str, *, waits_for_host: bool) -> None:
    """Whether the calls of such a denoiser can be recorded on that device.

    Args:
        device: of torch.
        denoiser: its class, for people.
        waits_for_host: whether it copies something from the host in every call.

    Raises:
        ConfigError: the device is not of CUDA, or a recording would end in an error.
    """
    if waits_for_host:
        what = f"diffusers' {denoiser} copies something from the host in every call, which CUDA does not record"
        raise ConfigError(what, where=WHERE, fix=EAGER)
    if device.partition(":")[0] != "cuda":
        raise ConfigError(f"CUDA graphs are of CUDA devices, and model.device is {device!r}", where=WHERE, fix=EAGER)


@dataclass(frozen=True)
class Graph:
    """One recorded call.

    Attributes:
        inputs: the memory that it reads.
        answer: the memory that it writes; the next one to be played may write there, too.
        play: starts it.
    """

    inputs: tuple[torch.Tensor, ...]
    answer: torch.Tensor
    play: Callable[[], None]


class PlainCalls:
    """A model's plain calls, each shape recorded at its first call.

    Args:
        model: whose weights stay where they are.
        record: how a call is recorded; None: by CUDA.

    Attributes:
        recorded: how many calls were.
    """

    def __init__(self, model: DiffusionModel, record: Record | None = None) -> None:
        self._model, self._record = model, record or Recorder(model.device)
        self._graphs: OrderedDict[object, Graph] = OrderedDict()
        self.recorded = 0

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor
    ) -> torch.Tensor:
        """As :meth:`pipeline.model.interface.DiffusionModel.denoise`.

        Raises:
            ModelError: the call cannot be recorded, or its recording gives other bytes.
        """
        import torch

        with torch.inference_mode():
            scales = scales_of(guidance, len(latents), latents.device)  # a tensor, so that one graph serves every scale
            inputs = (latents, timesteps, scales, *context.parts)
            shape = (context.mask is None, context.pooled is None, *((x.shape, x.dtype, x.device) for x in inputs))
            graph = self._graphs.get(shape)
            if graph is None:
                graph = self._graphs[shape] = self._recorded(inputs, context)
                if len(self._graphs) > MOST:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(shape)
            for mine, now in zip(graph.inputs, inputs, strict=True):
                mine.copy_(now)
            graph.play()
            return graph.answer.clone()

    def record_now(self, rows: int, time: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor) -> None:
        """Record a call of padding rows, so that what cannot be recorded ends the opening, and not one sample after the other.

        Args and errors as :func:`pipeline.model.compiled.compile_now`.
        """
        self(*padding(self._model, rows, time, context), guidance)

    def _recorded(self, inputs: tuple[torch.Tensor, ...], context: Conditioning) -> Graph:
        import torch

        mine = tuple(x.clone() for x in inputs)
        latents, timesteps, scales, *parts = mine
        rest = iter(parts)  # in the order of Conditioning.parts
        tokens = next(rest)
        mask, pooled = (None if part is None else next(rest) for part in (context.mask, context.pooled))
        own = Conditioning(tokens, mask, pooled)

        def call() -> torch.Tensor:
            return self._model.denoise(latents, timesteps, own, scales)

        expected = call().clone()
        try:
            answer, play = self._record(call)
            play()
            same = torch.equal(answer, expected)
            for one, other in ((latents, latents + 0.5), (timesteps, timesteps / 2), (scales, scales + 1)):
                one.copy_(other)  # what was recorded as a number, and is not read again, shows here
            expected = call().clone()
            play()
            same = same and torch.equal(answer, expected)
        except ClearanceError:
            raise
        except Exception as error:
            if out_of_memory(error):  # the engine takes fewer rows
                raise
            what = f"a call of {type(self._model.network).__name__} cannot be recorded: {first_line(error)}"
            raise ModelError(what, where=WHERE, fix=EAGER) from error
        if not same:
            what = (
                "a recorded call gives other bytes than the call it was recorded from: pictures would depend on their company"
            )
            raise ModelError(what, where=WHERE, fix=EAGER)
        self.recorded += 1
        return Graph(mine, answer, play)


class Recorder:
    """Records by CUDA, all graphs in one pool of memory: they are played one after the other, and their answers are copied."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, None

    def __call__(self, call: Call) -> tuple[torch.Tensor, Callable[[], None]]:
        import torch

        cuda: Any = torch.cuda
        with cuda.device(self._device):
            beside = cuda.Stream()
            beside.wait_stream(cuda.current_stream())
            with cuda.stream(beside):
                for _ in range(WARM):
                    call()
            cuda.current_stream().wait_stream(beside)
            self._pool = self._pool or cuda.graph_pool_handle()
            graph = cuda.CUDAGraph()
            # Guards and decoder call CUDA in threads of their own meanwhile; that is no error of this recording.
            with cuda.graph(graph, pool=self._pool, stream=beside, capture_error_mode="thread_local"):
                answer = call()
            return answer, graph.replay
