"""What can be seen to be wrong with an edit without knowing the right one.

The limitations that the SAGE paper names are colours that run out of range under strong guidance, and places that the
prompts do not mention but the edit has changed.  Both show in the latents.
"""

from torch import Tensor


def spread(z: Tensor, source: Tensor) -> Tensor:
    """(B,) standard deviation of edited latents (B, 4, h, w) over that of the source's: above 1 where colours and
    contrasts have grown."""
    return z.flatten(1).std(dim=1) / source.flatten(1).std(dim=1)


def drift(z: Tensor, source: Tensor, difference: Tensor, share: float = 0.25) -> Tensor:
    """(B,) how far edited latents have moved where they had the least reason to.

    Args:
        z, source: (B, 4, h, w), edited latents and those of the source.
        difference: (B, 1, h, w) >= 0, how much the predictions under the two prompts differed at each place.
        share: of the places, those with the least difference.
    Returns:
        the mean |z - source| there, in standard deviations of the source.
    """
    order = difference.flatten(1).argsort(dim=1)
    still = order[:, :max(1, round(share * order.shape[1]))]
    moved = (z - source).abs().mean(dim=1).flatten(1).gather(1, still).mean(dim=1)
    return moved / source.flatten(1).std(dim=1)
