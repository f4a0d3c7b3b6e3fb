"""What an edit was made of: read from a record as a stranger's word, and found again by no more than names."""

import pytest
from PIL import Image

from sage import pictures
from sage.errors import PictureError
from sage.pictures.metadata import read_record
from sage.pictures.originals import Paste, composed_again, identity, original, pastes_in
from sage.pictures.regions import box_mask


@pytest.fixture
def things(tmp_path, monkeypatch):
    """A background and a red picture in two folders, and the record of putting a part of this into that."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (40, 30), "white").save(tmp_path / "here" / "table.png")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "there" / "red.png")
    monkeypatch.chdir(tmp_path)
    paste = Paste(identity(tmp_path / "there" / "red.png"), box_mask((5, 5, 15, 15), (20, 20)), (10, 10, 20, 25))
    return {"picture": identity(tmp_path / "here" / "table.png"), "composed": [paste.as_dict()]}


def test_what_was_put_in_is_read_as_it_was_written(things):
    [paste] = pastes_in(things)
    assert paste.as_dict() == things["composed"][0] and paste.mask.getbbox() == (5, 5, 15, 15)
    assert pastes_in({}) == () and not paste.whole


def test_a_whole_picture_is_put_in_again(things, tmp_path):
    things["composed"][0]["whole"] = True
    [paste] = pastes_in(things)
    assert paste.whole and paste.as_dict() == things["composed"][0]
    made = composed_again(pictures.open_picture("here/table.png"), things, tmp_path / "there")
    seen = [made.getpixel(place) for place in ((11, 17), (15, 17), (18, 17))]
    assert seen == [(255, 255, 255), (255, 0, 0), (255, 255, 255)]  # the middle half of the box


def test_the_original_is_made_again_of_files_beside_it(things, tmp_path):
    with pytest.raises(PictureError, match="composed with red.png, and there is no such file beside it"):
        original(things, "here/table.png")
    (tmp_path / "here" / "red.png").write_bytes((tmp_path / "there" / "red.png").read_bytes())
    made = original(things, "here/table.png")
    assert made.getpixel((12, 20)) == (255, 0, 0) and made.getpixel((9, 20)) == (255, 255, 255)
    things["picture"]["scaled"] = "20 x 25"
    assert original(things, "here/table.png").size == (20, 25)
    with pytest.raises(PictureError, match="is not the picture that the edit was made of .table.png"):
        original(things, "there/red.png")


def test_a_record_says_no_path(things, tmp_path):
    background = pictures.open_picture("here/table.png")
    for name in (str(tmp_path / "there" / "red.png"), "../there/red.png", "there/red.png"):
        things["composed"][0]["reference"]["name"] = name
        with pytest.raises(PictureError, match="no such file"):
            composed_again(background, things, tmp_path / "here")
        assert composed_again(background, things, tmp_path / "there").getpixel((12, 20)) == (255, 0, 0)
    for name in ("", "..", "\0", "x" * 5000):
        things["composed"][0]["reference"]["name"] = name
        with pytest.raises(PictureError, match="no such file"):
            composed_again(background, things, tmp_path / "there")


def test_a_picture_of_another_size_is_no_place_for_it(things, tmp_path):
    with pytest.raises(PictureError, match="another size than when that was done"):
        composed_again(Image.new("RGB", (15, 30)), things, tmp_path / "there")
    things["composed"][0]["reference"]["scaled"] = "10 x 10"
    with pytest.raises(PictureError, match="another size than when that was done"):
        composed_again(Image.new("RGB", (40, 30)), things, tmp_path / "there")


@pytest.mark.parametrize("change", [
    {"whole": 1}, {"whole": None},
    {"box": [1, 2, 3]}, {"box": [20, 10, 10, 25]}, {"box": [-1, 10, 20, 25]}, {"box": [0, 0, 1.5, 2]}, {"box": None},
    {"mask": ""}, {"mask": None}, {"mask": Paste({}, Image.new("L", (4, 4)), (0, 0, 1, 1)).as_dict()["mask"]},
    {"reference": {}}, {"reference": "red.png"}, {"reference": {"name": "a", "sha256": "b", "scaled": "1 x 99999999"}}])
def test_a_damaged_one_is_one_line(things, tmp_path, change):
    record = {"version": 2, "method": "plain", "settings": {}, "savings": {}, "source": "a", "target": "b",
              "model": "m", "made": {}, "truncate": False, "prediction_type": None, **things}
    pictures.save_picture(Image.new("RGB", (4, 4)), tmp_path / "edit.png", record)
    assert pastes_in(read_record(tmp_path / "edit.png"))
    for composed in ([record["composed"][0] | change], [1], {"box": []}, record["composed"] * 17):
        pictures.save_picture(Image.new("RGB", (4, 4)), tmp_path / "edit.png", record | {"composed": composed})
        with pytest.raises(PictureError, match="the settings in it are damaged"):
            read_record(tmp_path / "edit.png")
