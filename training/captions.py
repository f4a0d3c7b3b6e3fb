"""Captions as token ids, drawn anew at every visit of a scene, with where each attribute's word stands."""

from functools import cache

import numpy as np
import torch
from transformers import CLIPTokenizer

from sage.stilllife import ATTRIBUTES, training_scene
from sage.stilllife.captions import draw_keep, draw_wording, phrases
from sage.stilllife.scenes import VALUES

EMPTY_SHARE = 0.1
# A noun is told by its own token, the whole scene by the last one: what the text encoder first learns to gather.
READOUTS = {"form": ("form", "colour", "material", "size"), "second_form": ("second_form", "second_colour"),
            "end": ATTRIBUTES}
IGNORE = -100


class Captioner:
    """Draws captions of training scenes as padded ids."""

    def __init__(self, tokenizer: CLIPTokenizer):
        self.tokenizer = tokenizer
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
            pieces = phrases(training_scene(int(seed)), draw_wording(rng), draw_keep(rng))
            ids = [] if rng.random() < EMPTY_SHARE else [i for _, words in pieces for i in self.tokens(words)]
            rows.append(self.pad(ids))
        return torch.tensor(rows)

    def labelled(self, seeds: np.ndarray, rng: np.random.Generator):
        """Ids, the token to read out at per readout (B,), and the class of each attribute (B,), IGNORE if unsaid."""
        rows, places = [], {name: [] for name in READOUTS}
        labels = {a: [] for a in ATTRIBUTES}
        for seed in seeds:
            scene = training_scene(int(seed))
            pieces = phrases(scene, draw_wording(rng), draw_keep(rng))
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
