"""Methods for rectified flows as their formulas say, once more and apart; the oracle of test_flows.

Written from descriptions of the papers and codes, over diffusers' FluxTransformer2DModel.  Time runs from 0, the
picture, to 1, noise; a velocity is that of growing time.  Nothing of `sage` is used.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models import oracle


class Net:
    """The network: guidance is an input of it, or two passes; or `passes` are not made, and it is nothing."""

    def __init__(self, transformer, texts: dict[str, tuple[Tensor, Tensor]], distilled: bool, passes: bool = True):
        self.transformer, self.texts, self.distilled = transformer.requires_grad_(False), texts, distilled
        self.passes = passes

    def as_published(self) -> "Net":
        return Net(self.transformer, self.texts, self.distilled, passes=False)

    @torch.no_grad()
    def __call__(self, z: Tensor, t: float, text: str, w: float = 1.0) -> Tensor:
        if self.distilled:
            return self._one(z, t, text, w)
        given = self._one(z, t, text, None)
        if w == 1 or not self.passes:
            return given
        empty = self._one(z, t, "empty", None)
        return empty + w * (given - empty)

    def _one(self, z: Tensor, t: float, text: str, w: float | None) -> Tensor:
        b = len(z)
        tokens, pooled = (part.expand(b, *part.shape[1:]) for part in self.texts[text])
        guidance = None if w is None else torch.full((b,), w)
        return oracle.velocity(self.transformer, z, torch.full((b,), t), tokens, pooled, guidance)


# ---- FlowEdit


def flowedit(net: Net, x: Tensor, noises, times: list[float], n_max: int, n_min: int, n_avg: int, w_source: float,
             w: float, mask: Tensor | None = None) -> list[Tensor]:
    """`times` from 1 to 0; `mask` on the increment."""
    steps, noises, z, out, sampled = len(times) - 1, iter(noises), x, [], None
    for i in range(steps - n_max, steps):
        t, after = times[i], times[i + 1]
        if i < steps - n_min:
            total = torch.zeros_like(x)
            for _ in range(n_avg):
                zs = (1 - t) * x + t * next(noises)
                total = total + net(z + zs - x, t, "target", w) - net(zs, t, "source", w_source)
            move = (after - t) * total / n_avg
            z = z + (move if mask is None else move * mask)
            out.append(z)
        else:
            if sampled is None:
                sampled = z - x + (1 - t) * x + t * next(noises)
            sampled = sampled + (after - t) * net(sampled, t, "target", w)
            out.append(sampled)
    return out


# ---- UniEdit-Flow


def uni_inversion(net: Net, x: Tensor, times: list[float], text: str = "source") -> list[Tensor]:
    """`times` from 0 up."""
    up, velocity = [x], net(x, times[0], text)
    for t, after in zip(times, times[1:], strict=False):
        velocity = net(x + (after - t) * velocity, after, text)
        x = x + (after - t) * velocity
        up.append(x)
    return up


def uni_edit(net: Net, x: Tensor, times: list[float], omega: float,
             published: bool) -> tuple[list[Tensor], list[Tensor]]:
    """As published, the mask is one of tokens, 2 x 2 latents each, and the inversion's prompt is empty."""
    up = uni_inversion(net, x, times, "empty" if published else "source")
    x, down = up[-1], []
    for t, after in zip(times[:0:-1], times[-2::-1], strict=True):
        vs, vt = net(x, t, "source"), net(x, t, "target")
        g = vt - vs
        m = g.abs().mean(dim=1, keepdim=True)
        if published:
            b, _, h, w = m.shape
            m = m.view(b, 1, h // 2, 2, w // 2, 2).mean(dim=(3, 5))
            m = torch.nn.functional.interpolate(m, (h, w))
        m = (m - m.min()) / (m.max() - m.min())
        x = x + (after - t) * (m * vt + (1 - m) * vs + omega * (1 + m) * g)
        down.append(x)
    return up, down


# ---- RF-inversion


def rf_inversion(net: Net, x0: Tensor, y1: Tensor, sigmas: list[float], *, gamma: float, eta: float, start: float,
                 stop: float, power: float, w: float, published: bool,
                 of: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """`sigmas` down to 0, as the scheduler has them; where some were left out, they were of `of` steps."""
    steps, y, up = len(sigmas) - 1, x0, [x0]
    of = of or steps
    for i in range(steps):
        if published:  # uniform times, and the denoising schedule's own steps, in its order
            t, step = i / (steps + 1), sigmas[i] - sigmas[i + 1]
        else:
            t, step = sigmas[-1 - i], sigmas[-2 - i] - sigmas[-1 - i]
        u = net(y, t, "empty", 0.0 if net.distilled else 1.0)
        y = y + (u + gamma * ((y1 - y) / (1 - t) - u)) * step
        up.append(y)
    x, down = y, []
    for i in range(steps):
        v = -net(x, sigmas[i], "target", w)
        if int(start * of) <= i < min(int(stop * of), of):
            v = v + eta * (1 - i / steps) ** power * ((x0 - x) / sigmas[i] - v)
        x = x + v * (sigmas[i] - sigmas[i + 1])
        down.append(x)
    return up, down


# ---- RF-Solver and FireFlow


class Values:
    """What the layers of values of single blocks from one on give: kept under a name, or put in place of another's."""

    def __init__(self, net: Net, first: int):
        self.layers = [block.attn.to_v for block in net.transformer.single_transformer_blocks[first:]]
        self.kept: dict = {}

    @contextmanager
    def hooked(self, function):
        handles = [layer.register_forward_hook(lambda module, inputs, output, i=i: function(i, output))
                   for i, layer in enumerate(self.layers)]
        yield
        for handle in handles:
            handle.remove()

    def keep(self, name):
        def function(i, output):
            self.kept[name, i] = output
        return self.hooked(function)

    def lend(self, name):
        return self.hooked(lambda i, output: self.kept.get((name, i)))


def rf_solver(net: Net, x: Tensor, times: list[float], w: float, inject: int, first: int):
    """The Taylor step as the authors write it; `times` from 0 up."""
    values, up, down, steps = Values(net, first), [x], [], len(times) - 1

    def step(x, t, after, text, w, name, context):
        h = after - t
        with context((name, "first")):
            v = net(x, t, text, w)
        with context((name, "second")):
            middle = net(x + h / 2 * v, t + h / 2, text, w)
        return x + h * v + 0.5 * h**2 * (middle - v) / (h / 2)

    for k, (t, after) in enumerate(zip(times, times[1:], strict=False)):
        x = step(x, t, after, "source", 1.0, k, values.keep)
        up.append(x)
    for i in range(steps):
        k = steps - 1 - i
        x = step(x, times[k + 1], times[k], "target", w, k if i < inject else None, values.lend)
        down.append(x)
    return up, down


def fireflow(net: Net, x: Tensor, times: list[float], w: float, inject: int, first: int):
    """`times` from 0 up; of the first step alone is there a velocity at its start."""
    values, up, down, steps, velocity = Values(net, first), [x], [], len(times) - 1, None
    for k, (t, after) in enumerate(zip(times, times[1:], strict=False)):
        if velocity is None:
            with values.keep((k, "first")):
                velocity = net(x, t, "source")
        with values.keep((k, "second")):
            velocity = net(x + (after - t) / 2 * velocity, (t + after) / 2, "source")
        x = x + (after - t) * velocity
        up.append(x)
    velocity = None
    for i in range(steps):
        k = steps - 1 - i
        t, after, lent = times[k + 1], times[k], k if i < inject else None
        if velocity is None:
            with values.lend((lent, "first")):
                velocity = net(x, t, "target", w)
        with values.lend((lent, "second")):
            velocity = net(x + (after - t) / 2 * velocity, (t + after) / 2, "target", w)
        x = x + (after - t) * velocity
        down.append(x)
    return up, down


# ---- KV-Edit


class Background:
    """Keys and values before norm and rotation, of every place of the picture, in every block: kept, or put back."""

    def __init__(self, net: Net, text: int):
        double, single = net.transformer.transformer_blocks, net.transformer.single_transformer_blocks
        self.text = text
        self.layers = [(layer, start) for blocks, start in ((double, 0), (single, text)) for block in blocks
                       for layer in (block.attn.to_k, block.attn.to_v)]

    @contextmanager
    def hooked(self, function):
        handles = [layer.register_forward_hook(lambda module, inputs, output, i=i, start=start:
                                               function(i, start, output))
                   for i, (layer, start) in enumerate(self.layers)]
        yield
        for handle in handles:
            handle.remove()

    @contextmanager
    def keep(self, into: dict):
        def function(i, start, output):
            into[i] = output[:, start:].clone()
        with self.hooked(function):
            yield

    @contextmanager
    def looked_at(self, outside: Tensor, scale: float):
        """All attention is torch's own, of [text; picture], and is given a mask of numbers to add."""
        plain = F.scaled_dot_product_attention

        def biased(query, key, value, attn_mask=None, **options):
            mask = torch.zeros(1, 1, 1, key.shape[2])
            mask[..., self.text:][..., outside] = scale
            return plain(query, key, value, attn_mask=mask, **options)

        F.scaled_dot_product_attention = biased
        try:
            yield
        finally:
            F.scaled_dot_product_attention = plain

    @contextmanager
    def put_back(self, kept: dict, outside: Tensor):
        def function(i, start, output):
            output = output.clone()
            output[:, start:][:, outside] = kept[i][:, outside]
            return output
        with self.hooked(function):
            yield


def kv_edit(net: Net, x0: Tensor, times: list[float], w_source: float, w: float, outside: Tensor, inside: Tensor,
            by_level: bool, cells: Tensor | None = None, noise: Tensor | None = None,
            scale: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    """Everything is computed, the keys and values of what is outside being put back.

    `outside`: numbers of tokens; `inside`: (1, 1, h, w) of 0 and 1; `cells`: likewise those of the mask, as published,
    where there may be `noise` to begin with; `scale` is added to scores on what is outside.
    """
    background, x, up, kept = Background(net, net.texts["source"][0].shape[1]), x0, [x0], []
    for k, t in enumerate(times):
        kept.append({})
        with background.keep(kept[-1]):  # those under the source prompt, whatever it is guided from
            net(x, t, "source", w_source if net.distilled else 1.0)
        if k + 1 < len(times):
            x = x + (times[k + 1] - t) * net(x, t, "source", w_source)
            up.append(x)
    down = []
    if cells is not None:
        x = up[-2] if noise is None else (1 - times[-1]) * x0 + times[-1] * noise
    for k in range(len(times) - 2, -1, -1):
        if cells is not None:
            x = cells * x + (1 - cells) * up[k]
        with background.put_back(kept[k + 1 if by_level else k], outside), background.looked_at(outside, scale):
            v = net(x, times[k + 1], "target", w)
        x = inside * (x + (times[k] - times[k + 1]) * v) + (1 - inside) * up[k]
        if cells is not None and k == 0:
            x = cells * x + (1 - cells) * x0
        down.append(x)
    return up, down
