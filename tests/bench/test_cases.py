import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sage.bench.cases import Case, decode_mask, encode_mask, mark, read_benchmark, write_mapping
from sage.bench.files import BenchmarkError, inside
from sage.errors import PictureError, SageError
from sage.stilllife import Scene, Thing

SCENES = (Scene(Thing("mug", "red")).attributes(), Scene(Thing("cone", "red")).attributes())
CASE = Case("000000000000", 1, "1_change_object/a.png", "a [cat] on grass", "a [dog] on grass", (0, 3, 8, 1),
            "change the cat to a dog", "cat dog", truth="1_change_object/a.png", phrases=("cat", "dog"),
            attributes=SCENES)


def pie_bench(runs, shape):
    """Pixel by pixel, as PIE-Bench's own tool reads a mask."""
    flat = [0] * (shape[0] * shape[1])
    for at in range(0, len(runs), 2):
        for pixel in range(runs[at], min(runs[at] + runs[at + 1], len(flat))):
            flat[pixel] = 1
    rows = np.array(flat).reshape(shape)
    rows[0, :] = rows[-1, :] = rows[:, 0] = rows[:, -1] = 1
    return rows


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.randoms())
def test_masks_come_back(width, height, random):
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    runs = encode_mask(mask)
    assert np.array_equal(decode_mask(runs, width, height), mask)
    assert all(length > 0 for length in runs[1::2]) and list(runs[0::2]) == sorted(runs[0::2])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 34), st.integers(0, 50)), max_size=5))
def test_masks_are_read_as_pie_bench_reads_them(pairs):
    runs = [v for pair in pairs for v in pair]
    assert np.array_equal(decode_mask(runs, 7, 5, border=True), pie_bench(runs, (5, 7)))


def test_rows_come_first():
    assert encode_mask(np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1]], bool)) == (1, 3, 8, 1)


def test_a_mask_of_another_picture_is_refused():
    with pytest.raises(BenchmarkError, match="pixel 35 of a picture of 7 x 5"):
        decode_mask((35, 1), 7, 5)


def folder(tmp_path, *cases):
    write_mapping(tmp_path, cases or [CASE])
    for name in ("annotation_images", "true_edits"):
        (tmp_path / name / "1_change_object").mkdir(parents=True)
        Image.new("RGB", (4, 3), "red").save(tmp_path / name / "1_change_object/a.png")
    return tmp_path


def test_what_is_written_is_read(tmp_path):
    benchmark = read_benchmark(folder(tmp_path))
    assert benchmark.cases == (CASE,)
    assert benchmark.source(CASE).size == benchmark.truth(CASE).size == (4, 3)
    assert (CASE.source, CASE.target, CASE.stem) == ("a cat on grass", "a dog on grass", "1_change_object/a")


def test_it_is_pie_benchs_own_file(tmp_path):
    entry = json.loads((folder(tmp_path) / "mapping_file.json").read_text())["000000000000"]
    assert entry == {"image_path": "1_change_object/a.png", "original_prompt": "a [cat] on grass",
                     "editing_prompt": "a [dog] on grass", "editing_instruction": "change the cat to a dog",
                     "editing_type_id": "1", "blended_word": "cat dog", "mask": [0, 3, 8, 1],
                     "true_edit": "1_change_object/a.png", "blend_phrases": ["cat", "dog"], "attributes": list(SCENES)}


def test_a_folder_of_pie_bench_has_no_true_edits(tmp_path):
    bare = replace(CASE, truth=None, phrases=None, attributes=None)
    benchmark = read_benchmark(folder(tmp_path, bare))
    assert benchmark.cases == (bare,) and benchmark.truth(bare) is None


@pytest.mark.parametrize("change, message", [
    ({"image_path": "../../etc/passwd"}, "no plain path"),
    ({"image_path": "/etc/passwd"}, "no plain path"),
    ({"image_path": "a/../../b.png"}, "no plain path"),
    ({"image_path": "C:\\a.png"}, "no plain path"),
    ({"image_path": ""}, "no plain path"),
    ({"image_path": "a\nb.png"}, "no plain path"),
    ({"image_path": 3}, "image_path must be text"),
    ({"true_edit": "../a.png"}, "no plain path"),
    ({"original_prompt": None}, "original_prompt must be text"),
    ({"editing_prompt": "x" * 5000}, "editing_prompt must be text of at most 4096"),
    ({"editing_prompt": "\ud800"}, "editing_prompt must be text"),
    ({"editing_type_id": "10"}, "must be 0 to 9"),
    ({"editing_type_id": True}, "must be 0 to 9"),
    ({"mask": [1]}, "pairs"),
    ({"mask": [0, -1]}, "pairs"),
    ({"mask": [0, 1.5]}, "pairs"),
    ({"mask": [0, True]}, "pairs"),
    ({"mask": "0 5"}, "pairs"),
    ({"mask": [0, 10**12]}, "million pixels"),
    ({"mask": [10**12, 0]}, "million pixels"),
    ({"blended_word": ["a", "b"]}, "blended_word must be text"),
    ({"blend_phrases": ["a"]}, "pair of phrases"),
    ({"blend_phrases": ["a", 1]}, "blend_phrases must be text"),
    ({"wording": "loud"}, "wording must be full or short"), ({"wording": ["full"]}, "wording must be full or short"),
    ({"attributes": [SCENES[0]]}, "attributes must be a pair"),
    ({"attributes": [SCENES[0], "red"]}, "attributes must be a pair"),
    ({"attributes": [SCENES[0], {"form": "mug"}]}, "attributes must be a pair"),
    ({"attributes": [SCENES[0], SCENES[1] | {"form": "cat"}]}, "attributes must be a pair"),
    ({"attributes": [SCENES[0], SCENES[1] | {"form": ["mug"]}]}, "attributes must be a pair"),
    ({"attributes": [SCENES[0], SCENES[1] | {"mood": "calm"}]}, "attributes must be a pair"),
])
def test_hostile_entries_are_refused_in_one_line(tmp_path, change, message):
    path = folder(tmp_path) / "mapping_file.json"
    entries = json.loads(path.read_text())
    entries["000000000000"].update(change)
    path.write_text(json.dumps(entries))
    with pytest.raises(SageError, match=message) as caught:
        read_benchmark(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text, message", [
    ("{", "not JSON"), ("[" * 100_000, "not JSON"), ("[]", "not a table"), ("{}", "not a table"), ('{"a": 1}', "table"),
    ('{"\\n": {}}', "printable")])
def test_damaged_files_are_refused(tmp_path, text, message):
    (tmp_path / "mapping_file.json").write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        read_benchmark(tmp_path)


def test_a_folder_without_mapping_file_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="no benchmark"):
        read_benchmark(tmp_path)


def test_two_edits_of_one_file_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="same picture file"):
        read_benchmark(folder(tmp_path, CASE, replace(CASE, name="1", picture="1_change_object/A.jpg")))


def test_a_link_must_not_lead_out(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BenchmarkError, match="leads out"):
        inside(tmp_path / "pictures", "link.png")


def test_a_missing_picture_is_one_line(tmp_path):
    benchmark = read_benchmark(folder(tmp_path))
    (tmp_path / "annotation_images/1_change_object/a.png").unlink()
    with pytest.raises(PictureError, match="does not exist"):
        benchmark.source(CASE)


def test_the_two_annotations_are_mended(tmp_path):
    path = "0_random_140/000000000117.jpg"
    wrong = replace(CASE, picture=path, truth=None, blended_word="And chair rock")
    write_mapping(tmp_path, [wrong])
    [mended], [as_is] = (read_benchmark(tmp_path, mended=m).cases for m in (True, False))
    assert mended.blend() == ("chair", "rock")
    assert mended.source == "a pink flower with yellow center in the middle"
    assert mended.target_marked == "a [blue flower with red] center in the middle"
    assert as_is == wrong and as_is.blend() == ("And", "chair")


@pytest.mark.parametrize("source, target, pair", [
    ("a [cat] sits", "a [dog] sits", ("cat", "dog")),
    ("a cat sits", "a [happy] cat sits", None),
    ("a [small cat] sits", "a [small dog] sits", ("cat", "dog")),
    ("[a red] cat, [old]", "[a blue] cat, [new]", ("red old", "blue new")),
    ("a [cat in the sun]", "a [dog in the sun]", ("cat", "dog")),
    ("a [cat, asleep]", "a [cat awake]", ("asleep", "awake")),
])
def test_phrases_to_replace_are_those_of_the_released_code(source, target, pair):
    assert replace(CASE, source_marked=source, target_marked=target).replace() == pair


def test_no_blending_without_two_words():
    assert replace(CASE, blended_word="").blend() is None
    assert replace(CASE, blended_word="cat").blend() is None


def test_marks_go_where_the_prompts_differ():
    a, b = "a red ball, with a tiny red ball, on snow", "a red ball, with a tiny blue ball, on grass"
    assert mark(a, b, ("red", "snow"), ("blue", "grass")) == (
        "a red ball, with a tiny [red] ball, on [snow]", "a red ball, with a tiny [blue] ball, on [grass]")
    assert mark("a mug", "a mug, by a tiny cone", (), ("by a tiny cone",)) == ("a mug", "a mug, [by a tiny cone]")
    with pytest.raises(ValueError, match="do not differ"):
        mark(a, b, ("red",), ("blue",))
