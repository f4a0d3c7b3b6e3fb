"""DDPM inversion, FlowEdit, UniEdit-Flow and InfEdit as their original codes compute them, once more and apart.

Written from descriptions of those codes' behaviour, over diffusers' UNet2DConditionModel; the oracle of test_noises.
Nothing of `sage` is used.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods import p2p_original
from tests.methods.p2p_original import ALPHAS, Controller, Processor, refine_map

ROOTS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
CONSISTENT = torch.cumprod(1 - ROOTS**2, dim=0)  # where this project has its own levels


class Net:
    """The network with one text after the other, and guidance."""

    def __init__(self, unet, texts: dict[str, Tensor]):
        self.unet, self.texts = unet.requires_grad_(False), texts

    @torch.no_grad()
    def __call__(self, z: Tensor, t: int, text: str, w: float = 1.0) -> Tensor:
        given = self.unet(z, t, encoder_hidden_states=self.texts[text]).sample
        if w == 1:
            return given
        empty = self.unet(z, t, encoder_hidden_states=self.texts["empty"]).sample
        return empty + w * (given - empty)


def ddim(z, e, a, b):
    """From signal share a to b."""
    return b**0.5 * (z - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) ** 0.5 * e


# ---- edit-friendly DDPM inversion


@dataclass
class Found:
    xts: list
    zs: list
    latents: list


def ddpm(net: Net, z0: Tensor, noises, steps: int, skip: int, w_source: float, w: float, eta: float = 1.0,
         ours: bool = False, control=None, pull=None) -> Found:
    """`control`: (tokenizer, source, target, p2p_original.Options) for attention carried over; `pull`: of preserved."""
    k = 1000 // steps
    times = [1 + k * i for i in range(steps)]
    table = CONSISTENT if ours else ALPHAS
    alpha = lambda t: table[max(t, 0)]  # noqa: E731

    def step(z, e, t):
        a, b = alpha(t), alpha(t - k)
        variance = (1 - b) / (1 - a) * (1 - a / b)
        x0 = (z - (1 - a) ** 0.5 * e) / a**0.5
        under = eta**2 if ours else eta
        return b**0.5 * x0 + (1 - b - under * variance) ** 0.5 * e, eta * variance**0.5

    xts = [z0] + [alpha(t) ** 0.5 * z0 + (1 - alpha(t)) ** 0.5 * n for t, n in zip(times, noises, strict=True)]
    xts, zs = [x.float() for x in xts], [None] * steps
    for rank in range(steps, 0, -1):
        t = times[rank - 1]
        mu, scale = step(xts[rank], net(xts[rank], t, "source", w_source), t)
        zs[rank - 1] = ((xts[rank - 1] - mu) / scale).float()
        xts[rank - 1] = (mu + scale * zs[rank - 1]).float()
    if not ours:
        zs[0] = torch.zeros_like(zs[0])
    latents, kept = [], dict(net.unet.attn_processors)
    z = xts[steps - skip].repeat(2, 1, 1, 1)
    if control:
        tokenizer, source, target, o = control
        controller = Controller(o, tokenizer, source, target, tuple(side // 2 for side in z0.shape[-2:]),
                                net.texts["source"].shape[1])  # so that its limit is a quarter of each side
        net.unet.set_attn_processor({name: Processor(controller, name) for name in kept})
    try:
        for rank in range(steps - skip, 0, -1):
            t = times[rank - 1]
            with torch.no_grad():
                texts = torch.cat([net.texts[name] for name in ("empty", "empty", "source", "target")])
                empty, given = net.unet(z.repeat(2, 1, 1, 1), t, encoder_hidden_states=texts).sample.chunk(2)
            if control:
                controller.finish()
            e = empty + torch.tensor([w_source, w]).reshape(2, 1, 1, 1) * (given - empty)
            lost = pull(steps - skip - rank, t, xts[rank], z[1:]) if pull else 0.0
            mu, scale = step(z, e, t)
            z = (mu + scale * zs[rank - 1]).float()
            z = torch.cat([z[:1], z[1:] - lost])
            latents.append(z)
    finally:
        net.unet.set_attn_processor(kept)
    return Found(xts, zs, latents)


# ---- FlowEdit


def flowedit(net: Net, x: Tensor, noises, steps: int, n_max: int, n_min: int, n_avg: int, w_source: float,
             w: float, pull=None) -> list[Tensor]:
    """On a diffusion: what two DDIM steps, of the picture and of the edit, move apart by."""
    k, noises, z, out, sampled = 1000 // steps, iter(noises), x, [], None
    for i in range(steps - n_max, steps):
        t = 1 + k * (steps - 1 - i)
        a, b = CONSISTENT[t], CONSISTENT[max(t - k, 0)]
        if i < steps - n_min:
            moves = []
            for _ in range(n_avg):
                zs = a**0.5 * x + (1 - a) ** 0.5 * next(noises)
                zt = z + zs - x
                es, et = net(zs.float(), t, "source", w_source), net(zt.float(), t, "target", w)
                moves.append(ddim(zt, et, a, b) - zt - ddim(zs, es, a, b) + zs)
            lost = pull(i - steps + n_max, t, zs.float(), zt.float()) if pull else 0.0
            z = (z + sum(moves) / n_avg).float() - lost
            out.append(z)
        else:
            if sampled is None:
                sampled = (z - x + a**0.5 * x + (1 - a) ** 0.5 * next(noises)).float()
            sampled = ddim(sampled, net(sampled, t, "target", w), a, b).float()
            out.append(sampled)
    return out


def flowedit_on_a_flow(net: Net, x: Tensor, noises, times, w_source: float, w: float) -> list[Tensor]:
    """`times` from noisy to clean; the network's output is taken for a velocity."""
    z, out = x, []
    for t, after, n in zip(times, times[1:], noises, strict=False):
        zs = (1 - t) * x + t * n
        z = z + (after - t) * (net(z + zs - x, int(1000 * t), "target", w) - net(zs, int(1000 * t), "source", w_source))
        out.append(z)
    return out


# ---- UniEdit-Flow


def noise_of(output, z, a, kind: str):
    """What a network that predicts noise, or v, says is the noise in latents of signal share a."""
    return output if kind == "epsilon" else a**0.5 * output + (1 - a) ** 0.5 * z


class UniInverse:
    """The inverse scheduler, a call of the network at a time: it keeps the sample, and hands out a look ahead."""

    def __init__(self, steps: int, alpha: float, kind: str = "epsilon"):
        self.k, self.kind = 1000 // steps, kind
        kept = int(alpha * steps) + 1
        self.times = [0, *(1 + self.k * i for i in range(steps))][:kept]
        self.sample = None

    def step(self, e, t, z):
        first = self.sample is None
        if first:
            self.sample = z
        behind = t - self.k
        a = ALPHAS[behind] if behind >= 0 else torch.tensor(1.0)
        e = noise_of(e, self.sample, a, self.kind)
        reached = ddim(self.sample, e, a, ALPHAS[t])
        if first:
            return reached
        ahead = ddim(self.sample, e, a, ALPHAS[min(t + self.k, 999)])
        self.sample = reached
        return reached if t == self.times[-1] else ahead


def uni_edit(net: Net, z0: Tensor, steps: int, alpha: float, omega: float, inverted_under: str = "empty",
             kind: str = "epsilon"):
    """The authors' version for diffusions: latents after each step up, and after each step down."""
    inverse, z, up = UniInverse(steps, alpha, kind), z0, [z0]
    for i, t in enumerate(inverse.times):
        z = inverse.step(net(z, t, inverted_under), t, z)
        if i:
            up.append(inverse.sample)
    down, k = [], 1000 // steps
    for t in reversed(inverse.times[1:]):
        es, et = net(z, t, "source"), net(z, t, "target")
        g = et - es
        m = g.mean(dim=1, keepdim=True)
        m = (m - m.min()) / (m.max() - m.min() + 1e-7)
        e = noise_of(omega * (1 + m) * g + m * et + (1 - m) * es, z, ALPHAS[t], kind)
        z = ddim(z, e, ALPHAS[t], ALPHAS[max(t - k, 0)])
        down.append(z)
    return up, down


def uni_edit_on_a_flow(net: Net, z0: Tensor, times, omega: float):
    """`times` from clean to noisy; the network's output is taken for a velocity."""
    x, up = z0, [z0]
    velocity = net(x, int(1000 * times[0]), "source")
    for t, after in zip(times, times[1:], strict=False):
        velocity = net(x + (after - t) * velocity, int(1000 * after), "source")
        x = x + (after - t) * velocity
        up.append(x)
    down = []
    for t, after in zip(times[:0:-1], times[-2::-1], strict=True):
        vs, vt = net(x, int(1000 * t), "source"), net(x, int(1000 * t), "target")
        m = (vt - vs).abs().mean(dim=1, keepdim=True)
        m = (m - m.min()) / (m.max() - m.min())
        x = x + (after - t) * (m * vt + (1 - m) * vs + (m + 1) * omega * (vt - vs))
        down.append(x)
    return up, down


# ---- InfEdit


class Mutual(Controller):
    """Attention of three branches, source, target and mutual, in each half of the batch.

    Cross-attention of the target is refined from the source's up to a share of the steps; self-attention below another
    share gives the source's queries and keys to both others, and above it the target's queries to the mutual one, which
    has the source's values in either case.  Kept are the mutual branch's maps, refined.
    """

    def __init__(self, o, tokenizer, source, target, size, texts, cross: float, self_: float, first: int):
        length = texts["source"].shape[1]
        super().__init__(o, tokenizer, source, target, size, length)
        self.cross_share, self.self_share, self.step = cross, self_, first
        mapping, there = refine_map(tokenizer, source, target, length)
        known = there.copy()
        likest(mapping, there, texts["source"][0], texts["target"][0], len(tokenizer(target).input_ids))
        gaps = [j for j in range(length) if there[j] and not known[j]]
        there = torch.from_numpy(there).float()
        self.change = lambda base, new: base[..., mapping] * there + new * (1 - there)
        if self.marks[0] is not None:  # of the target's words, those in the order of the local prompt
            local, ids, i = tokenizer(o.blend[1]).input_ids[1:-1], tokenizer(target).input_ids, 1
            self.local = torch.zeros(length)
            for token in local:
                while i < len(ids) and ids[i] != token:
                    i += 1
                self.local[i if i < len(ids) else []] = 1
            pairs = tokenizer(source).input_ids  # and those that are one's pair in a gap
            self.local[[j for j in gaps if pairs[mapping[j]] in local]] = 1

    def mask(self, z, alpha):
        maps = torch.cat([m.unflatten(1, (z.shape[2] // 4, z.shape[3] // 4)) for m in self.sums.values()])
        seen = F.interpolate((maps * self.local).mean(0).amax(-1)[None, None], size=z.shape[2:])
        return seen / seen.amax() > max(0.15 / alpha**0.5, self.o.th[0])

    @property
    def done(self) -> float:
        return (self.step + 1) / self.o.steps

    def project(self, q, k, v):
        def mixed(q, k, v):
            (qs, qt, _), (ks, kt, _), (vs, vt, _) = q, k, v
            late = self.self_share <= self.done
            return ([qs, qt, qt], [ks, kt, ks], [vs, vt, vs]) if late else ([qs, qs, qs], [ks, ks, ks], [vs, vt, vs])

        halves = [mixed(*(t.chunk(2)[half] for t in (q, k, v))) for half in (0, 1)]
        return [torch.stack([*one, *other]) for one, other in zip(*halves, strict=True)]

    def edited(self, maps):
        base, new = maps[3], maps[4]
        self.last = self.change(maps[5], new)
        if self.cross_share >= self.done:
            new = self.change(base, new)
        return torch.stack([*maps[:4], new, maps[5]])


def likest(mapping, there, x, y, count: int) -> None:
    """In each gap the pair of tokens is aligned whose embeddings, each of the other prompt, are likest."""
    i = 0
    while i < count:
        start = i
        while not there[i]:
            i += 1
        pairs = [(F.cosine_similarity(x[t], y[s], dim=0).item(), -t, -s)
                 for t in range(start, i) for s in range(mapping[start - 1] + 1, mapping[i])]
        if pairs:
            _, t, s = max(pairs)
            mapping[-t], there[-t] = -s, 1
        i += 1


class ThreeBranches:
    def __init__(self, control: Mutual, name: str):
        self.control, self.cross, self.middle = control, "attn2" in name, "mid_block" in name

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                   for t in (attn.to_q(x), attn.to_k(context), attn.to_v(context)))
        if not self.cross:
            q, k, v = self.control.project(q, k, v)
        maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        if self.cross:
            maps = self.control.edited(maps)
            size = self.control.size
            if not self.middle and maps.shape[2] == size[0] * size[1] // 16:
                self.control.step_maps.append(self.control.last)
        return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))


def infedit(net: Net, tokenizer, source: str, target: str, x0: Tensor, noises, steps: int, strength: float, eta: float,
            w_source: float, w: float, cross: float, self_: float, blend, threshold: float) -> list[Tensor]:
    """Three branches in both halves of a batch of six; the last step gives what is predicted, and is not blended.

    A negative prompt, a text of `net`, is the target's alone.

    The latents of the source are made anew in the step of the mutual branch, with the noise it goes on under.
    """
    noises, kept = iter(noises), dict(net.unet.attn_processors)
    run = int(steps * strength)
    times = [999 - 20 * int(50 / steps * i) for i in range(steps)][steps - run:]
    o = p2p_original.Options(steps=steps, blend=blend, th=(threshold, threshold))
    control = Mutual(o, tokenizer, source, target, tuple(x0.shape[-2:]), net.texts, cross, self_, steps - run)
    net.unet.set_attn_processor({name: ThreeBranches(control, name) for name in kept})
    alpha = lambda t: ALPHAS[t]  # noqa: E731
    a = alpha(times[0])
    xs = xt = xm = a**0.5 * x0 + (1 - a) ** 0.5 * next(noises)
    negative = "negative" if "negative" in net.texts else "empty"
    texts, out = torch.cat([net.texts[n] for n in ("empty", negative, "empty", "source", "target", "source")]), []
    try:
        for i, t in enumerate(times):
            a = alpha(t)
            with torch.no_grad():
                eps = net.unet(torch.cat([xs, xt, xm]).repeat(2, 1, 1, 1), t, encoder_hidden_states=texts).sample
            un, given = eps.chunk(2)
            es, et, em = (un + torch.tensor([w_source, w, w_source]).reshape(3, 1, 1, 1) * (given - un)).chunk(3)
            control.finish()
            ec = (xs - a**0.5 * x0) / (1 - a) ** 0.5
            p_t = x0 + ((xt - xs) - (1 - a) ** 0.5 * (et - es)) / a**0.5
            p_m = x0 + ((xm - xs) - (1 - a) ** 0.5 * (em - es)) / a**0.5
            if i + 1 < len(times):
                b = alpha(times[i + 1])
                spread = eta * (1 - b)
                n = next(noises) if eta else 0
                rest, fresh = (1 - b - spread) ** 0.5, spread**0.5 * n
                xt = b**0.5 * p_t + rest * (et - es + ec) + fresh
                xm = b**0.5 * p_m + rest * (em - es + ec) + fresh
                xs = b**0.5 * x0 + rest * (em - es + ec) + fresh
            else:
                xt, xm = p_t, p_m
            if 0 < i < len(times) - 1 and control.marks[0] is not None:
                mask = control.mask(xt, a).float()
                xt = mask * xt + (1 - mask) * xm
            out.append(xt)
    finally:
        net.unet.set_attn_processor(kept)
    return out
