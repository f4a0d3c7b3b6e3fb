"""`sage drag`, `sage compose`, and masks: what is asked of the engine, what is recorded, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sage
from sage import EditConfig
from sage.commands import main as cli
from sage.models.savings import Savings
from sage.models.sites import Sites
from sage.pictures.files import read_settings
from sage.pictures.metadata import asked_in, read_record
from sage.studio import recipe

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["--source", "a red mug", "--target", "a blue mug"]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What sage.edit was asked for; the edit is the picture in blue."""
    calls = []

    def edit(model, image, source, target, config, **more):
        calls.append(SimpleNamespace(image=image, source=source, target=target, config=config, **more))
        return SimpleNamespace(image=Image.new("RGB", image.size, "blue"), trajectory=None, masks=(), notes=(),
                               savings=Savings())

    def load_model(model, **options):
        return SimpleNamespace(name=str(model), recommends={}, device="cpu", dtype="torch.float32", sample_size=64,
                               prediction_type="epsilon", sites=Sites, part=lambda name: name)

    monkeypatch.setattr(sage, "edit", edit, raising=False)
    monkeypatch.setattr(sage, "load_model", load_model, raising=False)
    monkeypatch.setattr(sage, "check_prompts", lambda *args, **options: None, raising=False)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save("in.png")
    mask = Image.new("L", (40, 30))
    mask.paste(255, (5, 5, 20, 15))
    mask.save("mask.png")
    return calls


def run(*words: str) -> int:
    return cli.main([*words, "--model", "stilllife", "--quiet"])


def refused(capsys, *words: str) -> str:
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("sage: ")
    return said


def test_a_mask_reaches_the_method_and_the_record_and_repeats_itself(asked):
    assert run("edit", "in.png", *WORDS, "--method", "ddpm", "--mask", "mask.png", "--paste", "--out", "o.png") == 0
    [call] = asked
    assert call.mask.getbbox() == (5, 5, 20, 15) and call.paste is True
    record = read_record("o.png")
    assert asked_in(record)["mask"].tobytes() == call.mask.tobytes() and record["paste"] is True
    assert run("edit", "in.png", "--config-from", "o.png", "--out", "again.png") == 0
    assert asked[1].mask.tobytes() == call.mask.tobytes() and asked[1].paste is True
    assert read_settings("again.png")["mask"] == record["mask"]
    assert run("edit", "in.png", *WORDS, "--method", "ddpm", "--out", "plain.png") == 0
    assert "mask" not in read_settings("plain.png") and not hasattr(asked[2], "mask")


def test_methods_that_read_no_mask_say_which_do(asked, capsys):
    said = refused(capsys, "edit", "in.png", *WORDS, "--method", "p2p", "--mask", "mask.png")
    assert "p2p reads no mask: these do: sage, ddpm" in said and "ledits" in said
    assert "--mask FILE" in refused(capsys, "edit", "in.png", *WORDS, "--method", "ddpm", "--paste")
    Image.new("L", (10, 30), 255).save("tall.png")
    assert "aspect" in refused(capsys, "edit", "in.png", *WORDS, "--method", "ddpm", "--mask", "tall.png")
    Image.new("RGB", (80, 60)).save("other.png")
    run("edit", "in.png", *WORDS, "--method", "ddpm", "--mask", "mask.png", "--out", "o.png")
    assert "a mask of its own" in refused(capsys, "edit", "other.png", "--config-from", "o.png")


def test_a_drag_asks_for_its_moves_and_records_them(asked, capsys):
    assert run("drag", "in.png", "--from", "5,5,15,15", "--to", "30,20", "--source", "a mug", "--out", "o.png") == 0
    [call] = asked
    [move] = call.moves
    assert move.source.getbbox() == (5, 5, 15, 15) and move.target.getbbox() == (25, 15, 35, 25)
    assert call.config.steps == 20 and (call.source, call.target) == ("a mug", "a mug")
    assert run("drag", "in.png", "--config-from", "o.png", "--out", "again.png") == 0
    assert asked[1].moves[0].target.tobytes() == move.target.tobytes()
    capsys.readouterr()
    assert cli.main(["info", "o.png"]) == 0
    assert "\nmoves: 8% of 40 x 30, in the box 5,5,15,15, to 8% of 40 x 30, in" in capsys.readouterr().out
    assert run("drag", "in.png", "--from", "mask.png", "--to", "30,20", "--drag-class", "cut", "--method", "eedit") == 0
    assert asked[2].config.drag_class == "cut" and asked[2].source == "a photograph"
    for words, said in ((["--from", "1,1"], "1 --from and 0 --to"), ([], "0 --from and 0 --to"),
                        (["--from", "1,1", "--to", "900,900"], "outside the picture"),
                        (["--from", "1,1", "--to", "9,9", "--method", "ddpm"], "reads no moves: these do: regiondrag"),
                        (["--from", "1,1", "--to", "9,9", "--radius", "-3"], "--radius")):
        assert said in refused(capsys, "drag", "in.png", *words)


def test_further_targets_reach_the_method_and_the_record_and_repeat_themselves(asked, capsys):
    words = ["edit", "in.png", *WORDS, "--method", "turbo"]
    assert run(*words, "--also", "a red cup", "--also", "a red mug on snow", "--out", "o.png") == 0
    assert asked[0].edits == ("a red cup", "a red mug on snow")
    assert read_settings("o.png")["edits"] == ["a red cup", "a red mug on snow"]
    assert run("edit", "in.png", "--config-from", "o.png", "--out", "again.png") == 0
    assert asked[1].edits == asked[0].edits and read_settings("again.png") == read_settings("o.png")
    assert run("edit", "in.png", "--config-from", "o.png", "--also", "a red ball", "--out", "other.png") == 0
    assert asked[2].edits == ("a red ball",)
    assert run(*words, "--out", "plain.png") == 0
    assert "edits" not in read_settings("plain.png") and not hasattr(asked[3], "edits")
    command = recipe.as_command(read_settings("o.png"), None, "o.png")
    assert command == "sage edit in.png --config-from o.png"
    for more, said in ((["--method", "p2p", "--also", "a cup"], "p2p reads no further targets (--also): these do"),
                       (["--also", " "], "the further target prompt is empty"),
                       (["--also", "a cup"] * 17, "at most 16 --also")):
        assert said in refused(capsys, *words, *more)
    record = read_settings("o.png")
    for damaged in ("a red cup", [], [3], [" "], ["a"] * 17, ["a" * 5000]):
        sage.pictures.save_picture(Image.new("RGB", (40, 30)), "damaged.png", record | {"edits": damaged})
        assert "damaged" in refused(capsys, "edit", "in.png", "--config-from", "damaged.png")


def test_published_settings_are_those_of_the_task(asked, capsys):
    found = sage.method("eedit")
    region = ["--from", "5,5,15,15", "--to", "30,20"]
    paste = ["--reference", "in.png", "--reference-mask", "mask.png", "--box", "20,10,35,25", "--target", "a mug"]
    for command, words, preset in (("edit", WORDS, "published"), ("drag", region, "published-drag"),
                                   ("compose", paste, "published-composition")):
        assert run(command, "in.png", *words, "--method", "eedit", "--published") == 0
        assert asked[-1].config == found.preset(preset) == found.as_published(command)
        assert run(command, "in.png", *words, "--method", "eedit", "--published", "--eta", "0.5") == 0
        assert asked[-1].config == found.preset(preset, eta=0.5)
    assert run("compose", "in.png", *paste, "--method", "ddpm", "--published") == 0  # one preset for all that it does
    assert asked[-1].config == sage.method("ddpm").preset("published")
    assert "regiondrag has no preset 'published'" in refused(capsys, "drag", "in.png", *region, "--published")
    assert cli.main(["methods", "eedit"]) == 0
    assert "of --published with sage drag: published-drag" in " ".join(capsys.readouterr().out.split())


def test_plain_pixels_need_no_network(asked, capsys):
    assert run("drag", "in.png", "--from", "0,0,10,10", "--to", "20,20", "--pixels", "--out", "o.png") == 0
    before, after = (np.asarray(Image.open(name).convert("RGB")) for name in ("in.png", "o.png"))
    assert np.array_equal(after[15:25, 15:25], before[:10, :10]) and not asked
    assert capsys.readouterr().out.strip() == "o.png"


def test_a_composition_edits_the_paste_inside_its_box(asked, capsys):
    words = ["compose", "in.png", "--reference", "in.png", "--reference-mask", "mask.png", "--box", "20,10,35,25"]
    assert run(*words, "--target", "a mug", "--out", "o.png") == 0
    [call] = asked
    before, pasted = np.asarray(Image.open("in.png").convert("RGB")), np.asarray(call.image)
    outside = np.ones((30, 40), bool)
    outside[10:25, 20:35] = False
    assert np.array_equal(pasted[outside], before[outside]) and not np.array_equal(pasted, before)
    assert call.mask.getbbox() == (20, 10, 35, 25) and call.paste is True
    record = read_settings("o.png")
    [paste] = record["composed"]
    assert paste["box"] == [20, 10, 35, 25] and paste["reference"]["name"] == "in.png"
    capsys.readouterr()
    assert cli.main(["info", "o.png"]) == 0
    told = capsys.readouterr().out
    assert "\nmask: 19% of 40 x 30, in the box 20,10,35,25\n" in told
    assert "\ncomposed: with in.png, in the box 20,10,35,25\n" in told
    assert run(*words, "--pixels", "--out", "p.png") == 0 and len(asked) == 1
    for number, (flags, whole) in enumerate(((["--whole"], True), (["--method", "eedit"], None),
                                             (["--method", "eedit", "--published"], True),
                                             (["--method", "ddpm", "--published"], None))):
        assert run(*words, "--target", "a mug", *flags, "--out", f"{number}.png") == 0
        assert read_settings(f"{number}.png")["composed"][0].get("whole") is whole
        assert np.array_equal(np.asarray(asked[-1].image), pasted) is (whole is None)
    assert "--box is missing" in refused(capsys, *words[:-2])
    assert "no mask: these do" in refused(capsys, *words, "--method", "p2p", "--guidance-scale", "2")


def test_a_composition_is_made_again_from_its_settings(asked, capsys):
    for folder in ("things", "made", "elsewhere"):
        Path(folder).mkdir()
    Image.new("RGB", (40, 30), "red").save("things/red.png")
    assert run("compose", "in.png", "--reference", "things/red.png", "--reference-mask", "mask.png", "--box",
               "20,10,35,25", "--source", "a table", "--target", "a mug", "--out", "made/o.png") == 0
    said = refused(capsys, "edit", "in.png", "--config-from", "made/o.png")
    assert "composed with red.png" in said and "no such file" in said and "put it there" in said
    Image.new("RGB", (40, 30), "green").save("made/red.png")
    assert "made/red.png is not the file" in refused(capsys, "edit", "in.png", "--config-from", "made/o.png")
    Path("elsewhere/in.png").write_bytes(Path("in.png").read_bytes())
    for place in ("made", "elsewhere", "."):  # beside the edit, beside the picture, and here
        Path(place, "red.png").write_bytes(Path("things/red.png").read_bytes())
        for command in ("edit", "compose"):
            assert run(command, "elsewhere/in.png", "--config-from", "made/o.png", "--out", "again.png") == 0
            assert Path("again.png").read_bytes() == Path("made/o.png").read_bytes()
        Path(place, "red.png").unlink()
    assert len({(call.image.tobytes(), call.mask.tobytes(), call.source, call.target) for call in asked}) == 1
    assert run("compose", "in.png", "--config-from", "made/o.png", "--reference", "in.png", "--reference-mask",
               "mask.png", "--box", "0,0,9,9", "--out", "b.png") == 0  # another thing, under the same prompts
    assert asked[-1].mask.getbbox() == (0, 0, 9, 9) and asked[-1].target == "a mug"


def test_a_picture_that_was_scaled_down_is_scaled_again(asked, capsys):
    from sage.pictures.originals import identity
    assert run("edit", "in.png", *WORDS, "--method", "plain", "--out", "o.png") == 0
    record = read_settings("o.png")
    record["picture"]["scaled"] = "20 x 15"
    sage.pictures.save_picture(Image.new("RGB", (20, 15), "blue"), "small.png", record)
    assert run("edit", "in.png", "--config-from", "small.png", "--out", "again.png") == 0
    assert asked[1].image.size == (20, 15)
    assert read_settings("again.png")["picture"] == identity(Path("in.png")) | {"scaled": "20 x 15"}
    for scaled, said in (("99999 x 15", "scaled down to 99999 x 15"), ("tiny", "damaged (picture)"), (3, "damaged")):
        record["picture"]["scaled"] = scaled
        sage.pictures.save_picture(Image.new("RGB", (20, 15)), "small.png", record)
        assert said in refused(capsys, "edit", "in.png", "--config-from", "small.png")


@pytest.mark.parametrize("command", ("edit", "drag", "compose", "generate"))
def test_the_flags_of_every_method_fit_beside_those_of_the_commands(command):
    from sage.commands.main import make_parser
    from sage.method import METHODS
    for name in METHODS:
        make_parser([command, "in.png", "--method", name])


def test_the_settings_of_a_cache_are_flags(asked):
    saved = ["--cache", "eedit", "--inv-skip", "3"]
    assert run("edit", "in.png", *WORDS, "--method", "sage", *saved, "--out", "o.png") == 0
    assert asked[0].config == EditConfig.from_dict(read_settings("o.png")["settings"])
    assert (asked[0].config.cache, asked[0].config.inv_skip) == ("eedit", 3)


def test_the_bundled_examples_are_those_of_the_rendered_world():
    from sage import pictures
    from sage.stilllife import Jitter, Scene, Thing, render, thing_mask
    table = Scene(Thing("mug", "red", "shiny", "large", "middle"), None, "wooden", "grey wall", "photo", Jitter())
    drawn = Scene(Thing("bottle", "green", "matte", "large", "middle"), None, "snow", "blue sky", "cartoon", Jitter())
    examples = ROOT / "examples"
    for name, pixels in (("table", render(table, 128, shown=())), ("bottle", render(drawn, 128))):
        assert pictures.open_picture(examples / f"{name}.png").tobytes() == pictures.from_pixels(pixels).tobytes()
    mask = np.asarray(Image.open(examples / "bottle-mask.png")) > 0
    assert np.array_equal(mask, thing_mask(drawn, 0, 128))


def test_a_second_thing_is_typed_as_anybody_says_it(asked):
    """The bundled models hear of one by the word tiny; what a record says is repeated as it is."""
    def said(*words):
        assert run("edit", "in.png", *words, "--out", "o.png") == 0
        assert (asked[-1].source, asked[-1].target) == tuple(read_settings("o.png")[k] for k in ("source", "target"))
        return asked[-1].source, asked[-1].target

    plain, tiny = "a mug and a cone", "a mug and a tiny cone"
    assert said("--source", plain, "--target", "a mug") == (tiny, "a mug")
    assert said("--config-from", "o.png") == (tiny, "a mug")
    assert said("--config-from", "o.png", "--target", plain) == (tiny, tiny)
    assert said("--source", "a mug", "--instruction", "add a small cone beside it")[1].count("tiny") == 1
    further = said("--source", plain, "--target", "a cup", "--also", "a cup, a cone", "--method", "turbo")
    assert further == (tiny, "a cup")
    assert asked[-1].edits == ("a cup, a tiny cone",)
    before = read_settings("o.png") | {"source": plain, "target": "a mug", "method": "plain", "settings": {}}
    before.pop("edits")
    sage.pictures.save_picture(Image.new("RGB", (40, 30)), "before.png", before)
    assert said("--config-from", "before.png", "--method", "plain") == (plain, "a mug")
    assert said("--config-from", "before.png", "--method", "plain", "--target", "a mug and a ball") == (
        plain, "a mug and a ball")
