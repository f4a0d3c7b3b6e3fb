"""An instruction -> the target prompt, by a grammar of the rendered world's words over the source prompt.  No torch.

    make the mug red                   turn it into a sketch            put it in front of a forest
    remove the cone                    replace the mug with a bottle    add a small blue ball behind it
    make it night and move the mug to the left

Everything of the source prompt that the instruction does not speak of stays, letter by letter.  What it does not
understand is an error that says what it does.  Outside that world "replace A with B" works where A is in the prompt.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from sage.errors import PromptError
from sage.prompts.tokens import check_text

MOST = 400  # characters
UNDERSTOOD = ("make the mug red, make it large and shiny, remove the cone, add a blue ball behind it, replace the mug "
              "with a bottle, turn it into a sketch, make it night, put it in front of a forest, put it on grass, move "
              "the mug to the left, tilt the mug")
LEADS = ("picture", "image")
# How people ask for what the world has other words for.
ASKED = {"style": {"night": "night", "at night": "night", "drawing": "sketch"},
         "position": {"left": "left", "right": "right", "middle": "middle", "centre": "middle", "center": "middle"},
         "floor": {"wood": "wooden", "planks": "wooden", "wooden floor": "wooden", "stone": "stone", "tiles": "stone",
                   "stone floor": "stone", "lawn": "grass"},
         "background": {"sky": "blue sky", "gray wall": "grey wall", "wall": "grey wall"},
         "material": {"chequered": "checkered"}, "colour": {"violet": "purple"}}
# What is said in prompts, of words that captions have, but not so.
SAID = ((r"(?<!pencil )\bdrawing\b", "pencil drawing"), (r"\bin (?:the )?(snow|sand|grass)\b", r"on \1"),
        (r"\bwood floor\b", "wooden floor"), (r"\bon (?:the )?wood\b", "on wooden planks"),
        (r"\bon (?:the )?stone\b(?! (?:tile|slab|floor))", "on stone tiles"))
WHAT = {"form": "thing", "colour": "colour", "material": "material", "size": "size", "tilt": "tilt"}
RANKS = ("tiny", "size", "tilt", "colour", "material")  # the order of adjectives
THING = r"(?P<thing>it|(?:the|a|an|this|that) [\w -]+?|[\w-]+)"
ARTICLE = r"(?:(?:a|an|the|some) )?"
POLITE = r"^(?:please |can you |could you |now |then )+|(?: please)?[.!?\s]*$"


@cache
def _lexicon() -> dict[str, dict[str, str]]:
    """By attribute every phrase that says a value, the first of a value the one that is written."""
    from sage.stilllife.prompts import WORDS
    from sage.stilllife.scenes import VALUES
    return {name: {phrase.removeprefix("a "): value for value in values if value != "none"
                   for phrase in WORDS.get(value, (value,))}
            for name, values in VALUES.items() if not name.startswith("second_")}


def _asked(kind: str) -> dict[str, str]:
    return {**_lexicon()[kind], **ASKED.get(kind, {})}


def _written(kind: str, value: str) -> str:
    return next(phrase for phrase, of in _lexicon()[kind].items() if of == value)


def _alternatives(phrases: Mapping[str, str]) -> str:
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))


@dataclass(frozen=True)
class Said:
    """A value that a prompt names, and where: text[start:end]."""

    kind: str
    value: str
    start: int
    end: int


@dataclass(frozen=True)
class Spoken:
    """A thing that a prompt names: its noun, and the adjectives right before it in their order."""

    noun: Said
    adjectives: tuple[Said, ...]

    @property
    def start(self) -> int:
        """Where its noun phrase begins, without an article."""
        return self.adjectives[0].start if self.adjectives else self.noun.start

    def is_called(self, form: str, adjectives: Mapping[str, str]) -> bool:
        """Whether a form and adjectives by kind are its own."""
        own = {said.kind: said.value for said in self.adjectives}
        if "tiny" in own:  # which a person calls little, too
            own.setdefault("size", "small")
        return self.noun.value == form and all(own.get(kind) == value for kind, value in adjectives.items())


def _all_said(text: str) -> list[Said]:
    """Every value of the world that a prompt names, in order, the longest phrase at each place."""
    found: list[Said] = []
    for kind in ("background", "floor", "style", "position", "form", "colour", "material", "size", "tilt"):
        for match in re.finditer(rf"\b(?:{_alternatives(_lexicon()[kind])})\b", text, re.IGNORECASE):
            if not any(said.start < match.end() and match.start() < said.end for said in found):
                value = _lexicon()[kind][match.group().lower()]
                found.append(Said(kind, value, match.start(), match.end()))
    found += [Said("tiny", "tiny", m.start(), m.end()) for m in re.finditer(r"\btiny\b", text, re.IGNORECASE)]
    return sorted(found, key=lambda said: said.start)


def _things(text: str) -> list[Spoken]:
    """The things that a prompt names: the main one comes first."""
    found, before = list[Spoken](), list[Said]()
    for said in _all_said(text):
        if before and text[before[-1].end:said.start].strip():
            before = []
        if said.kind in RANKS:
            before.append(said)
        else:
            if said.kind == "form":
                found.append(Spoken(said, tuple(before)))
            before = []
    return found


def overlooked(text: str) -> str:
    """The noun of a second thing that a prompt calls neither tiny nor behind or in front; "" where there is none.

    Every caption of the rendered world says one of them.
    """
    thing = _overlooked(text)
    return text[thing.noun.start:thing.noun.end].lower() if thing else ""


def called_tiny(text: str) -> str:
    """The prompt with a second thing that is `overlooked` called tiny, unless it is called large."""
    if (thing := _overlooked(text)) is None:
        return text
    size = next((said for said in thing.adjectives if said.kind == "size"), None)
    if size is None:
        return _put(text, thing.start, thing.start, "tiny ")
    return _put(text, size.start, size.end, "tiny") if size.value == "small" else text


def as_captioned(text: str) -> str:
    """The prompt with what people say and no caption of the rendered world does in the captions' words."""
    for said, taught in SAID:
        text = re.sub(said, taught, text, flags=re.IGNORECASE)
    return called_tiny(text)


def _overlooked(text: str) -> Spoken | None:
    for thing in (things := _things(text))[1:2]:
        behind = (re.search(rf"\b(?:behind|in front of) (?:it,? )?{ARTICLE}$", text[:thing.start], re.IGNORECASE)
                  or re.match(r",? *(?:behind|in front of) it\b", text[thing.noun.end:], re.IGNORECASE))
        if not (behind or any(said.kind == "tiny" for said in thing.adjectives)
                or thing.noun.value == things[0].noun.value):
            return thing
    return None


def _first(text: str, kind: str) -> Said | None:
    return next((said for said in _all_said(text) if said.kind == kind), None)


# ---- changes of a text


def _with_articles(text: str) -> str:
    """a before consonants, an before vowels; no blanks too many, and no comma at an end."""
    def article(match: re.Match[str]) -> str:
        an = match[2].lower() in "aeiou"
        return ("A" if match[1][0] == "A" else "a") + ("n " if an else " ") + match[2]

    text = re.sub(r"\b([Aa]n?) (\w)", article, text)
    text = re.sub(r"\s+,", ",", re.sub(r"\s{2,}", " ", text))
    return re.sub(r",(?:\s*,)+", ",", text).strip(" ,")


def _put(text: str, start: int, end: int, words: str) -> str:
    return _with_articles(text[:start] + words + text[end:])


def _describe(text: str, thing: Spoken, kind: str, value: str) -> str:
    """The thing has a value of an adjective's kind."""
    word = _written(kind, value)
    for said in thing.adjectives:
        if said.kind == kind or {said.kind, kind} == {"tiny", "size"}:
            return _put(text, said.start, said.end, word)
    later = [said.start for said in thing.adjectives if RANKS.index(said.kind) > RANKS.index(kind)]
    at = min([*later, thing.noun.start])
    return _put(text, at, at, word + " ")


def _before_style(text: str) -> int:
    """Where a clause is added: the end, or before a style that is named last."""
    style = _first(text, "style")
    if style is None or style.end < len(text.rstrip(" .")):
        return len(text.rstrip(" ."))
    return len(re.sub(rf",?\s*{ARTICLE}$", "", text[:style.start], flags=re.IGNORECASE))


def _add(text: str, clause: str) -> str:
    at = _before_style(text)
    return _put(text, at, at, clause)


def _restyle(text: str, value: str) -> str:
    word, style = _written("style", value), _first(text, "style")
    if style:
        return _put(text, style.start, style.end, word)
    if lead := re.match(rf"(?:an?|the) (?:{'|'.join(LEADS)}) of\b", text, re.IGNORECASE):
        return _put(text, 0, lead.end(), f"a {word} of")
    return _put(text, 0, 0, f"a {word} of ")


def _surround(text: str, kind: str, value: str) -> str:
    """Another floor or background."""
    word, old = _written(kind, value), _first(text, kind)
    if old:
        article = re.search(r"\ban? $", text[:old.start], re.IGNORECASE)
        mass = kind == "floor"  # of which there are no articles: on grass
        start = old.start - len(article[0]) if article and mass else old.start
        return _put(text, start, old.end, word)
    if kind == "background":
        return _add(text, f", a {word} behind")
    position, main = _first(text, "position"), _things(text)[0]
    at = position.end if position and position.start > main.noun.end else main.noun.end
    return _put(text, at, at, f" on {word}")


def _move(text: str, value: str) -> str:
    old, word = _first(text, "position"), _written("position", value)
    if old:
        return _put(text, old.start, old.end, word)
    at = _things(text)[0].noun.end
    return _put(text, at, at, " " + word)


def _remove(text: str, thing: Spoken) -> str:
    """Without the clause of a second thing."""
    near = r"(?:next to it|beside it|behind it|in front of it)"
    before = re.search(rf",?\s*(?:with|and|{near},?|in front of|behind|next to|beside)?\s*{ARTICLE}$",
                       text[:thing.start], re.IGNORECASE)
    after = re.match(rf"\s*{near}", text[thing.noun.end:], re.IGNORECASE)
    start = before.start() if before else thing.start
    end = thing.noun.end + (after.end() if after else 0)
    return _put(text, start, end, "")


# ---- what an instruction says


def _phrase(words: str) -> tuple[str, dict[str, str]] | None:
    """A noun phrase of the world: its form, and its adjectives by kind."""
    words = re.sub(r"^(?:a|an|the|this|that|one) ", "", words.strip().lower())
    *adjectives, noun = words.split() or [""]
    form = _asked("form").get(noun)
    if form is None:
        return None
    kinds = {}
    for word in adjectives:
        kind = _kind_of(word)
        if kind is None and word not in ("tiny", "and"):
            return None
        if kind:
            kinds[kind[0]] = kind[1]
    return form, kinds


def _kind_of(word: str) -> tuple[str, str] | None:
    """What an adjective is of, and its value."""
    return next(((kind, _asked(kind)[word]) for kind in RANKS[1:] if word in _asked(kind)), None)


def _named(text: str, words: str) -> Spoken:
    """The thing that an instruction means.

    Raises:
        PromptError: the prompt has none of that name.
    """
    things = _things(text)
    if words in ("it", "this", "that", "the thing") and things:
        return things[0]
    asked = _phrase(words)
    for thing in things:
        if asked and thing.is_called(*asked):
            return thing
    has = " and ".join(f"{text[t.start:t.noun.end]!r}" for t in things)
    raise PromptError(f"the description names no {re.sub('^(the|a|an) ', '', words)!r}: it names {has or 'no thing'}")


def _one(kind: str, words: str) -> str | None:
    """The value that words say of a kind, whatever their article."""
    words = re.sub(r"^(?:a|an|the|some|at the|to the|on the|in the) ", "", words.strip().lower())
    return _asked(kind).get(words) or _asked(kind).get(f"on the {words}") or _asked(kind).get(f"in the {words}")


def _make(text: str, thing: str, words: str) -> str | None:
    """make THING WORDS: adjectives, or for "it" a style."""
    style = _one("style", words)
    if style and thing in ("it", "this", "the picture", "the image", "the scene", "this picture"):
        return _restyle(text, style)
    if thing in ("the background", "the wall") and (value := _one("background", words)):
        return _surround(text, "background", value)
    if thing in ("the floor", "the ground") and (value := _one("floor", words)):
        return _surround(text, "floor", value)
    kinds = [_kind_of(word) for word in re.split(r"[\s,]+", words) if word not in ("and", "")]
    if not kinds or None in kinds:
        return None
    for found in kinds:
        text = _describe(text, _named(text, thing), *found)  # type: ignore[misc]
    return text


def _replace(text: str, thing: str, words: str) -> str | None:
    """replace THING with WORDS: by the world's words, else letter by letter."""
    if thing in ("it", "this", "the picture", "the image", "the scene") and (style := _one("style", words)):
        return _restyle(text, style)
    for kind in ("background", "floor"):
        old = _first(text, kind)
        means = thing == f"the {kind}" or (old and _one(kind, thing) == old.value)
        if means and (value := _one(kind, words)):
            return _surround(text, kind, value)
    if asked := _phrase(words):
        form, adjectives = asked
        spoken = _named(text, thing)
        text = _put(text, spoken.noun.start, spoken.noun.end, _written("form", form))
        for kind, value in adjectives.items():
            text = _describe(text, next(t for t in _things(text) if t.noun.value == form), kind, value)
        return text
    bare, new = (re.sub(r"^(?:a|an|the) ", "", part.strip()) for part in (thing, words))
    match = re.search(rf"\b{re.escape(bare)}\b", text, re.IGNORECASE)
    return _put(text, match.start(), match.end(), new) if match and new else None


def _added(text: str, words: str, where: str) -> str | None:
    asked = _phrase(words)
    if asked is None:
        return None
    if len(things := _things(text)) > 1:
        raise PromptError(f"the description names {text[things[1].start:things[1].noun.end]!r} already, and no more "
                          "than two things are known of: replace or remove it first")
    form, adjectives = asked
    said = " ".join([*(_written(k, adjectives[k]) for k in RANKS[1:] if k in adjectives), _written("form", form)])
    where = {"": "next to it", "beside": "beside it", "behind": "behind it"}.get(
        re.sub(r" (?:it|the .*)$", "", where.strip()), "in front of it" if "front" in where else "next to it")
    tiny = "tiny " if where in ("next to it", "beside it") else ""
    background = _first(text, "background")
    clause = f", with a {tiny}{said} {where}"
    if background is None:
        return _add(text, clause)
    before = re.search(rf",?\s*(?:in front of|against|with)?\s*{ARTICLE}$", text[:background.start], re.IGNORECASE)
    at = before.start() if before else background.start
    return _put(text, at, at, clause)


def _taken(text: str, thing: str) -> str:
    spoken = _named(text, thing)
    if spoken == _things(text)[0]:
        raise PromptError(f"{thing} is what the picture is of, and cannot be removed: replace it with another thing")
    return _remove(text, spoken)


def _surrounded(text: str, words: str, kind: str) -> str | None:
    value = _one(kind, words)
    return _surround(text, kind, value) if value else None


def _moved(text: str, thing: str, words: str) -> str | None:
    value = _one("position", words)
    if value and _named(text, thing) != _things(text)[0]:
        raise PromptError("only the main thing can be moved: no words tell where the other one stands")
    return _move(text, value) if value else None


Rule = tuple[str, Callable[..., str | None]]
RULES: tuple[Rule, ...] = (
    (rf"(?:remove|delete|erase|take away|take out|get rid of) {THING}", lambda t, m: _taken(t, m["thing"])),
    (r"(?:add|put|place) (?P<new>(?:a|an) [\w -]+?)"
     r"(?P<where> (?:next to|beside|behind|in front of) (?:it|the [\w -]+))?",
     lambda t, m: _added(t, m["new"], m["where"] or "")),
    (rf"(?:put|place|set|move) {THING} (?:in front of|against|before) (?P<new>.+)",
     lambda t, m: _surrounded(t, m["new"], "background")),
    (rf"(?:move|put|place|shift) {THING} (?:to|on|at|in) "
     r"(?P<new>(?:the )?(?:left|right|middle|centre|center)(?: side)?)",
     lambda t, m: _moved(t, m["thing"], m["new"].removesuffix(" side"))),
    (rf"(?:put|place|set|stand) {THING} on (?P<new>.+)", lambda t, m: _surrounded(t, m["new"], "floor")),
    (r"(?:change|set|turn|make) the (?P<kind>background|floor) (?:to|into|be )?\s*(?P<new>.+)",
     lambda t, m: _surrounded(t, m["new"], m["kind"])),
    (rf"(?:change|set) the (?:colour|color|material|size|form|shape) of {THING} (?:to|into) (?P<new>.+)",
     lambda t, m: _make(t, m["thing"], m["new"])),
    (rf"(?:change|set) {THING}'s (?:colour|color|material|size) (?:to|into) (?P<new>.+)",
     lambda t, m: _make(t, m["thing"], m["new"])),
    (r"(?:change|set) the style to (?P<new>.+)", lambda t, m: _make(t, "it", m["new"])),
    (rf"(?:replace|swap|exchange) {THING} (?:with|by|for) (?P<new>.+)", lambda t, m: _replace(t, m["thing"], m["new"])),
    (rf"(?:turn|change|transform|make|convert) {THING} (?:into|to) (?P<new>.+)",
     lambda t, m: _replace(t, m["thing"], m["new"]) or _make(t, m["thing"], m["new"])),
    (rf"tilt {THING}", lambda t, m: _make(t, m["thing"], "tilted")),
    (r"(?:make|turn|paint|colou?r|dye) (?P<thing>KNOWN) (?:be |look |a |an )?(?P<new>.+)",
     lambda t, m: _make(t, m["thing"], m["new"]) or (_replace(t, m["thing"], m["new"]) if _phrase(m["new"]) else None)))
VERBS = ("remove|delete|erase|take|get|add|put|place|set|move|shift|stand|change|turn|make|replace|swap|exchange|"
         "transform|convert|tilt|paint|colou?r|dye")


@cache
def _rules() -> tuple[tuple[re.Pattern[str], Callable[..., str | None]], ...]:
    """The rules, KNOWN in them a thing of the world by its noun: who says no "into" parts thing and wish by that."""
    nouns = "|".join([*map(re.escape, _asked("form")), "background", "wall", "floor", "ground", "picture", "image",
                      "scene", "thing"])
    known = rf"it|this|that|(?:(?:the|a|an|this|that) )?(?:[\w-]+ ){{0,5}}?(?:{nouns})"
    return tuple((re.compile(pattern.replace("KNOWN", known)), rule) for pattern, rule in RULES)


def _clauses(instruction: str) -> Iterator[str]:
    """What it asks for one by one: "and", "then" and commas part it before a verb."""
    for part in re.split(rf"(?:,? and (?:then )?|,? then |[,;.] )(?=(?:{VERBS})\b)", instruction):
        yield re.sub(POLITE, "", part.strip().lower()).strip()


def instructed(text: str, target: str) -> str:
    """The note of an instruction that was followed."""
    return f"{text!r} makes the target prompt: {target}"


def follow(instruction: str, source: str) -> str:
    """The target prompt of an instruction: the source prompt with as few words changed as it asks for.

    Args:
        instruction: in English, such as "make the mug red and remove the cone".
        source: what the picture shows.
    Raises:
        PromptError: what is not understood, with what would be; a thing that the source prompt does not name; or an
            instruction that changes nothing.
    """
    instruction = " ".join(check_text(instruction, "the instruction").split())
    if not instruction or len(instruction) > MOST:
        raise PromptError(f"the instruction has {len(instruction)} characters: write one of at most {MOST}, such as "
                          "'make the mug red'")
    text = " ".join(source.split())
    for clause in _clauses(instruction):
        text = _followed(clause, text)
    if text.lower() == _with_articles(" ".join(source.split())).lower():
        raise PromptError(f"the instruction {instruction!r} changes nothing: the description says so already")
    return text


def _followed(clause: str, text: str) -> str:
    for pattern, rule in _rules():
        match = pattern.fullmatch(clause)
        changed = rule(text, match) if match else None
        if changed is not None:
            return changed
    raise PromptError(f"the instruction {clause!r} is not understood, but these are: {UNDERSTOOD}; or write the "
                      "target prompt yourself")
