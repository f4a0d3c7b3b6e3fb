"""What is counted of pictures drawn under prompts that name everything."""

import numpy as np
import pytest

from sage.stilllife.prompts import prompt
from training import drawn


class Reader:
    """Reads off a picture what its first value says, but for what is to be mistaken."""

    def __init__(self, scenes, mistaken=()):
        self.scenes, self.mistaken = scenes, mistaken

    def attributes(self, picture):
        return self.scenes[picture.flat[0]].attributes() | dict.fromkeys(self.mistaken, "?")


def test_a_picture_is_right_in_what_its_prompt_names():
    scenes = drawn.scenes(20)
    assert len({prompt(scene) for scene in scenes}) == 20
    found = [np.full((8, 8, 3), i, np.uint8) for i in range(20)]
    assert np.array_equal(drawn.right(Reader(scenes), found, scenes), np.ones(20))
    rows = drawn.hits(Reader(scenes, ("form", "second_form")), found, scenes)
    alone = [scene.second is None for scene in scenes]
    assert any(alone) and not all(alone)
    for row, lone in zip(rows, alone, strict=True):
        assert not row["form"] and row["colour"] and ("second_form" in row) is not lone
    shares = drawn.right(Reader(scenes, ("form",)), found, scenes)
    assert shares == pytest.approx([1 - 1 / len(row) for row in rows])
