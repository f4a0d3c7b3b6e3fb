import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import sage
from sage import EditConfig, editing, pictures
from sage.bench import engine as engines
from sage.bench.configs import CONFIGURATIONS, configuration
from sage.bench.engine import ModelEngine
from sage.bench.runner import run
from sage.bench.scoring import DONE
from sage.errors import SettingsError
from sage.method import able, method
from tests import small
from tests.bench.world import make_benchmark, picture
from tests.models import tiny

STEPS = ":steps=2,guided_steps=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    tiny.make(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return loaded(folder)


def loaded(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sage.load_model(folder)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"), 3)


def make(engine, name, cases, sources, truths=None):
    return engine.make(configuration(name), cases, sources, truths or [None] * len(cases))


def pixels(outcome):
    return np.asarray(outcome.picture)


EDITS = [name for name, c in CONFIGURATIONS.items() if c.makes == "edit"]


@pytest.mark.slow
def test_every_configuration_runs_and_scores(model, benchmark, tmp_path):
    names = ["source", "autoencoder", *(name + STEPS for name in EDITS)]
    lines = run(benchmark, [configuration(n) for n in names], ModelEngine(model), tmp_path, batch=2)
    assert [line.reason for line in lines if line.status != DONE] == []
    by_name = {n: [line for line in lines if line.configuration == n] for n in names}
    assert all(line.scores["outside_psnr"] == 100 > line.scores["inside_psnr"] for line in by_name["source"])
    settings = pictures.read_settings(tmp_path / by_name["self-guidance-replace-blend" + STEPS][0].picture)
    config = EditConfig.from_dict(settings["settings"])
    assert (config.replace, config.blend, config.reconstruction) == (("cat", "cab"), ("cat", "cab"), "self")
    assert {p.name for p in tmp_path.iterdir()} >= {"plain_steps=2,guided_steps=2", "source", "run.json"}


def test_a_result_is_that_of_sage_edit_and_can_be_repeated(model, benchmark):
    case = benchmark.cases[0]
    [outcome] = make(ModelEngine(model), "recommended" + STEPS, [case], [benchmark.source(case)])
    config = EditConfig.from_dict(outcome.settings["settings"])
    assert config == sage.method("sage").recommended(model).but(steps=2, guided_steps=2)
    result = sage.edit(model, benchmark.source(case), outcome.settings["source"], outcome.settings["target"], config)
    assert np.array_equal(np.asarray(result.image), pixels(outcome))


def of_method(name):
    """The configuration that is a method as it is recommended."""
    return configuration(f"method={name}:steps=2")


OWN = """
from sage.methods.plain import Plain, Settings as PlainSettings
from sage.settings import frozen

@frozen
class Settings(PlainSettings):
    pass

class Own(Plain):
    name, title, Settings = "own", "One of mine", Settings
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", able("edit"))
def test_every_method_is_a_configuration_and_its_result_that_of_sage_edit(model, benchmark, name):
    case, found = benchmark.cases[0], method(name)
    source = benchmark.source(case)
    assert (name in CONFIGURATIONS) or configuration(name).edits_by is found
    if found.fits(model):
        pytest.skip("this model is not for it")
    [outcome] = ModelEngine(model).make(of_method(name), [case], [source], [None])
    assert outcome.reason == "" and outcome.settings["method"] == name
    settings = found.Settings.from_dict(outcome.settings["settings"])
    assert settings == found.recommended(model).but(steps=2)
    result = sage.edit(model, source, case.source, case.target, settings)
    assert np.array_equal(np.asarray(result.image), pixels(outcome))


@pytest.mark.slow
def test_methods_of_one_run_are_told_apart_and_scored(model, benchmark, tmp_path):
    names = [f"method={name}:steps=2" for name in ("sage", "p2p", "ddpm", "flowedit", "edict", "plain")]
    lines = run(benchmark, [configuration(n) for n in names], ModelEngine(model), tmp_path, batch=2)
    assert {line.status for line in lines} == {DONE} and all(line.calls > 0 for line in lines)
    made = {pictures.read_settings(tmp_path / line.picture)["method"] for line in lines}
    assert made == {name.removeprefix("method=").partition(":")[0] for name in names}


def test_a_method_of_ones_own_is_measured_too(model, benchmark, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    c = configuration(f"{tmp_path}/own.py:Own:steps=2,guidance_scale=1")
    assert (c.edits_by.title, dict(c.overrides)) == ("One of mine", {"steps": 2, "guidance_scale": 1})
    case = benchmark.cases[0]
    own, plain = (ModelEngine(model).make(x, [case], [benchmark.source(case)], [None])[0]
                  for x in (c, configuration("method=plain:steps=2,guidance_scale=1")))
    assert np.array_equal(pixels(own), pixels(plain)) and "/" not in c.folder
    with pytest.raises(SettingsError, match="no file"):
        configuration(f"{tmp_path}/gone.py:Own")


def test_calls_are_those_of_one_edit_alone_whatever_it_shares(model, benchmark):
    cases = benchmark.cases[:2]
    sources = [benchmark.source(case) for case in cases]
    engine = ModelEngine(model)
    for name, calls in (("plain:steps=3", 9), ("guidance:steps=3", 9), ("method=plain:steps=3,guidance_scale=1", 6),
                        ("sdedit:steps=4,strength=0.5,guidance_scale=2", 4), ("source", 0), ("autoencoder", 0)):
        for group in (slice(0, 2), slice(0, 1)):
            assert [o.calls for o in make(engine, name, cases[group], sources[group])] == [calls] * len(cases[group])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A model with an inversion network."""
    made = small.make(tmp_path_factory.mktemp("other") / "tokenizer", prediction="v_prediction").model
    made.inversion = small.inversion(made)
    return made


def test_a_row_may_name_another_model_and_shares_nothing_with_the_runs_own(folder, model, benchmark, tmp_path):
    other = loaded(folder)
    other.unet.conv_in.bias.mul_(0.5)
    asked, names = [], ("method=plain:steps=2", "method=plain@second:steps=2")
    engine = ModelEngine(model, lambda name: asked.append(name) or other)
    lines = run(benchmark, [configuration(n) for n in names], engine, tmp_path, batch=3)
    assert [line.reason for line in lines if line.status != DONE] == [] and asked == ["second"]
    case = benchmark.cases[0]
    alone, own, named = (make(e, name, [case], [benchmark.source(case)])[0]
                         for e, name in ((ModelEngine(other), names[0]), (engine, names[0]), (engine, names[1])))
    assert np.array_equal(pixels(alone), pixels(named)) and not np.array_equal(pixels(own), pixels(named))
    found = engine.configure(configuration(names[1]))
    assert found["model"]["weights"] == other.fingerprint() != engine.describe()["weights"]
    assert "model" not in engine.configure(configuration(names[0]))
    first, second = (pictures.read_settings(tmp_path / lines[i].picture) for i in (0, 3))
    assert first != second and first["settings"] == second["settings"]


def test_a_model_that_a_row_cannot_have_is_one_line(model):
    with pytest.raises(SettingsError, match="this run has one model alone"):
        ModelEngine(model).configure(configuration("plain@second"))
    for name, said in (("source@second", "is a bound"), ("plain@", "name a model"), ("plain@:steps=2", "name a model")):
        with pytest.raises(SettingsError, match=said):
            configuration(name)


def test_calls_of_an_inversion_network_count_too(student, benchmark):
    case, engine = benchmark.cases[0], ModelEngine(student)
    [whole], [part] = (make(engine, f"turbo:cross_level=0,iterations={n}", [case], [benchmark.source(case)])
                       for n in (0, 2))
    assert (whole.calls, part.calls) == (12, 6)


def test_calls_that_are_differentiated_are_counted(model, benchmark):
    cases = benchmark.cases[:2]
    sources = [benchmark.source(case) for case in cases]
    for name, gradients in (("self-guidance:steps=3,guided_steps=2", 2), ("plain:steps=3", 0)):
        for group in (slice(0, 2), slice(0, 1)):
            made = make(ModelEngine(model), name, cases[group], sources[group])
            assert [o.gradients for o in made] == [gradients] * len(cases[group])


def test_a_model_that_a_method_is_not_for_is_refused_before_anything_is_made(model, monkeypatch):
    monkeypatch.setattr(type(method("sdedit")), "fits", lambda *_: "it wants a flow")
    with pytest.raises(SettingsError, match="sdedit cannot edit with .*: it wants a flow"):
        ModelEngine(model).configure(configuration("sdedit"))


def test_the_autoencoder_is_given_the_true_edit(model, benchmark):
    case = benchmark.cases[0]
    source, truth = benchmark.source(case), benchmark.truth(case)
    engine = ModelEngine(model)
    [known], [unknown] = (make(engine, "autoencoder", [case], [source], [t]) for t in (truth, None))
    for outcome, image in ((known, truth), (unknown, source)):
        x = model.decode(model.encode(pictures.to_tensor(image, image.size)))
        assert np.array_equal(pixels(outcome), np.asarray(pictures.to_picture(x)))


@pytest.mark.slow
def test_inversions_are_shared_only_where_nothing_changes(model, benchmark, monkeypatch):
    cases = benchmark.cases[:2]
    sources = [benchmark.source(case) for case in cases]
    alone = {}
    names = ["self-guidance:steps=2", "self-guidance:steps=2,guidance_scale=2", "plain:steps=2", "guidance:steps=2",
             "self-guidance:steps=3"]
    for name in names:
        alone[name] = make(ModelEngine(model), name, cases, sources)
    calls = []
    monkeypatch.setattr(engines, "invert_batch", lambda *a, **k: calls.append(a) or editing.invert_batch(*a, **k))
    engine = ModelEngine(model)
    for name in names:
        for a, b in zip(make(engine, name, cases, sources), alone[name], strict=True):
            assert np.array_equal(pixels(a), pixels(b))
    assert len(calls) == 3  # one for each of the three that record differently
    others = [picture(50), picture(51)]
    make(engine, names[-1], cases, others)
    assert len(calls) == 4
    for name in names:  # all are kept, so that trials may go from batch to batch
        make(engine, name, cases, sources)
    make(engine, names[-1], cases, others)
    assert len(calls) == 4
    size = max(known.trajectory.nbytes for known in engine._inversions)
    monkeypatch.setattr(engines, "KEPT", 2 * size)  # room for one beside the one that is made
    engine = ModelEngine(model)
    for name in (names[0], names[-1], names[0], names[-1]):
        make(engine, name, cases, sources)
    assert len(calls) == 6 and len(engine._inversions) == 2
    make(engine, "plain:steps=2", cases, sources)
    make(engine, names[-1], cases, sources)
    assert len(calls) == 7
    make(engine, names[0], cases, sources)  # the one used longest ago had to go
    assert len(calls) == 8


def test_one_bad_case_does_not_spoil_its_batch(model, benchmark):
    cases = list(benchmark.cases)
    cases[1] = replace(cases[1], target_marked="x " * 99)
    outcomes = make(ModelEngine(model), "plain:steps=2", cases, [benchmark.source(c) for c in cases])
    assert [o.picture is None for o in outcomes] == [False, True, False]
    assert "too many for this model" in outcomes[1].reason


def test_a_batch_that_fails_is_tried_case_by_case(model, benchmark, monkeypatch):
    cases = list(benchmark.cases)
    real, bad = editing.edit_batch, benchmark.source(cases[2]).tobytes()

    def fragile(model, images, *args, **kwargs):
        if any(image.tobytes() == bad for image in images):
            raise RuntimeError("out of memory\nand more")
        return real(model, images, *args, **kwargs)

    monkeypatch.setattr(engines, "edit_batch", fragile)
    outcomes = make(ModelEngine(model), "plain:steps=2", cases, [benchmark.source(c) for c in cases])
    assert [o.reason for o in outcomes] == ["", "", "RuntimeError: out of memory"]


def test_pictures_of_several_sizes_are_edited_one_by_one(model, benchmark):
    cases = benchmark.cases[:2]
    sources = [benchmark.source(cases[0]), picture(7, 48)]
    outcomes = make(ModelEngine(model), "plain:steps=2", cases, sources)
    assert [o.picture.size for o in outcomes] == [(32, 32), (48, 48)]


def test_phrases_that_cannot_be_replaced_are_left_out_and_said(model, benchmark):
    case = replace(benchmark.cases[0], source_marked="a [cat] by a [c]", target_marked="a [cab] by a [d]")
    [outcome] = make(ModelEngine(model), "published" + STEPS, [case], [benchmark.source(case)])
    assert outcome.picture and any("cross-attention replacement is off" in n for n in outcome.notes)


def test_other_weights_are_another_engine(model):
    before = ModelEngine(model).describe()
    weight = next(model.unet.parameters())
    kept = weight.data.clone()
    weight.data += 0.5
    after = ModelEngine(model).describe()
    weight.data = kept
    assert {k for k in before if before[k] != after[k]} == {"weights"}
    assert model.fingerprint() == before["weights"]


def test_other_threads_are_another_engine_on_a_cpu(model):
    """They change the last bits."""
    before = torch.get_num_threads()
    try:
        told = []
        for count in (1, 2):
            torch.set_num_threads(count)
            told.append(ModelEngine(model).describe())
    finally:
        torch.set_num_threads(before)
    assert [t["threads"] for t in told] == [1, 2]
    assert {k for k in told[0] if told[0][k] != told[1][k]} == {"threads"}


# ---- configurations


def test_the_rows_of_table_one():
    base = EditConfig(self_level=1, cross_level=2, guidance_scale=5.0, reconstruction_scale=70.0)
    rows = {name: c.settings(base) for name, c in CONFIGURATIONS.items()}
    kept = [(r.reconstruction, r.reconstruction_scale, r.cross_level, r.replace, r.blend) for r in (
        rows["cross-guidance"], rows["latent-guidance"], rows["self-replacement"], rows["self-guidance"],
        rows["self-guidance-replace"], rows["self-guidance-replace-blend"])]
    assert kept == [("cross", 70, 1, None, None), ("latent", 1, 2, None, None), ("replace", 70, 2, None, None),
                    ("self", 70, 2, None, None), ("self", 70, 2, "auto", None), ("self", 70, 2, "auto", "auto")]
    assert rows["recommended"] == base
    assert rows["plain"] == base.but(guidance_scale=1.0, reconstruction="none", replace=None, blend=None)
    assert rows["published"] == EditConfig.published(self_level=1, cross_level=2)


def test_words_come_from_the_benchmark_where_the_paper_took_them(benchmark):
    case = replace(benchmark.cases[0], phrases=("", "a cab"))
    base = EditConfig()
    whole, published = (CONFIGURATIONS[n].settings(base, case) for n in ("self-guidance-replace-blend", "published"))
    assert (whole.replace, whole.blend) == (("cat", "cab"), ("", "a cab"))
    assert (published.replace, published.blend) == (("cat", "cab"), ("cat", "cab"))
    assert CONFIGURATIONS["recommended"].settings(base, case).blend == "auto"
    bare = replace(case, phrases=None, blended_word="", source_marked="a cat", target_marked="a [red] cat")
    nothing = CONFIGURATIONS["published"].settings(base, bare)
    assert (nothing.replace, nothing.blend) == (None, None)


def test_words_of_the_benchmark_can_be_asked_for_and_reach_only_settings_that_are_phrases(benchmark):
    case = replace(benchmark.cases[0], phrases=("", "a cab"))
    c = configuration("recommended:words=benchmark,steps=7")
    config = c.settings(EditConfig(), case)
    assert (config.steps, config.replace, config.blend) == (7, ("cat", "cab"), ("", "a cab"))
    assert c.record(EditConfig())["words"] == "benchmark" and c.settings(EditConfig()).blend == "auto"
    bare = method("sdedit").Settings()
    assert configuration("sdedit:words=benchmark,seed=3").settings(bare, case) == bare.but(seed=3)


def test_settings_after_the_name_win():
    c = configuration("published:guidance_scale=2,blend=none,map_loss=l2")
    config = c.settings(EditConfig())
    assert (config.guidance_scale, config.blend, config.map_loss, config.decay) == (2, None, "l2", "released")
    assert c.folder == "published_guidance_scale=2,blend=none,map_loss=l2"
    assert c.record(EditConfig()) != CONFIGURATIONS["published"].record(EditConfig())


def test_changed_settings_change_nothing_else():
    for c in CONFIGURATIONS.values():
        if not c.is_bound:
            changed = configuration(f"{c.name}:steps=10")
            assert (changed.makes, changed.words, changed.base) == (c.makes, c.words, c.base)
            assert changed.settings(EditConfig()) == c.settings(EditConfig()).but(steps=10)


@pytest.mark.parametrize("changes, expected", [
    ("replace=cat,dog", {"replace": ("cat", "dog")}),
    ("replace=a red cat,dog,steps=7", {"replace": ("a red cat", "dog"), "steps": 7}),
    ("steps=7,reweight=grumpy:3,old hat:0.5,blend=auto",
     {"steps": 7, "reweight": {"grumpy": 3.0, "old hat": 0.5}, "blend": "auto"}),
    ("reweight=none,blend=none,reconstruction=none,size=none",
     {"reweight": {}, "blend": None, "reconstruction": "none", "size": None})])
def test_values_may_hold_commas(changes, expected):
    config = configuration(f"recommended:{changes}").settings(EditConfig())
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_reconstruction_with_changed_settings_is_held_to_the_source(model, benchmark, tmp_path):
    line, *_ = run(benchmark, [configuration("reconstruct-self" + STEPS)], ModelEngine(model), tmp_path, batch=3)
    settings = pictures.read_settings(tmp_path / line.picture)
    assert settings["target"] == settings["source"] and line.scores["inside_psnr"] is None


@pytest.mark.parametrize("text, message", [
    ("nobody", "no configuration is called 'nobody'"), ("sdedid", "did you mean sdedit"),
    ("method=nobody", "no configuration is called 'method=nobody'"), ("sdedit:self_level=1", "no setting 'self_level'"),
    ("sage+direct", "no inversion 'direct'"), ("sag", "edits no picture"),
    ("recommended:words=mine", "must be prompts or benchmark"),
    ("plain:steps", "must be SETTING=VALUE"),
    ("plain:stepz=3", "there is no setting 'stepz'"), ("plain:steps=0", "at least 1"),
    ("source:steps=3", "is a bound"),
    ("plain:replace=cat", "must be auto, none or SOURCE,TARGET"), ("plain:,", "must be SETTING=VALUE"),
    ("plain:reweight=grumpy", "must be PHRASE:FACTOR"), ("plain:steps=3,", "steps is '3,'")])
def test_wrong_names_and_settings(text, message):
    with pytest.raises(SettingsError, match=message):
        configuration(text)
