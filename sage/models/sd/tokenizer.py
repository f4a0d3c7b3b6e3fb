"""CLIP's tokenizer, from the files of a Stable Diffusion folder: the same ids as transformers' CLIPTokenizer gives.

That one takes a second to be imported, has the hub's library imported too, and believes what the files say.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sage.errors import ModelError
from sage.files import read_plain
from sage.models.sd.configs import MAX_BYTES, Config

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
DEFAULTS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
# Radford et al. 2021: both marks, English endings, words, single digits, and runs of anything else.
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Encoded(NamedTuple):
    """A text as tokens."""

    input_ids: list[int]


class CLIPTokenizer:
    """Text -> token ids: byte pairs of lower-case words.

    Args:
        vocab: token -> id; the end of a word is part of its last token.
        merges: pairs of tokens that are joined, the most frequent first.
        special: the tokens called bos_token, eos_token, unk_token and pad_token.
        added: tokens that are found in a text before it is parted.
    Attributes:
        bos_token_id, eos_token_id, pad_token_id: of the marks at both ends, and of what follows.
    """

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], special: Mapping[str, str],
                 added: Sequence[AddedToken]):
        self._tokenizer = Tokenizer(BPE(vocab, merges, end_of_word_suffix=WORD_END, unk_token=special["unk_token"]))
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(PIECES), "removed", invert=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_tokens(list(added))
        ids = self._tokenizer.get_vocab()
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            ids[special[name]] for name in ("bos_token", "eos_token", "pad_token"))

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> Encoded:
        """The tokens of a text, with both marks if they are wanted; never cut or padded."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return Encoded([self.bos_token_id, *ids, self.eos_token_id] if add_special_tokens else ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False).replace(WORD_END, " ").strip()


def read_tokenizer(folder: Path, vocabulary: int, pad: str | None = None) -> CLIPTokenizer:
    """The tokenizer in a folder: of tokenizer.json, or of vocab.json and merges.txt.

    Args:
        vocabulary: how many tokens the text encoder has.
        pad: the padding token, where the folder's own word is not to be taken.
    Raises:
        ModelError: files that are missing or damaged, or tokens that the text encoder does not have.
    """
    vocab, merges, added = _words(folder)
    special, declared = _special(folder, pad)
    found = {token.content: token for token in (*added, *declared)}
    found |= {token.content: token for token in special.values() if token.content not in found}
    try:
        beyond = next((token for token, number in vocab.items() if not 0 <= number < vocabulary), None)
        if beyond is None:
            pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
            names = {name: token.content for name, token in special.items()}
            tokenizer = CLIPTokenizer(vocab, pairs, names, list(found.values()))
    except Exception as error:  # the library raises bare Exception on a damaged vocabulary
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{folder} holds no readable tokenizer ({reason})") from error
    if beyond is not None:
        raise ModelError(f"{folder}: the token {beyond[:40]!r} has the number {str(vocab[beyond])[:20]}, and the text "
                         f"encoder has {vocabulary} tokens")
    if names["unk_token"] not in vocab:
        raise ModelError(f"{folder}: the vocabulary lacks {names['unk_token']!r}, which stands for unknown words")
    if len(tokenizer) > vocabulary:
        raise ModelError(f"{folder} has {len(tokenizer)} tokens, the text encoder {vocabulary}")
    return tokenizer


def _words(folder: Path) -> tuple[dict[str, int], list[Any], list[AddedToken]]:
    """Vocabulary, merges, and tokens beside them, as the files say."""
    if os.path.lexists(folder / "tokenizer.json"):
        whole = Config(folder / "tokenizer.json")
        model = whole.get("model", {}, dict)
        return model.get("vocab", {}), model.get("merges", []), [
            _token(whole.path, value) for value in whole.get("added_tokens", [], list)]
    vocab = Config(folder / "vocab.json").values
    text = read_plain(folder / "merges.txt", ModelError, MAX_BYTES).decode(errors="replace")
    return vocab, [line for line in text.split("\n") if line.strip() and not line.startswith("#version")], []


def _special(folder: Path, pad: str | None) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """The four marks by their names, and the tokens that a folder declares beside its vocabulary."""
    path = folder / "tokenizer_config.json"
    values, declared = _optional(path), list[AddedToken]()
    if "added_tokens_decoder" in values:
        of = Config(path).get("added_tokens_decoder", {}, dict)
        declared = [_token(path, of[number]) for number in sorted(of, key=_number)]
    else:  # as older folders have it
        path = folder / "special_tokens_map.json"
        values |= _optional(path)
        declared = [_token(path, token) for token in _optional(folder / "added_tokens.json")]
    marks = {name: values.get(name, default) for name, default in DEFAULTS.items()} | (
        {} if pad is None else {"pad_token": pad})
    return {name: _token(path, mark, special=True) for name, mark in marks.items()}, declared


def _optional(path: Path) -> dict[str, Any]:
    return Config(path).values if os.path.lexists(path) else {}


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else -1


def _token(path: Path, value: Any, **flags: bool) -> AddedToken:
    """A token as a file writes it: a text, or an object with its content and flags."""
    said = value if isinstance(value, dict) else {"content": value}
    flags = {name: said[name] for name in FLAGS if name in said} | flags
    if not isinstance(said.get("content"), str) or not said["content"] or not all(
            isinstance(flag, bool) for flag in flags.values()):
        raise ModelError(f"{path}: {str(value)[:60]!r} stands where a token is expected")
    return AddedToken(said["content"], **flags)
