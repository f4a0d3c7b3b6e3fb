"""A CLIP-style byte-pair tokenizer, learnt from the captions, in the files that transformers' CLIPTokenizer reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sage.prompts.vocabulary import words_of
from sage.stilllife import varied_scene
from sage.stilllife.prompts import prompt

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 48


def texts(count: int) -> Iterator[str]:
    """Captions of the first training scenes."""
    return (prompt(varied_scene(i), np.random.default_rng(i)) for i in range(count))


def taught(count: int = 2_000) -> list[str]:
    """The words that the captions use, in the order of the alphabet."""
    return sorted({word for text in texts(count) for word in words_of(text)})


def train(folder: Path, captions: int = 20_000) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and tokenizer_config.json into `folder`, unless they are there."""
    if not (folder / "vocab.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Bytes that occur nowhere stay spellable, so that no prompt is ever outside the vocabulary.
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, end_of_word_suffix="</w>",
                                      show_progress=False)
        tokenizer.train_from_iterator((text.replace(",", " ,") for text in texts(captions)), trainer)
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]
        words = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges), START, END]
        (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "bos_token": START,
             "eos_token": END, "unk_token": END, "pad_token": END}, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
