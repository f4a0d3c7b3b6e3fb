"""The command line with a stub for the engine: what is checked, what is written, what is said, and how it ends."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sage
from sage import EditConfig, pictures
from sage.__main__ import main as start
from sage.commands import main as cli
from sage.commands.flags import flag, given_settings
from sage.display.progress import Progress
from sage.errors import PromptError
from sage.models.known import KNOWN
from sage.models.savings import Savings
from sage.settings import annotations

ROOT = Path(__file__).resolve().parents[2]
RECOMMENDED = EditConfig(steps=7, reconstruction_scale=3.0)
PROMPTS = ["--source", "a red mug", "--target", "a blue mug"]


class Engine:
    """Stands for sage.load_model and sage.edit, and remembers what was asked of it."""

    def __init__(self, monkeypatch):
        self.loads, self.edits, self.fetches, self.checks = [], [], [], []
        self.fail = None
        for name in ("load_model", "edit", "check_prompts", "vae_reconstruction", "ddim_reconstruction"):
            monkeypatch.setattr(sage, name, getattr(self, name), raising=False)
        monkeypatch.setattr("sage.models.fetch.fetch", lambda name, **_: self.fetches.append(name))

    def load_model(self, model, **options):
        self.loads.append((model, options))
        return SimpleNamespace(name=str(model), recommends={"sage": RECOMMENDED.as_dict()}, device="cpu",
                               dtype="torch.float32")

    def check_prompts(self, model, source, target, config, truncate=False):
        self.checks.append(target)

    def edit(self, model, image, source, target, config, progress, trajectory, truncate, watch=None,
             savings=None, sentences=None, mask=None, paste=False):
        self.edits.append(SimpleNamespace(**{k: v for k, v in locals().items() if k != "self"}))
        for done in range(config.steps + 1):
            progress("edit", done, config.steps)
            if self.fail and done == 3:
                raise self.fail
        mask = SimpleNamespace(shape=(1, 1, 2, 2), detach=lambda: mask, float=lambda: mask, cpu=lambda: mask,
                               numpy=lambda: np.eye(2)[None, None])
        return SimpleNamespace(image=Image.new("RGB", image.size, "blue"), trajectory="trajectory", masks=(mask,),
                               notes=("blending is off",), savings=savings or Savings())

    def vae_reconstruction(self, model, trajectory):
        return Image.new("RGB", (48, 32), "red")

    def ddim_reconstruction(self, model, trajectory, progress):
        return Image.new("RGB", (48, 32), "red")


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path / "weights"))
    for name in ("sd-1.4", "sd-2.1"):
        (tmp_path / "weights" / name / "unet").mkdir(parents=True)
        (tmp_path / "weights" / name / "unet" / "config.json").write_text("{}")
    Image.new("RGB", (48, 32), "red").save("mug.png")
    return Engine(monkeypatch)


def files(folder=".") -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and "weights" not in p.parts}


# ---- arguments


def test_every_setting_is_a_flag_and_no_other():
    parser = cli.make_parser()
    sub = next(iter(parser._subparsers._group_actions)).choices["edit"]
    flags = {option: action for action in sub._actions for option in action.option_strings}
    own = {"-h", "--help", "--source", "--target", "--model", "--out", "--sheet", "--config-from", "--published",
           "--explain", "--trajectory", "--truncate", "--json", "--quiet", "--device", "--dtype", "--prediction-type",
           "--tokenizer", "--method", "--yes", "--mask", "--paste", "--instruction", "--llm", "--llm-model",
           "--lora", "--captioner", "--also"}
    settings = [f for f in fields(EditConfig) if f.name != "mask"]  # it shares its flag with a file
    assert flags.keys() - own == {flag(f.name) for f in settings}
    for f in settings:
        action = flags[flag(f.name)]
        assert f.metadata["help"].replace("%", "%%") in action.help
        assert tuple(action.choices or ()) == f.metadata["choices"]


def test_no_flag_means_the_models_own_settings(engine):
    assert cli.main(["edit", "mug.png", *PROMPTS]) == 0
    assert engine.edits[0].config == RECOMMENDED
    nothing = dict.fromkeys(("device", "dtype", "prediction_type", "tokenizer", "lora"))
    assert engine.loads == [("sd-1.4", nothing)]


def as_flags(config: EditConfig) -> list[str]:
    def text(value):
        if value is None:
            return "none"
        if isinstance(value, dict):
            return ",".join(f"{k}:{v!r}" for k, v in value.items()) or "none"
        return ",".join(value) if isinstance(value, tuple) else str(value)

    return [f"{flag(f.name)}={text(getattr(config, f.name))}" for f in fields(EditConfig)
            if not (f.name == "size" and config.size is None)]


phrase = st.text("abc xyz-é犬'", min_size=1, max_size=6).map(str.strip).filter(bool)
phrases = st.just("auto") | st.none() | st.tuples(phrase, phrase)


def a_setting(f):
    if f.metadata["choices"]:
        return st.sampled_from(f.metadata["choices"])
    if f.name in ("replace", "blend"):
        return phrases
    if f.name == "reweight":
        return st.dictionaries(phrase, st.floats(0, 1000), max_size=2)
    low, high = max(f.metadata["low"], 0), min(f.metadata["high"], 2**40)
    if f.name == "size":
        return st.none() | st.integers(8, 4096)
    return (st.integers(int(low), int(high)) if annotations(EditConfig)[f.name] is int else st.floats(low, high))


configs = st.builds(EditConfig, **{f.name: a_setting(f) for f in fields(EditConfig)})


@settings(derandomize=True, max_examples=40, deadline=None)
@given(configs)
def test_any_settings_come_through_the_flags_and_the_json(config):
    parsed = cli.make_parser(["edit"]).parse_args(["edit", "p.png", *as_flags(config)])
    assert EditConfig(**given_settings(parsed)) == config
    assert EditConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_published_is_the_base_and_flags_win(engine):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--published", "--steps", "9", "--replace", "none"]) == 0
    assert engine.edits[0].config == EditConfig.published(steps=9, replace=None)


# ---- what users get wrong


def one_error(capsys, *words: str) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sage: error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    return err


WRONG = {
    "no picture": (["edit", "gone.png", *PROMPTS], "does not exist"),
    "folder": (["edit", ".", *PROMPTS], "is a folder"),
    "no command": (["--"], "COMMAND"),
    "unknown command": (["paint"], "paint"),
    "unknown flag": (["edit", "mug.png", *PROMPTS, "--step", "3"], "--step"),
    "no picture named": (["edit", *PROMPTS], "IMG"),
    "no source": (["edit", "mug.png", "--target", "b"], "--source is missing"),
    "no target": (["edit", "mug.png", "--source", "b"], "--target is missing"),
    "empty target": (["edit", "mug.png", "--source", "a", "--target", "  "], "target prompt is empty"),
    "one of several targets empty": (["edit", "mug.png", *PROMPTS, "--target", ""], "target prompt is empty"),
    "control": (["edit", "mug.png", "--source", "a", "--target", "\udc80"], "not valid UTF-8"),
    "endless": (["edit", "mug.png", "--source", "a", "--target", "a" * 5000], "5000 characters"),
    "too many words": (["edit", "mug.png", "--source", "a", "--target", "a " * 76], "76 words"),
    "no number": (["edit", "mug.png", *PROMPTS, "--steps", "many"], "--steps"),
    "out of range": (["edit", "mug.png", *PROMPTS, "--steps", "0"], "steps is 0"),
    "infinite": (["edit", "mug.png", *PROMPTS, "--guidance-scale", "inf"], "guidance_scale"),
    "no choice": (["edit", "mug.png", *PROMPTS, "--decay", "slow"], "--decay"),
    "size": (["edit", "mug.png", *PROMPTS, "--size", "500"], "such as 512"),
    "phrases": (["edit", "mug.png", *PROMPTS, "--replace", "red"], "SOURCE,TARGET"),
    "factors": (["edit", "mug.png", *PROMPTS, "--reweight", "blue"], "PHRASE:FACTOR"),
    "factor": (["edit", "mug.png", *PROMPTS, "--reweight", "blue:much"], "PHRASE:FACTOR"),
    "source phrase": (["edit", "mug.png", *PROMPTS, "--replace", "green,blue"], "'green' is not in the prompt 'a red"),
    "target phrase": (["edit", "mug.png", *PROMPTS, "--blend", "red,green"], "'green' is not in the prompt 'a blue"),
    "weighted phrase": (["edit", "mug.png", *PROMPTS, "--reweight", "green:2"], "'green' is not in the prompt"),
    "unknown model": (["edit", "mug.png", *PROMPTS, "--model", "sd-9"], "no model is called 'sd-9'"),
    "missing file": (["edit", "mug.png", *PROMPTS, "--model", "gone.safetensors"], "gone.safetensors does not exist"),
    "pickle": (["edit", "mug.png", *PROMPTS, "--model", "m.ckpt"], "pickle"),
    "tokenizer": (["edit", "mug.png", *PROMPTS, "--tokenizer", "gone"], "gone is no folder"),
    "dtype": (["edit", "mug.png", *PROMPTS, "--dtype", "int8"], "--dtype"),
    "over the input": (["edit", "mug.png", *PROMPTS, "--out", "./mug.png"], "would be overwritten"),
    "sheet over the input": (["edit", "mug.png", *PROMPTS, "--sheet", "mug.png"], "would be overwritten"),
    "sheet over the edit": (["edit", "mug.png", *PROMPTS, "--out", "a.png", "--sheet", "a.png"], "cannot hold both"),
    "output format": (["edit", "mug.png", *PROMPTS, "--out", "a.bmp"], "written as"),
    "output below a file": (["edit", "mug.png", *PROMPTS, "--out", "mug.png/a.png"], "cannot be written"),
    "no settings": (["edit", "mug.png", "--config-from", "mug.png"], "holds no settings"),
    "info of nothing": (["info", "nothing"], "no model is called 'nothing'"),
    "info of a missing picture": (["info", "nothing.png"], "does not exist"),
    "info of a plain picture": (["info", "mug.png"], "holds no settings"),
    "fetch of nothing": (["fetch", "nothing"], "no model is called 'nothing'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_and_status_2_and_loads_nothing(engine, capsys, case):
    arguments, word = WRONG[case]
    before = files()
    try:
        status = cli.main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    one_error(capsys, word)
    assert files() == before
    assert not engine.loads and not engine.fetches and not engine.edits


def test_a_hard_link_to_the_input_is_the_input(engine, capsys):
    os.link("mug.png", "link.png")
    assert cli.main(["edit", "mug.png", *PROMPTS, "--out", "link.png"]) == 2
    one_error(capsys, "would be overwritten")


def test_an_error_of_the_engine_is_one_line_too(engine, capsys):
    engine.fail = PromptError("a phrase\nwith \x1b[31m colours")
    assert cli.main(["edit", "mug.png", *PROMPTS, "--quiet"]) == 2
    assert "\x1b" not in one_error(capsys, "a phrase with ?[31m colours")
    assert files() == {"mug.png"}


def test_a_bug_keeps_its_traceback(engine):
    engine.fail = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(["edit", "mug.png", *PROMPTS])


def test_out_of_memory_is_explained(engine, capsys):
    engine.fail = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried ...")
    assert cli.main(["edit", "mug.png", *PROMPTS]) == 2
    one_error(capsys, "--size")


def test_mistakes_are_answered_without_torch(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    code = ("import sys; from sage.commands.main import main\n"
            "assert main(sys.argv[1:]) == 2\n"
            "assert not {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys(), 'imported'")
    subprocess.run([sys.executable, "-c", code, "edit", tmp_path / "p.png", *PROMPTS, "--replace", "x,y"], check=True,
                   cwd=ROOT, capture_output=True)


# ---- what is written


def test_default_output_is_named_after_the_picture_and_never_overwrites(engine, capsys):
    for expected in ("out/mug-edit.png", "out/mug-edit-2.png", "out/mug-edit-3.png"):
        assert cli.main(["edit", "mug.png", *PROMPTS]) == 0
        assert capsys.readouterr().out == f"{expected}\n"
    assert files() == {"mug.png", "out/mug-edit.png", "out/mug-edit-2.png", "out/mug-edit-3.png"}


@pytest.mark.parametrize("out, names", [
    (None, ["out/mug-edit.png", "out/mug-edit-2.png"]), ("new/", ["new/mug-edit.png", "new/mug-edit-2.png"]),
    (".", ["mug-edit.png", "mug-edit-2.png"]), ("a/b.webp", ["a/b-1.webp", "a/b-2.webp"])])
def test_several_targets_share_one_inversion_and_are_numbered(engine, capsys, out, names):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--target", "a green mug", *(["--out", out] if out else [])]) == 0
    assert capsys.readouterr().out.split() == names
    assert [e.trajectory for e in engine.edits] == [None, "trajectory"]
    assert [pictures.read_settings(name)["target"] for name in names] == ["a blue mug", "a green mug"]
    assert len(engine.loads) == 1 and engine.checks == ["a blue mug", "a green mug"]


def test_reweighting_every_pass_inverts_for_each_target(engine):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--target", "a dark blue mug", "--reweight", "blue:2",
                     "--reweight-passes", "all"]) == 0
    assert [e.trajectory for e in engine.edits] == [None, None]


def test_sheet_has_a_row_for_each_target(engine, capsys):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--sheet"]) == 0
    assert capsys.readouterr().out.split() == ["out/mug-edit.png", "out/mug-edit-sheet.png"]
    one = pictures.open_picture("out/mug-edit-sheet.png").size
    assert cli.main(["edit", "mug.png", *PROMPTS, "--target", "a green mug", "--sheet", "s.png"]) == 0
    assert pictures.open_picture("s.png").size == (one[0], 2 * one[1])
    assert one[0] == 5 * 288 + 6 * 8  # five pictures of 48 pixels, each enlarged six times


def test_json_is_one_object(engine, capsys):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--json", "--seed", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["out"] == ["out/mug-edit.png"] and report["sheet"] is None
    assert report["settings"][0] == pictures.read_settings("out/mug-edit.png")
    assert report["notes"] == ["seed has no effect: nothing in this edit is random", "blending is off"]
    assert report["versions"]["sage"] == sage.__version__ and report["seconds"] >= 0


def test_notes_go_to_stderr_and_quiet_silences_them(engine, capsys):
    assert cli.main(["edit", "mug.png", *PROMPTS]) == 0
    assert capsys.readouterr().err == "sage: note: blending is off\n"
    assert cli.main(["edit", "mug.png", *PROMPTS, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_bar_names_its_phase(monkeypatch, capsys):
    with Progress(shown=True) as progress:
        for phase, total in (("encode", 1), ("invert", 3), ("edit", 3)):
            for done in range(total + 1):
                progress(phase, done, total)
    assert re.search(r"invert: 100%.*3/3.*\n.*edit: 100%.*3/3", capsys.readouterr().err, re.DOTALL)
    with Progress(shown=False) as progress:
        progress("edit", 1, 2)
    assert capsys.readouterr().err == ""


# ---- repeating an edit


def test_config_from_repeats(engine, capsys):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "sd-2.1", "--replace", "red,blue", "--reweight",
                     "blue:2.5", "--truncate", "--prediction-type", "v_prediction", "--out", "first.png"]) == 0
    assert cli.main(["edit", "mug.png", "--config-from", "first.png", "--out", "second.png"]) == 0
    first, second = (pictures.read_settings(name) for name in ("first.png", "second.png"))
    assert first == second
    assert engine.edits[0].config == engine.edits[1].config == RECOMMENDED.but(
        replace=("red", "blue"), reweight={"blue": 2.5})
    assert engine.loads[0] == engine.loads[1] and engine.edits[1].truncate
    assert "not the picture" not in capsys.readouterr().err

    assert cli.main(["edit", "mug.png", "--config-from", "first.png", "--steps", "5", "--target", "a blue cup",
                     "--replace", "auto", "--model", "sd-1.4"]) == 0
    last = engine.edits[-1]
    assert (last.config.steps, last.target, last.source) == (5, "a blue cup", "a red mug")
    assert last.config.replace == "auto" and last.config.reconstruction_scale == 3.0


def test_config_from_another_picture_warns(engine, capsys):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--out", "first.png"]) == 0
    Image.new("RGB", (48, 32), "green").save("other.png")
    assert cli.main(["edit", "other.png", "--config-from", "first.png"]) == 0
    assert "other.png is not the picture that first.png was made from (mug.png)" in capsys.readouterr().err


def forged(path: str, **changes) -> None:
    record = {"source": "a red mug", "target": "a blue mug", "model": "sd-1.4", "config": EditConfig().as_dict(),
              "prediction_type": None, "truncate": False, "picture": {"name": "mug.png", "sha256": "0" * 64},
              "made": {}}
    pictures.save_picture(Image.new("RGB", (4, 4)), path, record | changes)


def test_no_path_inside_a_picture_is_opened(engine, capsys):
    (Path("private.safetensors")).write_bytes(b"")
    for model in ("private.safetensors", "weights", "/etc", "CompVis/stable-diffusion-v1-4"):
        forged("old.png", model=model)
        assert cli.main(["edit", "mug.png", "--config-from", "old.png"]) == 2
        one_error(capsys, "say where it is with --model")
    assert not engine.loads
    forged("old.png", picture={"name": "/etc/passwd\x1b[2J", "sha256": "0"}, model="sd-1.4")
    assert cli.main(["edit", "mug.png", "--config-from", "old.png"]) == 0
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("changes", [
    {"source": 3}, {"target": None}, {"model": ["sd-1.4"]}, {"config": []}, {"config": {"steps": "50"}},
    {"config": {"steps": -1}}, {"config": {"__class__": 1}}, {"config": {"reweight": {"a": "b"}}},
    {"config": {"replace": ["a", "b", "c"]}}, {"config": {"size": 1e99}}, {"config": {"guidance_scale": 10**400}},
    {"picture": {}}, {"picture": {"name": 1, "sha256": 2}}, {"truncate": "yes"}, {"prediction_type": "x"}, {"made": 1},
    {"source": ""}, {"target": "a" * 5000}, {"version": 3}, {"version": 2, "method": "p3p", "settings": {}},
    {"version": 2, "method": "evil.py:Evil", "settings": {}}, {"version": 2, "method": ["sage"], "settings": {}},
    {"version": 2, "method": "plain", "settings": {"self_level": 1}, "savings": {}},
    {"version": 2, "method": "plain", "settings": {}, "savings": {"tiles": 1}},
    {"version": 2, "method": "sag", "settings": {}, "savings": {}}], ids=str)
def test_forged_settings_are_refused(engine, capsys, changes):
    forged("old.png", **changes)
    assert cli.main(["edit", "mug.png", "--config-from", "old.png"]) == 2
    one_error(capsys)
    assert not engine.loads


def test_other_machine_is_noted(engine, capsys):
    forged("old.png", made={"device": "cuda", "dtype": "float16"})
    assert cli.main(["edit", "mug.png", "--config-from", "old.png"]) == 0
    assert "device cuda then, cpu now; dtype float16 then, float32 now" in capsys.readouterr().err


# ---- fetching


def test_a_known_model_is_fetched_once_everything_else_is_right(engine, capsys):
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "sd-1.5"]) == 0
    assert engine.fetches == ["sd-1.5"] and engine.loads[0][0] == "sd-1.5"
    assert cli.main(["edit", "mug.png", *PROMPTS, "--model", "sd-2.1-base", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    assert engine.fetches == ["sd-1.5"]


def test_models_and_info(engine, capsys):
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in KNOWN) and "Open RAIL-M" in out and "sage fetch sd-1.5" in out
    assert cli.main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["sd-1.4"]["path"] and not listed["sd-1.5"]["path"]
    assert cli.main(["info", "sd-1.5"]) == 0
    assert "licence: CreativeML Open RAIL-M" in capsys.readouterr().out
    assert cli.main(["edit", "mug.png", *PROMPTS, "--out", "e.png"]) == 0
    capsys.readouterr()
    assert cli.main(["info", "e.png"]) == 0
    out = capsys.readouterr().out
    assert "source: a red mug\n" in out and "  steps: 7\n" in out
    assert cli.main(["info", "e.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pictures.read_settings("e.png")
    assert cli.main(["fetch", "sd-1.4"]) == 0
    assert capsys.readouterr().out.strip().endswith("weights/sd-1.4") and not engine.fetches


# ---- how it ends


def test_ctrl_c_is_130_and_leaves_nothing(engine, capsys):
    engine.fail = KeyboardInterrupt()
    assert cli.main(["edit", "mug.png", *PROMPTS]) == 130
    assert files() == {"mug.png"}
    assert capsys.readouterr() == ("", "sage: interrupted\n")


STUB = """
import sys, time
from types import SimpleNamespace
import sage
from sage.commands.main import main
from sage.models.savings import Savings

def edit(model, image, progress, **_):
    progress("edit", 0, 1)
    if {where!r} == "edit":
        print("ready", flush=True)
        time.sleep(60)
    return SimpleNamespace(image=image, trajectory=None, masks=(), notes=(), savings=Savings())

sage.load_model = lambda *_, **__: SimpleNamespace(name="m", recommends={{"sage": {{}}}}, device="cpu", dtype="f")
sage.edit, sage.check_prompts = edit, lambda *_, **__: None
if {where!r} == "write":
    import os
    def stall(*_):
        print("ready", flush=True)
        time.sleep(60)
    os.replace = stall
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("where, sent, status, left", [
    ("edit", signal.SIGINT, 130, 0), pytest.param("write", signal.SIGINT, 130, 0, marks=pytest.mark.slow),
    ("write", signal.SIGKILL, -9, 1)])
def test_signals_in_a_real_process(engine, where, sent, status, left):
    Path("out").mkdir()
    pictures.save_picture(Image.new("RGB", (4, 4)), "out/e.png", {"old": 1})
    run = subprocess.Popen([sys.executable, "-c", STUB.format(where=where), "edit", "mug.png", *PROMPTS, "--out",
                            "out/e.png"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env=os.environ | {"PYTHONPATH": str(ROOT)},
                           # Where the tests run in the background, SIGINT may be ignored, and that is inherited.
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert run.stdout.readline() == "ready\n"
    time.sleep(0.05)
    run.send_signal(sent)
    _, err = run.communicate(timeout=60)
    assert run.returncode == status and "Traceback" not in err
    assert pictures.read_settings("out/e.png") == {"old": 1}
    assert len(files("out")) == 1 + left  # what a kill leaves behind is hidden, and never the picture


def test_ctrl_c_while_sage_is_imported(monkeypatch, capsys):
    class Interrupted:
        @staticmethod
        def find_spec(name, *_):
            if name == "sage.commands.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "sage.commands.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    assert start() == 130 and capsys.readouterr() == ("", "sage: interrupted\n")


def test_ctrl_c_while_the_package_itself_is_imported(tmp_path):
    (tmp_path / "sage").mkdir()
    (tmp_path / "sage" / "__init__.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run([sys.executable, "-c", "import sys; from sage_start import main; sys.exit(main())"],
                          env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
                          capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "sage: interrupted\n")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {"sage": "sage_start:main"}


def test_ctrl_c_in_the_demo(monkeypatch, capsys):
    demo = runpy.run_path(str(ROOT / "examples" / "demo.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.setattr(sage, "load_model", lambda name: (_ for _ in ()).throw(KeyboardInterrupt), raising=False)
    assert demo() == 130 and capsys.readouterr() == ("", "demo: interrupted\n")


def test_help_is_laid_out_for_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for asked in (["help", "batch"], ["batch", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(asked)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "usage: sage batch TABLE --out DIR [FLAGS]"
        assert "  cat.jpg,a cat on a sofa,a dog on a sofa,dog,50" in lines and max(map(len, lines)) <= 80
    assert cli.main([]) == 0
    assert '--model stilllife\n' in capsys.readouterr().out  # a first edit to try


def test_sage_alone_is_the_help(capsys):
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: sage [-h] [--version] COMMAND")


@pytest.mark.parametrize("arguments, message", [
    (["edti"], "argument COMMAND: there is no 'edti': did you mean edit? (see sage --help)"),
    (["edit", "mug.png", "--guidance", "3"],
     "there is no --guidance: did you mean --guidance-scale? (see sage edit --help)"),
    (["edit", "mug.png", "--stpes=3"], "there is no --stpes: did you mean --steps? (see sage edit --help)"),
    (["edit", "mug.png", "--spacing", "leadin"],
     "argument --spacing: there is no 'leadin': did you mean leading? (see sage edit --help)"),
    (["bench", "stillife"],
     "argument BENCHMARK: there is no 'stillife': did you mean stilllife? (see sage bench --help)"),
    (["edit", "mug.png", "--prompt", "a cat"], "there is no --prompt (see sage edit --help)"),
    (["edit", "mug.png", "--strength", "0.5", "--method", "p2p"],
     "there is no --strength of p2p: it is of --method sdedit, ddpm, turbo, turbo-ddpm, regiondrag, infedit, flowedit, "
     "uni-edit, eedit, rf-inversion, rf-solver, fireflow, kv-edit, edict, bdia, fixed-point (see sage edit --help)"),
    (["edit", "mug.png", "make it red"], "'make it red' stands behind no flag that takes it (see sage edit --help)"),
    (["edit", "mug.png", "--steps", "ten"], "argument --steps: 'ten' is no whole number (see sage edit --help)"),
    (["edit", "mug.png", "--guidance-scale", "3,5"],
     "argument --guidance-scale: '3,5' is no number (see sage edit --help)"),
    (["models", "--xyzzy"], "there is no --xyzzy (see sage models --help)")])
def test_what_is_nearest_to_a_slip_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert capsys.readouterr().err == f"sage: error: {message}\n"


def test_python_m_sage():
    run = subprocess.run([sys.executable, "-m", "sage", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == f"sage {sage.__version__}\n"


def test_a_reader_that_leaves_early_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "sage", "models"], stdout=writer, stderr=subprocess.PIPE, text=True,
                          cwd=Path(sage.__file__).parents[1])
    os.close(writer)
    assert done.returncode == 141 and done.stderr == ""


def test_a_mask_is_a_file_and_a_word_the_setting_of_that_name(engine, monkeypatch):
    Image.new("L", (48, 32), "white").save("where.png")
    for mask in ("sum", "where.png"):
        assert cli.main(["edit", "mug.png", *PROMPTS, "--mask", mask]) == 0
    word, file = engine.edits[:2]
    assert word.config.mask == "sum" and word.mask is None
    tiles = []
    monkeypatch.setattr(pictures, "sheet", lambda rows: tiles.extend(rows[0]) or Image.new("RGB", (4, 4)))
    half = Image.new("L", (48, 32))
    half.paste(255, (0, 0, 24, 32))
    half.save("half.png")
    assert cli.main(["edit", "mug.png", *PROMPTS, "--mask", "half.png", "--sheet"]) == 0
    [shown] = [picture for title, picture in tiles if title == "may change"]
    assert shown.getpixel((2, 2)) == (255, 0, 0) != shown.getpixel((46, 30))  # though blending found that place too
    assert file.config.mask == "union" and file.mask.size == (48, 32)
