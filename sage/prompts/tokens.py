"""Prompts as tokens: ids, where phrases stand, and what differs between two prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from sage.errors import PromptError

MAX_PROMPT = 4096


@dataclass(frozen=True)
class Prompt:
    """A prompt and its padded token ids, marks included."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """Token positions of one phrase in the source prompt and of its counterpart in the target; one may be empty."""

    source: tuple[int, ...]
    target: tuple[int, ...]


class Prompts:
    """A tokenizer seen through the few questions that editing asks.

    Args:
        tokenizer: that of `sage.models.sd.tokenizer` or transformers' CLIPTokenizer, which mark both ends of a prompt;
            T5Tokenizer, which marks the last; or anything that is called in the same way.
        max_length: tokens the text encoder takes, marks included.
        taught: the words that the model knows, in lower case, where they are few enough to be listed.
    """

    def __init__(self, tokenizer: Any, max_length: int, taught: Iterable[str] = ()):
        self.tokenizer, self.max_length, self.taught = tokenizer, max_length, tuple(taught)
        self._start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)

    def parse(self, text: str, truncate: bool = False) -> Prompt:
        """Tokenize, with runs of blanks made one.

        Raises:
            PromptError: longer than the model takes, naming what would be cut, unless `truncate`; or no prompt at all.
        """
        check_text(text)
        text = " ".join(text.split())
        body = self._body(text)
        room = self.max_length - len(self._start) - 1
        if len(body) > room and not truncate:
            cut = self.tokenizer.decode(body[room:]).strip()
            raise PromptError(f"the prompt has {len(body)} tokens, {len(body) - room} too many for this model: "
                              f"{cut[:80]!r} would be cut; shorten it, or allow that with --truncate")
        t = self.tokenizer
        ids = [*self._start, *body[:room], t.eos_token_id]
        return Prompt(text, tuple(ids + [t.pad_token_id] * (self.max_length - len(ids))))

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's ids with its marks, without padding."""
        return prompt.ids[:self._end(prompt) + 1]

    def _end(self, prompt: Prompt) -> int:
        """Where the end mark stands: padding cannot tell, SD 2.x pads with "!"."""
        return min(len(self._start) + len(self._body(prompt.text)), self.max_length - 1)

    def find(self, prompt: Prompt, phrase: str, every: bool = False) -> tuple[int, ...]:
        """Token positions of `phrase` in `prompt`: its first occurrence, or all of them.

        Raises:
            PromptError: the phrase is empty or not in the prompt.
        """
        check_text(phrase, "phrase")
        wanted, found = self._body(phrase), []
        if wanted:
            starts = [i for i in range(len(self._start), self._end(prompt) - len(wanted) + 1)
                      if list(prompt.ids[i:i + len(wanted)]) == wanted]
            found = [p for i in starts[:None if every else 1] for p in range(i, i + len(wanted))]
        if not found:
            raise PromptError(f"the phrase {phrase!r} is not in the prompt {prompt.text!r}")
        return tuple(dict.fromkeys(found))

    def phrase(self, prompt: Prompt, positions: Sequence[int]) -> str:
        """The words that stand at some positions of a prompt, as the tokenizer spells them."""
        return str(self.tokenizer.decode([prompt.ids[p] for p in positions])).strip()

    def words(self, prompt: Prompt) -> list[tuple[str, tuple[int, ...]]]:
        """Each space-separated word of the prompt with its token positions; words past the cut have none."""
        end, at, out = self.max_length - 1, len(self._start), []
        for word in prompt.text.split():
            count = len(self._body(word))
            out.append((word, tuple(p for p in range(at, at + count) if p < end)))
            at += count
        return out

    def find_word(self, prompt: Prompt, word: str) -> tuple[int, ...]:
        """Token positions of every space-separated word equal to `word`, empty if there is none.

        This is the rule of prompt-to-prompt and of the released SAGE: in "a cat, asleep" there is no word "cat".
        """
        return tuple(p for w, positions in self.words(prompt) if w == word for p in positions)

    def differences(self, source: Prompt, target: Prompt) -> list[Span]:
        """What the target says otherwise, word by word: one span for each run of words that differs.

        Commas and the like, and the articles a and an, only follow other words and are not counted as edited.  Of
        words past the cut as many are compared as can stand before it, so that what one prompt moves past it is found
        there; thousands would take minutes.
        """
        a, b = self._pieces(source), self._pieces(target)
        matcher = SequenceMatcher(a=[w for w, _ in a], b=[w for w, _ in b], autojunk=False)
        spans = []
        for tag, i, i_end, j, j_end in matcher.get_opcodes():
            if tag != "equal":
                span = Span(_positions(a[i:i_end]), _positions(b[j:j_end]))
                if span.source or span.target:
                    spans.append(span)
        return spans

    def _pieces(self, prompt: Prompt) -> list[tuple[str, tuple[int, ...]]]:
        """Words with punctuation taken off their ends as pieces of its own."""
        pieces = []
        for word, positions in self.words(prompt)[:2 * self.max_length]:
            core = word.strip(",.;:!?\"'()")
            before, after = word.split(core, 1) if core else (word, "")
            inner, first = self._body(core), len(self._body(before))
            # "'dog" has other tokens than "'" and "dog", for English has 'd: such a word stays whole.
            if not core or core == word or [*self._body(before), *inner, *self._body(after)] != self._body(word):
                pieces.append((word, positions))
                continue
            pieces.append((core, positions[first:first + len(inner)]))
            pieces.append((before + after, positions[:first] + positions[first + len(inner):]))
        return pieces

    def _body(self, text: str) -> list[int]:
        # Marks spelt out in a prompt are words to a user; cutting them off by position keeps them so.
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids


def check_text(text: str, name: str = "prompt") -> str:
    """The text itself, if it may be a prompt or phrase.

    Raises:
        PromptError: far too long, or not valid Unicode.
    """
    if len(text) > MAX_PROMPT:
        raise PromptError(f"the {name} has {len(text)} characters; models read a few dozen words")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise PromptError(f"the {name} is not valid UTF-8 text")
    return text


def _positions(pieces: list[tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    edited = [p for word, positions in pieces if word not in ("a", "an") and any(c.isalnum() for c in word)
              for p in positions]
    return tuple(edited)
