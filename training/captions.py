"""Captions as token ids, drawn anew at every visit of a scene, with where each attribute's word stands."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from transformers import CLIPTokenizer

from sage.stilllife import ATTRIBUTES, Scene, varied_scene
from sage.stilllife.edits import variants
from sage.stilllife.prompts import draw_wording, named, phrases
from sage.stilllife.scenes import VALUES

EMPTY_SHARE = 0.1
FORM_SHARE, EMPTY_OTHERS = 0.5, 0.2  # of pairs of captions
# A noun is told by its own token, the whole scene by the last one: what the text encoder first learns to gather.
READOUTS = {"form": ("form", "colour", "material", "size"), "second_form": ("second_form", "second_colour"),
            "end": ATTRIBUTES}
IGNORE = -100

scene_of = cache(varied_scene)


def different(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene | None:
    """The scene with another value of an attribute; None where it has none, or no other goes with the rest."""
    others = list(variants(scene, attribute)) if scene.attributes()[attribute] != "none" else []
    return others[int(rng.integers(len(others)))] if others else None


@dataclass(frozen=True)
class Noise:
    """How captions are wrong, as those of pictures found on the web are.

    wrong: the share of a scene's attributes that are taken for another value; strange: the share of captions that are
    another picture's.
    """

    wrong: float = 0.1
    strange: float = 0.1

    def mistaken(self, seed: int, seeds: np.ndarray, rng: np.random.Generator) -> Scene:
        """The scene that a noisy caption of the picture `seed` tells of; `seeds` are what it may be mixed up with."""
        scene = scene_of(int(rng.choice(seeds) if rng.random() < self.strange else seed))
        for attribute in np.array(ATTRIBUTES)[rng.random(len(ATTRIBUTES)) < self.wrong]:
            scene = different(scene, attribute, rng) or scene
        return scene


class Captioner:
    """Draws captions of training scenes as padded ids."""

    def __init__(self, tokenizer: CLIPTokenizer, noise: Noise | None = None):
        self.tokenizer, self.noise = tokenizer, noise
        self.length = tokenizer.model_max_length
        self.tokens = cache(lambda words: tokenizer(words, add_special_tokens=False).input_ids)

    def pad(self, ids: list[int]) -> list[int]:
        t = self.tokenizer
        ids = [t.bos_token_id, *ids[:self.length - 2], t.eos_token_id]
        return ids + [t.pad_token_id] * (self.length - len(ids))

    def ids(self, seeds: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """(B, length) int64; one caption in ten is empty, for guidance without a source prompt."""
        rows = []
        for seed in seeds:
            scene = self.noise.mistaken(seed, seeds, rng) if self.noise else scene_of(int(seed))
            pieces = phrases(scene, draw_wording(rng))
            ids = [] if rng.random() < EMPTY_SHARE else [i for _, words in pieces for i in self.tokens(words)]
            rows.append(self.pad(ids))
        return torch.tensor(rows)

    def pairs(self, seeds: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, length) int64 twice: captions of scenes, and the same captions but for one thing that they name.

        For half of them that is the form, which is learnt last; of one in five the other caption is empty.
        """
        rows, others = [], []
        for seed in seeds:
            scene, wording, u = scene_of(int(seed)), draw_wording(rng), rng.random()
            drawn = ("form",) if u < FORM_SHARE else rng.permutation(ATTRIBUTES)
            attribute, other = next((a, found) for a in drawn if (found := different(scene, a, rng)))
            keep = named(scene, wording) | {attribute}
            for found, said in ((rows, scene), (others, None if u > 1 - EMPTY_OTHERS else other)):
                pieces = phrases(said, wording, keep) if said else []
                found.append(self.pad([i for _, words in pieces for i in self.tokens(words)]))
        return torch.tensor(rows), torch.tensor(others)

    def labelled(self, seeds: np.ndarray, rng: np.random.Generator):
        """Ids, the token to read out at per readout (B,), and the class of each attribute (B,), IGNORE if unsaid."""
        rows, places = [], {name: [] for name in READOUTS}
        labels = {a: [] for a in ATTRIBUTES}
        for seed in seeds:
            scene = scene_of(int(seed))
            pieces = phrases(scene, draw_wording(rng))
            ids, at = [], {}
            for attribute, words in pieces:
                ids += self.tokens(words)
                at[attribute] = len(ids)  # 1-based place of the piece's last token, after the start token
            rows.append(self.pad(ids))
            for name in READOUTS:
                places[name].append(len(ids) + 1 if name == "end" else at.get(name, 0))
            values, said = scene.attributes(), {a for a, _ in pieces}
            for a in ATTRIBUTES:
                labels[a].append(VALUES[a].index(values[a]) if a in said else IGNORE)
        return (torch.tensor(rows), {k: torch.tensor(v) for k, v in places.items()},
                {k: torch.tensor(v) for k, v in labels.items()})
