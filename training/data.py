"""The training pictures: rendered once, cached as bytes, memory-mapped afterwards.

A picture's seed is its index, so a cache of any length is the beginning of a longer one.
"""

import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sage.machine.workers import end_with_parent
from sage.stilllife import render, varied_scene

SIDE = 128
CHUNK = 1000


def _chunk(job: tuple[Path, int, bool, int]) -> None:
    path, start, held_out, side = job
    pictures = np.stack([(render(varied_scene(seed, held_out), side) * 255 + 0.5).astype(np.uint8)
                         for seed in range(start, start + CHUNK)])
    save_array(path, pictures)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file whole."""
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, array)
    temporary.replace(path)


def render_cache(folder: Path, count: int, held_out: bool = False, workers: int | None = None,
                 side: int = SIDE) -> list[np.ndarray]:
    """Render what is missing of the first `count` pictures and map them all.

    Returns:
        Memory maps of (1000, side, side, 3) uint8, in the order of their seeds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = ("held_out" if held_out else "train") + (f"-{side}" if side != SIDE else "")
    paths = [folder / f"{name}-{start:07d}.npy" for start in range(0, count, CHUNK)]
    jobs = [(p, i * CHUNK, held_out, side) for i, p in enumerate(paths) if not p.exists()]
    if jobs:
        with get_context("spawn").Pool(workers or os.cpu_count(), end_with_parent) as pool:
            for _ in tqdm(pool.imap(_chunk, jobs), total=len(jobs), desc=f"render {name}", unit="k"):
                pass
    return [np.load(p, mmap_mode="r", allow_pickle=False) for p in paths]


def batch(cache: list[np.ndarray], indices: np.ndarray) -> torch.Tensor:
    """Pictures by seed -> (B, 3, H, W) float32 in [-1, 1]."""
    pictures = np.stack([cache[i // CHUNK][i % CHUNK] for i in indices])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
