"""DragBench's pickles as plain values, TF-ICON's folders, and the mean distance."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sage.bench.files import BenchmarkError
from sage.bench.plain_pickle import read_pickle
from sage.bench.regions import cases_as_json, mean_distance, read_dragbench, read_tficon


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
    [case], [dense] = read_dragbench(tmp_path), read_dragbench(tmp_path, regions=True)
    assert case.name == "animals/cat_1" and case.prompt == "a cat" and case.mask.sum() == 4 * 30
    assert case.points.tolist() == [[[3, 4], [13, 4]], [[5, 6], [7, 8]]] and len(dense.points) == 2
    [as_json] = cases_as_json((case,))
    assert as_json["points"] == case.points.tolist()
    for bad in ({"prompt": "a", "points": [(1, 2)], "mask": mask}, {"prompt": 3, "points": [(1, 2)] * 2, "mask": mask},
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
    [read] = read_tficon(tmp_path)
    assert read.box == (8, 4, 24, 20) and read.prompt == "a sketch of a cat" and read.reference.name == "fg07.jpg"
    (case / "bg13.png").write_bytes((case / "bg12.png").read_bytes())
    with pytest.raises(BenchmarkError, match="2 files"):
        read_tficon(tmp_path)
    with pytest.raises(BenchmarkError, match="no TF-ICON"):
        read_tficon(case)


def test_the_mean_distance_is_that_of_where_features_have_gone():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(16, 10, 20))
    edit = np.roll(source, (2, 3), (1, 2))  # cells of 4 pixels: everything has gone by (12, 8)
    points = np.array([[[20.0, 12.0], [32.0, 20.0]], [[40.0, 20.0], [52.0, 24.0]]])
    found = mean_distance(source, 5 * edit, points, (80, 40))
    offset = np.array([[32 + 1.5, 20 + 1.5], [52 + 1.5, 28 + 1.5]]) - points[:, 1]  # the middle of the cell
    assert found == pytest.approx(np.linalg.norm(offset, axis=1).mean())
    shares = mean_distance(source, edit, points, (80, 40), discs=True)
    assert shares == pytest.approx(np.linalg.norm(offset / (80, 40), axis=1).mean())
    far = np.roll(source, 9, 2)
    assert mean_distance(source, far, points, (80, 40), discs=True) < mean_distance(source, far, points, (80, 40))
