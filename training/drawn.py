"""Pictures drawn from noise under prompts that name everything, and what the encoder reads off them."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from sage.bench.encoder import Encoder
from sage.generation import generate_batch
from sage.method import Request
from sage.models.backbone import Backbone
from sage.settings import Settings
from sage.stilllife import ATTRIBUTES, varied_scene
from sage.stilllife.prompts import CANONICAL, everything
from sage.stilllife.scenes import Scene

AT_ONCE = 10
FIRST = 3000  # seed of the first scene: others were looked at before
Pictures = list[np.ndarray]


def scenes(count: int) -> list[Scene]:
    """Held-out scenes that nothing was chosen on."""
    return [varied_scene(seed, held_out=True) for seed in range(FIRST, FIRST + count)]


def made(model: Backbone, prompts: Sequence[str], config: Settings) -> Pictures:
    """A picture of each prompt, uint8, its seed its number."""
    found: Pictures = []
    for start in tqdm(range(0, len(prompts), AT_ONCE), desc=f"{model.name}, {config.steps} steps"):  # type: ignore[attr-defined]
        part = prompts[start:start + AT_ONCE]
        results = generate_batch(model, [Request(target=p) for p in part], config, range(start, start + len(part)),
                                 (model.sample_size,) * 2)
        found += [np.asarray(result.image) for result in results]
    return found


def hits(encoder: Encoder, found: Pictures, of: Sequence[Scene]) -> list[dict[str, bool]]:
    """For each picture, whether what its scene has a name for is read off it, by attribute."""
    rows = []
    for picture, scene in zip(found, of, strict=True):
        read, values, names = encoder.attributes(picture), scene.attributes(), everything(scene, CANONICAL)
        rows.append({name: read[name] == values[name] for name in ATTRIBUTES if name in names})
    return rows


def right(encoder: Encoder, found: Pictures, of: Sequence[Scene]) -> np.ndarray:
    """(N,) the share of each picture's nameable attributes that are read as its scene has them."""
    return np.array([np.mean([*row.values()]) for row in hits(encoder, found, of)])
