"""The picture again without an edit: what the autoencoder, and what the way to noise and back, lose of it."""

import torch
from PIL import Image

from sage import pictures
from sage.job import Progress
from sage.method import method_of
from sage.models.backbone import Backbone
from sage.sampling.steps import walk
from sage.settings import Settings
from sage.trajectory.kinds import Trajectory


def vae_reconstruction(model: Backbone, trajectory: Trajectory) -> Image.Image:
    """The picture after encoding and decoding alone: the best any edit can keep."""
    return pictures.to_picture(model.decode(trajectory.latents[0][:1]), trajectory.origin.picture_size)


def ddim_reconstruction(model: Backbone, trajectory: Trajectory, progress: Progress | None = None) -> Image.Image:
    """The picture after inversion and plain sampling under the source prompt."""
    settings: Settings = trajectory.config
    method, z = method_of(settings), trajectory.noise[:1]
    _, down = method.edges(model, settings, tuple(z.shape[-2:]))  # type: ignore[arg-type]
    down = down[len(down) - (len(trajectory.latents) - 1):]  # a way to noise need not have gone all the way
    with torch.no_grad(), method.reconstructing(model, trajectory):
        under = method.inverted_under(settings, trajectory.origin.source[0], model.prompts)
        text = model.prepare(model.embed([under]))
        for done, reached in enumerate(walk(lambda z, level: model.predict(z, level, text), z, down), start=1):
            z = reached
            if progress:
                progress("reconstruct", done, len(down))
    return pictures.to_picture(model.decode(z), trajectory.origin.picture_size)
