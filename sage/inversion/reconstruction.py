"""The picture again without an edit: what the autoencoder, and what the way to noise and back, lose of it."""

import torch
from PIL import Image

from sage import pictures
from sage.job import Job, Progress
from sage.method import method_of
from sage.models.backbone import Backbone
from sage.prompts.plan import Plan
from sage.trajectory.kinds import Trajectory


def vae_reconstruction(model: Backbone, trajectory: Trajectory) -> Image.Image:
    """The picture after encoding and decoding alone: the best any edit can keep."""
    return pictures.to_picture(model.decode(trajectory.latents[0][:1]), trajectory.origin.picture_size)


def ddim_reconstruction(model: Backbone, trajectory: Trajectory, progress: Progress | None = None) -> Image.Image:
    """The picture after its way to noise, and back under the source prompt.

    The way back is plain sampling, or the method's own where that is exact.
    """
    path, source = trajectory.only([0]), trajectory.source[0]
    method, z = method_of(path.config), path.latents[0]
    job = Job(method, model, path.config, [Plan(source, source)], z)
    with torch.no_grad():
        for done, reached in enumerate(method.back(job, path), start=1):
            z = reached.float()
            if progress:
                progress("reconstruct", done, len(path.latents) - 1)
    return pictures.to_picture(model.decode(z), path.picture_size)
