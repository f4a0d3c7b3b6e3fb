"""The model that is distilled, frozen, and what the trainings see of the world: captions and latents."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import sage
from sage.models.sd.model import StableDiffusion
from sage.models.sd.unet import UNet
from sage.sampling.levels import Level, alphas_cumprod
from sage.sampling.steps import Prediction, from_output, renoise, to_output
from sage.stilllife import varied_scene
from sage.stilllife.captions import join
from sage.stilllife.prompts import draw_wording, everything, phrases
from training import run
from training.captions import EMPTY_SHARE, scene_of
from training.data import CHUNK, batch, render_cache, save_array

ANCHORS = (999, 749, 499, 249)  # the student's timesteps, noisy to clean
FULL_SHARE = 0.5  # of captions that name everything: where a word changes, little else of the embedding does


def caption(seed: int, rng: np.random.Generator, held_out: bool = False) -> str:
    """A description of the scene of a seed: half of them in full, the others as people write."""
    scene = varied_scene(seed, held_out) if held_out else scene_of(seed)
    wording, full = draw_wording(rng), rng.random() < FULL_SHARE
    return join(phrases(scene, wording, everything(scene, wording) if full else None))


class Teacher:
    """A model of Stable Diffusion's build from a folder, in float32.

    Args:
        folder: what `sage.load_model` reads.
        threads: that render pictures.
    """

    def __init__(self, folder: str | Path, workers: int | None = None):
        model = sage.load_model(folder, device=run.device(), dtype="float32")
        if not isinstance(model, StableDiffusion):
            raise SystemExit(f"{folder} is no model of Stable Diffusion's build")
        self.model, self.workers = model, workers
        self.alphas = alphas_cumprod(model.schedule.params).float().to(model.device)
        self.empty = self.embed([""])

    def copy(self) -> UNet:
        """A UNet of the same weights, to be trained."""
        unet = UNet(self.model.unet.params).to(self.model.device)
        unet.load_state_dict(deepcopy(self.model.unet.state_dict()))
        return unet

    def ids(self, texts: Sequence[str]) -> Tensor:
        """(B, M) int64 token ids, what is too long cut."""
        return torch.tensor([self.model.prompts.parse(text, truncate=True).ids for text in texts])

    def embed(self, texts: Sequence[str] | Tensor) -> Tensor:
        """(B, M, D) embeddings of texts, or of their ids."""
        ids = texts if isinstance(texts, Tensor) else self.ids(texts)
        with torch.no_grad():
            return self.model.text(ids.to(self.model.device)).float()

    def captions(self, seeds: np.ndarray, rng: np.random.Generator, empty: float = EMPTY_SHARE) -> Tensor:
        """(B, M) ids of captions of training scenes, a share of them empty."""
        return self.ids(["" if rng.random() < empty else caption(int(seed), rng) for seed in seeds])

    def level(self, t: Tensor) -> Level:
        """The levels of timesteps (B,), their numbers (B, 1, 1, 1)."""
        a = self.alphas[t][:, None, None, None]
        return Level(t, a.sqrt(), (1 - a).sqrt())  # type: ignore[arg-type]

    def velocity(self, z: Tensor, level: Level, text: Tensor) -> Tensor:
        """v as the teacher sees it, whatever it predicts."""
        output = self.model.unet(z, level.t, text)
        kind = self.model.prediction_type
        return to_output(from_output(z, output, level, kind), level, "v_prediction")

    def latents(self, folder: Path, data: Path, pictures: int, held_out: bool = False) -> list[np.ndarray]:
        """Memory maps of (1000, C, h, w) float16 latents of rendered pictures, cached by chunk.

        Args:
            data: of the rendered pictures.
        """
        cache = render_cache(data, pictures, held_out, self.workers, self.model.sample_size)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{'held_out' if held_out else 'train'}-{chunk:04d}.npy" for chunk in range(len(cache))]
        for chunk in tqdm([i for i, path in enumerate(paths) if not path.exists()], desc="encode", unit="k"):
            parts = [self.model.encode(batch(cache, np.arange(start, start + 50))).half().cpu().numpy()
                     for start in range(chunk * CHUNK, (chunk + 1) * CHUNK, 50)]
            save_array(paths[chunk], np.concatenate(parts))
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]


def rows(chunks: Sequence[np.ndarray], indices: np.ndarray) -> Tensor:
    """Some of the latents, float32, on the device that trains."""
    picked = np.stack([chunks[i // CHUNK][i % CHUNK] for i in indices])
    return torch.from_numpy(picked).float().to(run.device())


def clean(unet: UNet, z: Tensor, level: Level, text: Tensor) -> Tensor:
    """G: the clean latents that a network of v sees in `z`; differentiable."""
    return from_output(z, unet(z, level.t, text).float(), level, "v_prediction").x0


def noised(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Clean latents at a level."""
    return renoise(Prediction(x0, eps), level)


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn on the CPU."""
    return torch.randn(shape, generator=generator).to(run.device())
