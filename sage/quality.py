"""What can be seen to be wrong with an edit, or with its picture, without knowing the right one.

The limitations that the SAGE paper names are colours that run out of range under strong guidance, and places that the
prompts do not mention but the edit has changed.  Both show in the latents.
"""

from torch import Tensor

# dB.  The bundled model's autoencoder gave each of 100 scenes of its world back with 26.6 or more, of 13 photographs
# and drawings all but one with less than 25.
STRANGE = 25.0


def held(x: Tensor, rebuilt: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [-1, 1] that an autoencoder gave back."""
    return 10 * (4 / (x - rebuilt.clamp(-1, 1)).square().flatten(1).mean(dim=1)).log10()


def unlike(model: str, x: Tensor, rebuilt: Tensor) -> list[str]:
    """What is to be said of each picture that a model of a small world gives back badly; "" of the others.

    Args:
        model: its name.
        x, rebuilt: (B, 3, H, W) pictures in [-1, 1], and as its autoencoder gave them back.
    """
    return [f"the picture is unlike those that {model} was trained on, which gives it back with {db:.0f} dB"
            if db < STRANGE else "" for db in held(x, rebuilt).tolist()]


def spread(z: Tensor, source: Tensor) -> Tensor:
    """(B,) standard deviation of edited latents (B, 4, h, w) over that of the source's.

    It is above 1 where colours and contrasts have grown.
    """
    return z.flatten(1).std(dim=1) / source.flatten(1).std(dim=1)


def drift(z: Tensor, source: Tensor, difference: Tensor, share: float = 0.2, least: float = 0.05) -> Tensor:
    """(B,) how far edited latents have moved where they had no reason to.

    Args:
        z, source: (B, 4, h, w), edited latents and those of the source.
        difference: (B, 1, h, w) >= 0, how much the predictions under the two prompts differed at each place.
        share: of the greatest difference, up to which there was no reason to move.
        least: share of the places that must be such; where the edit is everywhere, there is no drift.
    Returns:
        the mean |z - source| there, in standard deviations of the source.
    """
    difference = difference.flatten(1)
    still = (difference <= share * difference.amax(dim=1, keepdim=True)).float()
    moved = (z - source).abs().mean(dim=1).flatten(1)
    mean = (moved * still).sum(dim=1) / still.sum(dim=1).clamp(min=1) / source.flatten(1).std(dim=1)
    return mean * (still.mean(dim=1) >= least)
