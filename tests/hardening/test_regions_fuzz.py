"""Masks, moves, pastes and LoRAs in a stranger's picture: an edit that could be made again, or one line."""

import base64
import copy
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sage.commands import main as cli
from sage.commands.edit import plan_edit
from sage.errors import PictureError, SageError
from sage.method import method
from sage.pictures.masks import mask_text
from sage.pictures.metadata import asked_in, masks_in, read_record
from sage.pictures.originals import pastes_in
from sage.pictures.regions import box_mask
from tests.hardening import files
from tests.hardening.ends import ends_well, tries

SIZE = 32, 24
SMALL, OTHER = box_mask((4, 4, 12, 20), SIZE), box_mask((0, 0, 3, 3), (8, 8))
VAST = base64.b64encode(files.png(size=(8, 8)).replace((8).to_bytes(4, "big") * 2, (2**31 - 1).to_bytes(4, "big") * 2)
                        ).decode()
# What a mask can be written as: honest ones, of other sizes, black, no mask, damaged, and claiming a vast size.
MASKS = st.one_of(
    st.sampled_from((mask_text(SMALL), mask_text(OTHER), mask_text(Image.new("L", SIZE)), VAST, "", "A", "AAAA")),
    st.sampled_from((Image.new("RGB", SIZE), Image.new("L", SIZE, 255))).map(
        lambda image: base64.b64encode(files.encoded(image, "PNG")).decode()),
    files.damaged(base64.b64decode(mask_text(SMALL))).map(lambda raw: base64.b64encode(files.rechecked(raw)).decode()),
    files.VALUES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    for name, colour in (("p", "teal"), ("r", "red")):
        Image.new("RGB", SIZE, colour).save(folder / f"{name}.png")
    return folder


def known(path) -> dict:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def record(folder, name: str) -> dict:
    text = mask_text(SMALL)
    return {"version": 2, "method": name, "settings": method(name).Settings().as_dict(), "savings": {},
            "source": "a cat", "target": "a dog", "picture": known(folder / "p.png"), "model": "stilllife",
            "prediction_type": None, "truncate": False, "made": {}, "mask": text, "paste": True,
            "moves": [[text, text]], "lora": [{"name": "a.safetensors", "sha256": "0" * 64, "scale": 0.5}],
            "composed": [{"reference": known(folder / "r.png"), "mask": text, "box": [2, 2, 20, 20]}]}


@tries(60, 4000)
@given(st.data())
def test_regions_in_a_record_are_whole_or_refused(folder, data):
    honest = record(folder, data.draw(st.sampled_from(("sage", "regiondrag", "infedit", "p2p"))))
    for name in data.draw(st.lists(st.sampled_from(("mask", "moves", "composed", "paste", "lora")), max_size=4)):
        honest.pop(name, None)
    changed = copy.deepcopy(honest)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(("mask", "moves", "composed", "paste", "lora", "scaled", "any")))
        paste = data.draw(st.one_of(st.none(), files.VALUES))
        if name == "mask":
            changed["mask"] = data.draw(MASKS)
        elif name == "moves":
            changed["moves"] = data.draw(st.one_of(files.VALUES, st.lists(st.lists(MASKS, max_size=3), max_size=3)))
        elif name == "composed":
            reference = data.draw(st.one_of(st.just(known(folder / "r.png")), files.VALUES))
            box = data.draw(st.lists(st.one_of(st.integers(-3, 40), files.NUMBERS), max_size=5))
            part = {"reference": reference, "mask": data.draw(MASKS), "box": box}
            changed["composed"] = [part] * data.draw(st.sampled_from((1, 1, 2, 17)))
        elif name == "lora":
            changed["lora"] = [{"name": data.draw(files.TEXTS), "sha256": "", "scale": data.draw(files.NUMBERS)}]
        elif name == "scaled":
            size = data.draw(st.sampled_from(("0 x 0", "16 x 12", "99999 x 99999", "1 x 1", "\u0663 x \u0664", "x")))
            changed["picture"] = honest["picture"] | {"scaled": size}
        else:
            changed[data.draw(st.sampled_from(sorted(changed)))] = paste
    path = folder / "old.png"
    path.write_bytes(files.with_settings(json.dumps(changed)))
    found = ends_well("regions in settings", lambda: read_record(path), PictureError)
    if found is not None:
        assert len({mask.size for mask in masks_in(asked_in(found))}) < 2 and len(pastes_in(found)) <= 16
    command = data.draw(st.sampled_from((["edit"], ["drag", "--method", "regiondrag"], ["compose", "--method",
                                                                                       "infedit"])))
    words = [*command, str(folder / "p.png"), "--config-from", str(path), "--out", str(folder / "out.png"), "--model",
             "stilllife"]
    words += [] if "--method" in command else ["--method", found["method"] if found else "sage"]
    job = ends_well("regions in settings, planned", lambda: plan_edit(cli.make_parser(words).parse_args(words)),
                    SageError)
    if job is not None:
        assert found is not None and all(mask.size == job.image.size for mask in masks_in(job.asked))
