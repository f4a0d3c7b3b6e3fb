"""Passes through small networks as graphs that OpenVINO compiles for this CPU: the same numbers, to rounding, sooner.

    calls = compile_networks(model)     # from now on: torch serves until a graph is there, in the background
    calls.wait()                        # for who does not want to wait later

A graph is made for each shape of the inputs that torch has served.  What is more than a plain pass in float32 stays
with torch: gradients, hooks and detours.  Where weights change, graphs are made anew; one that gives something else
than torch did is never used.  Needs the extra `fast`.
"""

import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from sage.models.latent import LatentModel
from sage.models.sd.unet import UNet

SHAPES = 8  # of each network; as many copies of its weights
TOLERANCE = 1e-3  # of the largest number; rounding makes some 1e-6

Graph = Callable[[Sequence[Tensor]], Tensor]


def installed() -> bool:
    """Whether OpenVINO is here."""
    return find_spec("openvino") is not None


def compile_networks(model: Any, serving: bool = True) -> "Compiled | None":
    """Have a model's UNets and autoencoder serve by compiled graphs as soon as there are any.

    Args:
        serving: as of `Compiled`.
    Returns:
        None where nothing was done: OpenVINO is not here, or the model not of small networks in float32 on a CPU.
    """
    if not (installed() and isinstance(model, LatentModel) and model.small):
        return None
    return Compiled([*(n for n in model.networks() if isinstance(n, UNet)), model.vae.encoder, model.vae.decoder],
                    serving)


class Compiled:
    """Networks that serve by compiled graphs.

    Args:
        networks: frozen UNets, and networks of one tensor; each has its `forward` replaced.
    Attributes:
        serving: whether graphs serve, or torch for now, but inside `served`.
    """

    def __init__(self, networks: Sequence[nn.Module], serving: bool = True):
        self.serving = serving
        self.worker = ThreadPoolExecutor(1, "compile")
        self.calls = [_Calls(network, self) for network in networks]

    @contextmanager
    def served(self) -> Iterator[None]:
        """Context in which graphs serve, where `serving` is False around it."""
        before, self.serving = self.serving, True
        try:
            yield
        finally:
            self.serving = before

    def wait(self) -> bool:
        """Wait for all graphs that are being made; whether each is there."""
        return all(graph.result() is not None for calls in self.calls for graph in list(calls.graphs.values()))

    def close(self) -> None:
        """Leave the networks to torch again."""
        self.worker.shutdown(wait=False, cancel_futures=True)
        for calls in self.calls:
            del calls.network.forward


class _Pass(NamedTuple):
    """One pass as a function of tensors alone."""

    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor]


class _Calls:
    """What a network's `forward` is replaced by."""

    def __init__(self, network: nn.Module, of: Compiled):
        self.network, self._plain, self._of = network, network.forward, of
        self._parts, self._weights = tuple(network.modules()), tuple(network.parameters())
        self.graphs = OrderedDict[tuple[Any, ...], Future[Graph | None]]()
        network.forward = self

    def __call__(self, *inputs: Any) -> Tensor:
        if not self._of.serving or self._watched():
            return self._plain(*inputs)
        of_tensors = self._of_tensors(*inputs)
        if not all(x.dtype == torch.float32 and not (x.requires_grad and torch.is_grad_enabled())
                   for x in (*of_tensors.inputs, self._weights[0])) or torch.is_autocast_enabled("cpu"):
            return self._plain(*inputs)
        key = (sum(p._version for p in self._weights), *(x.shape for x in of_tensors.inputs))
        if key not in self.graphs:
            output = self._plain(*inputs)
            self.graphs[key] = self._of.worker.submit(_made, *_traced(of_tensors), output)
            while len(self.graphs) > SHAPES:
                self.graphs.popitem(last=False)
            return output
        self.graphs.move_to_end(key)
        graph = self.graphs[key].result() if self.graphs[key].done() else None
        return self._plain(*inputs) if graph is None else graph(of_tensors.inputs)

    def _watched(self) -> bool:
        """Whether somebody listens to a part of the network, or has put something else in its place."""
        return any(part._forward_hooks or part._forward_pre_hooks
                   or ("forward" in vars(part) and part is not self.network) for part in self._parts)

    def _of_tensors(self, x: Tensor, *more: Any) -> _Pass:
        network = self.network
        if not isinstance(network, UNet):
            return _Pass((x,), lambda x: self._plain(x))  # of the method itself torch would write down the network
        t, context, added = (*more, None)[:3]
        time = t if isinstance(t, dict) else network.time(t, added)
        text = context if isinstance(context, dict) else network.text(context)

        def run(x: Tensor, *rest: Tensor) -> Tensor:
            keys_values = iter(rest[len(time):])
            return self._plain(x, dict(zip(time, rest, strict=False)),
                               {site: (k, next(keys_values)) for site, k in zip(text, keys_values, strict=False)})

        return _Pass((x, *time.values(), *(tensor for pair in text.values() for tensor in pair)), run)


def _traced(of_tensors: _Pass) -> tuple[Any, tuple[Tensor, ...], int]:
    """The pass as torch writes it down, its inputs, and the threads that it may take.

    In the caller's thread, in which nobody listens: a hook would take what is written down for the pass it waits for.
    """
    inputs = tuple(x.detach().clone() for x in of_tensors.inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenVINO reads what is traced best
        return torch.jit.trace(of_tensors.run, inputs, check_trace=False), inputs, torch.get_num_threads()


def _made(written: Any, inputs: tuple[Tensor, ...], threads: int, output: Tensor) -> Graph | None:
    """The compiled graph; None where OpenVINO cannot make one, or one that gives what torch gave."""
    try:
        graph = _compiled(written, inputs, threads)
        found = graph(inputs)
    except Exception as fault:  # of any kind: torch goes on serving
        warnings.warn(f"OpenVINO could not compile a network, torch serves it ({type(fault).__name__}: {fault})",
                      stacklevel=1)
        return None
    off = (found - output).abs().max() / output.abs().max()
    if not off <= TOLERANCE:
        warnings.warn(f"what OpenVINO compiled is {off:.1e} off, torch serves it", stacklevel=1)
        return None
    return graph


def _compiled(written: Any, inputs: Sequence[Tensor], threads: int) -> Graph:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # reports to its makers, unasked
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(written)  # by a name of its own: the frontend does not keep it alive
    graph = frontend.convert(frontend.load(decoder))
    for node, x in zip(graph.inputs, inputs, strict=True):
        node.get_node().set_partial_shape(openvino.PartialShape(list(x.shape)))
    graph.validate_nodes_and_infer_types()
    request = openvino.Core().compile_model(graph, "CPU", {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False}).create_infer_request()

    def run(inputs: Sequence[Tensor]) -> Tensor:
        found = request.infer([x.detach().contiguous().numpy() for x in inputs], share_inputs=True)
        return torch.from_numpy(found[0].copy())
    return run
