"""Regions and masks: read from text, matched, moved as pixels, pasted around, and kept in a record."""

import numpy as np
import pytest
from PIL import Image

from sage.errors import PictureError, SageError, SettingsError
from sage.pictures.masks import black_and_white, feather, mask_of_text, mask_text, open_mask, pasted
from sage.pictures.metadata import asked_as_text, asked_in
from sage.pictures.regions import Move, box_mask, composite, matched, pixels_filled, pixels_moved, read_box, read_move

SIZE = 40, 30


def noise(seed: int = 0, size=SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def region(*box: int) -> np.ndarray:
    return np.asarray(box_mask(box, SIZE)) > 0


# ---- matching


def test_a_region_and_its_translation_match_place_by_place():
    source, shape = np.zeros((30, 40), bool), np.random.default_rng(1).random((9, 12)) > 0.5
    shape[0] = shape[-1] = True  # columns without gaps at their ends
    source[5:14, 3:15] = shape
    target = np.roll(source, (7, 11), (0, 1))
    to, come = matched(source, target)
    assert np.array_equal(to - come, np.broadcast_to((7, 11), to.shape)) and len(to) == source.sum()


def test_regions_of_other_sizes_are_spread_evenly():
    to, come = matched(region(2, 2, 6, 4), region(10, 10, 18, 14))
    pairs = {tuple(a): tuple(b) for a, b in zip(to.tolist(), come.tolist(), strict=True)}
    assert pairs[10, 10] == (2, 2) and pairs[13, 17] == (3, 5)  # corners to corners
    assert {column for _, column in pairs.values()} == {2, 3, 4, 5} and len(pairs) == 32
    to, come = matched(region(2, 2, 3, 3), region(10, 10, 13, 12))  # one place for all
    assert (come == 2).all() and len(to) == 6


# ---- text


def test_what_can_be_said_of_a_move(tmp_path):
    move = read_move("10,12", "30,12", SIZE, radius=4)
    assert move.source.getbbox() == (6, 8, 15, 17) and move.target.getbbox() == (26, 8, 35, 17)
    move = read_move("4,4,10,8", "20,20", SIZE)
    assert move.source.getbbox() == (4, 4, 10, 8) and move.target.getbbox() == (17, 18, 23, 22)
    path = tmp_path / "mask.png"
    move.source.save(path)
    move = read_move(str(path), "0,0,40,30", SIZE)
    assert move.source.getbbox() == (4, 4, 10, 8) and move.target.getbbox() == (0, 0, 40, 30)


@pytest.mark.parametrize("start, end", [("10,12", "300,12"), ("a", "1,2"), ("1,2,3", "1,2"), ("", "1,2"),
                                        ("1,2,1,2", "3,4"), ("10;12", "3,4"), ("nan,1", "2,2"),
                                        ("1" * 400 + ",2", "3,4"), ("1,2,3," + "9" * 5000, "3,4"), ("x" * 5000, "3,4"),
                                        ("\0", "3,4")])
def test_what_is_no_region_is_said_in_one_line(start, end):
    with pytest.raises(SageError) as error:
        read_move(start, end, SIZE)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("start, said", [("0.25,0.5", "is 10,10"), ("0.25,0.1,1,1", "is 10,2,40,20")])
def test_shares_of_the_sides_are_told_as_pixels(start, said):
    with pytest.raises(SettingsError, match=said):
        read_move(start, "3,4", (40, 20))
    assert read_move("0,1", "1.5,1", (40, 20)) and read_box("0,0,1,1", SIZE) == (0, 0, 1, 1)


def test_boxes_are_cut_to_the_picture():
    assert read_box("-5,3,100,9", SIZE) == (0, 3, 40, 9)
    for text in ("1,2,3", "5,5,5,9", "50,1,60,2", "a,b,c,d"):
        with pytest.raises(SettingsError):
            read_box(text, SIZE)


# ---- pixels


def test_pixels_are_moved_and_the_hole_takes_the_colour_around_it():
    image = Image.new("RGB", SIZE, (10, 200, 30))
    thing = noise(size=(6, 5))
    image.paste(thing, (4, 4))
    move = Move(box_mask((4, 4, 10, 9), SIZE), box_mask((20, 15, 26, 20), SIZE))
    moved = pixels_moved(image, [move])
    assert moved.crop((20, 15, 26, 20)).tobytes() == thing.tobytes()
    assert moved.crop((4, 4, 10, 9)).getcolors() == [(30, (10, 200, 30))]
    kept = pixels_moved(image, [move], cut=False)
    assert kept.crop((4, 4, 10, 9)).tobytes() == thing.tobytes()
    onto_itself = Move(move.source, move.source)
    assert pixels_moved(image, [onto_itself]).tobytes() == image.tobytes()
    assert pixels_filled(image, move.source).tobytes() == Image.new("RGB", SIZE, (10, 200, 30)).tobytes()


def test_a_composite_has_the_thing_in_its_box_and_the_background_elsewhere():
    background, reference = noise(1), Image.new("RGB", (50, 50), "white")
    reference.paste((200, 0, 0), (10, 10, 30, 20))
    mask = box_mask((10, 10, 30, 20), (50, 50))
    out = np.asarray(composite(background, reference, mask, (5, 6, 15, 16)))
    assert (out[6:16, 5:15] == (200, 0, 0)).all()
    outside = ~region(5, 6, 15, 16)
    assert np.array_equal(out[outside], np.asarray(background)[outside])


def test_a_whole_reference_is_scaled_to_the_box_black_around_the_thing():
    background, reference = noise(1), Image.new("RGB", (50, 50), "white")
    reference.paste((200, 0, 0), (10, 10, 30, 20))
    out = np.asarray(composite(background, reference, box_mask((10, 10, 30, 20), (50, 50)), (5, 6, 30, 31), whole=True))
    changed = (out != np.asarray(background)).any(-1)
    assert np.array_equal(changed, region(10, 11, 20, 16))  # a half of it all, the corner of the box left as it is
    assert (out[12:15, 11:19] == (200, 0, 0)).all()
    odd = np.asarray(composite(background, reference, box_mask((10, 10, 30, 20), (50, 50)), (0, 0, 35, 35), whole=True))
    assert (odd[7:14, 7:21, 1:] == 0).all() and odd[7:14, 7:21, 0].min() < 200  # its rim is mixed with black, not white


# ---- pasting


def test_outside_the_mask_the_originals_very_pixels_stay():
    size = 200, 128
    original, edit = noise(1, size), noise(2, size)
    mask = box_mask((20, 10, 200, 100), size)  # to the right border, which is no edge
    out, a, b = (np.asarray(image, int) for image in (pasted(edit, original, mask), original, edit))
    inside = np.asarray(mask) > 0
    assert np.array_equal(out[~inside], a[~inside]) and feather(size) == 2
    assert np.array_equal(out[12:98, 22:], b[12:98, 22:])
    rim = (a[10, 30:199] + b[10, 30:199]) / 2  # half of each at the first of two pixels
    assert np.abs(out[10, 30:199] - rim).max() <= 0.5


# ---- files and records


def test_masks_of_files_are_black_and_white_and_of_the_pictures_size(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 127], [128, 255]], np.uint8)).save(path)
    mask = np.asarray(open_mask(path, (40, 40)))
    assert (mask[:20] == 0).all() and (mask[20:] == 255).all()
    with pytest.raises(SettingsError, match="aspect"):
        open_mask(path, (40, 30))
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(SettingsError, match="no white place"):
        open_mask(path, (8, 8))
    path.write_text("no picture")
    with pytest.raises(PictureError):
        open_mask(path, (8, 8))


def test_masks_and_moves_survive_a_record():
    mask = black_and_white(noise(3), SIZE)
    move = Move(box_mask((1, 2, 5, 9), SIZE), box_mask((10, 12, 15, 19), SIZE))
    record = asked_as_text(mask, (move,), True)
    asked = asked_in(record)
    assert asked["mask"].tobytes() == mask.tobytes() and asked["paste"] is True
    assert asked["moves"][0].target.tobytes() == move.target.tobytes()
    assert asked_as_text(**asked) == record and asked_as_text() == {} == asked_in({})


@pytest.mark.parametrize("record", [{"mask": 3}, {"mask": "!"}, {"mask": "aGVsbG8="}, {"moves": []}, {"moves": [["a"]]},
                                    {"moves": 7}, {"moves": [[1, 2]]}, {"paste": True},
                                    {"moves": [["x", "y"]] * 99}])
def test_damaged_ones_are_refused(record):
    with pytest.raises(PictureError, match="damaged"):
        asked_in(record)


def test_a_mask_in_a_record_that_is_no_plain_mask_is_refused():
    import base64
    import io
    out = io.BytesIO()
    noise().save(out, "PNG")
    with pytest.raises(PictureError, match="damaged"):
        mask_of_text(base64.b64encode(out.getvalue()).decode())
    with pytest.raises(PictureError, match="damaged"):
        asked_in({"mask": mask_text(box_mask((0, 0, 2, 2), (4, 4))), "moves": [
            [mask_text(box_mask((0, 0, 2, 2), (5, 5)))] * 2]})
