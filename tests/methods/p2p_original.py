"""Prompt-to-prompt and its inversions as the original code computes them, once more and apart: the oracle of test_p2p.

Written from a description of that code's behaviour, over diffusers' UNet2DConditionModel.  One batch of four, [empty,
empty, source, target], every map materialised, layers told apart by the number of their places.  Nothing of `sage` is
used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0).double()  # rounded so by them


@dataclass
class Options:
    """The original's knobs; `ours` is what this project makes consistent."""

    steps: int = 10
    w: float = 7.5
    refine: bool = True
    cross: dict = field(default_factory=lambda: {"default_": (0.0, 0.4)})
    self_: tuple = (0.0, 0.6)
    equalizer: dict = field(default_factory=dict)
    blend: tuple | None = None
    subtract: tuple | None = None
    th: tuple = (0.3, 0.3)
    start: float = 0.2
    inversion: str = "ddim"
    single_branch: bool = False
    interpolate: float = 0.0
    quantile: float = 0.75
    prox: str = "l0"
    prox_from: str = "negative"
    hold: str = "none"
    eta: float = 1.0
    recon_t: float = 400
    radius: int = 1
    inner: int = 10
    epsilon: float = 1e-5
    lr: float = 1e-2
    ours: bool = False
    pull: Callable | None = None  # tests.methods.preserved.pull


@dataclass
class Edited:
    inverted: list
    latents: list  # (2, C, h, w) a step, source and target
    empties: list


# ---- words


def word_positions(tokenizer, text: str, which) -> list[int]:
    """Tokens of a word, given by itself or by its number."""
    found, at = [], 1
    for number, word in enumerate(text.split(" ")):
        size = len(tokenizer(word, add_special_tokens=False).input_ids)
        if which in (number, word):
            found += range(at, at + size)
        at += size
    return found


def refine_map(tokenizer, source: str, target: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each target token the source's index, and whether there is one."""
    x, y = tokenizer(source).input_ids, tokenizer(target).input_ids
    score, came = np.zeros((len(x) + 1, len(y) + 1)), np.zeros((len(x) + 1, len(y) + 1), dtype=int)
    came[0, 1:], came[1:, 0] = 1, 2
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            options = score[i, j - 1], score[i - 1, j], score[i - 1, j - 1] + (1.0 if x[i - 1] == y[j - 1] else -1.0)
            score[i, j], came[i, j] = max(options), 1 + int(np.argmax(options))  # the first of equals
    mapping, there, i, j = np.arange(length), np.ones(length), len(x), len(y)
    while i or j:
        if came[i, j] == 3:
            i, j = i - 1, j - 1
            mapping[j] = i
        elif came[i, j] == 1:
            j -= 1
            mapping[j], there[j] = -1, 0
        else:
            i -= 1
    return mapping, there


def swap_matrix(tokenizer, source: str, target: str, length: int, ours: bool) -> np.ndarray:
    a, b = source.split(" "), target.split(" ")
    assert len(a) == len(b)
    changed = [n for n in range(len(a)) if a[n] != b[n]]
    pairs = [(word_positions(tokenizer, source, n), word_positions(tokenizer, target, n)) for n in changed]
    matrix, i, j = np.zeros((length, length)), 0, 0
    while i < length and j < length:
        if pairs and pairs[0][0][0] == i:
            xs, ys = pairs.pop(0)
            for row, s in enumerate(xs):
                for column, t in enumerate(ys):
                    matrix[s, t] = float(row == column) if len(xs) == len(ys) else 1 / len(ys)
            i, j = i + len(xs), j + len(ys)
        else:
            matrix[i if pairs or ours else j, j] = 1
            i, j = i + 1, j + 1
    return matrix


# ---- attention


class Controller:
    """Edits the conditional half of every map; counts steps by itself."""

    def __init__(self, o: Options, tokenizer, source: str, target: str, size: tuple[int, int], length: int):
        self.o, self.step, self.size, self.on = o, 0, size, True
        self.sums: dict[int, Tensor] = {}
        self.step_maps: list[Tensor] = []
        if o.refine:
            mapping, there = refine_map(tokenizer, source, target, length)
            there = torch.from_numpy(there).float()
            self.change = lambda base, new: base[..., mapping] * there + new * (1 - there)
        else:
            matrix = torch.from_numpy(swap_matrix(tokenizer, source, target, length, o.ours)).float()
            own = (matrix.sum(0) == 0).float() if o.ours else torch.zeros(length)
            self.change = lambda base, new: torch.einsum("hpw,wn->hpn", base, matrix) + new * own
        self.gate = torch.zeros(o.steps + 1, length)
        rows = o.steps + 1
        for word, bounds in o.cross.items():
            columns = range(length) if word == "default_" else word_positions(tokenizer, target, word)
            first, last = (-int(-b * o.steps // 1) if o.ours else int(b * rows) for b in bounds)
            self.gate[:, columns] = 0
            self.gate[first:last, columns] = 1
        self.equal = torch.ones(length)
        for word, value in o.equalizer.items():
            self.equal[word_positions(tokenizer, target, word)] = value
        self.marks = [self._marks(words, tokenizer, (source, target), length) for words in (o.blend, o.subtract)]

    @staticmethod
    def _marks(words, tokenizer, prompts, length):
        if words is None:
            return None
        marks = torch.zeros(2, length)
        for row, (prompt, several) in enumerate(zip(prompts, words, strict=True)):
            for word in several.split():
                marks[row, word_positions(tokenizer, prompt, word)] = 1
        return marks

    def __call__(self, maps: Tensor, cross: bool, middle: bool) -> Tensor:
        if not self.on:
            return maps
        base, new = maps[2], maps[3]
        if cross:
            a = self.gate[self.step]
            f = self.change(base, new)
            edited = f * self.equal * a + new * (1 - a) * (self.equal if self.o.ours else 1)
        else:
            n = self.o.steps
            first, last = (-int(-b * n // 1) if self.o.ours else int(n * b) for b in self.o.self_)
            small = maps.shape[-1] <= (self.size[0] // 2) * (self.size[1] // 2)
            edited = base if first <= self.step < last and small else new
        maps = torch.stack([maps[0], maps[1], base, edited])
        if cross and not middle and maps.shape[2] == self.size[0] * self.size[1] // 16:
            self.step_maps.append(maps[2:])
        return maps

    def finish(self) -> None:
        """The end of a pass of the network."""
        self.sums = {n: self.sums.get(n, 0) + m for n, m in enumerate(self.step_maps)}
        self.step_maps = []
        self.step += 1

    def blend(self, z: Tensor) -> Tensor:
        if self.marks[0] is None or self.step <= (int(self.o.start * self.o.steps) if not self.o.ours else
                                                  -int(-self.o.start * self.o.steps // 1)):
            return z
        mask = self._mask(self.marks[0], True, z)
        if self.marks[1] is not None:
            mask = mask & ~self._mask(self.marks[1], False, z)
        return z[:1] + mask.float() * (z - z[:1])

    def _mask(self, marks: Tensor, pool: bool, z: Tensor) -> Tensor:
        maps = torch.cat([m.unflatten(2, (z.shape[2] // 4, z.shape[3] // 4)) for m in self.sums.values()], dim=1)
        seen = (maps * marks[:, None, None, None]).sum(-1).mean(1, keepdim=True)
        seen = F.max_pool2d(seen, 3, 1, 1) if pool else seen
        seen = F.interpolate(seen, size=z.shape[2:])
        mask = seen / seen.amax((2, 3), keepdim=True) > self.o.th[1 - int(pool)]
        return mask[:1] | mask


class Processor:
    def __init__(self, controller: Controller, name: str):
        self.controller, self.cross, self.middle = controller, "attn2" in name, "mid_block" in name

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                   for t in (attn.to_q(x), attn.to_k(context), attn.to_v(context)))
        maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        if len(maps) == 4:
            maps = self.controller(maps, self.cross, self.middle)
        return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))


# ---- the way there and back


def ddim(z: Tensor, eps: Tensor, a, b, clean: Callable = lambda x0: x0) -> Tensor:
    x0 = clean((z - (1 - a) ** 0.5 * eps) / a**0.5)
    return b**0.5 * x0 + (1 - b) ** 0.5 * eps


def arc(share: float, a: Tensor, b: Tensor) -> Tensor:
    omega = torch.acos((a.flatten() / a.norm() * b.flatten() / b.norm()).sum())
    return (torch.sin((1 - share) * omega) * a + torch.sin(share * omega) * b) / torch.sin(omega)


def edit(unet, tokenizer, z0: Tensor, source: str, target: str, texts: dict[str, Tensor], o: Options) -> Edited:
    """Latents (1, C, h, w), embeddings (1, M, D) by "source", "target", "empty"."""
    k = 1000 // o.steps
    times = [1 + k * i for i in range(o.steps)]
    alpha = lambda t: ALPHAS[max(t, 0)]  # noqa: E731
    if o.ours:
        roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
        exact = torch.cumprod(1 - roots**2, dim=0).tolist()
        alpha = lambda t: exact[max(t, 0)]  # noqa: E731
    controller = Controller(o, tokenizer, source, target, tuple(z0.shape[-2:]), texts["source"].shape[1])
    kept = dict(unet.attn_processors)
    unet.set_attn_processor({name: Processor(controller, name) for name in kept})
    unet.requires_grad_(False)
    net = lambda z, t, c: unet(z, t, encoder_hidden_states=c).sample  # noqa: E731
    src, tgt, nothing = texts["source"], texts["target"], texts["empty"]
    try:
        controller.on = False
        with torch.no_grad():
            path = [z0]
            for t in times:
                told = max(t - k, 0) if o.ours else t
                path.append(ddim(path[-1], net(path[-1], told, src), alpha(t - k), alpha(t)))
        fits = o.inversion == "null-text" or o.prox_from == "null-text"
        empties = _null_text(net, path, times, k, alpha, src, nothing, o) if fits else []
        negative = nothing
        if o.inversion in ("negative", "proximal"):
            negative = src if o.interpolate == 0 else arc(o.interpolate, src, nothing)
        controller.on = True
        latents, z = [], path[-1].repeat(2, 1, 1, 1)
        with torch.no_grad():
            for i, t in enumerate(reversed(times)):
                first = second = negative
                if empties:
                    first, second = empties[i], nothing if o.single_branch else empties[i]
                eps = net(z.repeat(2, 1, 1, 1), t, torch.cat([first, second, src, tgt]))
                controller.finish()
                un, delta, still, clean = eps[:2], eps[2:] - eps[:2], None, lambda x0: x0
                late = (o.recon_t > 0 and t < o.recon_t) or (o.recon_t < 0 and t > -o.recon_t)
                if o.inversion == "proximal":
                    if o.interpolate == 0 and not empties:
                        delta[:1] = 0  # both are one evaluation but for rounding
                    delta, still = _prox(delta, o)
                    if o.hold == "picture" and late:
                        clean = lambda x0, still=still: x0 - o.eta * still * (x0 - z0)  # noqa: E731
                lost = o.pull(i, t, z[:1], z[1:]) if o.pull else 0.0
                z = ddim(z, un + o.w * delta, alpha(t), alpha(t - k), clean)
                z = torch.cat([z[:1], z[1:] - lost])
                before = path[-2 - i]
                if o.inversion == "direct":
                    z = torch.cat([z[:1] + (before - z[:1]), z[1:]])
                if still is not None and o.hold == "path" and late:
                    z = z - o.eta * still * (z - before)
                z = controller.blend(z)
                latents.append(z)
    finally:
        unet.set_attn_processor(kept)
    return Edited(path, latents, empties)


def _prox(delta: Tensor, o: Options) -> tuple[Tensor, Tensor]:
    kappa = delta.abs().quantile(o.quantile) if o.quantile > 0 else torch.tensor(-o.quantile)
    if o.prox == "hard":
        delta = torch.where(delta.abs() > kappa, delta, 0)
    else:
        delta = delta - delta.clamp(-kappa, kappa)
        if o.prox == "l1":
            delta = torch.where(delta > 0, delta - kappa, delta)
            delta = torch.where(delta < 0, delta + kappa, delta)
    edited = (delta.abs() > kappa).float()
    return delta, 1 - F.max_pool2d(edited, 2 * o.radius + 1, 1, o.radius)


def _null_text(net, path, times, k, alpha, src, nothing, o: Options) -> list[Tensor]:
    z, fitted, found = path[-1], nothing, []
    for i, t in enumerate(reversed(times)):
        fitted = fitted.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([fitted], lr=o.lr * (1 - i / (2 * o.steps if o.ours else 100)))
        step = lambda e, z=z, t=t: ddim(z, e, alpha(t), alpha(t - k))  # noqa: E731
        with torch.no_grad():
            c = net(z, t, src)
        for _ in range(o.inner):
            with torch.enable_grad():
                u = net(z, t, fitted)
                loss = F.mse_loss(step(u + o.w * (c - u)), path[-2 - i])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if loss.item() < o.epsilon + i * (2 * o.epsilon if o.ours else 2e-5):
                break
        fitted = fitted.detach()
        with torch.no_grad():
            u = net(z, t, fitted)
            z = step(u + o.w * (c - u))
        found.append(fitted)
    return found
