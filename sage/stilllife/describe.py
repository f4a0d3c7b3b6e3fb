"""What was read off a picture -> its description in full, worded as the training captions are."""

from collections.abc import Mapping

from sage.stilllife.captions import join
from sage.stilllife.prompts import CANONICAL, everything, phrases
from sage.stilllife.scenes import COLOURS, SIDES, Companion, Scene, Thing

SURE = 0.5  # what is less probable is not named


def described(read: Mapping[str, tuple[str, float]], sure: float = SURE) -> tuple[str, tuple[str, ...]]:
    """A description of what was read, and the names of the attributes that are unsure, which it leaves out.

    Args:
        read: for each attribute its most probable value and how probable that is.
        sure: the least probability of what is named; the form always is, as a guess if it must.
    """
    value = {name: of for name, (of, _) in read.items()}
    main = Thing(value["form"], value["colour"], value["material"], value["size"], value["position"],
                 "upright" if value["form"] == "ball" else value["tilt"])
    second, unsure = None, {name for name, (_, share) in read.items() if share < sure}
    if value["second_form"] != "none" and "second_form" not in unsure:
        colour = value["second_colour"]
        if colour in ("none", main.colour):  # which no scene has: the form alone is named
            unsure.add("second_colour")
            colour = next(c for c in COLOURS if c != main.colour)
        side = next(side for side in SIDES if side != main.position)
        second = Companion(value["second_form"], colour, side)
    scene = Scene(main, second, value["floor"], value["background"], value["style"])
    keep = everything(scene, CANONICAL) - (unsure - {"form"})
    return join(phrases(scene, CANONICAL, keep)), tuple(name for name in read if name in unsure)
