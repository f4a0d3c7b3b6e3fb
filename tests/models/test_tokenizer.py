"""Our CLIP tokenizer: the ids of transformers' own for any text, and one ModelError for files that lie."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer as Oracle

from sage.errors import ModelError
from sage.models.known import installed
from sage.models.sd.tokenizer import read_tokenizer
from tests.hardening import files
from tests.hardening.ends import ends_well, tries
from tests.models import tiny

VOCABULARY = 600
WORDS = st.sampled_from(("cat", "ca", "a", "CAT", "don't", "we'LL", "it's", "<|endoftext|>", "<|startoftext|>",
                         "<|ENDOFTEXT|>", "cat<|endoftext|>cat", "3D", "12", "...", "!?", "e\u0301", "猫", "😀",
                         "\u200b", "\ufeff", "\0", " ", "\u00a0", "\t\n", "\x85", "\x1c", "ǅ", "ﬁ", "İ", "_", "</w>",
                         "a</w>", "«é»"))
TEXTS = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=20).map("".join),
                  st.lists(WORDS, max_size=20).map(" ".join))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files = tmp_path_factory.mktemp("tokenizer") / "files"
    tiny.tokenizer(files)
    return files


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "tokenizer")


def with_marks(folder, name: str) -> None:
    """The folder as a part of those on the hub have it."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    marks = {f"{kind}_token": {"content": token, **flags} for kind, token in (
        ("bos", "<|startoftext|>"), ("eos", "<|endoftext|>"), ("unk", "<|endoftext|>"))}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    if name == "1.x":
        write(folder / "tokenizer_config.json", {**config, "pad_token": "<|endoftext|>",
                                                 **{k: {"__type": "AddedToken", **v} for k, v in marks.items()}})
        write(folder / "special_tokens_map.json", {**marks, "pad_token": "<|endoftext|>"})
    elif name == "2.x":
        write(folder / "tokenizer_config.json", {**config, "pad_token": "<|endoftext|>"})
        write(folder / "special_tokens_map.json", {**marks, "pad_token": "!"})
    elif name == "decoder":
        ids = json.loads((folder / "vocab.json").read_text())
        write(folder / "tokenizer_config.json", {**config, "pad_token": "!", "added_tokens_decoder": {
            str(ids[token]): {"content": token, **flags, "special": True}
            for token in ("<|startoftext|>", "<|endoftext|>", "!")}})
        write(folder / "special_tokens_map.json", {**marks, "pad_token": "<|endoftext|>"})
    elif name == "learnt":  # a token of textual inversion beside the vocabulary
        number = len(json.loads((folder / "vocab.json").read_text()))
        write(folder / "tokenizer_config.json", {**config, "added_tokens_decoder": {
            str(number): {"content": "<cat-toy>", **flags, "normalized": False, "special": False}}})
    elif name == "whole":
        Oracle.from_pretrained(folder).save_pretrained(folder)
        (folder / "vocab.json").unlink(missing_ok=True)
        (folder / "merges.txt").unlink(missing_ok=True)


def write(path, values) -> None:
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("kind", ("plain", "1.x", "2.x", "decoder", "learnt", "whole"))
def test_the_files_of_every_folder(broken, kind):
    with_marks(broken, kind)
    ours, theirs = read_tokenizer(broken, VOCABULARY), Oracle.from_pretrained(broken)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, len(ours)) == (
        theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, len(theirs))

    @tries(60, 3000)
    @given(TEXTS)
    def same(text):
        text = text.replace("dog", "<cat-toy>")
        for marks in (True, False):
            assert ours(text, add_special_tokens=marks).input_ids == theirs(text, add_special_tokens=marks).input_ids
        ids = ours(text).input_ids
        assert ours.decode(ids) == theirs.decode(ids)

    same()
    for text in ("a <cat-toy> on a mat", "<cat-toy>", "<CAT-TOY>", "a<|startoftext|>b"):
        assert ours(text).input_ids == theirs(text).input_ids


@pytest.mark.skipif(not installed("stilllife"), reason="the bundled model is not here")
def test_that_of_the_bundled_model():
    folder = installed("stilllife") / "tokenizer"
    ours, theirs = read_tokenizer(folder, 10_000), Oracle.from_pretrained(folder)

    @tries(100, 3000)
    @given(st.one_of(TEXTS, st.lists(st.sampled_from(sorted(theirs.get_vocab())), max_size=20).map(" ".join)))
    def same(text):
        assert ours(text).input_ids == theirs(text).input_ids

    same()


def test_the_padding_can_be_named(broken):
    with_marks(broken, "2.x")
    assert read_tokenizer(broken, VOCABULARY, pad="<|endoftext|>").pad_token_id == read_tokenizer(
        broken, VOCABULARY).eos_token_id


LIES = {
    "an id beyond the vocabulary": ("vocab.json", lambda v: v | {"cat</w>": 600}, "has the number 600"),
    "an id below it": ("vocab.json", lambda v: v | {"cat</w>": -1}, "has the number -1"),
    "an id of 32 bits": ("vocab.json", lambda v: v | {"cat</w>": 2**32 - 1}, "has the number"),
    "an id of 100 digits": ("vocab.json", lambda v: v | {"cat</w>": 10**100}, "has the number"),
    "an id that is a text": ("vocab.json", lambda v: v | {"cat</w>": "1"}, "no readable tokenizer"),
    "an id that is a fraction": ("vocab.json", lambda v: v | {"cat</w>": 1.5}, "no readable tokenizer"),
    "no mark for the end": ("vocab.json", lambda v: {k: n for k, n in v.items() if k != "<|endoftext|>"},
                            "the vocabulary lacks '<.endoftext.>'"),
    "a null pad token": ("tokenizer_config.json", lambda v: v | {"pad_token": None}, "None. stands where a token"),
    "a pad token that is a number": ("tokenizer_config.json", lambda v: v | {"pad_token": 3}, "where a token"),
    "an empty pad token": ("tokenizer_config.json", lambda v: v | {"pad_token": ""}, "where a token"),
    "flags that are none": ("tokenizer_config.json", lambda v: v | {"pad_token": {"content": "!", "lstrip": 3}},
                            "where a token"),
    "added tokens that are none": ("tokenizer_config.json", lambda v: v | {"added_tokens_decoder": [1]}, "dict is exp"),
    "no object": ("tokenizer_config.json", lambda v: [v], "does not hold a JSON object")}


@pytest.mark.parametrize("lie", LIES)
def test_lies(broken, lie):
    name, change, said = LIES[lie]
    write(broken / name, change(json.loads((broken / name).read_text())))
    with pytest.raises(ModelError, match=said):
        read_tokenizer(broken, VOCABULARY)


@pytest.mark.parametrize("length", ("many", None, -1, 10**400, [7]))
def test_what_a_folder_says_of_its_length_is_not_asked(broken, length):
    """The text encoder says how long a prompt may be."""
    tiny.configure(broken / "tokenizer_config.json", model_max_length=length)
    assert read_tokenizer(broken, VOCABULARY)("cat", add_special_tokens=False).input_ids


def test_more_tokens_than_the_text_encoder_has(broken):
    many = {str(60 + i): {"content": f"<{i}>"} for i in range(600)}
    tiny.configure(broken / "tokenizer_config.json", added_tokens_decoder=many)
    with pytest.raises(ModelError, match="tokens, the text encoder 600"):
        read_tokenizer(broken, VOCABULARY)


@tries(25, 1000)
@given(st.sampled_from(("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                        "tokenizer.json", "merges.txt")), st.data())
def test_any_file_gives_ids_in_range_or_one_error(folder, tmp_path_factory, name, data):
    other = tmp_path_factory.mktemp("t") / "tokenizer"
    shutil.copytree(folder, other)
    if name == "tokenizer.json":
        Oracle.from_pretrained(folder).save_pretrained(other)
    path = other / name
    honest = path.read_bytes() if path.exists() else json.dumps({"pad_token": "!", "<toy>": 58}).encode()
    if name == "merges.txt":
        path.write_bytes(data.draw(files.damaged(honest)))
    else:
        path.write_text(data.draw(st.one_of(files.hostile_json(json.loads(honest)), files.damaged(honest).map(
            lambda raw: raw.decode(errors="replace")))), errors="surrogatepass")
    made = ends_well("tokenizers", lambda: read_tokenizer(other, VOCABULARY), ModelError)
    if made is not None:
        for text in ("a cat on a mat", data.draw(TEXTS)):
            assert all(0 <= number < VOCABULARY for number in (*made(text).input_ids, made.pad_token_id))
