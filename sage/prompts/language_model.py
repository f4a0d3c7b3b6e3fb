"""An instruction -> the target prompt, by a language model at an address that the user names.  Never by default.

The address is that of an OpenAI-compatible server, a machine's own (llama.cpp, vLLM, Ollama) or another's.  What goes
there are the instruction and the source prompt, no picture.  As in TurboEdit (Wu et al. 2408.08332), the model is asked
to change the description as little as the instruction allows.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from sage.errors import PromptError, SettingsError
from sage.prompts.tokens import check_text

KEY = "SAGE_LLM_KEY"  # the environment variable with the key of a server that wants one
MOST, SECONDS = 2**20, 60  # bytes of an answer, and how long it may take
LONGEST = 1000  # characters of a description
ASK = ("You rewrite descriptions of pictures. You are given a description and an instruction. Answer with the "
       "description of the picture as it is after the instruction was followed. Change as few words as possible, keep "
       "the order and the wording of all others, and write nothing but the description.")


@dataclass(frozen=True)
class LanguageModel:
    """A model behind an address.

    Attributes:
        url: up to and without /chat/completions, such as http://localhost:11434/v1.
        name: of the model, as its server calls it.

    Raises:
        SettingsError: an address that is none.
    """

    url: str
    name: str

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and parts.hostname and not parts.username and parts.port != 0
        except ValueError:
            fits = False
        if not fits or not self.url.isprintable() or " " in self.url:
            raise SettingsError(f"{self.url[:100]!r} is no address of a language model: give one such as "
                                "http://localhost:11434/v1, without a password in it")
        if not self.name.strip():
            raise SettingsError("the language model has no name: say which of its server's models is meant")

    @property
    def address(self) -> str:
        """Where questions go."""
        return self.url.rstrip("/") + "/chat/completions"

    def question(self, instruction: str, source: str) -> dict[str, Any]:
        """What is sent."""
        return {"model": self.name, "temperature": 0, "messages": [
            {"role": "system", "content": ASK},
            {"role": "user", "content": f"Description: {source}\nInstruction: {instruction}"}]}

    def follow(self, instruction: str, source: str, shown: Callable[[str], None]) -> str:
        """The target prompt of an instruction.

        Args:
            shown: called with what is sent and where to, before it is.
        Raises:
            SettingsError: the server cannot be reached, or its answer is none.
            PromptError: what it says cannot be a prompt.
        """
        instruction = " ".join(check_text(instruction, "the instruction").split())
        if not instruction:
            raise PromptError("the instruction is empty: write one, such as 'make the mug red'")
        question = self.question(instruction, source)
        body = json.dumps(question)
        shown(f"sent to {self.address}: {body}")
        return self._read(self._answer(body.encode()))

    def _answer(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        try:
            with _OPENER.open(Request(self.address, body, headers), timeout=SECONDS) as response:
                raw = response.read(MOST + 1)
        except HTTPError as error:
            raise self._failed(f"it answers {error.code}") from error
        except (URLError, OSError, ValueError) as error:
            raise self._failed(str(getattr(error, "reason", error))[:100]) from error
        if len(raw) > MOST:
            raise self._failed("its answer is too long")
        try:
            return json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise self._failed("its answer is not that of a chat") from error

    def _read(self, said: Any) -> str:
        if not isinstance(said, str):
            raise self._failed("its answer is no text")
        lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
        text = " ".join(lines[-1:]).removeprefix("Description:").strip().strip("\"'`").strip()
        if not text or len(text) > LONGEST or not text.isprintable():
            raise PromptError(f"the language model gave no description, but {said[:80]!r}: write the target prompt "
                              "yourself")
        return check_text(text)

    def _failed(self, why: str) -> SettingsError:
        return SettingsError(f"the language model at {self.address} gave no target prompt ({why}): see that it runs, "
                             "or write the target prompt yourself")


class _Stay(HTTPRedirectHandler):
    """What is sent was shown with its address, and goes to no other."""

    def redirect_request(self, *given: Any) -> None:
        return None


_OPENER = build_opener(_Stay)
