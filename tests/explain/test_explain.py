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
from sage.errors import PictureError
from sage.explain import FILES, Explanation, charts, heat
from sage.explain.charts import Chart

SOURCE = "a photograph of a big shiny blue mug in the centre, on stone tiles, a brick wall in the background"
TARGET = SOURCE.replace("blue", "yellow")
STEPS = 4
CONFIG = dict(steps=STEPS, guided_steps=3, retries=0)


@pytest.fixture(scope="module")
def model():
    return sage.load_model("stilllife")


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
    return explained(model, picture, model.recommended.but(**CONFIG))


# ---- what is kept


def test_watching_changes_nothing(model, picture, seen):
    plain = sage.edit(model, picture, SOURCE, TARGET, model.recommended.but(**CONFIG))
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


def test_an_edit_begun_anew_is_explained_anew(model, picture):
    config = model.recommended.but(**CONFIG | {"retries": 1, "most_drift": 0.0, "steps": 3})
    explanation, moments, result = explained(model, picture, config)
    assert len(moments) == 6 and explanation.attempts == 2 and any("made again" in n for n in result.notes)
    assert explanation.difference_norms == pytest.approx(
        [m.difference.square().mean().sqrt().item() for m in moments[3:]], rel=1e-5)
    _, mask, _ = (m.mask for m in moments[3:])
    assert np.array_equal(explanation._seen[1].mask, mask[0, 0].numpy() > 0.5)


def test_few_predictions_where_they_cost(model, picture, seen):
    moment = seen[1][0]
    explanation = Explanation(model, picture, SOURCE, TARGET, model.recommended.but(steps=1000))
    large = replace(moment, z=torch.zeros(1, 4, 64, 64))
    for step in range(1000):
        explanation(replace(large, step=step))
    assert len(explanation.decoded) == 12 and explanation.decoded[0] == 0 and explanation.decoded[-1] == 999
    assert len(explanation.steps) <= 112 and {*explanation.decoded} <= {*explanation.steps}
    kept = sum(v.nbytes for s in explanation._seen for v in vars(s).values() if hasattr(v, "nbytes"))
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
    config = model.recommended.but(reconstruction=reconstruction)
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
                 "attention gradient", "Reconstruction loss", "<mark>yellow</mark>", "<mark>blue</mark>"):
        assert part in page
    data = re.search(r'id="data">(.*?)</script>', page).group(1)
    assert data.count("data:image/webp") == 3 * STEPS + STEPS * 2 + 2  # predictions, mask and difference, gradient


def test_prompts_are_text_in_the_page(model, picture, seen, tmp_path):
    odd = "<script>alert(1)</script> & \"mug\""
    explanation = Explanation(model, picture, SOURCE, odd, model.recommended.but(**CONFIG))
    for moment in seen[1]:
        explanation(moment)
    page = explanation.write(tmp_path, seen[2]).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;" in page


def test_nothing_of_an_earlier_explanation_is_left(model, picture, seen, written, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "mask.png")
    (tmp_path / "mine.txt").write_text("mine")
    explanation = Explanation(model, picture, SOURCE, TARGET, model.recommended.but(**CONFIG))
    for moment in seen[1]:
        explanation(replace(moment, mask=None, gradient=None, loss=None))
    explanation.write(tmp_path, seen[2], rebuilt=(picture, picture))
    assert {p.name for p in tmp_path.iterdir()} == {*FILES, "mine.txt"} - {"mask.png", "gradient.png"}
    assert "none in this edit" in (tmp_path / "index.html").read_text()


def test_a_page_that_cannot_be_written_leaves_nothing_half(seen, tmp_path, monkeypatch):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(PictureError, match="cannot be written"):
        seen[0].write(tmp_path, seen[2])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


# ---- the command


EDIT = ["edit", "examples/mug.png", "--model=stilllife", f"--source={SOURCE}", "--steps=2", "--guided-steps=1",
        "--retries=0", "--quiet"]


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
