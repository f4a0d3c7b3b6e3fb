"""A captioning model of the user's: the same words as transformers itself gives, and one line for what is none."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sage.commands import main as cli
from sage.errors import ModelError, PromptError
from sage.prompts.captioner import describe
from tests.commands.test_edit import Engine

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"a red blue green mug ball cone on grass snow sand wooden table".split()]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def save_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
SEES = dict(image_size=32, patch_size=16, **SMALL)
WRITES = dict(vocab_size=len(WORDS), bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.5)


def blip():
    text = dict(encoder_hidden_size=16, sep_token_id=3, max_position_embeddings=80, **WRITES, **SMALL)
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig(text_config=text, vision_config=SEES))


def git():
    return transformers.GitForCausalLM(transformers.GitConfig(vision_config=SEES, **WRITES, **SMALL))


def encoder_decoder():
    text = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, add_cross_attention=True, is_decoder=True, **WRITES)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.ViTConfig(**SEES), text)
    model = transformers.VisionEncoderDecoderModel(config=config)
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=0, eos_token_id=3)
    return model


def save(folder, make):
    """A tiny model of random weights."""
    torch.manual_seed(3)
    model = make().eval()
    model.generation_config.update(suppress_tokens=[0, 1, 2, 3])  # which are no words
    model.save_pretrained(folder)
    save_tokenizer(folder)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def said_by(model, folder):
    """What its own generate makes of the picture, called directly."""
    pixels = transformers.BlipImageProcessor.from_pretrained(folder)(PICTURE, return_tensors="pt").pixel_values
    with torch.no_grad():
        ids = model.generate(pixel_values=pixels, max_new_tokens=60, do_sample=False)
    return " ".join(transformers.BertTokenizer.from_pretrained(folder).decode(ids[0], skip_special_tokens=True).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    save(folder := tmp_path_factory.mktemp("blip"), blip)
    return folder


@pytest.mark.parametrize("make", [blip, git, encoder_decoder])
def test_its_words_are_those_of_transformers_itself(tmp_path, make):
    said = said_by(save(tmp_path, make), tmp_path)
    assert len(said.split()) > 3 and describe(PICTURE, tmp_path, "cpu") == said


def test_the_commands_take_its_words(folder, tmp_path, capsys, monkeypatch):
    said = describe(PICTURE, folder, "cpu")
    PICTURE.save(path := tmp_path / "cat.png")
    capsys.readouterr()
    assert cli.main(["caption", str(path), "--captioner", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == said
    assert cli.main(["caption", str(path), "--captioner", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"caption": said}
    monkeypatch.chdir(tmp_path)
    engine = Engine(monkeypatch)
    assert cli.main(["edit", str(path), "--source", "auto", "--captioner", str(folder), "--target", "a red mug",
                     "--model", "stilllife", "--method", "sage"]) == 0
    assert engine.edits[0].source == said
    err = capsys.readouterr().err
    assert f"the picture is taken to show: {said}" in err and "unlike" not in err


def test_what_is_no_captioning_model_is_one_line(folder, tmp_path, capsys):
    PICTURE.save(path := tmp_path / "cat.png")

    def broken(**changes):
        copy = tmp_path / "broken"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        for name, text in changes.pop("files", {}).items():
            (copy / name).write_text(text)
        for name in changes.pop("gone", ()):
            (copy / name).unlink()
        if changes:
            config = json.loads((copy / "config.json").read_text()) | changes
            (copy / "config.json").write_text(json.dumps(config))
        return copy

    rows = ((tmp_path / "nowhere", "no captioning model is at"), ("some/name", "`hf download`"),
            (tmp_path, "it has no config.json"), (broken(gone=["config.json"]), "it has no config.json"))
    for where, words in rows:
        with pytest.raises(ModelError, match=words):
            describe(PICTURE, where)
    for changes, words in ((dict(gone=["model.safetensors"]), "get them in safetensors"),
                           (dict(model_type="gpt2"), "is no captioning model, but gpt2: name one of BLIP"),
                           (dict(files={"config.json": "{"}), "is damaged"),
                           (dict(files={"model.safetensors": "x"}), "cannot be used"),
                           (dict(auto_map={"AutoModelForImageTextToText": "own.Model"}, model_type="own",
                                 files={"own.py": "raise SystemExit"}), "is no captioning model, but own"),
                           (dict(gone=["preprocessor_config.json"]), "cannot be used")):
        where = broken(**changes)
        assert cli.main(["caption", str(path), "--captioner", str(where)]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1 and said.startswith("sage: error: "), said


def test_what_it_says_has_to_be_a_description(folder, monkeypatch):
    monkeypatch.setattr("transformers.BertTokenizer.decode", lambda *given, **more: " ")
    with pytest.raises(PromptError, match="gave no description, but ''"):
        describe(PICTURE, folder, "cpu")


@pytest.mark.parametrize("words, said", [
    (["caption", "cat.png", "--captioner", "x", "--encoder", "y"], "give one of them"),
    (["edit", "cat.png", "--source", "a cat", "--target", "a dog", "--captioner", "x"], "for --source auto")])
def test_flags_that_do_not_fit_together_are_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PICTURE.save("cat.png")
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
