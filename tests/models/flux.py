"""A whole FLUX.1, tiny, in memory or as diffusers and transformers write it: folders to load and to break."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import nn
from transformers import CLIPTokenizer

from sage.models.flow.loading import load_t5_tokenizer
from sage.models.flow.model import Flux
from sage.models.flow.t5 import T5Params, T5Text
from sage.models.flow.transformer import FluxParams, FluxTransformer
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.vae import VAE, VAEParams
from sage.sampling.levels import FlowParams
from tests import small
from tests.models import bfl, oracle, tiny

# Heads of 32, whose axes are in the proportion of FLUX's; a picture of 64 x 96 has 8 x 12 tokens.
PARAMS = FluxParams(width=64, heads=2, mlp_width=256, depth=2, depth_single=3, context_width=48, pooled_width=24,
                    axes=(4, 14, 14))
VAE_ = VAEParams(channels=(32, 32, 64), layers_per_block=1, latent_channels=16, scaling=0.3611, shift=0.1159,
                 quant_convs=False)
TEXT = CLIPTextParams(width=24, mlp_width=48, heads=2, layers=2, vocabulary=99, max_length=77)
T5 = T5Params(width=48, head_width=8, heads=4, mlp_width=64, layers=2, vocabulary=64)
TOKENS = 24
WORDS = ("a", "cat", "dog", "on", "mat", "or", "pig")
PARTS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
         "text_encoder_2": "model"}


@dataclass(frozen=True)
class Tiny:
    """The oracle's modules, and the folder that holds them."""

    folder: Path
    transformer: nn.Module
    vae: nn.Module
    text: nn.Module
    t5: nn.Module

    def single_file(self, folder: Path) -> Path:
        """The authors' layout: transformer and autoencoder in a file each."""
        folder.mkdir(exist_ok=True)
        for name, state in (("flux1-tiny", bfl.transformer(self.transformer.state_dict())),
                            ("ae", bfl.autoencoder(self.vae.state_dict()))):
            save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
        return folder / "flux1-tiny.safetensors"


def t5_tokenizer(folder: Path) -> None:
    """A vocabulary of a few words and of letters, with the marks of T5."""
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{word}", -2.0) for word in WORDS),
                  ("\u2581", -3.0), *((letter, -4.0) for letter in letters)]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
    spaces = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"model_max_length": TOKENS, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}))


def oracles(guidance: bool = True) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """diffusers' and transformers' modules, of random weights that tell something."""
    torch.manual_seed(0)
    transformer = oracle.shaken(oracle.flux(replace(PARAMS, guidance=guidance)))
    # As in FLUX's own file the end mark is said to be 2, which makes transformers take the highest id for it.
    vae, text, t5 = oracle.vae(VAE_, sample_size=64), oracle.text(TEXT, end=2), oracle.t5(T5)
    with torch.no_grad():
        for p in (p for module in (vae, text, t5) for p in module.parameters()):
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape))
        for name, p in transformer.named_parameters():
            if "norm_" in name and p.ndim == 1 and "linear" not in name:
                p.mul_(2)  # random weights give flat maps, that tell nothing
        text.get_input_embeddings().weight.mul_(20)
        normalise(vae)
    return transformer, vae, text, t5


def normalise(vae: nn.Module) -> None:
    """Let the latents of `small.picture` vary in place as much as latents do."""
    x = small.tensor()
    mean, wanted = vae.encode(x).latent_dist.mean, 1 / vae.config.scaling_factor
    stretch = wanted / mean.std(dim=(0, 2, 3))
    half, last = len(stretch), vae.encoder.conv_out
    last.bias[:half] = (last.bias[:half] - mean.mean(dim=(0, 2, 3))) * stretch + vae.config.shift_factor
    last.weight[:half] *= stretch[:, None, None, None]


def write(folder: Path, guidance: bool = True) -> Tiny:
    """A folder as diffusers' pipeline has it."""
    made = Tiny(folder, *oracles(guidance))
    made.transformer.save_pretrained(folder / "transformer")
    made.vae.save_pretrained(folder / "vae")
    made.text.save_pretrained(folder / "text_encoder")
    made.t5.save_pretrained(folder / "text_encoder_2")
    FlowMatchEulerDiscreteScheduler(shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance).save_pretrained(
        folder / "scheduler")
    tiny.tokenizer(folder / "tokenizer")
    t5_tokenizer(folder / "tokenizer_2")
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return made


def make(folder: Path, guidance: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Flux, tuple[nn.Module, ...]]:
    """Our model in memory, and the oracle's modules that hold its weights; the tokenizers' files go to `folder`."""
    theirs = oracles(guidance)
    ours = [FluxTransformer(replace(PARAMS, guidance=guidance)), VAE(VAE_), CLIPText(TEXT), T5Text(T5)]
    for our, their in zip(ours, theirs, strict=True):
        state = oracle.text_state(their) if isinstance(our, CLIPText) else their.state_dict()
        our.load_state_dict({key: value for key, value in state.items() if key != "encoder.embed_tokens.weight"})
        for module in our.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                module.to(dtype)
    if not folder.exists():
        tiny.tokenizer(folder / "tokenizer")
        t5_tokenizer(folder / "tokenizer_2")
    words, tokens = load_t5_tokenizer(folder / "tokenizer_2", T5, 512)
    model = Flux(transformer=ours[0], vae=ours[1], text=ours[2], t5=ours[3], tokenizer=words, tokens=tokens,
                 clip_tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
                 schedule=FlowParams(dynamic=guidance), name="small-flux", sample_size=64,
                 device=torch.device("cpu"), dtype=dtype)
    return model, theirs
