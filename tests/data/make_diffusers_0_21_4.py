"""Records what the schedulers of diffusers 0.21.4 do, for tests/sampling/test_levels.py.

From 0.22 on, DDIMInverseScheduler reads a timestep as the other end of its step, so the old arithmetic cannot be asked
of an installed diffusers.  Made once, in an environment of its own:

    pip install "diffusers==0.21.4" "huggingface_hub<0.26" "torch==2.13.0" numpy
    python make_diffusers_0_21_4.py > diffusers_0_21_4.json

The "network" is out(z, t) = sin(3 z + t / 100): anything that both sides can compute.
"""

import json

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler


def out(z: torch.Tensor, t: int) -> torch.Tensor:
    return torch.sin(3 * z + t / 100)


def record(spacing: str, steps: int, prediction: str, to_one: bool) -> dict:
    config = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
                  set_alpha_to_one=to_one, prediction_type=prediction, timestep_spacing=spacing)
    forward, inverse = DDIMScheduler(**config), DDIMInverseScheduler(**config)
    forward.set_timesteps(steps)
    inverse.set_timesteps(steps)
    levels = forward.timesteps.tolist() + [0]
    z = torch.linspace(-1.5, 1.5, 5)
    rows = {"config": config, "steps": steps, "forward_timesteps": levels[:-1],
            "inverse_timesteps": inverse.timesteps.tolist(), "inversion": [], "sampling": []}
    for t in levels[::-1][:steps]:  # as the released SAGE code walks it
        z = inverse.step(out(z, t), t, z).prev_sample
        rows["inversion"].append([round(v, 6) for v in z.tolist()])
    for t in levels[:steps]:
        z = forward.step(out(z, t), t, z).prev_sample
        rows["sampling"].append([round(v, 6) for v in z.tolist()])
    return rows


if __name__ == "__main__":
    cases = [("leading", 50, "epsilon", False), ("leading", 7, "epsilon", False), ("leading", 7, "epsilon", True),
             ("leading", 12, "v_prediction", False), ("trailing", 10, "epsilon", False),
             ("trailing", 7, "v_prediction", True)]
    print(json.dumps([record(*case) for case in cases], indent=None, separators=(",", ":")).replace("{\"config\"",
                                                                                                    "\n{\"config\""))
