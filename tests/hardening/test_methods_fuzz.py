"""All that knows methods, attacked: flags, names, records, tables and labels of every one; an answer, or one line."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sage.batch.table import TableError, read_table
from sage.commands import main as cli
from sage.commands.edit import plan_edit
from sage.commands.generate import plan_generation
from sage.editing import invert
from sage.errors import PictureError, SageError, SettingsError
from sage.method import METHODS, able, method
from sage.models.sites import KeysValues
from sage.pictures.metadata import read_record, settings_in
from sage.trajectory.disk import load_trajectory, save_trajectory
from sage.trajectory.kinds import KINDS, Lent, Noises, NullText, Pair, Reconstructed, Settled, Trajectory, named
from sage.trajectory.label import read_label
from tests import small
from tests.hardening import files
from tests.hardening.ends import ends_well, tries
from tests.trajectory.test_hostile import taken_apart, written

NAMES = st.one_of(st.sampled_from((*METHODS, *(f"{name}+{way}" for name in METHODS for way in (
    "ddim", "null-text", "negative", "proximal", "direct", "x")))), st.sampled_from((
        "", "+", "p2p+", "+direct", "P2P", "p2p ", "p2p+direct+direct", "x.py:Y", "a/b.py:", ".py:", "../x.py:Y", "\0",
        "p2p\n", "é" * 300, "sage.methods.sage:SAGE", "os:system", "__class__")), st.text(max_size=12))
WORDS = st.one_of(st.sampled_from((
    "", " ", "0", "1", "-1", "7", "0.5", "1e9", "nan", "inf", "-inf", "1e-400", "9" * 500, "0x10", "1_000", "yes", "no",
    "auto", "none", "a,b", "a:2", "a:b:3", ":", ",", "--", "-", "\0x", "\udce9", "\ud800", "é", "é:2", "x" * 5000,
    "../../x.png", "text,tiles", "out.png", "o/", "/dev/null", "~nosuchuser/e.png", "stilllife", "cpu", "float16",
    "linspace", "a cat", "a cat " * 900)), st.text(max_size=12))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("methods") / "tokenizer").model


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("p.png")
    return tmp_path


def flags(words: list[str]) -> list[str]:
    """The flags that a command has with these words, those that end it at once left out."""
    parser = cli.make_parser(words)
    command = next(action for action in parser._actions if action.choices and "edit" in action.choices)
    return sorted({flag for flag in command.choices[words[0]]._option_string_actions} - {"-h", "--help"})


class ParserError(Exception):
    """argparse has ended the command."""


def planned(capsys, words: list[str], plan):
    """What a command plans; ParserError where its parser has ended it, in one line and with status 2."""
    capsys.readouterr()
    try:
        return plan(cli.make_parser(words).parse_args(words))
    except SystemExit as end:
        error = capsys.readouterr().err
        assert end.code == 2 and error.count("\n") == 1, (words, error)
        raise ParserError(error[:-1].removeprefix("sage: error: ")) from end


@tries(15, 600)
@given(st.data())
def test_any_flags_of_generate(here, capsys, data):
    name = data.draw(st.sampled_from((*able("generate"), "sage")))
    words = ["generate", *data.draw(st.lists(WORDS, max_size=3)), "--model", "stilllife", "--method", name]
    for flag in data.draw(st.lists(st.sampled_from(flags(["generate", "--method", name])), max_size=4)):
        words += [flag, *data.draw(st.lists(WORDS, max_size=1))]
    job = ends_well("generate, planned", lambda: planned(capsys, words, plan_generation), SageError, ParserError)
    assert job is None or job.prompts and 1 <= job.count <= 1000 and len(job.outs) == len(job.prompts)


@tries(15, 600)
@given(st.data())
def test_any_flags_of_an_edit_by_any_method(here, capsys, data):
    name = data.draw(st.sampled_from(able("edit")))
    words = ["edit", "p.png", "--source", "a cat", "--target", "a dog", "--model", "stilllife", "--method", name]
    for flag in data.draw(st.lists(st.sampled_from(flags(["edit", "--method", name])), max_size=4)):
        words += [flag, *data.draw(st.lists(WORDS, max_size=1))]
    job = ends_well("edit, planned", lambda: planned(capsys, words, plan_edit), SageError, ParserError)
    assert job is None or job.method.does("edit") and all(out.suffix for out in job.outs)


@tries(150, 4000)
@given(NAMES)
def test_any_name_of_a_method(name):
    found = ends_well("names of methods", lambda: method(name), SettingsError)
    assert found is None or name.partition("+")[0] in METHODS


def record(name: str) -> dict:
    return {"version": 2, "method": name, "settings": method(name).Settings().as_dict(), "savings": {},
            "source": "a cat", "target": "a dog", "picture": {"name": "p.png", "sha256": "0" * 64},
            "model": "stilllife", "prediction_type": None, "truncate": False,
            "made": {"device": "cpu", "dtype": "float32", "versions": {}}}


@tries(50, 4000)
@given(st.data())
def test_a_record_of_any_method_gives_its_settings_or_one_error(tmp_path_factory, data):
    honest = record(data.draw(st.sampled_from(tuple(METHODS))))
    part = data.draw(st.sampled_from((None, "settings", "settings", "savings", "method")))
    if part == "method":
        text = json.dumps(honest | {"method": data.draw(NAMES)})
    elif part:
        honest[part] = honest[part] or {"text": True}
        text = json.dumps(honest | {part: "HERE"}).replace('"HERE"', data.draw(files.hostile_json(honest[part])))
    else:
        text = data.draw(files.hostile_json(honest | {"task": "generate", "negative": "", "size": [8, 8], "batch": 1}))
    path = tmp_path_factory.mktemp("r") / "old.png"
    path.write_bytes(files.with_settings(text))
    found = ends_well("records of methods", lambda: settings_in(read_record(path)), PictureError, SettingsError)
    assert found is None or type(found).from_dict(json.loads(json.dumps(found.as_dict()))) == found


@tries(50, 4000)
@given(st.data())
def test_a_table_that_names_methods(tmp_path_factory, data):
    names = sorted({name for owner in METHODS for name in method(owner).Settings.names()})
    rows = []
    for _ in range(data.draw(st.integers(1, 4))):
        row = {"picture": "p.png", "source": "a cat", "target": "a dog", "method": data.draw(NAMES)}
        for name in data.draw(st.lists(st.sampled_from(names), max_size=3)):
            row[name] = data.draw(st.one_of(WORDS, files.VALUES))
        rows.append(row)
    path = tmp_path_factory.mktemp("t") / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8", errors="surrogatepass")
    default = data.draw(st.sampled_from(able("edit")))
    for row in ends_well("tables with methods", lambda: read_table(path, default), TableError) or ():
        assert row.wrong.isprintable()
        if not row.wrong:
            found = method(row.method)
            assert found.does("edit") and found.Settings().but(**row.settings) and ".py:" not in row.method


# ---- trajectories


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """The bytes of a trajectory of each kind, made under a method that has it or could have it."""
    folder, found = tmp_path_factory.mktemp("stored"), {}
    config = method("p2p").Settings(steps=2, cross_level=0)
    made = invert(model, small.picture(), "a cat on a mat", config)
    heard = invert(model, small.picture(), "a cat on a mat", method("sage").Settings(steps=2, cross_level=0))
    text, noise = model.embed(made.source), torch.randn_like(made.latents[0])
    of = {"origin": made.origin, "latents": made.latents}
    for trajectory in (Trajectory(**of), heard, NullText(**of, empties=(text, text.mix(text, 0.5))),
                       Pair(**of, states=(noise.double(), noise.double())), Noises(**of, noises=(noise, 2 * noise)),
                       Settled(**of, residuals=(torch.zeros(1), torch.ones(1))),
                       Reconstructed(**of, noises=(noise, 2 * noise), reconstructions=(noise, 3 * noise)),
                       Lent(**of, wanted=heard.wanted, heard=tuple(tuple(
                           pairs and tuple(KeysValues(pair.queries, pair.keys) for pair in pairs) for pairs in part)
                           for part in heard.heard))):
        path = save_trajectory(trajectory, folder / f"{trajectory.kind}.safetensors", model)
        found[trajectory.kind] = path.read_bytes()
    assert found.keys() == KINDS.keys()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_of_any_kind_that_lies(model, stored, tmp_path_factory, kind):
    @tries(15, 600)
    @given(st.data())
    def ends(data):
        header, label, tensors = taken_apart(stored[kind])
        how = data.draw(st.sampled_from(("label", "settings", "kind", "method", "tensors", "bytes")))
        text = json.dumps(label)
        if how == "label":
            text = data.draw(files.hostile_json(label))
        elif how == "settings":
            text = json.dumps(label | {"settings": "HERE"}).replace('"HERE"', data.draw(
                files.hostile_json(label["settings"])))
        elif how == "kind":
            text = json.dumps(label | {"kind": data.draw(st.sampled_from(tuple(KINDS)))})
        elif how == "method":
            text = json.dumps(label | {"method": data.draw(NAMES)})
        elif how == "tensors":
            name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
            header[name] = json.loads(data.draw(files.hostile_json(header[name])))
        path = tmp_path_factory.mktemp("l") / "t.safetensors"
        written(path, header, tensors, text.encode("utf-8", "replace").decode())
        if how == "bytes":
            path.write_bytes(data.draw(files.damaged(path.read_bytes())))
        ends_well("labels of each kind", lambda: read_label(path), SettingsError)
        found = ends_well("trajectories of each kind", lambda: load_trajectory(path, model), SettingsError)
        assert found is None or all(torch.isfinite(tensor).all() for _, tensor in named(found))

    ends()
    path = tmp_path_factory.mktemp("honest") / "t.safetensors"
    path.write_bytes(stored[kind])
    assert type(load_trajectory(path, model)) is KINDS[kind]
