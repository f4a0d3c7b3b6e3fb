"""Which tensors a trajectory consists of, under which names and in which shapes.

    latents.K                      (B, 4, h, w) or (B, h, w, 4), K from 0 to N
    text, factors                  (B, M, width), (B, M)
    attention                      (B, h, w, M)
    self.K.SITE.queries, .keys     (B, tokens, heads, D)
    cross.K.SITE.queries, .keys    the same; keys that are those of the step before are left out

Dimensions are in the order in which they lie in memory, and come back so: sums over them are then the same to the last
bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sage import pictures
from sage.guidance.hooks import select
from sage.inversion import Maps, Trajectory, maps_needed
from sage.models.sd.attention import Attention, QueriesKeys
from sage.models.sd.model import StableDiffusion
from sage.trajectory.label import Label

Shape = tuple[int, ...]


def named(trajectory: Trajectory) -> dict[str, Tensor]:
    """Every tensor of a trajectory by its name in the file, without a copy."""
    tensors = {f"latents.{k}": z.movedim(1, -1) if last else z
               for k, (z, last) in enumerate(zip(trajectory.latents, channels_last(trajectory), strict=True))}
    tensors["text"] = trajectory.text
    if trajectory.factors is not None:
        tensors["factors"] = trajectory.factors
    if trajectory.attention is not None:
        tensors["attention"] = trajectory.attention.movedim(1, -1)
    before: dict[int, Tensor] = {}
    for k, maps in enumerate(trajectory.maps):
        for kind, sites in (("self", maps.self), ("cross", maps.cross)):
            for i, (queries, keys) in enumerate(sites):
                tensors[f"{kind}.{k}.{i}.queries"] = queries.transpose(1, 2)
                if kind == "self" or before.get(i) is not keys:
                    tensors[f"{kind}.{k}.{i}.keys"] = keys.transpose(1, 2)
                if kind == "cross":
                    before[i] = keys
    return tensors


def channels_last(trajectory: Trajectory) -> tuple[bool, ...]:
    """Which of the latents lie in memory with their channels last."""
    return tuple(z.is_contiguous(memory_format=torch.channels_last) for z in trajectory.latents)


@dataclass(frozen=True)
class Layout:
    """What the file of a labelled trajectory must hold for a model.

    Attributes:
        shapes: of every tensor that may be there, by name.
        optional: names of those that need not be.
        sites: how many sites each inversion step has of self-attention, and of cross-attention.
    """

    shapes: dict[str, Shape]
    optional: frozenset[str]
    sites: tuple[tuple[int, int], ...]

    def assemble(self, label: Label, tensors: dict[str, Tensor]) -> Trajectory:
        """The trajectory, of tensors that fit."""
        keys: dict[int, Tensor] = {}

        def pair(kind: str, k: int, i: int) -> QueriesKeys:
            at = f"{kind}.{k}.{i}"
            if f"{at}.keys" in tensors:
                keys[i] = tensors[f"{at}.keys"].transpose(1, 2)
            return QueriesKeys(tensors[f"{at}.queries"].transpose(1, 2), keys[i])

        def maps(kind: str, column: int) -> Iterable[tuple[QueriesKeys, ...]]:
            return [tuple(pair(kind, k, i) for i in range(row[column])) for k, row in enumerate(self.sites)]

        return Trajectory(
            label.source, label.config,
            tuple(tensors[f"latents.{k}"].movedim(-1, 1) if last else tensors[f"latents.{k}"]
                  for k, last in enumerate(label.channels_last)),
            tuple(Maps(*both) for both in zip(maps("self", 0), maps("cross", 1), strict=True)), tensors["text"],
            label.picture_size, label.pictures, tensors.get("factors"),
            tensors["attention"].movedim(-1, 1) if "attention" in tensors else None, label.notes)


def layout(label: Label, model: StableDiffusion) -> Layout:
    """The tensors of a trajectory as its label describes it.

    Raises:
        SettingsError: settings that the model cannot have.
    """
    config, batch, tokens, side = label.config, len(label.source), model.prompts.max_length, model.sample_size
    size = pictures.working_size(*label.picture_size, config.size or side, model.pixel_multiple, config.fit)
    w, h = (side // model.vae.factor for side in size)
    channels = model.vae.params.latent_channels
    shapes: dict[str, Shape] = {f"latents.{k}": (batch, h, w, channels) if last else (batch, channels, h, w)
                                for k, last in enumerate(label.channels_last)}
    shapes["text"] = batch, tokens, model.unet.params.context_width
    optional = set()
    if config.reweight_passes == "all":
        shapes["factors"] = batch, tokens
        optional.add("factors")
    if config.spare != "none":
        shapes["attention"] = batch, *_halved(h, w, config.cross_level), tokens

    needed, sites, first = [maps_needed(config, k) for k in range(config.steps)], [], True
    for_self, for_cross = (any(column) for column in zip(*needed, strict=True))
    of_self = _heads(model, "self", config.self_level) if for_self else []
    of_cross = _heads(model, "cross", config.cross_level) if for_cross else []
    for k, (has_self, has_cross) in enumerate(needed):
        sites.append((len(of_self) * has_self, len(of_cross) * has_cross))
        for kind, heads, level, has in (("self", of_self, config.self_level, has_self),
                                        ("cross", of_cross, config.cross_level, has_cross)):
            places = torch.Size(_halved(h, w, level)).numel()
            for i, split in enumerate(heads if has else []):
                shapes[f"{kind}.{k}.{i}.queries"] = batch, places, *split
                shapes[f"{kind}.{k}.{i}.keys"] = batch, places if kind == "self" else tokens, *split
        if has_cross:
            optional.update(f"cross.{k}.{i}.keys" for i in range(len(of_cross)) if not first)
            first = False
    return Layout(shapes, frozenset(optional), tuple(sites))


def _heads(model: StableDiffusion, kind: str, level: int) -> list[tuple[int, int]]:
    """Heads and numbers a head, of each site."""
    layers = {layer.map: layer for layer in model.unet.modules() if isinstance(layer, Attention)}
    return [(layer.heads, layer.to_q.out_features // layer.heads)
            for layer in (layers[site] for site in select(model.sites(), kind, level))]


def _halved(h: int, w: int, level: int) -> tuple[int, int]:
    return -(-h // 2**level), -(-w // 2**level)
