"""Files that are damaged or lie about themselves: a trajectory of finite numbers, or one SettingsError."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sage import EditConfig
from sage.editing import invert
from sage.errors import SettingsError
from sage.files import MAX_HEADER
from sage.trajectory.disk import load_trajectory, save_trajectory
from sage.trajectory.kinds import named
from sage.trajectory.label import KEY, is_trajectory, read_label
from tests import small
from tests.hardening import files
from tests.hardening.ends import ends_well, tries

CONFIG = EditConfig(steps=2, cross_level=0, replace_fraction=0.7, reweight={"mat": 2.0}, reweight_passes="all",
                    spare="removed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("hostile") / "tokenizer").model


@pytest.fixture(scope="module")
def raw(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "t.safetensors"
    trajectory = invert(model, small.picture(), "a cat on a mat", CONFIG, target="a dog on a mat")
    return save_trajectory(trajectory, path, model).read_bytes()


def taken_apart(raw: bytes) -> tuple[dict, dict, bytes]:
    """The header, the label in it, and the tensors."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    return header, json.loads(header["__metadata__"][KEY]), raw[end:]


def written(path, header: dict, data: bytes, label: dict | str | None = None):
    """A file of these parts at `path`, with another label if one is given."""
    if label is not None:
        header = header | {"__metadata__": {KEY: label if isinstance(label, str) else json.dumps(label)}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def loads(kind: str, path, model) -> bool:
    """Whether a file is taken for a trajectory, as all that can be done with it then must go well."""
    ends_well(f"{kind}, its label", lambda: read_label(path), SettingsError)
    is_trajectory(path)
    trajectory = ends_well(kind, lambda: load_trajectory(path, model), SettingsError)
    if trajectory is not None:
        assert all(torch.isfinite(tensor).all() for _, tensor in named(trajectory))
        assert len(trajectory.latents) == trajectory.config.steps + 1
    return trajectory is not None


@tries(60, 3000)
@given(st.data())
def test_damaged_bytes(model, raw, tmp_path_factory, data):
    end = 8 + int.from_bytes(raw[:8], "little")
    broken = data.draw(st.one_of(files.damaged(raw), files.damaged(raw, end),
                                 files.damaged(raw[:end]).map(lambda head: head + raw[end:])))
    path = tmp_path_factory.mktemp("d") / "t.safetensors"
    path.write_bytes(broken)
    loads("trajectories, damaged", path, model)


@tries(60, 3000)
@given(st.data())
def test_a_label_that_lies(model, raw, tmp_path_factory, data):
    header, label, tensors = taken_apart(raw)
    if data.draw(st.booleans()):
        label["settings"] = json.loads(json.dumps(label["settings"]))
        name = data.draw(st.sampled_from(sorted(label["settings"])))
        label["settings"][name] = data.draw(files.VALUES)
    path = tmp_path_factory.mktemp("l") / "t.safetensors"
    text = data.draw(st.one_of(files.hostile_json(label), st.just(json.dumps(label))))
    loads("trajectories, labels", written(path, header, tensors, text.encode("utf-8", "replace").decode()), model)


LIES = {
    "no label": lambda label: label.clear(),
    "nothing about the prediction": lambda label: label.pop("prediction_type"),
    "a version to come": lambda label: label.update(version=3),
    "more steps": lambda label: label["settings"].update(steps=1000),
    "more steps, with latents": lambda label: (label["settings"].update(steps=3), label.update(steps=3)),
    "other maps": lambda label: label["wants"][0].update(kind="cross"),
    "maps of other steps": lambda label: label["wants"][0].update(steps=[0, 1, 2]),
    "a level that is not there": lambda label: label["wants"][0].update(level=7),
    "a kind that is not there": lambda label: label.update(kind="video"),
    "another kind": lambda label: label.update(kind="noises"),
    "a method of someone's own": lambda label: label.update(method="evil.py:Evil"),
    "a method that is not there": lambda label: label.update(method="telepathy"),
    "a tensor that is another": lambda label: label["same"].update({"latents.1": "heard.0.0.0.keys"}),
    "an order of more dimensions": lambda label: label["orders"].update({"latents.1": [0, 1, 2, 3, 4]}),
    "an order twice": lambda label: label["orders"].update({"latents.1": [0, 1, 1, 3]}),
    "a larger picture": lambda label: label.update(picture_size=[64, 128]),
    "a vast picture": lambda label: label.update(picture_size=[65_000, 65_000]),
    "a size that does not fit": lambda label: label["settings"].update(size=65),
    "the largest size": lambda label: label["settings"].update(size=4096),
    "no picture": lambda label: label.update(pictures=[]),
    "more pictures": lambda label: (label["pictures"].append("0" * 64), label["source"].append(label["source"][0])),
    "a picture by another name": lambda label: label.update(pictures=["x" * 64]),
    "no token": lambda label: label["source"][0].update(ids=[0.5]),
    "endless prompt": lambda label: label["source"][0].update(text="x" * 10_000),
    "half a letter": lambda label: label["source"][0].update(text="\ud800"),
    "colours": lambda label: label.update(version="\x1b[31m"),
    "latents turned": lambda label: label["orders"].update({"latents.1": [0, 3, 1, 2]}),
    "a checksum of another file": lambda label: label.update(crc32=(label["crc32"] + 1) % 2**32),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_in_one_line(model, raw, tmp_path, lie):
    header, label, tensors = taken_apart(raw)
    LIES[lie](label)
    with pytest.raises(SettingsError) as caught:
        load_trajectory(written(tmp_path / "t.safetensors", header, tensors, label), model)
    assert str(caught.value).isprintable() and str(tmp_path) in str(caught.value)


def without(header: dict, name: str) -> dict:
    """The header without a tensor's name, its bytes given to another name that nobody expects."""
    return {("stray" if key == name else key): entry for key, entry in header.items()}


def changed(header: dict, name: str, **entry) -> dict:
    return header | {name: header[name] | entry}


TENSORS = {
    "missing": (lambda h: without(h, "latents.2"), "1 tensors missing .latents.2.; 1 unexpected .stray."),
    "no first keys": (lambda h: without(h, "heard.1.0.0.keys"), "missing .heard.1.0.0.keys"),
    "other shape": (lambda h: changed(h, "latents.0", shape=[1, 16, 4, 16]), "1 of another shape"),
    "no shape": (lambda h: changed(h, "latents.0", shape=[1024]), "1 of another shape"),
    "whole numbers": (lambda h: changed(h, "heard.0.0.0.keys", dtype="I32"),
                      "1 of another type .heard.0.0.0.keys: I32"),
    "other floats": (lambda h: changed(h, "latents.0", dtype="BF16", shape=[2, 4, 16, 16]), "another"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_named(model, raw, tmp_path, case):
    change, said = TENSORS[case]
    header, label, tensors = taken_apart(raw)
    with pytest.raises(SettingsError, match=said):
        load_trajectory(written(tmp_path / "t.safetensors", change(header), tensors, label), model)


def test_numbers_that_are_not_finite_are_refused(model, raw, tmp_path):
    header, label, tensors = taken_apart(raw)
    start = header["latents.1"]["data_offsets"][0]
    tensors = tensors[:start] + b"\0\0\xc0\x7f" + tensors[start + 4:]  # NaN
    with pytest.raises(SettingsError, match="latents.1 holds NaN"):
        load_trajectory(written(tmp_path / "t.safetensors", header, tensors, label), model)


def test_what_is_no_trajectory_is_said_to_be_none(model, tmp_path):
    for make, said in ((lambda p: None, "does not exist"), (lambda p: p.mkdir(), "is a folder"),
                       (lambda p: os.mkfifo(p), "is no plain file"), (lambda p: p.write_bytes(b""), "cut short"),
                       (lambda p: p.write_bytes(b"\xff" * 100), "cut short"),
                       (lambda p: written(p, {}, b""), "is no trajectory"),
                       (lambda p: p.write_bytes((MAX_HEADER + 1).to_bytes(8, "little") + b" " * (MAX_HEADER + 2)),
                        "in more than 8 MB")):
        path = tmp_path / f"{said}.safetensors"
        make(path)
        assert not is_trajectory(path)
        with pytest.raises(SettingsError, match=said):
            load_trajectory(path, model)
        if path.is_file():
            path.unlink()
