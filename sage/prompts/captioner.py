"""A picture -> its description, by a captioning model of transformers that the user names.  Never by default.

BLIP (Li et al. 2201.12086), GIT (Wang et al. 2205.14100), or an encoder of pictures before a decoder of text: networks
that take a picture alone and begin to write.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.errors import ModelError, PromptError
from sage.prompts.pretrained import found_folder, loaded, quiet, said_by, taken_as_text
from sage.prompts.tokens import check_text

KINDS = ("blip", "git", "vision-encoder-decoder")  # of config.json
NEW_TOKENS = 60  # of a description


def describe(image: Image.Image, where: str | Path, device: str | None = None) -> str:
    """What a picture shows.

    Args:
        image: any PIL picture.
        where: a folder, or the name of a model in the hub's cache.
        device: cuda where there is one by default.
    Raises:
        ModelError: not there, no captioning model, without weights in safetensors, or not what it should be.
        PromptError: what it says cannot be a prompt.
    """
    folder, kind = found_folder(where, "captioning model")
    if kind not in KINDS:
        raise ModelError(f"{folder} is no captioning model, but {kind or 'of no kind'}: name one of BLIP, GIT or "
                         "vision-encoder-decoder")
    with quiet():
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
        prepare: Any = loaded(AutoImageProcessor, folder)
        tokenizer: Any = loaded(AutoTokenizer, folder)
        model: Any = loaded(AutoModelForImageTextToText, folder, device=device)
        with said_by(folder):
            pixels = prepare(pictures.normalise(image), return_tensors="pt")["pixel_values"].to(model.device)
            [ids] = model.generate(pixel_values=pixels, max_new_tokens=NEW_TOKENS, do_sample=False).tolist()
            text = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    if not taken_as_text(text):
        raise PromptError(f"the captioning model in {folder} gave no description, but {text[:80]!r}: write the source "
                          "prompt yourself")
    return check_text(text)
