"""A language model behind an address, or in a folder: what it is sent, what is taken of its answer, how it fails."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sage.errors import PromptError, SageError, SettingsError
from sage.prompts.language_model import Served, language_model


class Stub(BaseHTTPRequestHandler):
    """Answers with what the test has laid ready, and remembers what it was sent."""

    def do_POST(self):
        self.server.asked.append((self.path, self.headers.get("Authorization"),
                                  json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        status, body, headers = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Stub)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def says(server, text, status=200, **headers):
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
    server.answer = status, body, headers
    return Served(f"http://127.0.0.1:{server.server_port}/v1/", "tiny")


def test_it_is_asked_what_was_shown_and_answers_with_the_target(server, monkeypatch):
    monkeypatch.setenv("SAGE_LLM_KEY", "secret")
    model, shown = says(server, 'Description: "a red mug on grass"\n'), []

    def show(text):
        assert not server.asked  # before it goes
        shown.append(text)

    assert model.follow("make the mug red", "a blue mug on grass", show) == "a red mug on grass"
    (path, key, question), = server.asked
    assert path == "/v1/chat/completions" and key == "Bearer secret" and question["model"] == "tiny"
    assert json.dumps(question) in shown[0] and path in shown[0] and "secret" not in shown[0]
    assert "a blue mug on grass" in question["messages"][1]["content"]
    monkeypatch.delenv("SAGE_LLM_KEY")
    model.follow("make the mug red", "a blue mug on grass", lambda text: None)
    assert server.asked[1][1] is None


def test_what_it_thinks_aloud_is_no_description(server):
    model = says(server, "<think>\nThe mug is blue.\n</think>\n\nSure:\na red mug")
    assert model.follow("make it red", "a mug", lambda text: None) == "a red mug"


@pytest.mark.parametrize("text", ["", None, 5, "x" * 2000, "a \x07 mug", "<think>Let me see. A red mug"])
def test_what_is_no_description_is_refused(server, text):
    with pytest.raises(SageError) as error:
        says(server, text).follow("make it red", "a mug", lambda text: None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("answer", [
    (500, b"", {}), (302, b"", {"Location": "http://127.0.0.1:9/"}), (200, b"nonsense", {}),
    (200, b'{"choices": []}', {}), (200, b"[" * 100000, {})])
def test_a_server_that_fails_is_one_line_with_its_address(server, answer):
    model = says(server, "a mug")
    server.answer = answer
    with pytest.raises(SettingsError, match="gave no target prompt"):
        model.follow("make it red", "a mug", lambda text: None)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there(server):
    server.server_close()
    with pytest.raises(SettingsError, match="see that it runs"):
        says(server, "a mug").follow("make it red", "a mug", lambda text: None)
    with pytest.raises(PromptError, match="empty"):
        says(server, "a mug").follow("  ", "a mug", lambda text: None)


@pytest.mark.parametrize("url", ["", "localhost:80", "file:///etc/passwd", "http://", "http://a:b@c/v1", "http://a b/"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(SettingsError, match="is no address"):
        Served(url, "tiny")


# ---- a model in a folder

TEMPLATE = ("{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
            "{% if add_generation_prompt %}reply{% endif %}")
UNSYSTEMATIC = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


def saved(folder, template=None, silent=False, **changes):
    """A tiny GPT-2 of random weights that writes words; a silent one ends at once."""
    torch.manual_seed(1)
    words = ["<end>", "<unknown>", *"a mug red blue make the on grass Description Instruction reply cone snow".split()]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>",
                                         pad_token="<end>", chat_template=template).save_pretrained(folder)
    config = dict(vocab_size=len(words), n_positions=512, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
                  eos_token_id=0, initializer_range=0.5)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config | changes)).eval()
    if silent:
        model.transformer.wte.weight.data.zero_()
    model.save_pretrained(folder)
    return model


def said_by_transformers(folder, text):
    """What its own generate makes of a text, called directly."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(text, return_tensors="pt")
    ids = transformers.GPT2LMHeadModel.from_pretrained(folder).generate(**asked, max_new_tokens=200, do_sample=False)
    return tokenizer.decode(ids[0, asked["input_ids"].shape[1]:], skip_special_tokens=True)


@pytest.mark.parametrize("template, begins", [(None, "You rewrite"), (TEMPLATE, "system You rewrite"),
                                              (UNSYSTEMATIC, "user You rewrite")])
def test_a_model_in_a_folder_is_asked_what_was_shown(tmp_path, monkeypatch, template, begins):
    saved(tmp_path, template)
    shown = []
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "generate", lambda self, generate=(
        transformers.GPT2LMHeadModel.generate), **given: shown.append("asked") or generate(self, **given))
    model = language_model(str(tmp_path), device="cpu")
    said = model.follow("make the  mug red", "a blue mug on grass", shown.append)
    assert [text == "asked" for text in shown] == [False, True]
    assert shown[0].startswith(f"sent to the model in {tmp_path}: ")
    text = json.loads(shown[0].partition(": ")[2])
    assert text.startswith(begins) and "Description: a blue mug on grass\nInstruction: make the mug red" in text
    assert text.strip().endswith("reply" if template else "Description:")
    assert len(said.split()) > 3 and said == said_by_transformers(tmp_path, text).strip()
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", None)  # it is loaded once
    assert model.follow("make the mug red", "a blue mug on grass", shown.append) == said


@pytest.mark.parametrize("changes, gone, words", [
    (dict(silent=True), (), "gave no description, but ''"), (dict(n_positions=32), (), "reads 32 tokens"),
    ({}, ("model.safetensors",), "get them in safetensors"), ({}, ("config.json",), "is no language model"),
    ({}, ("tokenizer.json",), "cannot be used")])
def test_a_folder_that_gives_no_description_is_one_line(tmp_path, changes, gone, words):
    saved(tmp_path, **changes)
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(SageError) as error:
        language_model(tmp_path, device="cpu").follow("make it red", "a mug", lambda text: None)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_names_a_language_model_is_checked(tmp_path):
    for where, name, words in ((tmp_path, "x", "leave out --llm-model"), ("tiny", None, "neither a folder nor"),
                               ("http://localhost:9/v1", None, "give both")):
        with pytest.raises(SettingsError, match=words):
            language_model(str(where), name)
