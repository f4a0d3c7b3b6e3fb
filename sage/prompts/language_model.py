"""An instruction -> the target prompt, by a language model that the user names.  Never by default.

It is behind the address of an OpenAI-compatible server, a machine's own (llama.cpp, vLLM, Ollama) or another's; or in a
folder, as transformers saves it.  What it is asked are the instruction and the source prompt, no picture, and what is
sent is shown before.  As in TurboEdit (Wu et al. 2408.08332), the model is asked to change the description as little as
the instruction allows.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from sage.errors import PromptError, SettingsError
from sage.prompts.pretrained import found_folder, loaded, quiet, said_by, taken_as_text
from sage.prompts.tokens import check_text

KEY = "SAGE_LLM_KEY"  # the environment variable with the key of a server that wants one
MOST, SECONDS = 2**20, 60  # bytes of an answer, and how long it may take
NEW_TOKENS = 200  # of an answer
ASK = ("You rewrite descriptions of pictures. You are given a description and an instruction. Answer with the "
       "description of the picture as it is after the instruction was followed. Change as few words as possible, keep "
       "the order and the wording of all others, and write nothing but the description.")


def messages(instruction: str, source: str) -> list[dict[str, str]]:
    """What a language model is asked, as a chat has it."""
    return [{"role": "system", "content": ASK},
            {"role": "user", "content": f"Description: {source}\nInstruction: {instruction}"}]


class LanguageModel(ABC):
    """What makes the target prompt of an instruction."""

    def follow(self, instruction: str, source: str, shown: Callable[[str], None]) -> str:
        """The target prompt of an instruction.

        Args:
            shown: called with what is sent and where to, before it is.
        Raises:
            SettingsError, ModelError: the model cannot be asked, or its answer is none.
            PromptError: what it says cannot be a prompt.
        """
        instruction = " ".join(check_text(instruction, "the instruction").split())
        if not instruction:
            raise PromptError("the instruction is empty: write one, such as 'make the mug red'")
        return self.read(self.answer(instruction, source, shown))

    @abstractmethod
    def answer(self, instruction: str, source: str, shown: Callable[[str], None]) -> str:
        """What it says."""

    def read(self, said: str) -> str:
        """The description in what it says: the last line behind what it thinks aloud; none where it never ends that."""
        spoken = said.rpartition("</think>")[2].partition("<think>")[0]
        lines = [line.strip() for line in spoken.splitlines() if line.strip()]
        text = " ".join(lines[-1:]).removeprefix("Description:").strip().strip("\"'`").strip()
        if not taken_as_text(text):
            raise PromptError(f"the language model gave no description, but {said[:80]!r}: write the target prompt "
                              "yourself")
        return check_text(text)


def language_model(where: str, name: str | None = None, device: str | None = None) -> LanguageModel:
    """The language model that a user names.

    Args:
        where: an address, or a folder.
        name: of the model at the address.
        device: where the model of a folder runs; cuda where there is one by default.
    Raises:
        SettingsError: an address that is none, or half of what names a model.
    """
    if os.path.isdir(where):
        if name is not None:
            raise SettingsError(f"{where} is a folder, which holds one model: leave out --llm-model")
        return Folder(where, device)
    if "://" not in where:
        raise SettingsError(f"{where[:100]!r} is neither a folder nor the address of a language model, such as "
                            "http://localhost:11434/v1")
    if name is None:
        raise SettingsError("a language model is an address and a name: give both --llm and --llm-model")
    return Served(where, name)


@dataclass(frozen=True)
class Served(LanguageModel):
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
        return {"model": self.name, "temperature": 0, "messages": messages(instruction, source)}

    def answer(self, instruction: str, source: str, shown: Callable[[str], None]) -> str:
        """What its server answers."""
        body = json.dumps(self.question(instruction, source))
        shown(f"sent to {self.address}: {body}")
        if not isinstance(said := self._answer(body.encode()), str):
            raise self._failed("its answer is no text")
        return said

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

    def _failed(self, why: str) -> SettingsError:
        return SettingsError(f"the language model at {self.address} gave no target prompt ({why}): see that it runs, "
                             "or write the target prompt yourself")


class _Stay(HTTPRedirectHandler):
    """What is sent was shown with its address, and goes to no other."""

    def redirect_request(self, *given: Any) -> None:
        return None


_OPENER = build_opener(_Stay)


class Folder(LanguageModel):
    """A model of transformers in a folder, which runs here; loaded when it is first asked.

    Args:
        where: its folder.
        device: cuda where there is one by default.
    """

    def __init__(self, where: str | Path, device: str | None = None):
        self.where, self.device = where, device
        self._parts: tuple[Any, Any] | None = None

    def answer(self, instruction: str, source: str, shown: Callable[[str], None]) -> str:
        """What it writes, each time what is most probable."""
        folder, _ = found_folder(self.where, "language model")
        with quiet():
            from transformers import AutoModelForCausalLM, AutoTokenizer
            tokenizer = self._parts[0] if self._parts else loaded(AutoTokenizer, folder)
            with said_by(folder):
                text, chat = _worded(tokenizer, messages(instruction, source))
            shown(f"sent to the model in {folder}: {json.dumps(text)}")
            if self._parts is None:
                self._parts = tokenizer, loaded(AutoModelForCausalLM, folder, self.device, "auto")
            model = self._parts[1]
            with said_by(folder):
                asked = tokenizer(text, return_tensors="pt", add_special_tokens=not chat).to(model.device)
                number = asked["input_ids"].shape[1]
                room = getattr(model.config, "max_position_embeddings", None) or number + NEW_TOKENS
                if number >= room:
                    raise SettingsError(f"the language model in {folder} reads {room} tokens, and it is asked {number}")
                ids = model.generate(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"],
                                     max_new_tokens=min(NEW_TOKENS, room - number), do_sample=False)
                said = tokenizer.decode(ids[0, number:].tolist(), skip_special_tokens=True)
        return said if chat else "\n".join(said.strip().splitlines()[:1])  # no chat: behind its answer it writes on


def _worded(tokenizer: Any, asked: list[dict[str, str]]) -> tuple[str, bool]:
    """A chat as the text that the model reads, and whether by a template of its own."""
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in asked) + "\nDescription:", False
    from jinja2 import TemplateError
    how = dict(tokenize=False, add_generation_prompt=True, enable_thinking=False)  # the last, where it can be told
    try:
        return tokenizer.apply_chat_template(asked, **how), True
    except TemplateError:  # it may know no system's role
        one = [{"role": "user", "content": "\n\n".join(message["content"] for message in asked)}]
        return tokenizer.apply_chat_template(one, **how), True
