"""What method files speak with: levels, steps, attention, masks, noise.

Each name is imported when it is first used, so that a method's settings can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sage.guidance.blend import BlendingMask
    from sage.guidance.blur import gaussian_blur
    from sage.guidance.caching import Slips
    from sage.guidance.hooks import detour, hear_features, listen, record, rewrite, swap, swap_outputs
    from sage.guidance.losses import gradient, latent_slopes, limited, map_slopes, square_slopes
    from sage.guidance.masks import attended, dilated, harmonic, resize, threshold, token_attention, upper
    from sage.guidance.preservation import Preservation
    from sage.guidance.proximal import proximal
    from sage.guidance.rewrites import (
        between,
        lent,
        refinement,
        replace_columns,
        replacement,
        reweight,
        reweighted,
        rewrite_columns,
        rewrite_maps,
        word_swap,
    )
    from sage.guidance.whiteness import autocorrelation, divergence, slope
    from sage.inversion.ddim import ddim_inversion, heard_along, noise_inversion
    from sage.models.backbone import Text
    from sage.models.sites import Feature, KeysValues, Projection, QueriesKeys, Site, Sites, Where
    from sage.prompts.plan import Plan, marked, places, replaced, token_factors, token_mask
    from sage.prompts.tokens import Span
    from sage.prompts.words import aligned, changed_words, first_places, gaps_paired, paired
    from sage.sampling.levels import Edge, Edges, Level, downwards, of_timesteps, part_way, upwards
    from sage.sampling.skipping import Continued, evaluated
    from sage.sampling.steps import (
        Prediction,
        advance,
        affine,
        ancestral,
        classifier_free,
        clean,
        ddim_step,
        from_output,
        gaussian,
        mixed_with_noise,
        reaching,
        renoise,
        second_order,
        stochastic,
        to_output,
        walk,
        with_clean,
        with_noise,
    )
    from sage.trajectory.kinds import Lent, Noises, NullText, Pair, Reconstructed, Recorded, Settled, Trajectory, Wanted

_FROM = {
    "sage.guidance.blend": "BlendingMask",
    "sage.guidance.caching": "Slips",
    "sage.guidance.hooks": "detour hear_features listen record rewrite swap swap_outputs",
    "sage.guidance.losses": "gradient latent_slopes limited map_slopes square_slopes",
    "sage.guidance.masks": "attended dilated harmonic resize threshold token_attention upper",
    "sage.guidance.blur": "gaussian_blur",
    "sage.guidance.preservation": "Preservation",
    "sage.guidance.proximal": "proximal",
    "sage.guidance.rewrites": "between lent refinement replace_columns replacement reweight reweighted "
                              "rewrite_columns rewrite_maps word_swap",
    "sage.inversion.ddim": "ddim_inversion heard_along noise_inversion",
    "sage.guidance.whiteness": "autocorrelation divergence slope",
    "sage.models.backbone": "Text",
    "sage.models.sites": "Feature KeysValues Projection QueriesKeys Site Sites Where",
    "sage.prompts.plan": "Plan marked places replaced token_factors token_mask",
    "sage.prompts.tokens": "Span",
    "sage.prompts.words": "aligned changed_words first_places gaps_paired paired",
    "sage.sampling.levels": "Edge Edges Level downwards of_timesteps part_way upwards",
    "sage.sampling.skipping": "Continued evaluated",
    "sage.sampling.steps": "Prediction advance affine ancestral classifier_free clean ddim_step from_output gaussian "
                           "mixed_with_noise reaching renoise second_order stochastic to_output walk with_clean "
                           "with_noise",
    "sage.trajectory.kinds": "Lent Noises NullText Pair Reconstructed Recorded Settled Trajectory Wanted",
}
_WHERE = {name: module for module, names in _FROM.items() for name in names.split()}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sage.kit' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
