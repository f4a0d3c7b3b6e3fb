from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sage.bench import metrics
from sage.bench.files import BenchmarkError
from sage.bench.metrics import Extractors

RNG = np.random.default_rng(0)


def picture(height=40, width=33):
    """Smooth colours with some noise."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + p) * np.cos(y / b + p) for a, b, p in RNG.uniform(2, 9, (3, 3))]
    return np.clip(128 + 90 * np.stack(waves, -1) + RNG.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def pair():
    a = picture()
    return a, np.clip(a + RNG.normal(0, 20, a.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def mask(pair):
    mask = np.zeros(pair[0].shape[:2], bool)
    mask[5:20, 8:30] = True
    return mask


def tensor(x):
    return torch.from_numpy(np.asarray(x, np.float64).transpose(2, 0, 1)[None].copy())


def test_ssim_is_that_of_torchmetrics(pair):
    x, y = (p / 255 for p in pair)
    whole, full = structural_similarity_index_measure(tensor(x), tensor(y), data_range=1.0, return_full_image=True)
    assert metrics.ssim(x, y, crop=False) == pytest.approx(whole.item(), abs=1e-9)
    # Up to torchmetrics 1.2 the edges were left out; its newer map, cut by hand, is the older value.
    assert metrics.ssim(x, y) == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), abs=1e-9)
    assert abs(metrics.ssim(x, y) - metrics.ssim(x, y, crop=False)) > 1e-4
    assert np.allclose(metrics.ssim_map(x, y), full[0].mean(0).numpy(), atol=1e-9)


def test_ssim_at_one_pixel_is_the_formula(pair):
    x, y = (p[..., :1] / 255 for p in pair)
    offsets = np.arange(-5, 6)
    weights = np.array([[np.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in offsets] for j in offsets])[..., None]
    weights /= weights.sum()
    a, b = x[10:21, 7:18], y[10:21, 7:18]
    ma, mb = (weights * a).sum(), (weights * b).sum()
    va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
    cov = (weights * (a - ma) * (b - mb)).sum()
    expected = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert metrics.ssim_map(x, y)[15, 12] == pytest.approx(expected, abs=1e-10)


def test_ssim_of_a_tiny_picture_is_refused():
    with pytest.raises(BenchmarkError, match="8 x 10 is too small"):
        metrics.ssim(np.zeros((10, 8, 3)), np.zeros((10, 8, 3)))


def test_background_as_pie_bench_computes_it(pair, mask):
    scores = metrics.pie_bench(*pair, mask, "a", "b", Extractors())
    kept = torch.from_numpy(~mask)[None, None].double()
    x, y = (tensor(p / 255) * kept for p in pair)
    assert scores["background_psnr"] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1.0).item(), abs=1e-5)
    assert scores["background_mse"] == pytest.approx(torch.nn.functional.mse_loss(x, y).item(), rel=1e-9)
    _, full = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    assert scores["background_ssim"] == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), abs=1e-9)
    assert set(scores) == {"background_psnr", "background_mse", "background_ssim"}


def test_what_is_under_the_mask_does_not_count(pair, mask):
    source, result = pair
    changed = result.copy()
    changed[mask] = 255 - changed[mask]
    assert metrics.pie_bench(source, result, mask, "", "", Extractors()) == metrics.pie_bench(
        source, changed, mask, "", "", Extractors())


def test_no_figure_is_infinite_or_nan(pair, mask):
    same = metrics.pie_bench(pair[0], pair[0], mask, "", "", Extractors())
    assert same == {"background_psnr": 100.0, "background_mse": 0.0, "background_ssim": pytest.approx(1)}
    everywhere = metrics.pie_bench(*pair, np.ones_like(mask), "", "", Extractors(lpips=lambda x, y: 0.5))
    assert set(everywhere.values()) == {None} and len(everywhere) == 4
    odd = Extractors(keys=lambda x: np.full((3, 2), np.nan), image=lambda x: np.zeros(3), text=lambda t: np.ones(3))
    with np.errstate(invalid="ignore"):
        scores = metrics.pie_bench(*pair, mask, "", "", odd)
    assert scores["structure"] is None and scores["clip_whole"] is None


def test_lpips_sees_black_as_minus_one(pair, mask):
    seen = []
    metrics.pie_bench(*pair, mask, "", "", Extractors(lpips=lambda x, y: seen.append((x, y)) or 0.25))
    [(x, y)] = seen
    assert x.dtype == np.float32 and (x[mask] == -1).all() and (y[mask] == -1).all()
    assert np.allclose(x[~mask], pair[0][~mask] / 127.5 - 1, atol=1e-6)


def test_structure_distance_is_the_published_one():
    a, b = RNG.normal(size=(2, 7, 5))

    def similarity(x):
        x = torch.from_numpy(x)[None]
        norm = x.norm(dim=2, keepdim=True)
        return x @ x.permute(0, 2, 1) / torch.clamp(norm @ norm.permute(0, 2, 1), min=1e-8)

    expected = torch.nn.functional.mse_loss(similarity(a), similarity(b)).item()
    assert metrics.structure_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.structure_distance(a, 3 * a) == pytest.approx(0, abs=1e-15)
    assert np.isfinite(metrics.structure_distance(np.zeros((2, 3)), np.ones((2, 3))))


def test_clip_similarity(pair, mask):
    a, b = RNG.normal(size=(2, 6))
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b), dim=0).item()
    assert metrics.clip_similarity(a, b) == pytest.approx(max(100 * cosine, 0))
    assert metrics.clip_similarity(a, -a) == 0.0 and metrics.clip_similarity(a, a) == pytest.approx(100)

    seen, said = [], []
    extractors = Extractors(image=lambda x: seen.append(x) or a, text=lambda t: said.append(t) or a)
    scores = metrics.pie_bench(*pair, mask, "a cat", "a dog", extractors)
    assert scores["clip_source"] == scores["clip_whole"] == scores["clip_edited"] == pytest.approx(100)
    assert sorted(said) == ["a cat", "a dog"]
    assert [x.dtype for x in seen] == [np.uint8] * 3
    assert np.array_equal(seen[0], pair[0]) and np.array_equal(seen[1], pair[1])
    assert (seen[2][~mask] == 0).all() and np.array_equal(seen[2][mask], pair[1][mask])


def test_truth_inside_and_outside(pair, mask):
    truth, result = pair
    result = result.copy()
    result[~mask] = truth[~mask]
    scores = metrics.against_truth(result, truth, mask, Extractors(lpips=lambda x, y: float(np.abs(x - y).mean())))
    inside = np.square((result.astype(float) - truth) / 255)[mask].mean()
    assert scores["inside_psnr"] == pytest.approx(10 * np.log10(1 / inside))
    assert scores["outside_psnr"] == 100 and scores["outside_lpips"] == 0 < scores["inside_lpips"]
    assert scores["inside_ssim"] < scores["outside_ssim"] < 1
    full = structural_similarity_index_measure(tensor(result / 255), tensor(truth / 255), data_range=1.0,
                                               return_full_image=True)[1][0].mean(0).numpy()
    assert scores["inside_ssim"] == pytest.approx(full[mask].mean(), abs=1e-9)
    everywhere = metrics.against_truth(result, truth, np.ones_like(mask), Extractors())
    assert everywhere["outside_psnr"] is None and everywhere["outside_ssim"] is None


def test_pictures_of_other_sizes_are_refused(pair, mask):
    with pytest.raises(BenchmarkError, match="the result has 30 x 40 pixels, the benchmark's picture 33 x 40"):
        metrics.pie_bench(pair[0], pair[1][:, :30], mask, "", "", Extractors())


def test_attributes_changed_and_unchanged_count_apart():
    source = {"form": "mug", "colour": "red", "size": "small", "tilt": "upright"}
    target = source | {"form": "cone", "colour": "blue"}
    seen = {"form": "cone", "colour": "red", "size": "small", "tilt": "tilted"}
    assert metrics.against_scenes(seen, source, target) == {"asked": 0.5, "kept": 0.5, "attributes": 0.5}
    assert metrics.against_scenes(source, source, target) == {"asked": 0.0, "kept": 1.0, "attributes": 0.5}
    assert metrics.against_scenes(target, source, target) == {"asked": 1.0, "kept": 1.0, "attributes": 1.0}
    assert metrics.against_scenes(source | {"size": "large"}, source, source) == {
        "asked": None, "kept": 0.75, "attributes": 0.75}


def test_of_a_strip_the_last_picture_counts():
    strip = RNG.integers(0, 256, (12, 48, 3), dtype=np.uint8)
    assert np.array_equal(metrics.last_square(strip, 12, 12), strip[:, 36:])
    assert metrics.last_square(strip[:, :12], 12, 12).shape == (12, 12, 3)


# Of drags and compositions (tests/bench/test_region_benchmarks.py), and what an edit costs
OF_REGIONS = {"distance", "distance_share", "fidelity", "clip_kept", "lpips_background", "lpips_foreground",
              "clip_image", "clip_text", "revealed_psnr", "place_error", "ghost", "iou", "seconds", "calls",
              "gradients"}


def test_every_figure_has_a_column(pair, mask):
    everything = Extractors(keys=lambda x: np.eye(2), lpips=lambda x, y: 0.0, image=lambda x: np.ones(2),
                            text=lambda t: np.ones(2), cls=lambda x: np.ones(2), melted=lambda *_: 0.0)
    scene = {"form": "mug", "second_form": "none"}
    scores = metrics.against_scenes({}, {}, {}) | metrics.magic_brush(*pair, "a cat", everything)
    scores |= metrics.melting(pair[0], scene, scene, everything)
    for e in (everything, replace(everything, distance="features", similarity="prompt")):
        scores |= metrics.pie_bench(*pair, mask, "", "", e) | metrics.against_truth(*pair, mask, e)
    assert set(scores) | OF_REGIONS == {m.key for m in metrics.METRICS} and not set(scores) & OF_REGIONS


def test_the_scales_are_those_of_the_published_tables():
    scales = {m.key: m.scale for m in metrics.METRICS}
    assert {k: scales[k] for k in ("structure", "background_psnr", "background_lpips", "background_mse",
                                   "background_ssim", "clip_whole", "clip_edited")} == {
        "structure": 1e3, "background_psnr": 1, "background_lpips": 1e3, "background_mse": 1e4,
        "background_ssim": 1e2, "clip_whole": 1, "clip_edited": 1}
