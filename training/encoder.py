"""The encoder that benchmarks judge still lifes with: `make train-encoder`.  Killed and started again, it goes on.

    loss = mean cross-entropy of the read-outs + 0.3 InfoNCE(pictures, captions) + 0.3 cross-entropy off the captions

Captions are drawn anew at every visit.  Part of the pictures went through the bundled autoencoder, with noise on
their latents, since that is what edited pictures have been through.  In one contrastive picture in ten only a
rectangle is left, or all but a rectangle, since similarities are taken of the edited part alone too.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

import sage
from sage.bench.encoder import CONFIG, FOLDER, WEIGHTS, Encoder, EncoderNet, EncoderParams, as_config, load_encoder
from sage.files import written_whole
from sage.machine.allocator import keep_freed_memory
from sage.models.known import find_model
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.vae import VAE
from sage.stilllife import Scene, nameable, varied_scene
from sage.stilllife.prompts import draw_wording, phrases
from sage.stilllife.scenes import VALUES
from training import run
from training.captions import IGNORE, Captioner, scene_of
from training.data import CHUNK, SIDE, batch, render_cache, save_array
from training.export import machine

CONTRAST, CAPTIONS, SMOOTHING = 0.3, 0.3, 0.02
ROUND_TRIP_SHARE, MOST_NOISE = 0.35, 0.4  # noise in units of the latents' deviation
CUT_SHARE = 0.1
HELD_OUT = 2000


def params(vocabulary: int, length: int) -> EncoderParams:
    text = CLIPTextParams(width=128, mlp_width=512, heads=4, layers=2, vocabulary=vocabulary, max_length=length)
    return EncoderParams(channels=(24, 32, 64, 128), blocks=(1, 1, 1, 2), text=text, side=SIDE)


# ---- pictures


@torch.no_grad()
def round_trips(vae: VAE, pictures: list[np.ndarray], folder: Path, count: int, noise: float = MOST_NOISE,
                seed: int = 0) -> list[np.ndarray]:
    """The first `count` pictures through the autoencoder, cached like `render_cache`.

    Args:
        noise: the most that is put on latents, each picture's own amount below that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    maps = []
    for chunk in tqdm(range(count // CHUNK), desc="round trips", unit="k"):
        path = folder / f"{chunk:04d}.npy"
        if not path.exists():
            generator = torch.Generator().manual_seed(seed * 10_000 + chunk)
            parts = []
            for start in range(0, CHUNK, 50):
                x = batch(pictures, np.arange(chunk * CHUNK + start, chunk * CHUNK + start + 50)).to(run.device())
                with run.autocast(x.device):
                    z = vae.encode(x).float()
                    sigma = noise * torch.rand(len(x), 1, 1, 1, generator=generator)
                    y = vae.decode(z + (sigma * torch.randn(z.shape, generator=generator)).to(z)).float()
                parts.append(((y.clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy())
            save_array(path, np.concatenate(parts))
        maps.append(np.load(path, mmap_mode="r", allow_pickle=False))
    return maps


def disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], some shifted by a pixel, blurred, noisy, or of other light; hues are kept."""
    b, _, h, w = x.shape

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    dy, dx = torch.randint(0, 3, (2, b), generator=generator)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = torch.stack([padded[i, :, dy[i]:dy[i] + h, dx[i]:dx[i] + w] for i in range(b)])
    near = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + (0.7 * rand(b, 1, 1, 1) * (rand(b, 1, 1, 1) < 0.3)) * (near - x)
    x = x * (1 + 0.1 * (rand(b, 1, 1, 1) - 0.5)) + 0.1 * (rand(b, 1, 1, 1) - 0.5)
    noise = 0.06 * rand(b, 1, 1, 1) * (rand(b, 1, 1, 1) < 0.3)
    return (x + noise * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def cut(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Black everywhere but in a random rectangle of each picture, or just in it."""
    x = x.clone()
    for picture in x:
        _, h, w = picture.shape
        height, width = (int(rng.integers(n // 3, n + 1)) for n in (h, w))
        top, left = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
        keep = torch.zeros(h, w, dtype=torch.bool)
        keep[top:top + height, left:left + width] = True
        picture[:, ~keep if rng.random() < 0.5 and height * width < h * w // 2 else keep.logical_not()] = -1
    return x


def labels_of(scenes: list) -> dict[str, Tensor]:
    """The class of every attribute: (B,) int64 each, IGNORE where its name does not fit what is seen."""
    def label(scene: Scene, name: str) -> int:
        value = scene.attributes()[name]
        return VALUES[name].index(value) if value == "none" or name in nameable(scene) else IGNORE

    return {name: torch.tensor([label(scene, name) for scene in scenes]) for name in VALUES}


def captions(captioner: Captioner, seeds: np.ndarray, rng: np.random.Generator):
    """Captions of scenes: ids (B, N) without common padding, ends (B,), and the classes of what they say."""
    rows, ends, said = [], [], []
    for seed in seeds:
        pieces = phrases(scene_of(int(seed)), draw_wording(rng))
        ids = [i for _, words in pieces for i in captioner.tokens(words)]
        rows.append(captioner.pad(ids))
        ends.append(min(len(ids), captioner.length - 2) + 1)
        said.append({a for a, _ in pieces})
    labels = labels_of([scene_of(int(seed)) for seed in seeds])
    for name, label in labels.items():
        label[[name not in s for s in said]] = IGNORE
    return torch.tensor(rows)[:, :max(ends) + 1], torch.tensor(ends), labels


# ---- loss


class Trained(nn.Module):
    """The network and what only its training needs."""

    def __init__(self, p: EncoderParams):
        super().__init__()
        self.net = EncoderNet(p)
        nn.init.normal_(self.net.text.text_model.embeddings.position_embedding.weight, std=0.1)
        self.said = nn.ModuleDict({name: nn.Linear(p.text.width, len(values)) for name, values in VALUES.items()})
        self.log_scale = nn.Parameter(torch.tensor(2.5))


def mean_cross_entropy(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    return torch.stack([F.cross_entropy(logits[name].float(), labels[name], ignore_index=IGNORE,
                                        label_smoothing=SMOOTHING)
                        for name in VALUES if (labels[name] != IGNORE).any()]).mean()


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Contrastive loss of two (B, width) batches whose rows belong together, in both directions."""
    similar = F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T * log_scale.clamp(max=4.6).exp()
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similar, target) + F.cross_entropy(similar.T, target)) / 2


def loss_of(model: Trained, x: Tensor, whole: Tensor, labels: dict[str, Tensor], ids: Tensor, ends: Tensor,
            said: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, and the contrastive part alone; attributes are read off pictures that are `whole` (B,)."""
    with run.autocast(x.device):
        image, logits = model.net.image(model.net.features(x)[-1])
        hidden = model.net.last_hidden(ids, ends)
        text = model.net.text_to_common(hidden)
        words = {name: head(hidden) for name, head in model.said.items()}
    read = mean_cross_entropy(logits, {k: v.masked_fill(~whole, IGNORE) for k, v in labels.items()})
    contrast = info_nce(image, text, model.log_scale)
    return read + CONTRAST * contrast + CAPTIONS * mean_cross_entropy(words, said), contrast


@torch.no_grad()
def accuracy(net: EncoderNet, pictures: list[np.ndarray], labels: dict[str, Tensor]) -> dict[str, float]:
    """The share of the first pictures, as many as there are labels, whose attributes are read right: by attribute, of
    those that have a label for it."""
    right: dict[str, list[Tensor]] = {name: [] for name in VALUES}
    count = len(next(iter(labels.values())))
    for start in range(0, count, 100):
        part = np.arange(start, min(start + 100, count))
        x = batch(pictures, part).to(next(net.parameters()).device)
        _, logits = net.image(net.features(x)[-1])
        for name in VALUES:
            truth = labels[name][part[0]:part[-1] + 1]
            right[name].append((logits[name].argmax(1).cpu() == truth)[truth != IGNORE])
    return {name: torch.cat(values).float().mean().item() for name, values in right.items()}


# ---- training


def train(out: Path, tokenizer, vae: VAE, pictures: int, samples: int, trips: int, batch_size: int = 64,
          peak: float = 2e-3, seed: int = 0, save_every: float = 120.0, watched: int = 500,
          make: Callable[[int, int], EncoderParams] = params) -> run.State:
    """Train until `samples` pictures were seen, continuing from out/encoder.safetensors if it is there.

    Args:
        tokenizer, vae: the bundled model's.
        trips: how many of the pictures there are autoencoded too.
        watched: held-out pictures on which the accuracy is followed.
    """
    torch.manual_seed(seed)
    device = run.device()
    rendered = render_cache(out / "data", pictures)
    coded = round_trips(vae, rendered, out / "round_trips", trips)
    held_out = render_cache(out / "data", watched, held_out=True)
    truth = labels_of([varied_scene(i, held_out=True) for i in range(watched)])
    captioner = Captioner(tokenizer)
    model = Trained(make(len(tokenizer), tokenizer.model_max_length)).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.98), weight_decay=2e-2, fused=True)
    state = run.State(out / "encoder.safetensors", {"model": model}, optimiser, rate=0.998)
    state.load()
    bar = tqdm(total=samples, initial=state.done, desc="encoder", unit="picture", mininterval=5)
    recent: list[tuple[float, float]] = []
    saved = time.monotonic()
    while state.done < samples:
        rng = np.random.default_rng([seed, 3, state.done])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        autoencoded = round(ROUND_TRIP_SHARE * batch_size) if coded else 0
        seeds = np.concatenate([rng.integers(max(trips, 1), size=autoencoded),
                                rng.integers(pictures, size=batch_size - autoencoded)])
        parts = [batch(which, s) for which, s in ((coded, seeds[:autoencoded]), (rendered, seeds[autoencoded:]))
                 if len(s)]
        x = disturbed(torch.cat(parts), generator)
        whole = torch.from_numpy(rng.random(batch_size) >= CUT_SHARE)
        x[~whole] = cut(x[~whole], rng)
        labels = labels_of([scene_of(int(s)) for s in seeds])
        ids, ends, said = captions(captioner, seeds, rng)
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(peak, state.done, samples, warmup=20 * batch_size, decay=0.6)
        loss, contrast = loss_of(model, x.to(device), whole.to(device), *(
            {k: v.to(device) for k, v in t.items()} if isinstance(t, dict) else t.to(device)
            for t in (labels, ids, ends, said)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state.averages["model"].update()
        state.done += batch_size
        recent.append((loss.item(), contrast.item()))
        bar.update(batch_size)
        if time.monotonic() - saved > save_every or state.done >= samples:
            found = accuracy(state.averaged("model").net, held_out, truth)
            state.trained("model")
            state.save()
            saved = time.monotonic()
            mean, (loss_mean, contrast_mean) = float(np.mean(list(found.values()))), np.mean(recent, axis=0)
            run.log(out / "encoder.jsonl", done=state.done, seconds=state.seconds, lr=group["lr"],
                    loss=float(loss_mean), contrast=float(contrast_mean), accuracy=mean, **found)
            bar.set_postfix(accuracy=f"{mean:.4f}")
            recent.clear()
    bar.close()
    return state


def export(out: Path, weights: Path, tokenizer, vae: VAE, held_out: int = HELD_OUT,
           make: Callable[[int, int], EncoderParams] = params) -> Encoder:
    """Write what was trained under `out` into weights/encoder/, with its accuracy as it will be read from there.

    Args:
        held_out: pictures that the accuracy is measured on, a multiple of 1000.
    """
    model = Trained(make(len(tokenizer), tokenizer.model_max_length))
    state = run.State(out / "encoder.safetensors", {"model": model}, torch.optim.SGD(model.parameters()))
    done = state.load_averages()
    folder = weights / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / WEIGHTS) as file:
        file.write(save({k: v.half().contiguous() for k, v in model.net.state_dict().items()}, {"format": "pt"}))

    net = model.net.half().float().eval().requires_grad_(False)
    pictures = render_cache(out / "data", held_out, held_out=True)
    coded = round_trips(vae, pictures, out / "held_out_round_trips", held_out, noise=0.0)
    labels = labels_of([varied_scene(i, held_out=True) for i in range(held_out)])
    found = {}
    for which, of in (("true pictures", pictures), ("autoencoded pictures", coded)):
        shares = accuracy(net, of, labels)
        found[which] = {"pictures": held_out} | {name: round(share, 5) for name, share in shares.items()}
    history = {"samples": done["done"], "minutes": round(done["seconds"] / 60, 1), "machine": machine()}
    text = json.dumps(as_config(net.params, found) | {"training": history}, indent=1)
    with written_whole(folder / CONFIG) as file:
        file.write((text + "\n").encode())
    return load_encoder(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.encoder", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/encoder"), help="pictures, checkpoints, curve")
    parser.add_argument("--model", default="stilllife", help="whose tokenizer and autoencoder are used")
    parser.add_argument("--pictures", type=int, default=60_000, help="distinct pictures rendered (a multiple of 1000)")
    parser.add_argument("--trips", type=int, default=8_000, help="of these also autoencoded (a multiple of 1000)")
    parser.add_argument("--samples", type=int, default=180_000, help="pictures the encoder is shown")
    parser.add_argument("--weights", type=Path, default=Path("weights/stilllife"), help="where encoder/ is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--export-only", action="store_true", help="write the encoder from the latest checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    model = sage.load_model(args.model)
    tokenizer = CLIPTokenizer.from_pretrained(find_model(args.model)[1] / "tokenizer", local_files_only=True)
    if not args.export_only:
        train(args.out, tokenizer, model.vae, args.pictures, args.samples, args.trips)
    print(export(args.out, args.weights, tokenizer, model.vae).describe())


if __name__ == "__main__":
    main()
