"""What stood in for the papers' data and models, in the profile's own words: titles, labels and heads say it."""

import re
from collections.abc import Iterable
from functools import cache

from experiments.planning.schema import Profile, load_names


def named(text: str, profile: Profile) -> str:
    """A title or label as a profile may print it: no data set or head that was not used is named as if it were.

    "HCD on CIFAR-100" becomes "HCD on a stand-in for CIFAR-100"; what is the paper's own stays as it is.
    """
    known = load_names()
    slugs = {name: slug for slug, several in known.data.items() for name in several} | known.heads

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if match["said"]:
            return match[0]
        if name in profile.heads:
            return f"{profile.heads[name]} (stand-in for {name})"
        data = profile.data.get(slugs[name])
        if data is None:
            return f"{name} (not in this profile)"
        if data.stand_in is None or name in known.heads:
            return name
        in_sentence = re.search(r"[a-z] $", text[: match.start()])
        return f"{'a ' if in_sentence else ''}stand-in for {data_name(slugs[name])}"

    return mentions(tuple(slugs)).sub(replaced, text)


@cache
def mentions(names: tuple[str, ...]) -> re.Pattern[str]:
    """Where a text has one of these names, the longest that fits; `said` where it is called a stand-in already."""
    longest_first = sorted(names, key=len, reverse=True)
    any_name = "|".join(map(re.escape, longest_first))
    return re.compile(rf"(?<![\w-])(?P<said>stand-in for )?(?P<name>{any_name})(?![\w-])")


def titled(text: str, profile: Profile) -> str:
    """A title as `named` has it, with a capital."""
    made = named(text, profile)
    return made[:1].upper() + made[1:]


def used(profile: Profile, rows: Iterable[tuple[str, tuple[str, ...]]], cards: Iterable[str]) -> str:
    """What stood in, as a sentence; "" where nothing did.

    Args:
        profile: the scale.
        rows: the paper's data set, and the models whose rows may have another one in its place.
        cards: models of hkd.models.cards.zoo that were used.
    """
    entries: dict[str, dict[str, dict[str, None]]] = {}  # the paper's data set -> entry of the profile -> models
    for data, models in rows:
        if data in profile.data:
            of = [load_names().models[slug] for slug in models if slug in profile.data[data].instead]
            entries.setdefault(data, {}).setdefault(profile.entry(data, models), {}).update(dict.fromkeys(of))
    parts = []
    for data, found in entries.items():
        words = ""
        for entry, of_models in sorted(found.items(), key=lambda item: len(item[1])):
            text = profile.data[entry].stand_in or data_name(entry)
            words += f" (rows of {', '.join(of_models)}: {text})" if words else text
        if words != data_name(data):
            parts.append(f"stand-in for {data_name(data)}: {words}")
    if profile.model_kind is not None:
        sizes = sorted(load_names().parameters[card] for card in {*cards} & {*load_names().parameters})
        ends = list(dict.fromkeys(map(millions, (sizes[0], sizes[-1])))) if sizes else []
        of_size = f" of {'–'.join(ends)} M parameters before the classifier" if ends else ""
        parts.append(f"{profile.model_kind} models{of_size}")
    sentence = "; ".join(parts)
    return sentence and f"{sentence[0].upper()}{sentence[1:]}."


def in_short(profile: Profile) -> str:
    """That something stands in at a profile, and the profile's own title; "" where nothing does."""
    something = profile.model_kind is not None or any(data.stand_in for data in profile.data.values())
    return f"Stand-ins for the papers' data and models: {profile.title}." if something else ""


def of_profile(profile: Profile) -> str:
    """Everything that stands in at a profile, as sentences; "" where nothing does."""
    sentence = used(profile, ((slug, ()) for slug in load_names().data), profile.models.values())
    heads = "".join(f" {ours} is the stand-in for {name}." for name, ours in profile.heads.items())
    return sentence + heads


def model_marks(profile: Profile, slugs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Names in print of the models for which others stand in, by slug, with what those are: "miniature, 0.31 M"."""
    known, marks = load_names(), {}
    for slug in slugs:
        size = known.parameters.get(profile.models.get(slug, ""))
        if profile.model_kind is not None and size is not None and slug in known.models:
            marks[slug] = known.models[slug], f"{profile.model_kind}, {millions(size)} M"
    return marks


def data_name(slug: str) -> str:
    """A data set's name in print; one that no paper has keeps its slug."""
    known = load_names()
    return known.data[slug][0] if slug in known.data else known.parts.get(slug, slug)


def millions(size: float) -> str:
    """Millions of parameters: hundredths below one, tenths above."""
    return f"{size:.2f}" if size < 1 else f"{size:.1f}"
