"""What an explanation keeps of an edit, what it draws, and the page that it writes."""

import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import sage
from sage import pictures
from sage.commands import main as cli
from sage.errors import PictureError, SettingsError
from sage.explain import FILES, Explanation, charts, heat
from sage.explain.charts import Chart

SOURCE = "a photograph of a big shiny blue mug in the centre, on stone tiles, a brick wall in the background"
TARGET = SOURCE.replace("blue", "yellow")
STEPS = 4
CONFIG = dict(steps=STEPS, guided_steps=3, retries=0)


@pytest.fixture(scope="module")
def model():
    return sage.load_model("stilllife")


def settings(model):
    return sage.method("sage").recommended(model)


@pytest.fixture(scope="module")
def picture():
    return pictures.open_picture("examples/mug.png")


def explained(model, picture, config, **options):
    """The explanation, the moments it saw, and the result."""
    explanation, moments = Explanation(model, picture, SOURCE, TARGET, config, **options), []

    def watch(moment):
        moments.append(moment)
        explanation(moment)

    return explanation, moments, sage.edit(model, picture, SOURCE, TARGET, config, watch=watch)


@pytest.fixture(scope="module")
def seen(model, picture):
    return explained(model, picture, settings(model).but(**CONFIG))


# ---- what is kept


def test_watching_changes_nothing(model, picture, seen):
    plain = sage.edit(model, picture, SOURCE, TARGET, settings(model).but(**CONFIG))
    assert plain.image.tobytes() == seen[2].image.tobytes()
    assert torch.equal(plain.latents, seen[2].latents)


def test_the_curves_are_those_of_the_edit(seen):
    explanation, moments, result = seen
    assert explanation.losses == [m.loss and m.loss[0] for m in moments]
    assert [loss for loss in explanation.losses if loss is not None] == list(result.losses)
    for norm, m in zip(explanation.difference_norms, moments, strict=True):
        assert norm == pytest.approx(m.difference.square().mean().sqrt().item(), rel=1e-5)
    for norm, m in zip(explanation.gradient_norms, moments, strict=True):
        assert norm == (None if m.gradient is None else pytest.approx(m.gradient.square().mean().sqrt().item(),
                                                                      rel=1e-5))
    assert explanation.signal == sorted(explanation.signal) and len(explanation.signal) == STEPS


def test_predictions_are_the_decoded_latents_of_their_step(model, seen):
    explanation, moments, _ = seen
    assert explanation.steps == explanation.decoded == (0, 1, 2, 3)
    for step in (0, 3):
        p, m = explanation.predictions(step), moments[step]
        for shown, z in ((p.source, m.x0_source), (p.target, m.x0_target), (p.guided, m.x0)):
            wanted = np.asarray(pictures.to_picture(model.decode(z), shown.size), dtype=int)
            assert np.abs(np.asarray(shown, dtype=int) - wanted).max() <= 2  # kept in float16


def test_heat_maps_of_a_quantity_share_one_scale(seen):
    explanation, moments, _ = seen
    norms = [m.difference[0].square().mean(0).sqrt().numpy() for m in moments]
    top = np.quantile(norms, 0.995)
    assert explanation.scale("difference") == pytest.approx(top, rel=1e-5)
    for step, values in enumerate(norms):
        image = explanation.difference(step).resize(values.shape[::-1], Image.Resampling.NEAREST)
        assert np.abs(np.asarray(image, dtype=int) - heat.colours(values / top).astype(int)).max() <= 1
    assert explanation.gradient(0) is None and moments[0].gradient is None  # pairing=level: step 0 is not guided
    assert explanation.gradient(1).size == explanation.picture.size


def test_the_mask_shows_where_the_picture_could_change(seen):
    explanation, moments, _ = seen
    shown = np.asarray(explanation.mask(2)).astype(int)
    inside = np.asarray(Image.fromarray(moments[2].mask[0, 0].numpy() > 0.5).resize(explanation.picture.size, 0))
    same = (shown == np.asarray(explanation.picture)).all(axis=-1)
    assert same[inside].all() and same[~inside].mean() < 0.05 and 0 < inside.mean() < 1


def test_word_maps_are_the_attention_to_the_words_tokens(model, seen):
    explanation, moments, _ = seen
    maps = explanation.word_maps("target")
    assert [m.word for m in maps] == TARGET.split() and [m.word for m in maps if m.edited] == ["yellow"]
    assert [m.word for m in explanation.word_maps("source") if m.edited] == ["blue"]
    mean = torch.stack([m.attention_target[0] for m in moments]).mean(0)
    positions = dict(model.prompts.words(model.prompts.parse(TARGET)))["mug"]
    mug = next(m for m in maps if m.word == "mug")
    assert mug.share == pytest.approx(mean[list(positions)].sum(0).max().item(), rel=1e-5)
    y, x = divmod(int(mean[list(positions)].sum(0).argmax()), mean.shape[-1])
    light = np.asarray(mug.picture.convert("L").resize(mean.shape[:0:-1], Image.Resampling.BOX))
    assert light[y, x] > np.median(light) + 20  # what looks at it glows


def differences(moments):
    return pytest.approx([m.difference.square().mean().sqrt().item() for m in moments], rel=1e-5)


@pytest.mark.slow
def test_an_edit_made_again_is_explained_as_the_one_that_was_kept(model, picture, tmp_path):
    config = settings(model).but(**CONFIG | {"retries": 1, "most_drift": 0.0, "steps": 3})
    explanation, moments, result = explained(model, picture, config)
    assert len(moments) == 6 and explanation.attempts == 2 and any("made again" in n for n in result.notes)
    assert [m.attempt for m in moments] == [0, 0, 0, 1, 1, 1]
    assert explanation.difference_norms == differences(moments[3:])
    for attempt, word in ((0, "made first"), (1, "made second")):
        kept, seen = replace(result, attempt=attempt), moments[3 * attempt:3 * attempt + 3]
        page = explanation.write(tmp_path, kept, rebuilt=(picture, picture)).read_text(encoding="utf-8")
        assert "The edit was made 2 times" in page and word in page
        assert explanation.difference_norms == differences(seen)
        assert np.array_equal(explanation._now.seen[1].mask, seen[1].mask[0, 0].numpy() > 0.5)


def test_an_edit_begun_anew_for_want_of_memory_is_one_attempt(model, picture, seen):
    explanation = Explanation(model, picture, SOURCE, TARGET, settings(model).but(**CONFIG))
    for moment in (*seen[1][:2], *seen[1]):
        explanation(moment)
    assert explanation.attempts == 1 and explanation.difference_norms == seen[0].difference_norms


def test_attention_is_shown_as_applied(model, picture):
    """A word that is reweighted to nothing is not looked at."""
    config = settings(model).but(**CONFIG | {"steps": 2, "reweight": {"yellow": 0.0}})
    explanation, _, _ = explained(model, picture, config)
    share = {m.word: m.share for m in explanation.word_maps("target")}
    assert share["yellow"] == 0 and share["mug"] > 0
    yellow = next(m for m in explanation.word_maps("target") if m.word == "yellow")
    assert np.ptp(np.asarray(yellow.picture, dtype=int) - np.asarray(heat.over(explanation.picture, np.zeros((8, 8))),
                                                                     dtype=int)) == 0


def test_of_a_batch_the_first_picture_is_watched_in_every_attempt(model, picture):
    """The second picture alone is made again: what is watched stays the first one's."""
    from sage.editing import check_prompts, edit_batch
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    config = settings(model).but(**CONFIG | {"steps": 3})
    plan, alone = check_prompts(model, SOURCE, TARGET, config), []
    drifts = [edit_batch(model, [one], [plan], config, watch=watch)[0].drift
              for one, watch in ((picture, alone.append), (noise, None))]
    assert drifts[0] < drifts[1]
    explanation = Explanation(model, picture, SOURCE, TARGET, config)
    both = config.but(retries=1, most_drift=sum(drifts) / 2, most_spread=100.0)
    results = edit_batch(model, [picture, noise], [plan, plan], both, watch=explanation)
    assert any("made again" in note for note in results[1].notes) and not results[0].notes
    assert explanation.attempts == 1 and explanation.difference_norms == pytest.approx(
        [m.difference.square().mean().sqrt().item() for m in alone], rel=1e-4)


def test_few_predictions_where_they_cost(model, picture, seen):
    moment = seen[1][0]
    explanation = Explanation(model, picture, SOURCE, TARGET, settings(model).but(steps=1000, spacing="trailing"))
    large = replace(moment, z=torch.zeros(1, 4, 64, 64))
    for step in range(1000):
        explanation(replace(large, step=step))
    assert len(explanation.decoded) == 12 and explanation.decoded[0] == 0 and explanation.decoded[-1] == 999
    assert len(explanation.steps) <= 112 and {*explanation.decoded} <= {*explanation.steps}
    kept = sum(v.nbytes for s in explanation._now.seen for v in (*vars(s).values(), *s.predicted.values())
               if hasattr(v, "nbytes"))
    assert kept < 600_000 and len(explanation.signal) == 1000
    assert Explanation(model, picture, SOURCE, TARGET, decoded=3)._wanted == 3


# ---- drawing


def test_the_colours_are_inferno():
    x = np.linspace(0, 1, 256)
    assert np.abs(heat.colours(x) - matplotlib.colormaps["inferno"](x)[:, :3] * 255).max() < 8
    light = heat.colours(x) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > -1).all()
    assert (heat.colours(np.array([-1.0, 2.0])) == [[0, 0, 4], [252, 255, 164]]).all()


@pytest.mark.parametrize("top", [0.0, 1e-9, 0.0153, 0.99, 1.0, 3.0, 7.3, 12345.6])
def test_axes_end_above_the_greatest_value_in_round_steps(top):
    found = charts.ticks(top)
    assert found[0] == 0 and found[-1] >= top * (1 - 1e-6) and 2 <= len(found) <= 7
    assert top == 0 or found[-1] <= 2 * top


def test_titles_of_curves_fit(seen):
    for chart in seen[0].charts():
        right = np.asarray(chart.picture())[:70, -8:]
        assert chart.picture().width == charts.WIDTH * 2 and (right == 255).all(), chart.unit


@pytest.mark.parametrize("reconstruction, said", (
    ("self", "mean distance of self-attention maps from those recorded"),
    ("cross", "mean distance of cross-attention maps from those recorded"),
    ("latent", "mean distance of predicted clean latents from those recorded"),
    ("none", "nothing is compared"), ("replace", "nothing is compared")))
def test_the_loss_s_caption_names_what_is_compared(model, picture, reconstruction, said):
    config = settings(model).but(reconstruction=reconstruction)
    assert Explanation(model, picture, SOURCE, TARGET, config).charts()[0].unit == said


def test_a_curve_has_gaps_where_there_is_no_number():
    chart = Chart("Loss", "units", [None, 1.0, 2.0, None, 4.0])
    assert [len(run) for run in chart.runs()] == [2, 1] and chart.y(0) > chart.y(4.0) >= charts.TOP
    assert "<title>step 5: 4</title>" in chart.svg() and chart.svg().count("<circle") == 3
    assert chart.picture().size[0] > 0 and Chart("", "", [None]).empty


# ---- the page


@pytest.fixture(scope="module")
def written(seen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside") / "new"
    assert seen[0].write(folder, seen[2]) == folder / "index.html"
    return folder


def test_all_files_are_written_and_are_pictures(written):
    assert {p.name for p in written.iterdir()} == {*FILES}
    for name in FILES:
        if name.endswith(".png"):
            assert min(pictures.open_picture(written / name).size) > 100


def test_the_page_holds_everything_and_loads_nothing(written):
    page = (written / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page and 'type="range"' in page and page.count("<svg") == 3
    for part in ("autoencoder alone", "inversion and back", "blending mask", "guidance difference",
                 "what a gradient took out", "self-attention maps from those recorded", "<mark>yellow</mark>",
                 "<mark>blue</mark>"):
        assert part in page
    data = re.search(r'id="data">(.*?)</script>', page).group(1)
    assert data.count("data:image/webp") == 3 * STEPS + STEPS * 2 + 2  # predictions, mask and difference, gradient


def test_prompts_are_text_in_the_page(model, picture, seen, tmp_path):
    odd = "<script>alert(1)</script> & \"mug\""
    explanation = Explanation(model, picture, SOURCE, odd, settings(model).but(**CONFIG))
    for moment in seen[1]:
        explanation(moment)
    page = explanation.write(tmp_path, seen[2]).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;" in page


def test_nothing_of_an_earlier_explanation_is_left(model, picture, seen, written, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mask.png")
    (tmp_path / "mine.txt").write_text("mine")
    explanation = Explanation(model, picture, SOURCE, TARGET, settings(model).but(**CONFIG))
    for moment in seen[1]:
        explanation(replace(moment, mask=None, gradient=None, loss=None))
    explanation.write(tmp_path, seen[2], rebuilt=(picture, picture))
    assert {p.name for p in tmp_path.iterdir()} == {*FILES, "mine.txt"} - {"mask.png", "gradient.png"}
    assert (tmp_path / "index.html").read_text().count("none in this edit") == 4  # two maps, two curves


@pytest.mark.parametrize("lacking", [
    *(pytest.param({name: None}, marks=pytest.mark.slow) for name in ("source", "target", "guided")), {"looks": {}},
    pytest.param({"source": None, "looks": {}}, marks=pytest.mark.slow),
    {"source": None, "target": None, "guided": None, "looks": {}, "mask": None, "gradient": None, "loss": None}])
def test_what_a_method_does_not_have_is_none_in_this_edit(model, picture, seen, lacking, tmp_path):
    explanation = Explanation(model, picture, SOURCE, TARGET, settings(model).but(**CONFIG))
    for moment in seen[1]:
        explanation(replace(moment, **lacking))
    page = explanation.write(tmp_path, seen[2], rebuilt=(picture, None)).read_text(encoding="utf-8")
    shown = [name for name in ("source", "target", "guided") if name not in lacking]
    assert explanation.predicted == tuple(shown)
    for name in ("source", "target", "guided"):
        assert (f'id="predicted-{name}"' in page) == (name in shown)
    lost = [name for name in FILES if not (tmp_path / name).exists()]
    assert ("words-target.png" in lost) == ("looks" in lacking) and ("predictions.png" in lost) == (not shown)
    assert ("difference.png" in lost) == ("source" in lacking or "target" in lacking)
    # all files but the page, curves and reconstructions are of what may be absent
    assert page.count("none in this edit") >= len(lacking) + 1  # and the inversion, here
    assert "<mark>yellow</mark>" in page


def test_an_edit_of_no_steps_has_a_page_too(model, picture, seen, tmp_path):
    explanation = Explanation(model, picture, SOURCE, TARGET, settings(model).but(**CONFIG))
    page = explanation.write(tmp_path, seen[2], rebuilt=(picture, picture)).read_text(encoding="utf-8")
    assert "none in this edit" in page and explanation.strip() is None
    with pytest.raises(SettingsError, match="no prediction was watched"):
        explanation.predictions(0)


def test_a_page_that_cannot_be_written_leaves_nothing_half(seen, tmp_path, monkeypatch):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(PictureError, match="cannot be written"):
        seen[0].write(tmp_path, seen[2])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


# ---- the command


EDIT = ["edit", "examples/mug.png", "--model=stilllife", f"--source={SOURCE}", "--steps=2", "--guided-steps=1",
        "--retries=0", "--quiet"]


@pytest.mark.slow
def test_the_command_explains_each_edit_in_its_folder(tmp_path, capsys):
    assert cli.main([*EDIT, f"--target={TARGET}", f"--target={SOURCE.replace('mug', 'bottle')}",
                     f"--out={tmp_path}/e.png", f"--explain={tmp_path}/inside"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{tmp_path}/e-1.png", f"{tmp_path}/inside/1/index.html", f"{tmp_path}/e-2.png",
                     f"{tmp_path}/inside/2/index.html"]
    assert "<mark>bottle</mark>" in (tmp_path / "inside/2/index.html").read_text()


def test_the_command_overwrites_neither_the_picture_nor_the_edit(tmp_path, capsys, picture):
    picture.save(tmp_path / "mask.png")
    command = [EDIT[0], f"{tmp_path}/mask.png", *EDIT[2:], f"--target={TARGET}", f"--explain={tmp_path}"]
    assert cli.main([*command, f"--out={tmp_path}/e.png"]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert cli.main([*EDIT, f"--target={TARGET}", f"--explain={tmp_path}", f"--out={tmp_path}/curves.png"]) == 2
    assert "belongs to the explanation too" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main([*EDIT, f"--target={TARGET}", f"--explain={tmp_path}/file", f"--out={tmp_path}/e.png"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"mask.png", "file"}
