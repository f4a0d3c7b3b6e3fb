"""What the machine can do at its best through torch: FLOP/s of a kind of number, bytes/s of a copy."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

# (rows, in, out) of linear layers and (batch, channels, side, kernel) of convolutions, as large as a network has them.
LINEAR = ((4096, 1280, 1280), (4096, 320, 2560), (1024, 2560, 1280), (2048, 2048, 2048))
CONVOLUTION = ((2, 320, 64, 3), (2, 640, 32, 3), (2, 1280, 16, 3), (4, 640, 32, 1))
COPY = 2**29  # bytes


def best(run: Callable[[], Any], device: str, seconds: float) -> float:
    """The shortest of as many runs as fit, at least three."""
    def timed() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    times, until = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        times.append(timed())
    return min(times)


@torch.no_grad()
def machine(device: str, dtype: torch.dtype, seconds: float = 1.5) -> dict[str, float]:
    """The best rate seen over the shapes, and what gave it."""
    rates = {}
    for rows, width, out in LINEAR:
        x, w = torch.randn(rows, width, device=device, dtype=dtype), torch.randn(out, width, device=device, dtype=dtype)
        took = best(lambda x=x, w=w: F.linear(x, w), device, seconds)
        rates[f"linear {rows} x {width} x {out}"] = 2 * rows * width * out / took
    for batch, channels, side, kernel in CONVOLUTION:
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
        w = torch.randn(channels, channels, kernel, kernel, device=device, dtype=dtype)
        for name, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
            a, b = x.to(memory_format=layout), w.to(memory_format=layout)
            took = best(lambda a=a, b=b, k=kernel: F.conv2d(a, b, padding=k // 2), device, seconds)
            flops = 2 * batch * side**2 * channels**2 * kernel**2  # the edges, where less is done, counted whole
            rates[f"convolution {kernel} x {kernel} of {channels}{name}"] = flops / took
    name = max(rates, key=rates.get)
    source = torch.ones(COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * COPY / best(lambda: target.copy_(source), device, seconds)  # read and written
    return {"flops": rates[name], "by": name, "bytes": copied, "rates": rates}
