"""DragBench's pickles as plain values, TF-ICON's folders, and the mean distance."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sage.bench.files import BenchmarkError
from sage.bench.plain_pickle import read_pickle
from sage.bench.region_metrics import mean_distance, point_distances
from sage.bench.regions import read_dragbench, read_tficon
from sage.errors import PictureError


def written(path: Path, value, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_lists_dictionaries_and_arrays_are_read_as_they_were_written(tmp_path, protocol):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    shared = [1, 2.5, "å", None, True, -2**40]
    value = {"prompt": "a cat", "points": [[1, 2], (3, 4)], "mask": np.asfortranarray(array), "more": [shared, shared],
             "bytes": b"abc", "big": np.arange(5, dtype=">i8"), "empty": np.zeros((0, 3), bool), "one": np.int64(7)}
    read = read_pickle(written(tmp_path / "a.pkl", value, protocol))
    assert read["prompt"] == "a cat" and read["points"] == [[1, 2], (3, 4)] and read["more"] == [shared, shared]
    assert np.array_equal(read["mask"], array) and read["bytes"] == b"abc" and read["one"] == 7
    assert np.array_equal(read["big"], np.arange(5)) and read["empty"].shape == (0, 3)


class Call:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def test_nothing_is_looked_up_or_called(tmp_path):
    touched = tmp_path / "touched"
    for value in (Call(os.system, f"touch {touched}"), Call(open, str(touched), "w"), Call(eval, "1"),
                  [Call(np.load, str(touched))], {"a": Path("x")}, np.array([None, 1], dtype=object), 3 + 4j, {1, 2}):
        for protocol in (0, 2, 4):
            with pytest.raises(BenchmarkError, match="refused|damaged") as error:
                read_pickle(written(tmp_path / "bad.pkl", value, protocol))
            assert "\n" not in str(error.value)
    assert not touched.exists()


def test_damaged_files_end_in_one_line(tmp_path):
    good = pickle.dumps({"points": [[1, 2]], "mask": np.ones((4, 4))}, 4)
    rng = np.random.default_rng(0)
    for i in range(300):
        bad = bytearray(good[:rng.integers(len(good))] if i % 3 == 0 else good)
        for at in rng.integers(len(bad), size=2) if bad else ():
            bad[at] = rng.integers(256)
        (tmp_path / "bad.pkl").write_bytes(bytes(bad))
        try:
            read_pickle(tmp_path / "bad.pkl")
        except BenchmarkError as error:
            assert "\n" not in str(error)
    deep = b"\x80\x02" + b"(" * 100000 + b"l" * 100000 + b"."
    looped = b"\x80\x02]q\x00h\x00a."  # a list in itself
    huge = pickle.dumps(np.ones(1), 2).replace(b"K\x01\x85", b"J\xff\xff\xff\x7f\x85")
    for data in (deep, looped, huge, b"", b"no pickle"):
        (tmp_path / "bad.pkl").write_bytes(data)
        with pytest.raises(BenchmarkError):
            read_pickle(tmp_path / "bad.pkl")
    with pytest.raises(BenchmarkError):
        read_pickle(tmp_path / "absent.pkl")


def test_dragbench_is_read(tmp_path):
    sample = tmp_path / "animals" / "cat_1"
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9] = 255
    written(sample / "meta_data.pkl", {"prompt": "a cat", "points": [(3, 4), (13, 4), [5, 6], [7, 8]], "mask": mask})
    written(sample / "meta_data_region.pkl", {"prompt": "a cat", "points": np.arange(8).reshape(4, 2), "mask": mask})
    Image.new("RGB", (30, 20)).save(sample / "original_image.png")
    [dense], [case] = read_dragbench(tmp_path).cases, read_dragbench(tmp_path, regions=False).cases
    assert case.name == "animals/cat_1" and case.source == case.target == "a cat" and case.runs == (5 * 30, 4 * 30)
    assert case.points.tolist() == dense.points.tolist() == [[[3, 4], [13, 4]], [[5, 6], [7, 8]]]
    assert dense.dense.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]] and not len(case.dense)
    assert case.stem == "animals/cat_1/dragged_image" and read_dragbench(tmp_path).kinds == ["animals"]
    assert read_dragbench(tmp_path).mapping_hash() != read_dragbench(tmp_path, regions=False).mapping_hash()
    far, many = [(1e300, 1), (2, 2)], np.ones((4000, 2))
    for bad in ({"prompt": "a", "points": far, "mask": mask}, {"prompt": "a", "points": many, "mask": mask},
                {"prompt": "a", "points": [(1, 2)], "mask": mask}, {"prompt": 3, "points": [(1, 2)] * 2, "mask": mask},
                {"prompt": "a", "points": [(1, 2)] * 2, "mask": mask[1:]}, [], {"prompt": "a"}):
        written(sample / "meta_data.pkl", bad)
        with pytest.raises(BenchmarkError, match="damaged"):
            read_dragbench(tmp_path)
    with pytest.raises(BenchmarkError, match="no DragBench"):
        read_dragbench(tmp_path / "animals")


def test_tficon_is_read(tmp_path):
    case = tmp_path / "Real-Sketch" / "0003 a sketch of a cat"
    case.mkdir(parents=True)
    for name in ("bg12.png", "fg07.jpg", "fg07_mask.png", "cp_bg_fg.jpg", "dccf_image.jpg"):
        Image.new("RGB", (64, 32)).save(case / name)
    where = Image.new("L", (32, 16))
    where.paste(255, (4, 2, 12, 10))
    where.save(case / "mask_bg_fg.jpg", quality=100)
    benchmark = read_tficon(tmp_path)
    [read] = benchmark.cases
    assert read.box == (8, 4, 24, 20) and read.target == "a sketch of a cat" and benchmark.kinds == ["Real-Sketch"]
    assert read.reference == "Real-Sketch/0003 a sketch of a cat/fg07.jpg" and read.where((64, 32)).sum() == 16 * 16
    with pytest.raises(PictureError, match="fg07"):
        (case / "fg07.jpg").write_text("no picture")
        benchmark.ready(read)
    (case / "bg13.png").write_bytes((case / "bg12.png").read_bytes())
    with pytest.raises(BenchmarkError, match="2 files"):
        read_tficon(tmp_path)
    with pytest.raises(BenchmarkError, match="no TF-ICON"):
        read_tficon(case)


def original_distances(source, edit, points, size, discs):
    """DragDiffusion's and RegionDrag's evaluations, on features: torch's layers, a point at a time."""
    width, height = size
    mode = {} if discs else {"mode": "bilinear"}
    a, b = (torch.nn.functional.interpolate(torch.from_numpy(x).float()[None], (height, width), **mode)
            for x in (source, edit))
    found = []
    for (hx, hy), (tx, ty) in points.astype(int):
        likeness = torch.nn.CosineSimilarity(dim=1)(a[0, :, hy, hx].view(1, -1, 1, 1), b)[0].numpy()
        if discs:
            ys, xs = np.mgrid[:height, :width]
            radius = max(5, np.hypot(hx - tx, hy - ty) / 2**0.5)
            near = (np.hypot(xs - hx, ys - hy) < radius) | (np.hypot(xs - tx, ys - ty) < radius)
            likeness = np.where(near, likeness.round(5), -np.inf)  # equal within a cell: the first one counts
        y, x = np.unravel_index(likeness.argmax(), likeness.shape)
        found.append(np.hypot((x - tx) / width, (y - ty) / height) if discs else np.hypot(x - tx, y - ty))
    return found


@pytest.mark.parametrize("discs", (False, True))
def test_distances_of_points_are_those_of_the_original_evaluations(discs):
    rng = np.random.default_rng(1)
    source = rng.normal(size=(16, 9, 12)).astype(np.float32)
    edit = np.roll(source, (1, 2), (1, 2)) + 0.1 * rng.normal(size=source.shape).astype(np.float32)
    points = rng.integers(8, (50, 30), (6, 2, 2)).astype(float)  # beside the edge features are equal
    found = point_distances(source, 3 * edit, points, (70, 40), discs)
    assert found == pytest.approx(original_distances(source, edit, points, (70, 40), discs))
    assert mean_distance(source, edit, points, (70, 40), discs) == pytest.approx(found.mean())


def test_distances_of_points_are_of_pixels():
    """Features of one pixel each: what has gone to its target is at no distance from it, in either evaluation."""
    source = np.random.default_rng(0).normal(size=(16, 20, 30))
    edit = np.roll(source, (4, 6), (1, 2))
    points = np.array([[[3, 5], [9, 9]], [[12, 9], [17, 13]]])
    assert point_distances(source, edit, points, (30, 20)) == pytest.approx([0, 1])
    assert point_distances(source, edit, points, (30, 20), discs=True) == pytest.approx([0, 1 / 30])
    far = np.roll(source, 15, 2)  # outside both discs
    assert point_distances(source, far, points, (30, 20), discs=True).max() < 12.4 / 20  # radius and distance
    assert point_distances(source, far, points, (30, 20)) == pytest.approx([np.hypot(9, 4), np.hypot(10, 4)])

