"""Student, inversion network and the teacher's other parts -> a folder that `sage.load_model` reads."""

import json
import shutil
from pathlib import Path

from sage.auto import FILE as AUTO
from sage.errors import ModelError
from sage.models.folders import SHARED, Folder
from sage.models.sd.inversion import InversionNet
from sage.models.sd.loading import INVERSION
from sage.models.sd.unet import UNet
from training.export import KEPT, unet_config, write_history, write_json, write_network
from training.turbo.teacher import Teacher

FILES = ("words.txt",)
# By the same words as SDXL-Turbo's it is known for a student, of four steps with new noise at each.
OF_STUDENT = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing",
              "set_alpha_to_one": True, "prediction_type": "v_prediction"}
RECORDED = {"method": "turbo", "settings": {}}  # what edits with it, unless another method is named
# Four steps each, as strong as did best on 80 tuning cases, half of them in short prompts.
SETTINGS = {"turbo": {"strength": 1.5}, "turbo-ddpm": {"steps": 4, "strength": 1.0}, "generate/turbo": {"steps": 4}}


def export(given: Path, weights: Path, teacher: Teacher, student: UNet, inversion: InversionNet,
           history: dict[str, object], steps: int = 4) -> None:
    """Write the folder `weights`, replacing what is there.

    Args:
        steps: that the inversion network was trained for, and so is asked for.
        given: the teacher's folder, of which the other parts are copied, or shared where it lies beside `weights`.
        history: what stands in training.json of how they were made.
    Raises:
        ModelError: the folder is the teacher's.
    """
    if weights.resolve() == given.resolve():
        raise ModelError(f"{weights} is the teacher's own folder: name another for the student")
    places = {part: Folder(given).place(part).resolve() for part in KEPT}
    for part in KEPT:
        shutil.rmtree(weights / part, ignore_errors=True)
    if all(place.parents[1] == weights.resolve().parent for place in places.values()):
        write_json(weights / SHARED, {part: place.parent.name for part, place in places.items()})
    else:
        for part, place in places.items():
            shutil.copytree(place, weights / part)
    for name in FILES:
        if (given / name).exists():
            shutil.copy(given / name, weights / name)
    side = teacher.model.sample_size // teacher.model.vae.factor
    scheduler = json.loads((given / "scheduler" / "scheduler_config.json").read_text())
    write_json(weights / "scheduler" / "scheduler_config.json", scheduler | OF_STUDENT)
    write_json(weights / "settings.json", SETTINGS | {"turbo": {"steps": steps} | SETTINGS["turbo"]})
    write_json(weights / AUTO, RECORDED)
    for part, network in (("unet", student), (INVERSION, inversion)):
        write_network(weights / part, network, unet_config(network.params, side))
    write_history(weights, history)
