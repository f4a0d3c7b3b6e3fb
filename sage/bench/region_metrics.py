"""How good a drag or a composition is: DragBench's, RegionDrag's and TF-ICON's formulas, and places against the truth.

Pictures are (H, W, 3) uint8.  Networks come from outside as `Extractors`; a figure whose network is not given is left
out.  None of the three protocols measures what an edit leaves alone as PIE-Bench does, so its background figures stand
beside theirs.
"""

import numpy as np
from PIL import Image

from sage.bench.metrics import Array, Extractors, clip_similarity, cosine, mse, pie_bench, psnr
from sage.stilllife.edits import THRESHOLD

LEAST_RADIUS = 5  # pixels, of the discs in which RegionDrag looks for a point
COMPARED = 224  # pixels a side at which DragBench's LPIPS compares
REACH = 12  # pixels a side of 64 within which a thing is looked for
BACKGROUND = Extractors()  # PIE-Bench's figures without its networks


def drag_bench(source: Array, result: Array, mask: Array, prompt: str, points: Array,
               extractors: Extractors) -> dict[str, float | None]:
    """DragBench's figures of one drag, and RegionDrag's.

    Args:
        mask: (H, W) bool, where the picture may change.
        points: (n, 2, 2), from and to in pixels.
    Returns:
        distance in pixels, to be weighted by points, how many there are; distance_share; fidelity; clip_kept.
    """
    result = of_size(result, source)
    scores = pie_bench(source, result, mask, "", "", BACKGROUND)
    size = source.shape[1], source.shape[0]
    if extractors.features:
        a, b = (extractors.features(picture, prompt) for picture in (source, result))
        scores |= {"distance": mean_distance(a, b, points, size), "points": float(len(points))}
        a, b = (extractors.features(nearest(picture, extractors.side), prompt) for picture in (source, result))
        scores["distance_share"] = mean_distance(a, b, points, size, discs=True)
    if extractors.lpips:
        scores["fidelity"] = 1 - extractors.lpips(*(reduced(picture) for picture in (source, result)))
    if extractors.image:
        scores["clip_kept"] = 100 * cosine(extractors.image(source), extractors.image(result))
    return scores


def tf_icon(background: Array, result: Array, reference: Array, box: tuple[int, int, int, int], mask: Array,
            prompt: str, extractors: Extractors) -> dict[str, float | None]:
    """TF-ICON's figures of one composition, as its author has told them (Shilin-LU/TF-ICON#20, #31).

    Args:
        reference: the thing, cut to its mask's box.
        box: left, top, right, bottom of where it shall be.
        mask: (H, W) bool, the same.
    Returns:
        lpips_background, the box of both pictures black; of the box, enlarged to the reference, lpips_foreground and
        clip_image; clip_text of the whole.
    """
    result = of_size(result, background)
    scores = pie_bench(background, result, mask, "", "", BACKGROUND)
    height, width = reference.shape[:2]
    thing = np.asarray(Image.fromarray(result).crop(box).resize((width, height), Image.Resampling.BICUBIC))
    if extractors.lpips:
        outside = ~mask[..., None]
        scores["lpips_background"] = extractors.lpips(*(symmetric(p * outside) for p in (background, result)))
        scores["lpips_foreground"] = extractors.lpips(symmetric(reference), symmetric(thing))
    if extractors.image:
        scores["clip_image"] = 100 * cosine(extractors.image(reference), extractors.image(thing))
        if extractors.text:
            scores["clip_text"] = clip_similarity(extractors.image(result), extractors.text(prompt))
    return scores


def of_size(result: Array, source: Array) -> Array:
    """A result at the size of its source, bilinear."""
    if result.shape == source.shape:
        return result
    size = source.shape[1], source.shape[0]
    return np.asarray(Image.fromarray(result).resize(size, Image.Resampling.BILINEAR))


def nearest(picture: Array, side: int) -> Array:
    """A picture at `side` pixels a side, each the nearest, as torch's interpolation picks them."""
    rows, columns = (np.arange(side) * length // side for length in picture.shape[:2])
    return picture[rows][:, columns]


def symmetric(picture: Array) -> Array:
    """0 to 255 -> float32 in [-1, 1]."""
    return (picture / 127.5 - 1).astype(np.float32)


def reduced(picture: Array) -> Array:
    """(224, 224, 3) float32 in [-1, 1], bilinear and without antialiasing."""
    import torch
    x = torch.from_numpy(symmetric(picture).transpose(2, 0, 1)[None].copy())
    return torch.nn.functional.interpolate(x, (COMPARED, COMPARED), mode="bilinear")[0].numpy().transpose(1, 2, 0)


# ---- points


def point_distances(source: np.ndarray, edit: np.ndarray, points: np.ndarray, size: tuple[int, int],
                    discs: bool = False) -> np.ndarray:
    """How far from its target each point is found, by the features of a network.

    For each handle the pixel of the edit whose feature is most like its own, by cosine (2306.14435, sec. 4.2), after
    the features of both were brought to the picture's size.

    Args:
        source, edit: (C, h, w) features of the pictures, both of which had one size.
        points: (n, 2, 2), from and to in pixels; what is behind the point is cut off.
        size: (W, H) of the picture.
        discs: as RegionDrag does: features are those of the nearest cell, looked for only around handle and target,
            nearer than their distance by sqrt 2, and distances are in shares of the sides; else features are bilinear,
            looked for everywhere, and distances are in pixels.
    Returns:
        (n,): DragBench's mean is over the points of all pictures, RegionDrag's over the means of pictures.
    """
    import torch
    from torch.nn.functional import interpolate, normalize
    width, height = size
    handles, targets = np.asarray(points, np.float64).astype(np.int64).transpose(1, 0, 2)

    def fitted(x: torch.Tensor) -> torch.Tensor:
        """(C, h, w) -> (C, H, W)."""
        return interpolate(x[None], (height, width), mode="nearest" if discs else "bilinear")[0]

    a, b = (torch.from_numpy(np.array(features, np.float32)) for features in (source, edit))
    x, y = np.clip(handles, 0, (width - 1, height - 1)).T
    wanted = normalize(fitted(a)[:, y, x], dim=0)
    there = normalize(b if discs else fitted(b), dim=0)
    ys, xs = np.mgrid[:height, :width]
    places = np.stack([xs, ys], -1).reshape(-1, 2)
    found = np.empty((len(handles), 2))
    for i, (handle, target) in enumerate(zip(handles, targets, strict=True)):
        likeness = torch.tensordot(wanted[:, i], there, 1)
        if discs:  # of cells, so that the pixels of one are equal, and the first one counts
            likeness = fitted(likeness[None])
        likeness = likeness.ravel().numpy()
        if discs:
            radius = max(LEAST_RADIUS, np.linalg.norm(target - handle) / 2**0.5)
            near = np.minimum(*(np.linalg.norm(places - end, axis=1) for end in (handle, target))) < radius
            likeness = np.where(near, likeness, -np.inf)
        found[i] = places[likeness.argmax()] - target
    return np.linalg.norm(found / size if discs else found, axis=1)


def mean_distance(source: np.ndarray, edit: np.ndarray, points: np.ndarray, size: tuple[int, int],
                  discs: bool = False) -> float:
    """Mean of `point_distances` over the points of one picture."""
    return float(point_distances(source, edit, points, size, discs).mean())


# ---- places


def place_figures(result: Array, source: Array, truth: Array, empty: Array, old: Array, new: Array,
                  changed: Array) -> dict[str, float | None]:
    """What a result is worth against the truth; what a case has nothing of is left out.

    Args:
        empty: (H, W, 3) in [0, 1], the truth without the things that are edited.
        old, new: (things, H, W) bool, where the things that are edited were, and shall be; none where there is none.
        changed: (H, W) bool, where the true pictures differ.
    Returns:
        revealed_psnr of the floor that a thing has left; place_error, how far things are from their places; ghost, how
        much more their old places still look like them than in the truth; iou of what differs from the empty scene.
    """
    x, before, wanted = (picture / 255 for picture in (result, source, truth))
    found: dict[str, float | None] = {}
    revealed = old.any(0) & ~new.any(0) if len(old) else np.zeros_like(changed)
    if revealed.any():
        found["revealed_psnr"] = psnr(mse(x[revealed], wanted[revealed]))
    if len(new):
        found["place_error"] = float(np.mean([place_error(x, wanted, mask) for mask in new]))
        here, there = (np.abs(p - empty).max(-1) > THRESHOLD for p in (x, wanted))
        found["iou"] = float((here & there & changed).sum() / max(((here | there) & changed).sum(), 1))
    if gone := [mask for mask in old if mask.any()]:
        found["ghost"] = float(np.mean([abs(correlation(x[m], before[m]) - correlation(wanted[m], before[m]))
                                        for m in gone]))
    return found


def correlation(a: Array, b: Array) -> float:
    """Pearson's, of two lots of values; 0 where one is constant."""
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 1e-12 else 0.0


def place_error(x: Array, truth: Array, mask: Array) -> float:
    """How far from its place the true thing's crop fits best, as a share of the side; REACH at the most.

    Fit is the normalised cross-correlation of the thing's pixels.
    """
    rows, columns = np.nonzero(mask)
    wanted, side = truth[rows, columns], len(x)
    reach, best = round(REACH * side / 64), (-2.0, 0.0)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            y, c = rows + dy, columns + dx
            inside = (y >= 0) & (y < side) & (c >= 0) & (c < side)
            if inside.sum() < 0.5 * len(rows):
                continue
            fit = correlation(x[y[inside], c[inside]], wanted[inside])
            distance = float(np.hypot(dx, dy)) / side
            best = max(best, (round(fit, 9), -distance))
    return -best[1]
