"""`sage edit`: arguments -> settings -> files.  No tensors.

Whatever the user gave is checked before torch is even imported, so that a mistake is answered at once.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.auto import AUTO, auto_of
from sage.commands.caption import add_captioner, described_picture
from sage.commands.checks import OUT, as_taught_by, check_model, check_phrases, in_folder, outputs
from sage.commands.flags import (
    DEFAULT_MODEL,
    MASK,
    add_method,
    add_model,
    add_ways,
    given_settings,
    published,
    typed,
)
from sage.commands.running import carry_out, model_of
from sage.display import console
from sage.display.progress import Progress
from sage.errors import PictureError, SettingsError
from sage.explain import FILES as EXPLAINED
from sage.files import named_after, same_file
from sage.method import Method, Request, check_task, method, readers
from sage.models.loras import check_same, read_loras
from sage.models.savings import Savings
from sage.pictures.masks import open_mask
from sage.pictures.metadata import (
    MAX_EDITS,
    asked_as_text,
    asked_in,
    check_prompt,
    differences,
    made_by,
    make_record,
    masks_in,
    read_record,
    settings_in,
)
from sage.pictures.originals import composed_again, identity, scaled_as
from sage.prompts.instructions import follow, instructed
from sage.prompts.language_model import KEY, language_model
from sage.prompts.sentences import read_sentences
from sage.settings import Settings
from sage.trajectory.label import check_label, read_label

EXAMPLES = """
examples:
  sage edit cat.jpg --source "a cat on a sofa" --target "a dog on a sofa"
  sage edit cat.jpg --source "a cat on a sofa" --target "a dog on a sofa" --target "a fox on a sofa" --sheet
  sage edit cat.jpg --source "a cat on a sofa" --target "a grumpy cat on a sofa" --reweight grumpy:3 --out grumpy.png
  sage edit cat.jpg --source "a cat on a sofa" --target "a dog on a sofa" --mask cat-mask.png --paste
  sage edit cat.jpg --config-from out/cat-edit.png --steps 100
  sage edit cat.jpg --method turbo --model stilllife-turbo --source "a red mug" --target "a blue mug" --also "a red cup"
  sage edit mug.png --source auto --instruction "make the mug red and remove the cone"
  sage edit cat.jpg --trajectory out/cat-trajectory.safetensors --target "a dog on a sofa"    # made by sage invert

The source prompt describes the picture as it is, the target prompt as it shall be, with as few words changed as
possible.  The defaults in brackets are those for Stable Diffusion 1.x; each model brings its own.
"""


def add_command(command: Callable[..., argparse.ArgumentParser], chosen: Method) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
        chosen: whose settings are its flags.
    """
    parser = command("edit", run, "edit a picture",
                     usage="%(prog)s IMG --source PROMPT --target PROMPT [FLAGS]", epilog=EXAMPLES)
    parser.set_defaults(prepare=prepare)
    parser.add_argument("picture", metavar="IMG", help="the picture to edit")
    parser.add_argument("--also", metavar="PROMPT", type=typed, action="append", help="a further target, whose "
                        "difference from the source is added to that of --target, from one inversion; for methods that "
                        f"read edits ({', '.join(readers('edits'))}); can be repeated")
    add_mask(parser, "for methods that read one")
    add_flags(parser, chosen)


def add_mask(parser: argparse.ArgumentParser, more: str) -> None:
    """The flags that say where a picture may change."""
    parser.add_argument("--mask", dest=MASK, metavar="FILE", help=f"a picture of where it may change, white; {more}")
    parser.add_argument("--paste", action="store_true", help="outside the mask the picture's own pixels, with an edge "
                                                             "inside it")


def add_flags(parser: argparse.ArgumentParser, chosen: Method, task: str = "edit") -> None:
    """What every command takes that edits a picture, but for the picture."""
    add = parser.add_argument
    add("--source", metavar="PROMPT", type=typed, help="what the picture shows; auto: what `sage caption` says of "
        "it, to be corrected at a terminal")
    add_captioner(parser)
    add("--target", metavar="PROMPT", type=typed, action="append",
        help="what it shall show; several share one inversion")
    add("--instruction", metavar="TEXT", type=typed, action="append",
        help="in the place of a target: what to do with what the source prompt says, such as \"make the mug red\"")
    add("--llm", metavar="URL|FOLDER", help="have a language model follow the instructions: at this OpenAI-compatible "
        f"address, such as http://localhost:11434/v1, with a key from {KEY}; or in this folder, as transformers saves "
        "it; what is sent is shown")
    add("--llm-model", metavar="NAME", help="which of the models at the address")
    if "sentences" in chosen.reads:
        add("--sentences", nargs=2, metavar=("OLD.txt", "NEW.txt"), help="what the direction of the edit is made of: "
            "sentences with the old words, and with the new, one a line")
    add("--out", metavar="PATH", help="the picture to write (.png, .jpg, .webp), or a folder "
                                      f"[{OUT}/NAME-edit.png, numbered if that exists]")
    add("--sheet", metavar="PATH", type=str, nargs="?", const="",
        help="also write one picture of input, edit, reconstructions and blending mask [beside the edit]")
    add("--explain", metavar="DIR", help="also write what happened inside the edit: PNG files and a page, index.html; "
                                         "of several edits, in folders 1, 2, ...")
    add("--config-from", metavar="OLD.png", help="prompts, model and settings of an earlier edit; other flags win")
    add("--trajectory", metavar="T.safetensors", help="start from what `sage invert` wrote of this picture: its model, "
                                                      "source prompt and settings hold; other flags win")
    add_ways(parser, "paths, settings, notes, seconds, versions")
    add_model(parser)
    add_method(parser, chosen, default=task, but=("mask",))


def prepare(args: argparse.Namespace, image: Image.Image, chosen: Method, old: dict[str, Any]) -> tuple[
        Image.Image, dict[str, Any], dict[str, Any]]:
    """The picture that is edited; what is asked for beside prompts, as `sage.edit` takes it; and more for the record.

    Args:
        old: the settings to start from, {} for none.
    Raises:
        SageError: a mask that is none, or that nobody reads.
    """
    asked = asked_in(old)
    add_flagged(asked, args, image)
    for mask in masks_in(asked):
        if mask.size != image.size:
            raise SettingsError(f"{args.config_from} was made from a picture of {mask.width} x {mask.height} pixels, "
                                f"and {args.picture} has {image.width} x {image.height}: give a mask of its own")
    check_asked(chosen, asked)
    record = asked_as_text(**asked)
    if "composed" in old:
        image = composed_again(image, old, Path(args.picture).parent, Path(args.config_from).parent)
        record["composed"] = old["composed"]
    return image, asked, record


def add_flagged(asked: dict[str, Any], args: argparse.Namespace, image: Image.Image) -> None:
    """Add what the flags ask for beside prompts, where a command has them; it comes before that of another edit."""
    flags = vars(args)
    if flags.get(MASK):
        asked["mask"] = open_mask(flags[MASK], image.size)
    if flags.get("paste"):
        asked["paste"] = True
    if also := flags.get("also"):
        if len(also) > MAX_EDITS:
            raise SettingsError(f"there are {len(also)} further targets: give at most {MAX_EDITS} --also")
        asked["edits"] = tuple(check_prompt("further target", prompt) for prompt in also)


def check_asked(chosen: Method, asked: dict[str, Any]) -> None:
    """SettingsError for what a method does not read, with the methods that do; and for a paste around no mask."""
    for what, called in (("mask", "mask"), ("moves", "moves"), ("edits", "further targets (--also)")):
        if what in asked and what not in chosen.reads:
            raise SettingsError(f"{chosen.name} reads no {called}: these do: {', '.join(readers(what))}")
    if asked.get("paste") and "mask" not in asked:
        raise SettingsError("--paste needs a mask to paste around: give --mask FILE, white where it may change")


@dataclass(frozen=True)
class Job:
    """What one `sage edit` shall do, checked as far as it can be without the model.

    Attributes:
        trajectory: to start from, None to invert first.
        method: what edits.
        base: the settings to start from, None for the model's own.
        savings: of the edit that is repeated.
        changes: the settings that were given as flags.
        fetch: the model must be downloaded first.
        named: the user named the files, which may then be there already.
        inside: the folders that explain the edits, if that is wanted.
        notes: what the user should know beforehand.
        asked: what is asked for beside prompts, as `sage.edit` takes it; `record` is that and more for the record.
    """

    image: Image.Image
    trajectory: Path | None
    picture: dict[str, str]
    source: str
    targets: tuple[str, ...]
    model: str
    prediction_type: str | None
    method: Method
    base: Settings | None
    changes: dict[str, Any]
    truncate: bool
    fetch: bool
    outs: tuple[Path, ...]
    named: bool
    sheet: Path | None
    inside: tuple[Path, ...]
    made: dict[str, Any]
    savings: Savings | None
    notes: tuple[str, ...]
    asked: dict[str, Any]
    record: dict[str, Any]


def plan_edit(args: argparse.Namespace) -> Job:
    """Check everything that was given, and decide where everything goes.

    Raises:
        SageError: whatever is wrong with it.
    """
    auto = auto_of(args.model or DEFAULT_MODEL) if args.method == AUTO else None
    if auto:
        args.method = auto.method
    changes = given_settings(args)
    old = read_record(args.config_from, "edit", args.method) if args.config_from else {}
    bases = [f for f in ("--published", "--config-from", "--trajectory") if vars(args)[f.strip("-").replace("-", "_")]]
    bases += [f"--method {AUTO}"] if auto else []
    if len(bases) > 1:
        raise SettingsError(f"{bases[0]} and {bases[1]} are two sets of settings: give one of them")
    label = read_label(args.trajectory, args.method) if args.trajectory else None
    if label:
        old = label.record()
    chosen = method(args.method)
    check_task(chosen, "edit")
    base = published(args)
    if old:
        if old["method"] == chosen.where:
            base = settings_in(old)
        elif label:  # another method may start from the same way to noise
            shared = settings_in(old).fixed()
            base = chosen.Settings.from_dict({k: v for k, v in shared.items() if k in chosen.Settings.names()})
        else:
            raise SettingsError(f"{args.config_from} was made by {old['method']}, and the method is {chosen.where}: "
                                "leave out one of them")

    truncate = args.truncate or old.get("truncate", False)

    notes = [auto.note] if auto else []
    if args.captioner and args.source != AUTO:
        raise SettingsError("--captioner describes the picture for --source auto: give that, or leave it out")
    given = described_picture(args) if args.source == AUTO else args.source
    source = check_prompt("source", given if given is not None else old.get("source"))
    targets = _instructed(args, source, notes) or args.target or [old.get("target")]
    targets = tuple(check_prompt("target", target) for target in targets)
    model = args.model or model_of(old, args.config_from or args.trajectory)
    source, targets = _as_taught(args, model, source, targets, notes)
    settings = (base or chosen.Settings()).but(**changes)
    check_phrases(source, targets, settings)

    sentences = tuple(map(read_sentences, vars(args).get("sentences") or ()))
    path = Path(args.picture)
    image, picture = pictures.open_picture(path), identity(path)
    known = old["picture"] if old and not label else {}
    if known.get("sha256") == picture["sha256"]:
        image, picture = scaled_as(image, known), known | picture
    elif known:
        notes.append(f"{path} is not the picture that {args.config_from} was made from ({known['name']})")
    image, asked, record = args.prepare(args, image, chosen, {} if label else old)
    if sentences:
        notes.append("the settings in the picture do not hold your sentences: give them again to repeat this edit")
    if label:
        check_label(label, args.trajectory, image, source, changes)

    loras = read_loras(args.lora)
    args.lora = loras or None  # what is read is not read again
    if args.config_from:
        notes += check_same(old, loras, args.config_from)
    fetch = check_model(model, image, (source, *targets, *asked.get("edits", ())), changes, truncate, args.tokenizer)

    outs = outputs(args.out, named_after(path.stem, "-edit.png"), len(targets))
    sheet = None
    if args.sheet is not None:
        sheet = Path(args.sheet) if args.sheet else outs[0].with_name(named_after(outs[0].stem, "-sheet.png"))
    inside = _insides(args.explain, len(targets))
    for folder in inside:
        pictures.check_writable(folder / EXPLAINED[0])
    explained = {(folder / name).absolute() for folder in inside for name in EXPLAINED}
    written = [*outs, *([sheet] if sheet else [])]
    for out in written:
        pictures.check_writable(out, image.size if out in outs else (1, 1))
    for target in targets:
        pictures.settings_text({"source": source, "target": target, "picture": picture,
                                "settings": settings.as_dict(), **record})
    for out in (*written, *explained):
        if same_file(out, path):
            raise PictureError(f"{out} is the picture to edit, and would be overwritten: give another --out, --sheet "
                               "or --explain")
    if sheet in outs:
        raise PictureError(f"{sheet} cannot hold both the edit and the sheet")
    if twice := explained.intersection(out.absolute() for out in written):
        raise PictureError(f"{min(twice)} belongs to the explanation too: give another --out, --sheet or --explain")
    prediction = args.prediction_type or old.get("prediction_type")
    savings = Savings.from_dict(old["savings"]) if old and not label else None
    return Job(image, Path(args.trajectory) if label else None, picture, source, targets, model, prediction, chosen,
               base, changes, truncate, fetch, outs, not in_folder(args.out), sheet, inside, old.get("made", {}),
               savings, tuple(notes), asked | {"sentences": sentences}, record)


def _instructed(args: argparse.Namespace, source: str, notes: list[str]) -> list[str]:
    """The target prompt of each instruction, and a note of it; none where there are none.

    Raises:
        SageError: beside targets, half a language model, or an instruction that is not understood.
    """
    if args.llm is None and args.llm_model is not None:
        raise SettingsError("a language model is an address and a name: give both --llm and --llm-model")
    if not args.instruction:
        if args.llm:
            raise SettingsError("--llm follows instructions, and there is none: give --instruction")
        return []
    if args.target:
        raise SettingsError("--target says what an --instruction makes: give one of them")
    model = None if args.llm is None else language_model(args.llm, args.llm_model, args.device)
    targets = [follow(text, source) if model is None else model.follow(text, source, console.note)
               for text in args.instruction]
    notes += [instructed(text, target) for text, target in zip(args.instruction, targets, strict=True)]
    return targets


def _as_taught(args: argparse.Namespace, model: str, source: str, targets: tuple[str, ...], notes: list[str]) -> tuple[
        str, tuple[str, ...]]:
    """What was typed as the model was taught to say it; what stands in a record stays, for an edit to be repeated."""
    typed = args.source is not None
    if not (typed or args.target or args.instruction):
        return source, targets
    also = vars(args).get("also") or []
    (first, *others), said = as_taught_by(model, source, *targets, *also)
    if not typed and first != source:
        return source, targets
    if also:
        args.also = others[len(targets):]
    notes += said
    return first, tuple(others[:len(targets)])


def _insides(folder: str | None, number: int) -> tuple[Path, ...]:
    """The folders that explain the edits: the one given, or in it one for each of several edits."""
    if folder is None:
        return ()
    return (Path(folder),) if number == 1 else tuple(Path(folder) / str(i) for i in range(1, number + 1))


def run(args: argparse.Namespace) -> None:
    """Edit, write, and say where."""
    carry_out(plan_edit(args), args, _edit_all)


def _edit_all(job: Job, model: Any, progress: Progress, print_paths: bool) -> dict[str, Any]:
    import sage
    from sage.editing import settings_for
    from sage.pictures.framing import framed
    config = settings_for(model, job.base, job.method.where).but(**job.changes)
    (shown,), (seen,) = framed([job.image], [Request(mask=job.asked.get("mask"))], config)
    plans = [sage.check_prompts(model, job.source, target, config, truncate=job.truncate) for target in job.targets]
    notes = _warnings(job, config, made_by(model))

    trajectory, rebuilt, rows, settings, outs = None, list[tuple[str, Any]](), [], [], list[Path]()
    if job.trajectory:
        from sage.trajectory.fitting import check_trajectory, origin_of
        trajectory = sage.load_trajectory(job.trajectory, model, job.method.where)
        for plan in plans:  # before the first edit of several is made
            check_trajectory(trajectory, origin_of(model, [job.image], [plan], config), job.method.wants(config))
    for i, (target, out) in enumerate(zip(job.targets, job.outs, strict=True)):
        watch = None
        if job.inside:
            from sage.explain import Explanation
            watch = Explanation(model, job.image, job.source, target, config, truncate=job.truncate)
        result = sage.edit(model, job.image, source=job.source, target=target, config=config, progress=progress,
                           trajectory=trajectory, truncate=job.truncate, watch=watch, savings=job.savings, **job.asked)
        record = make_record(model, job.source, target, config, job.picture, job.truncate, job.prediction_type,
                             result.savings, **job.record)
        outs.append(pictures.save_picture(result.image, out, record, new=not job.named))
        if print_paths:
            progress.say(outs[-1])
        notes += [n for n in result.notes if n not in notes]
        settings.append(record)
        if (job.sheet or watch) and not (rebuilt and trajectory is result.trajectory):
            rebuilt = [("autoencoder alone", sage.vae_reconstruction(model, result.trajectory)),
                       ("inversion and back", sage.ddim_reconstruction(model, result.trajectory, progress))]
        if job.sheet:
            found = result.masks[-1] if result.masks else None
            mask = [("may change", pictures.show_mask(shown, found, seen.mask))] if result.masks or seen.mask else []
            rows.append([("input", shown), (target, result.image), *rebuilt, *mask])
        if not job.method.follows_target(config):
            trajectory = result.trajectory
        if watch:
            page = watch.write(job.inside[i], result, progress, tuple(picture for _, picture in rebuilt))
            if print_paths:
                progress.say(page)
    if job.sheet:
        pictures.save_picture(pictures.sheet(rows), job.sheet)
        if print_paths:
            progress.say(job.sheet)
    return {"out": [str(out) for out in outs], "sheet": str(job.sheet) if job.sheet else None,
            "explain": [str(folder) for folder in job.inside], "settings": settings, "notes": notes}


def _warnings(job: Job, config: Settings, made: dict[str, Any]) -> list[str]:
    """What can be told before the first step."""
    notes = []
    if "seed" in job.changes and not job.method.random(config):
        notes.append("seed has no effect: nothing in this edit is random")
    return notes + differences(job.made, made)
