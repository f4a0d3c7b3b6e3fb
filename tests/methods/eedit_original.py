"""EEdit as its released code computes it, once more and apart; the oracle of test_eedit.

Written from descriptions of that code, over the layers of diffusers' FluxTransformer2DModel.  Time runs from 0, the
picture, to 1, noise.  Nothing of `sage` is used.
"""

import numpy as np
import torch
from torch import Tensor


class Network:
    """The transformer, of which a pass between whole ones computes some tokens of the MLPs alone.

    Args:
        lists: the tokens by (step, layer of all blocks, "mlp", "cross-mlp" or "norm"); in single blocks, which have
            "norm" and "mlp", they are counted from the text's first token.
    """

    def __init__(self, transformer, texts: dict[str, tuple[Tensor, Tensor]], guidance: float, steps: int, every: int,
                 tail: int, lists: dict[tuple[int, int, str], Tensor]):
        self.net, self.texts, self.guidance, self.lists = transformer.requires_grad_(False), texts, guidance, lists
        self.steps, self.every, self.tail = steps, every, tail
        self.kept: dict = {}
        self.passes: list[tuple[int, bool]] = []

    @torch.no_grad()
    def __call__(self, z: Tensor, t: float, text: str, step: int) -> Tensor:
        net, (context, pooled) = self.net, self.texts[text]
        whole = step % self.every == 0 or step >= self.steps - self.tail
        self.passes.append((step, whole))
        x, rows, columns = packed(z)
        vector = net.time_text_embed(torch.tensor([1000 * t]), torch.tensor([1000 * self.guidance]), pooled)
        image, words = net.x_embedder(x), net.context_embedder(context)
        ids = torch.zeros(rows, columns, 3)
        ids[..., 1] += torch.arange(rows)[:, None]
        ids[..., 2] += torch.arange(columns)
        turns = net.pos_embed(torch.cat([torch.zeros(words.shape[1], 3), ids.reshape(-1, 3)]))
        for layer, block in enumerate(net.transformer_blocks):
            image, words = self._double(block, layer, image, words, vector, turns, step, whole)
        both = torch.cat([words, image], dim=1)
        for layer, block in enumerate(net.single_transformer_blocks, start=len(net.transformer_blocks)):
            both = both + self._single(block, layer, both, vector, turns, step, whole)
        return unpacked(net.proj_out(net.norm_out(both[:, words.shape[1]:], vector)), rows, columns)

    def _double(self, block, layer, image, words, vector, turns, step, whole):
        if whole:
            a, *m = block.norm1(image, emb=vector)
            b, *c = block.norm1_context(words, emb=vector)
            to_image, to_words = block.attn(hidden_states=a, encoder_hidden_states=b, image_rotary_emb=turns)
            to_words = c[0][:, None] * to_words
            self.kept |= {(layer, "gates"): (m, c), (layer, "attn"): to_image, (layer, "cross-attn"): to_words}
        else:
            m, c = self.kept[layer, "gates"]
            to_image, to_words = self.kept[layer, "attn"], c[0][:, None] * self.kept[layer, "cross-attn"]
        image, words = image + m[0][:, None] * to_image, words + to_words

        def scaled(norm, x, parts):
            return norm(x) * (1 + parts[2][:, None]) + parts[1][:, None]

        image = image + m[3][:, None] * self._some(layer, "mlp", step, whole, image, lambda x: block.ff(
            scaled(block.norm2, x, m)))
        return image, words + c[3][:, None] * self._some(layer, "cross-mlp", step, whole, words, lambda x: (
            block.ff_context(scaled(block.norm2_context, x, c))))

    def _single(self, block, layer, both, vector, turns, step, whole):
        def first(x):
            return block.act_mlp(block.proj_mlp(block.norm(x, emb=vector)[0]))

        gate = block.norm(both, emb=vector)[1][:, None]
        hidden = self._some(layer, "norm", step, whole, both, first)
        if whole:
            self.kept[layer, "attn"] = block.attn(hidden_states=block.norm(both, emb=vector)[0],
                                                  image_rotary_emb=turns)
        x = torch.cat([self.kept[layer, "attn"], hidden], dim=2)
        return self._some(layer, "mlp", step, whole, x, lambda x: gate * block.proj_out(x))

    def _some(self, layer, name, step, whole, x, function):
        """What is held, with what is computed of it put in."""
        if whole:
            self.kept[layer, name] = function(x)
        else:
            places = self.lists[step, layer, name]
            held = self.kept[layer, name].clone()
            held[:, places] = function(x[:, places])
            self.kept[layer, name] = held
        return self.kept[layer, name]


def packed(z: Tensor) -> tuple[Tensor, int, int]:
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c), h // 2, w // 2


def unpacked(x: Tensor, rows: int, columns: int) -> Tensor:
    c = x.shape[2] // 4
    return x.view(-1, rows, columns, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, c, 2 * rows, 2 * columns)


def inversion(net: Network, z0: Tensor, y1: Tensor, gamma: float, every: int, count: int, text: str) -> list[Tensor]:
    """`count` is what the code takes for the number of steps, one more than there are."""
    y, way, u = z0, [z0], None
    for i in range(count - 1):
        if i % every == 0 or i == count - 2:
            u = net(y, i / count, text, i)
        y = y + (u + gamma * ((y1 - y) / (1 - i / count) - u)) / count
        way.append(y)
    return way


def by_mask(net: Network, z0: Tensor, z: Tensor, sigmas: list[float], noise: Tensor, mask: Tensor, background: Tensor,
            eta: float, stop: int, masked: int, skip: int = 1) -> list[Tensor]:
    """The way back of prompts and compositions; `sigmas` from 1 to 0."""
    out, told, found = [], 1.0, None
    for i, (t, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if i % skip == 0 or i == len(sigmas) - 2:
            told, found = t, net(z, t, "target", i)
        v = found
        if i < stop:
            v = v + eta * ((z - z0) / told - v)
        z = z + (after - t) * v
        if i < masked:
            z = mask * z + (1 - mask) * ((1 - after) * background + after * noise)
        out.append(z)
    return out


def by_points(net: Network, z0: Tensor, way: list[Tensor], sigmas: list[float], noise: Tensor, blurring: Tensor,
              tokens: np.ndarray, cut: bool, alpha: float, ratio: float, eta: float, stop: int) -> list[Tensor]:
    """The way back of drags; `tokens` (n, 4) are those of points, from x and y to x and y."""
    pairs, steps = np.unique(tokens, axis=0), len(sigmas) - 1
    (sx, sy, tx, ty), columns = pairs.T, z0.shape[3] // 2
    source, target = sy * columns + sx, ty * columns + tx
    z = way[-1].clone()  # in cells, by the numbers of tokens
    kept = z[:, :, ty, tx] if cut else z[:, :, sy, sx]
    z[:, :, sy, sx] = (1 - alpha**2) ** 0.5 * kept + alpha * blurring[:, :, sy, sx]
    out = []
    for i, (t, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        x, rows, columns = packed(z)
        if steps - i - 1 > int(steps * ratio):
            before, x = packed(way[-1 - i])[0], x.clone()
            x[:, target] = before[:, source]
            if cut:
                x[:, source] = before[:, target]
        v = net(unpacked(x, rows, columns), t, "target", i)
        outside = packed((1 - after) * z0 + after * noise)[0]
        both = np.concatenate([source, target])
        outside[:, both] = x[:, both]
        z = unpacked(outside, rows, columns)
        if i < stop:
            v = v + eta * ((z - z0) / t - v)
        z = z + (after - t) * v
        out.append(z)
    return out
