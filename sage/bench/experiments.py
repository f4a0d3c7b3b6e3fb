"""The paper's experiments and ours: named groups of configurations, each an answer to one question.

`sage bench BENCHMARK --experiment NAME` runs one on any benchmark.  docs/experiments.md says what came out.
"""

from dataclasses import dataclass

from sage.errors import SettingsError

BOUNDS = ("source", "autoencoder", "plain")  # stand in every table
REGION_BOUNDS = ("source", "autoencoder", "pixels")  # and in those of cases that put something elsewhere
W = (1, 2, 3, 5)
OVERSHOOTS = W[-1]
SCALES = (2, 20, 60)

# Names of models that --models says the places of: the few-step student, and two of the same with another inversion
# network, trained without the KL term, and for one step alone.
STUDENT, NO_KL, SINGLE = "student", "no-kl", "single-step"
MODELS = {STUDENT: "stilllife-turbo"}
STUDENTS = {"stilllife": (f"turbo@{STUDENT}", f"turbo-ddpm@{STUDENT}")}  # rows beside those of their teacher
OPTIONAL = (NO_KL, SINGLE)  # rows on these are left out where there is none

# What a frontier sweeps is the strength w of the edit, for each way of keeping the rest.
FRONTIERS = {
    "nothing": "guidance",
    "cross-attention guidance": "cross-guidance",
    "latent guidance": "latent-guidance",
    "self-attention replacement": "self-replacement",
    "self-attention guidance": "self-guidance",
    "self-attention guidance, stronger": "self-guidance:reconstruction_scale=20,step_limit=0.05",
    "... and replacement": "self-guidance-replace",
    "... and blending": "self-guidance-replace-blend",
    "blending by attention": "attention-blend",
    "blending by difference": "difference-blend",
    "recommended: that and self-attention guidance": "recommended",
}


@dataclass(frozen=True)
class Experiment:
    """Configurations that answer a question together.

    Attributes:
        configurations: as `sage.bench.configs.configuration` reads them.
        baseline: the one the others are compared with.
        timed: what a result takes is part of the answer: network calls and seconds, each case edited alone.
    """

    name: str
    title: str
    question: str
    configurations: tuple[str, ...]
    baseline: str = "plain"
    timed: bool = False


def _varied(base: str, **values: tuple) -> tuple[str, ...]:
    [(name, choices)] = values.items()
    return tuple(f"{base}{',' if ':' in base else ':'}{name}={choice}" for choice in choices)


def sweep(base: str, scales: tuple = W) -> tuple[str, ...]:
    """A configuration at each strength of the edit."""
    return _varied(base, guidance_scale=scales)


WHOLE = "self-guidance-replace-blend"
TURBO = f"turbo@{STUDENT}"
SAVINGS = "use_cache=no,", "inv_skip=1,", "use_cache=no,inv_skip=1,"  # of eedit: skipping alone, holding alone, neither
RELEASED = ("grid=released", "decay=released", "blend_latents=noisier", "mask=sum", "quantise=truncate")

_ALL = (
    Experiment("table-1", "Table I: ways of keeping what the prompt does not mention",
               "Which reconstruction keeps most, and what do replacement and blending add?",
               ("guidance", "cross-guidance", "latent-guidance", "self-replacement", "self-guidance",
                "self-guidance-replace", WHOLE, "recommended", "published"), "guidance"),
    Experiment("table-1-strong", "Table I at a strong guidance scale",
               f"The same where guidance overshoots: w = {OVERSHOOTS}",
               (f"guidance:guidance_scale={OVERSHOOTS}", f"self-replacement:guidance_scale={OVERSHOOTS}",
                f"latent-guidance:guidance_scale={OVERSHOOTS},reconstruction_scale=0.1,step_limit=0.05",
                *(f"{row}:guidance_scale={OVERSHOOTS},reconstruction_scale=20,step_limit=0.05"
                  for row in ("cross-guidance", "self-guidance", "self-guidance-replace", WHOLE, "recommended"))),
               f"guidance:guidance_scale={OVERSHOOTS}"),
    Experiment("table-6", "Table VI: reconstruction",
               "How near does each come to the source when the target prompt is the source prompt?",
               ("reconstruct", "reconstruct-cross", "reconstruct-latent", "reconstruct-replace", "reconstruct-self"),
               "reconstruct"),
    Experiment("figure-9", "Fig. 9: the two guidance scales",
               "How do the strength of the edit and that of self-attention guidance trade?",
               tuple(f"self-guidance:guidance_scale={w},reconstruction_scale={s},step_limit=0.05" for w in W
                     for s in (0, *SCALES))),
    Experiment("strengths", "The strength of each reconstruction",
               "Is each way of keeping the rest measured at its best?",
               ("guidance", *_varied("cross-guidance:step_limit=0.05", reconstruction_scale=(2, 20)),
                *_varied("latent-guidance:step_limit=0.05", reconstruction_scale=(0.01, 0.1, 1)),
                *_varied("self-guidance:step_limit=0.05", reconstruction_scale=(2, 20))), "guidance"),
    Experiment("indexing", "Consistent against published index arithmetic, option by option",
               "Does any slip of the released code change the results?",
               (WHOLE, *(f"{WHOLE}:{option}" for option in RELEASED), "published"), WHOLE),
    Experiment("pairing", "Maps paired by transition against by equal level",
               "Which recorded maps should a sampling step be held to?",
               tuple(f"{base}:pairing={pairing}" for base in ("self-guidance", WHOLE, "recommended")
                     for pairing in ("transition", "level")), "self-guidance:pairing=transition"),
    Experiment("levels", "Levels of attention", "At which resolution should maps be compared, and read for the mask?",
               ("self-guidance", *_varied("self-guidance", self_level=(1, 2)),
                "attention-blend", *_varied("attention-blend", cross_level=(1, 2))), "self-guidance"),
    Experiment("step-limit", "A limit on the step of the gradient",
               "Does it help to shorten steps that are far too long?",
               ("guidance", *_varied("self-guidance", step_limit=(0, 0.01, 0.02, 0.05, 0.1))),
               "self-guidance:step_limit=0"),
    Experiment("loss", "L1 against L2", "Which distance between maps?",
               ("self-guidance", *(f"self-guidance:map_loss=l2,reconstruction_scale={s}"
                                   for s in (200, 2000, 20000, 200000))),
               "self-guidance"),
    Experiment("guided-steps", "Number of guided steps", "Until when does guidance by self-attention help?",
               ("self-guidance", *_varied("self-guidance", guided_steps=(5, 10, 20))), "self-guidance"),
    Experiment("steps", "10, 20, 50, 100 steps", "How many steps are enough?",
               (*_varied("plain", steps=(10, 50, 100)), "recommended",
                *(f"recommended:steps={n},guided_steps={round(0.82 * n)}" for n in (10, 50, 100))), "recommended"),
    Experiment("mask", "What marks where the picture may change",
               "Cross-attention of the edited words, or the difference of the two predictions, and from which share?",
               ("guidance", *_varied("attention-blend", blend_threshold=(0.1, 0.3, 0.5, 0.7)),
                *_varied("difference-blend", blend_threshold=(0.1, 0.2, 0.3, 0.5, 0.7))), "guidance"),
    Experiment("removal", "Places left out of the self-attention loss",
               "Does it help to spare the places that looked at removed, or at edited, words?",
               ("self-guidance", *_varied("self-guidance", spare=("removed", "edited")),
                WHOLE, *_varied(WHOLE, spare=("removed", "edited"))), "self-guidance"),
    Experiment("retry", "Making again what looks wrong", "Does a result that looks wrong get better by a retry?",
               tuple(f"self-guidance:guidance_scale={w},retries={n}" for w in (3, 5) for n in (0, 2)),
               "self-guidance:guidance_scale=3,retries=0"),
    Experiment("cache", "What a cache costs",
               "What is lost where the most of the network is computed only every few steps?",
               tuple(name for base in ("recommended", "p2p", "masactrl", "method=plain")
                     for name in (base, *(f"{base}:cache=eedit,inv_skip={n},fresh_threshold={n}" for n in (2, 3, 4)),
                                  f"{base}:cache=eedit,inv_skip=4,fresh_threshold=1",
                                  f"{base}:cache=eedit,inv_skip=1,fresh_threshold=4")), "recommended"),
    Experiment("regions", "Drags and compositions",
               "What puts things elsewhere better than plain pixels do, and what do EEdit's savings cost?",
               ("regiondrag", *(f"regiondrag:{changes}words=source" for changes in ("", "keys=own,", "until=0,")),
                "ddpm:strength=0.4", "sdedit:strength=0.4",
                *(f"eedit:{changes}words=source" for changes in (
                    "", *SAVINGS, *(f"{way}{saving}" for way in ("eta=0,", "put_back=drawn,")
                                    for saving in ("", SAVINGS[-1]))))), "pixels"),
    Experiment("turbo", "TurboEdit: a few-step student beside SAGE on its teacher",
               "What do few calls cost, at equal calls and at equal seconds, and which of the paper's claims hold?",
               ("recommended", "recommended:steps=4,guided_steps=3,retries=0",
                "recommended:steps=2,guided_steps=2,retries=0", TURBO,
                *_varied(TURBO, iterations=(1, 2, 3)), f"turbo-ddpm@{STUDENT}:steps=4,strength=0.75",
                f"turbo-ddpm@{STUDENT}:steps=4,strength=1",
                *_varied(TURBO, strength=(-0.5, 0, 0.5, 1, 1.5, 2)), *_varied(TURBO, blend=("auto",)),
                *_varied(TURBO, frozen_steps=(1,)), *_varied(TURBO, noise=("mean",)),
                f"turbo@{NO_KL}", f"turbo@{SINGLE}"), TURBO, timed=True),
    Experiment("frontier", "The frontier: what is changed against what is kept",
               "Where is each way of keeping the rest ahead?",
               tuple(name for base in FRONTIERS.values() for name in sweep(base))),
)
EXPERIMENTS = {e.name: e for e in _ALL}


def experiment(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        SettingsError: there is none of this name.
    """
    try:
        return EXPERIMENTS[name]
    except KeyError:
        raise SettingsError(f"no experiment is called {name[:40]!r}: there are {', '.join(EXPERIMENTS)}") from None
