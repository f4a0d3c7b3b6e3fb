"""What the columns of a report are called and what they say."""

from dataclasses import dataclass

from sage.bench.metrics import Metric


@dataclass(frozen=True)
class Entry:
    """A column: a short head below the head of its group, and a sentence on what it measures."""

    group: str
    head: str
    says: str


SEEN = "Attributes"
INSIDE, OUTSIDE = "Inside the edit", "Outside the edit"
BACKGROUND, WORDS = "Background", "Prompt"
TURNS = "True edit"
POINTS, KEPT, PASTED, PLACED, COSTS = "Points", "Kept", "Composition", "Place", "Cost"

GROUPS = {
    SEEN: "What the result shows, as a network trained on this world reads it off, against the scene that was asked "
          "for: colours, forms, materials, places.",
    INSIDE: "Distance to the true edit where the edit changes the picture.",
    OUTSIDE: "Distance to the true edit everywhere else, which ought to stay as it was.",
    BACKGROUND: "Distance to the source outside the mask, by PIE-Bench's formulas.",
    WORDS: "Cosine of result and prompt in a common space, times 100.",
    TURNS: "Distance of the whole result to the true edit, by MagicBrush's formulas.",
    POINTS: "How far dragged points are from where they should be, by the features of a network.",
    KEPT: "Likeness of result and source, by DragBench's formulas: best for who does nothing.",
    PASTED: "What was put in against its reference, and the rest against the background, by TF-ICON's formulas.",
    PLACED: "Whether a thing is where it should be, and not where it was, against the rendered truth.",
    COSTS: "What a result took, its part of a batch and of an inversion that is shared.",
}

PSNR = "mean squared difference in decibels: 20 is a poor likeness, 30 a good one, 40 hardly to be told apart"
SSIM = "structural similarity, times 100: likeness of local means, contrasts and patterns; 100 is identical"
LPIPS = "learned perceptual distance, times 1000: how different two pictures look; 0 is identical"
FEATURES = "distance in the features of the bundled encoder, times 1000, of LPIPS's form; 0 is identical"
_DISTANCES = {"psnr": ("PSNR, dB", PSNR), "ssim": ("SSIM", SSIM), "lpips": ("LPIPS", LPIPS),
              "features": ("features", FEATURES)}

LEGEND = {
    "asked": Entry(SEEN, "as asked, %", "share of the attributes that the edit should change and that came out so"),
    "kept": Entry(SEEN, "kept, %", "share of the other attributes that are still as they were"),
    "attributes": Entry(SEEN, "right, %", "share of all attributes that are as they should be"),
    "melted": Entry(SEEN, "melted", "distance of the edited thing's features from those of the nearest true thing of "
                                    "that form, times 1000: high where it has lost its form"),
    **{f"{place}_{name}": Entry(group, head, says) for place, group in (
        ("inside", INSIDE), ("outside", OUTSIDE), ("background", BACKGROUND))
       for name, (head, says) in _DISTANCES.items()},
    "background_mse": Entry(BACKGROUND, "MSE", "mean squared difference, times 10000"),
    "structure": Entry(BACKGROUND, "structure", "distance of the self-similarities of source and result in DINO's "
                                                "keys, whole picture, times 1000"),
    **{f"{name}_{place}": Entry(WORDS, f"{head}{place}", f"{what}, in {space}") for name, head, space in (
        ("clip", "CLIP, ", "CLIP's space"), ("prompt", "", "the bundled encoder's space"))
       for place, what in (("source", "the source picture and its own prompt, for comparison"),
                           ("whole", "the whole result and the target prompt"),
                           ("edited", "the result inside the mask and the target prompt"))},
    "l1": Entry(TURNS, "L1", "mean absolute difference of pixels in [0, 1]"),
    "l2": Entry(TURNS, "L2", "mean squared difference of pixels in [0, 1]"),
    "clip_i": Entry(TURNS, "CLIP-I", "cosine of result and true edit in CLIP's space"),
    "dino": Entry(TURNS, "DINO", "cosine of result and true edit in DINO's space"),
    "clip_t": Entry(TURNS, "CLIP-T", "cosine of the result and what it should show in words, in CLIP's space"),
    "distance": Entry(POINTS, "distance, px", "DragBench's mean distance over the points of all pictures, each looked "
                                              "for in the whole result, in pixels"),
    "distance_share": Entry(POINTS, "distance, %", "RegionDrag's: looked for around handle and target, in shares of "
                                                   "the sides, mean over pictures"),
    "fidelity": Entry(KEPT, "1 - LPIPS", "one minus the perceptual distance of source and result at 224 pixels a side"),
    "clip_kept": Entry(KEPT, "CLIP, source", "cosine of source and result in CLIP's space, times 100"),
    "lpips_background": Entry(PASTED, "LPIPS, outside", "perceptual distance to the background, the box black in both"),
    "lpips_foreground": Entry(PASTED, "LPIPS, thing", "perceptual distance of the box, enlarged, to the reference"),
    "clip_image": Entry(PASTED, "CLIP, thing", "cosine of the box and the reference in CLIP's space, times 100"),
    "clip_text": Entry(PASTED, "CLIP, prompt", "cosine of the whole result and its prompt in CLIP's space, times 100"),
    "revealed_psnr": Entry(PLACED, "revealed, dB", f"the floor that the thing has left, {PSNR}"),
    "place_error": Entry(PLACED, "place error, %", "how far from its place the thing is, by the best fit of its true "
                                                   "pixels, in shares of the side"),
    "ghost": Entry(PLACED, "ghost", "how much more the old place still looks like the thing than in the truth: "
                                    "difference of two correlations, times 100"),
    "iou": Entry(PLACED, "IoU", "overlap of what differs from the empty scene, in result and truth, times 100"),
    "seconds": Entry(COSTS, "seconds", "time of one result"),
    "calls": Entry(COSTS, "calls", "how often the network was asked for it, forward"),
    "gradients": Entry(COSTS, "ways back", "how many of these calls were differentiated"),
    "clip_t_truth": Entry(TURNS, "CLIP-T, true", "the same of the true edit, for comparison"),
}

# What a reader should see first: at most so many of these, if the run has them.
SHOWN_FIRST = 4
HEADLINES = ("ghost", "revealed_psnr", "distance", "distance_share", "fidelity", "lpips_background", "lpips_foreground",
             "clip_image", "asked", "kept", "inside_psnr", "outside_psnr", "structure", "background_lpips",
             "clip_edited", "clip_i", "dino", "clip_t", "l1", "background_psnr")


def entry(m: Metric) -> Entry:
    """The column of a figure."""
    return LEGEND.get(m.key) or Entry("Others", m.title, m.title)
