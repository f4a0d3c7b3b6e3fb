"""How good an edited picture is: PIE-Bench's and MagicBrush's formulas, and distances to the right result where it is
known.

Pictures are (H, W, 3) uint8, masks (H, W) bool, True where the edit may be.  PIE-Bench's background figures are

    d(source (1 - mask), result (1 - mask))

with both pictures in [0, 1] and the mean over all pixels, the black ones too.  Networks come from outside as
`Extractors`; a figure whose network is not given is left out.  A figure that has no value, such as a background where
the mask is everything, is None and stays out of every mean.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from PIL import Image

from sage.bench.files import BenchmarkError

Array = np.ndarray

MOST_PSNR = 100.0  # dB; identical pictures would have infinitely many
SIGMA, TAPS, K1, K2 = 1.5, 11, 0.01, 0.03


@dataclass(frozen=True)
class Metric:
    """One column of the tables: stored values times `scale` are shown.

    Attributes:
        weight: the score by which a mean over cases weights each; "" for all alike.
    """

    key: str
    title: str
    scale: float
    higher_is_better: bool
    decimals: int = 2
    weight: str = ""


METRICS = (
    Metric("asked", "attributes as asked, %", 1e2, True, 1),
    Metric("kept", "attributes kept, %", 1e2, True, 1),
    Metric("attributes", "attributes right, %", 1e2, True, 1),
    Metric("melted", "melted x 1000", 1e3, False, 1),
    Metric("inside_psnr", "PSNR inside", 1, True),
    Metric("inside_ssim", "SSIM inside x 100", 1e2, True),
    Metric("inside_lpips", "LPIPS inside x 1000", 1e3, False),
    Metric("inside_features", "feature distance inside x 1000", 1e3, False),
    Metric("outside_psnr", "PSNR outside", 1, True),
    Metric("outside_ssim", "SSIM outside x 100", 1e2, True),
    Metric("outside_lpips", "LPIPS outside x 1000", 1e3, False),
    Metric("outside_features", "feature distance outside x 1000", 1e3, False),
    Metric("structure", "structure distance x 1000", 1e3, False),
    Metric("background_psnr", "background PSNR", 1, True),
    Metric("background_lpips", "background LPIPS x 1000", 1e3, False),
    Metric("background_features", "background feature distance x 1000", 1e3, False),
    Metric("background_mse", "background MSE x 10000", 1e4, False),
    Metric("background_ssim", "background SSIM x 100", 1e2, True),
    Metric("clip_source", "CLIP similarity, source", 1, True),
    Metric("clip_whole", "CLIP similarity, whole", 1, True),
    Metric("clip_edited", "CLIP similarity, edited", 1, True),
    Metric("prompt_source", "likeness to the prompt, source", 1, True),
    Metric("prompt_whole", "likeness to the prompt, whole", 1, True),
    Metric("prompt_edited", "likeness to the prompt, edited", 1, True),
    Metric("l1", "L1", 1, False, 4),
    Metric("l2", "L2", 1, False, 4),
    Metric("clip_i", "CLIP-I", 1, True, 4),
    Metric("dino", "DINO", 1, True, 4),
    Metric("clip_t", "CLIP-T", 1, True, 4),
    Metric("clip_t_truth", "CLIP-T of the true edit", 1, True, 4),
    Metric("distance", "mean distance, pixels", 1, False, 1, "points"),
    Metric("distance_share", "mean distance, % of the sides", 1e2, False),
    Metric("fidelity", "1 - LPIPS", 1, True, 3),
    Metric("clip_kept", "CLIP similarity to the source", 1, True),
    Metric("lpips_background", "LPIPS, background", 1, False, 3),
    Metric("lpips_foreground", "LPIPS, foreground", 1, False, 3),
    Metric("clip_image", "CLIP similarity to the reference", 1, True),
    Metric("clip_text", "CLIP similarity to the prompt", 1, True),
    Metric("revealed_psnr", "PSNR of the revealed floor", 1, True),
    Metric("place_error", "place error, % of the side", 1e2, False),
    Metric("ghost", "ghost x 100", 1e2, False),
    Metric("iou", "IoU x 100", 1e2, True),
    Metric("seconds", "seconds", 1, False),
    Metric("calls", "network calls", 1, False, 1),
    Metric("gradients", "ways back", 1, False, 1),
)


@dataclass(frozen=True)
class Extractors:
    """The networks that some figures need.

    Attributes:
        keys: picture -> (tokens, width), the attention keys of which the structure distance compares self-similarities.
        lpips: two (H, W, 3) float32 pictures in [-1, 1] -> their distance.
        image: picture -> (width,), text: prompt -> (width,): vectors in the common space of CLIP.
        cls: picture -> (width,), the class token of DINO.
        attributes: picture -> what it shows, by the names of `sage.stilllife.scenes.VALUES`.
        melted: picture, attribute, value -> how far the thing whose form that is is from every true one.
        features: picture, prompt -> (C, h, w), by which points of one picture are found in another.
        side: pixels a side of the squares that RegionDrag gives to `features`.
        distance, similarity: what to call the figures of `lpips`, and of `image` and `text`.
        versions: what they are and what computes them, by name.
    """

    keys: Callable[[Array], Array] | None = None
    lpips: Callable[[Array, Array], float] | None = None
    image: Callable[[Array], Array] | None = None
    text: Callable[[str], Array] | None = None
    cls: Callable[[Array], Array] | None = None
    attributes: Callable[[Array], Mapping[str, str]] | None = None
    melted: Callable[[Array, str, str], float] | None = None
    features: Callable[[Array, str], Array] | None = None
    side: int = 768
    distance: str = "lpips"
    similarity: str = "clip"
    versions: Mapping[str, str] = field(default_factory=dict)

    def identity(self) -> str:
        """A text that changes with what is measured and by which versions; "" where there is no network."""
        given = [f.name for f in fields(self) if callable(getattr(self, f.name))]
        text = json.dumps([given, self.distance, self.similarity, dict(self.versions)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12] if given else ""


# ---- formulas


def mse(x: Array, y: Array) -> float:
    """Mean squared difference of two arrays."""
    return float(np.mean(np.square(np.asarray(x, np.float64) - y)))


def psnr(squared: float) -> float:
    """-10 log10 of a mean squared difference of values in [0, 1], in dB, at most MOST_PSNR."""
    return MOST_PSNR if squared == 0 else min(-10 * math.log10(squared), MOST_PSNR)


def ssim_map(x: Array, y: Array) -> Array:
    """(H, W) structural similarity of two (H, W, C) pictures in [0, 1], mean over channels, edges mirrored.

        (2 mu_x mu_y + c1)(2 sigma_xy + c2) / ((mu_x^2 + mu_y^2 + c1)(sigma_x^2 + sigma_y^2 + c2))

    with means over a Gaussian of deviation 1.5 in 11 x 11 pixels.

    Raises:
        BenchmarkError: a side of less than 11 pixels.
    """
    if min(x.shape[:2]) < TAPS:
        raise BenchmarkError(f"a picture of {x.shape[1]} x {x.shape[0]} is too small for SSIM, which needs {TAPS} "
                             "pixels a side")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    mx, my = _blurred(x), _blurred(y)
    vx, vy, cov = _blurred(x * x) - mx * mx, _blurred(y * y) - my * my, _blurred(x * y) - mx * my
    c1, c2 = K1**2, K2**2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean(-1)


def _blurred(x: Array) -> Array:
    half = TAPS // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        size, pad = x.shape[axis], [(0, 0)] * x.ndim
        pad[axis] = (half, half)
        padded = np.pad(x, pad, mode="reflect")
        x = sum(w * np.take(padded, range(i, i + size), axis) for i, w in enumerate(weights))
    return x


def ssim(x: Array, y: Array, crop: bool = True) -> float:
    """Mean of `ssim_map`.

    Args:
        crop: leave out the 5 pixels next to the edges, as torchmetrics did up to 1.2, with which the published tables
            were made; later versions do not.
    """
    values = ssim_map(x, y)
    half = TAPS // 2
    return float((values[half:-half, half:-half] if crop else values).mean())


def structure_distance(a: Array, b: Array) -> float:
    """Mean squared difference of the cosine self-similarities of two sets of keys, (tokens, width) each."""
    return mse(_self_similarity(a), _self_similarity(b))


def _self_similarity(keys: Array) -> Array:
    keys = np.asarray(keys, np.float64)
    norms = np.linalg.norm(keys, axis=1)
    return keys @ keys.T / np.maximum(np.outer(norms, norms), 1e-8)


def cosine(a: Array, b: Array) -> float:
    """Cosine of the angle between two vectors."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def clip_similarity(image: Array, text: Array) -> float:
    """100 cos between two vectors, not below 0."""
    return max(100 * cosine(image, text), 0.0)


# ---- one case


def pie_bench(source: Array, result: Array, mask: Array, source_prompt: str, target_prompt: str,
              extractors: Extractors) -> dict[str, float | None]:
    """PIE-Bench's figures of one result.

    Args:
        mask: with its border set, as PIE-Bench reads it.
    Raises:
        BenchmarkError: the pictures differ in size.
    """
    _check_sizes(source, result, mask)
    scores: dict[str, float | None] = {}
    if extractors.keys:
        scores["structure"] = structure_distance(extractors.keys(source), extractors.keys(result))
    background = ~mask[..., None]
    x, y = (p / 255 * background for p in (source, result))
    scores |= {"background_psnr": psnr(mse(x, y)), "background_mse": mse(x, y), "background_ssim": ssim(x, y)}
    if extractors.lpips:
        scores[f"background_{extractors.distance}"] = extractors.lpips(*(_symmetric(p) for p in (x, y)))
    if mask.all():
        scores |= {key: None for key in scores if key.startswith("background")}
    if extractors.image and extractors.text:
        target, name = extractors.text(target_prompt), extractors.similarity
        scores[f"{name}_source"] = clip_similarity(extractors.image(source), extractors.text(source_prompt))
        scores[f"{name}_whole"] = clip_similarity(extractors.image(result), target)
        edited = result * mask[..., None]
        scores[f"{name}_edited"] = clip_similarity(extractors.image(edited), target) if mask.any() else None
    return {key: _finite(value) for key, value in scores.items()}


def against_truth(result: Array, truth: Array, mask: Array, extractors: Extractors) -> dict[str, float | None]:
    """Distances of a result to the right one, inside the edited region and outside it.

    PSNR and SSIM are means over the region's pixels; for LPIPS the rest of the result is taken from the truth.

    Args:
        mask: without border.
    Raises:
        BenchmarkError: the pictures differ in size.
    """
    _check_sizes(truth, result, mask)
    x, y = result / 255, truth / 255
    similarity = ssim_map(x, y)
    scores: dict[str, float | None] = {}
    for name, where in (("inside", mask), ("outside", ~mask)):
        any_pixel = bool(where.any())
        scores[f"{name}_psnr"] = psnr(mse(x[where], y[where])) if any_pixel else None
        scores[f"{name}_ssim"] = float(similarity[where].mean()) if any_pixel else None
        if extractors.lpips:
            only = np.where(where[..., None], x, y)
            distance = extractors.lpips(_symmetric(only), _symmetric(y)) if any_pixel else None
            scores[f"{name}_{extractors.distance}"] = distance
    return {key: _finite(value) for key, value in scores.items()}


def magic_brush(result: Array, truth: Array, caption: str, extractors: Extractors) -> dict[str, float | None]:
    """MagicBrush's figures of one result: distances and cosines to the true edit, and to the words for what it made.

    L2 is the mean squared difference.  For L1 and L2 a result of another size takes the size of the truth.
    """
    fitted = result
    if result.shape != truth.shape:
        height, width = truth.shape[:2]
        fitted = np.asarray(Image.fromarray(result).resize((width, height), Image.Resampling.BICUBIC))
    x, y = fitted / 255, truth / 255
    scores: dict[str, float | None] = {"l1": float(np.abs(x - y).mean()), "l2": mse(x, y)}
    if extractors.image:
        a, b = extractors.image(result), extractors.image(truth)
        scores["clip_i"] = cosine(a, b)
        if extractors.text and caption:
            words = extractors.text(caption)
            scores |= {"clip_t": cosine(a, words), "clip_t_truth": cosine(b, words)}
    if extractors.cls:
        scores["dino"] = cosine(extractors.cls(result), extractors.cls(truth))
    return {key: _finite(value) for key, value in scores.items()}


def against_scenes(seen: Mapping[str, str], source: Mapping[str, str],
                   target: Mapping[str, str]) -> dict[str, float | None]:
    """Shares of a result's attributes that are right: of those that the edit changes, of the others, and of all."""
    right = {name: seen[name] == value for name, value in target.items()}
    groups = {"asked": [right[name] for name in right if source[name] != target[name]],
              "kept": [right[name] for name in right if source[name] == target[name]], "attributes": [*right.values()]}
    return {key: sum(values) / len(values) if values else None for key, values in groups.items()}


def edited_thing(source: Mapping[str, str], target: Mapping[str, str]) -> str:
    """The attribute that is the form of the thing that an edit makes or changes; of the main one where it is of none.

    Where the second thing is removed there is no form of it to be seen.
    """
    changed = {name for name, value in target.items() if source[name] != value}
    second = changed and all(name.startswith("second_") for name in changed) and target["second_form"] != "none"
    return "second_form" if second else "form"


def melting(result: Array, source: Mapping[str, str], target: Mapping[str, str],
            extractors: Extractors) -> dict[str, float | None]:
    """How far the edited thing is from every true one of its form; nothing without a network that tells."""
    name = edited_thing(source, target)
    return {"melted": _finite(extractors.melted(result, name, target[name]))} if extractors.melted else {}


def last_square(result: Array, width: int, height: int) -> Array:
    """The picture itself, or, of one that is not square, its last (height, width) pixels.

    Tools for PIE-Bench store strips of which the last picture is the result.
    """
    rows, columns = result.shape[:2]
    if rows != columns and rows >= height and columns >= width:
        return result[rows - height:, columns - width:]
    return result


def _symmetric(x: Array) -> Array:
    return (x * 2 - 1).astype(np.float32)


def _check_sizes(picture: Array, result: Array, mask: Array) -> None:
    if picture.shape != result.shape or mask.shape != picture.shape[:2]:
        raise BenchmarkError(f"the result has {result.shape[1]} x {result.shape[0]} pixels, the benchmark's picture "
                             f"{picture.shape[1]} x {picture.shape[0]}")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
