"""A language model behind an address: what it is sent, what is taken of its answer, and how it fails."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sage.errors import PromptError, SageError, SettingsError
from sage.prompts.language_model import LanguageModel


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
    return LanguageModel(f"http://127.0.0.1:{server.server_port}/v1/", "tiny")


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


@pytest.mark.parametrize("text", ["", None, 5, "x" * 2000, "a \x07 mug"])
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
        LanguageModel(url, "tiny")
