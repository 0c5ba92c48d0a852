"""The words that pages say of cells and claims: each has a mark, a tone (its colour) and a meaning in one clause.

A word that is not listed is shown as it is, with a neutral mark.
"""

from typing import NamedTuple

from analysis.style import COLOURS, GREY, INK, ON_DARK, tint


class Word(NamedTuple):
    """How a verdict or a status is shown. tone: a class of the style sheet, which gives the colour."""

    mark: str
    tone: str
    meaning: str


WORDS = {
    # of cells, by value
    "reproduced": Word("✓", "good", "the measured value is as near to the published one as the tolerance allows"),
    "not reproduced": Word("✗", "bad", "the measured value is farther from the published one than the tolerance"),
    # by direction
    "holds": Word("✓", "good", "the interval lies wholly where the paper says"),
    "direction holds": Word("✓", "good", "the interval of the gain lies on the side of 0 that the paper reports"),
    "contradicted": Word("✗", "bad", "the interval of the gain lies on the other side of 0 than the paper reports"),
    "no effect seen": Word("≈", "flat", "the interval lies so near to 0 that an effect worth having is excluded"),
    "too noisy": Word("?", "open", "the interval includes 0 and reaches too far from it to exclude an effect"),
    "undecided": Word("?", "open", "the interval lies on both sides, or there is none"),
    "cannot tell here": Word("∅", "mute", "the set-up could not have shown an effect: chance, ceiling, weak teacher"),
    "unverified": Word("!", "mute", "the published value could not be confirmed, so it is not judged"),
    # of claims
    "fails": Word("✗", "bad", "the interval lies wholly outside what the sentence says"),
    "untested": Word("–", "none", "the runs or figures that it needs are missing"),
    # statuses of cells and runs
    "done": Word("●", "good", "all seeds were run"),
    "partial": Word("◐", "open", "fewer seeds were run than asked"),
    "diverged": Word("↯", "bad", "the loss stopped being finite"),
    "refused": Word("∅", "mute", "the method cannot serve the pair, or the profile has nothing for it"),
    "not applicable": Word("∅", "mute", "the method cannot serve the pair"),
    "not in this profile": Word("∅", "mute", "the profile has no model or data for it"),
    "waiting": Word("…", "none", "another run must be done first"),
    "under way": Word("▸", "flat", "it is being run"),
    "failed": Word("✗", "bad", "the run crashed"),
    "quoted": Word("¶", "none", "printed from the paper; nothing to run"),
    "not run": Word("–", "none", "nobody has run it"),
}
OTHER = Word("•", "none", "")

# Okabe and Ito's colours; on dark ground the same, lightened until they stand out.
TONES = {
    "good": COLOURS[2],
    "bad": COLOURS[1],
    "flat": COLOURS[4],
    "open": COLOURS[5],
    "mute": COLOURS[3],
    "none": GREY,
}


def word(name: str) -> Word:
    """How a verdict or status is shown."""
    return WORDS.get(name, OTHER)


def in_order(counts: dict[str, int]) -> dict[str, int]:
    """Counts in the order of the vocabulary; words that are not in it last."""
    known = {name: counts[name] for name in WORDS if counts.get(name)}
    return known | {name: counts[name] for name in sorted(counts) if counts[name] and name not in WORDS}


def css() -> str:
    """The colours of both schemes as variables of the style sheet."""

    def lines(dark: bool) -> str:
        values = {"ink": ON_DARK if dark else INK, "measured": hexadecimal(tint(COLOURS[0], 0.45 if dark else 0.0))}
        values |= {tone: hexadecimal(tint(colour, 0.35 if dark else 0.0)) for tone, colour in TONES.items()}
        return "".join(f"--{name}:{value};" for name, value in values.items())

    return f":root{{{lines(False)}}}\n@media (prefers-color-scheme:dark){{:root{{{lines(True)}}}}}\n"


def hexadecimal(colour: tuple[float, ...]) -> str:
    """A colour of three shares in [0, 1] as #rrggbb."""
    return "#" + "".join(f"{round(255 * share):02x}" for share in colour[:3])
