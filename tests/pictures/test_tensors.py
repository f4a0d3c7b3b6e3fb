"""Masks of where an edit may be."""

import pytest
import torch
from PIL import Image

from sage.errors import SettingsError
from sage.pictures import show_mask, to_mask


def test_a_place_is_in_the_mask_where_half_of_it_is_white():
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 15, 20))  # of the second column half, and 128 is white
    assert to_mask(image, (4, 2)).tolist() == [[[[1, 1, 0, 0]] * 2]]
    image.paste(0, (14, 0, 15, 20))
    assert to_mask(image, (4, 2)).tolist() == [[[[1, 0, 0, 0]] * 2]]


@pytest.mark.parametrize("mode", ("1", "L", "P", "RGB", "RGBA", "I;16"))
def test_pictures_of_any_mode_are_masks(mode):
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 4, 8))
    if mode == "I;16":
        image = Image.fromarray((torch.tensor(list(image.tobytes())).reshape(8, 8) * 257).numpy().astype("uint16"))
    else:
        image = image.convert(mode)
    assert to_mask(image, (2, 2)).tolist() == [[[[1, 0], [1, 0]]]]


@pytest.mark.parametrize("image, said", ((Image.new("L", (8, 8)), "no white place"), ("a.png", "the mask is str"),
                                         (Image.new("L", (8, 8), 100), "no white place")))
def test_what_marks_nothing_is_refused(image, said):
    with pytest.raises(SettingsError, match=said):
        to_mask(image, (2, 2))


def test_what_is_shown_as_free_to_change_lies_in_both_masks():
    picture, given = Image.new("RGB", (8, 8), "red"), Image.new("L", (8, 8))
    given.paste(255, (0, 0, 8, 4))
    found = torch.tensor([[[[1.0, 0.0]]]])  # the left half

    def free(image: Image.Image) -> set[tuple[int, int]]:
        return {(x, y) for x in (0, 7) for y in (0, 7) if image.getpixel((x, y)) == (255, 0, 0)}

    assert free(show_mask(picture, found)) == {(0, 0), (0, 7)}
    assert free(show_mask(picture, None, given)) == {(0, 0), (7, 0)}
    assert free(show_mask(picture, found, given)) == {(0, 0)}
