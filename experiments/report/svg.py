"""Small pictures as SVG that stands in the page: text can be read, colours come from the style sheet."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from experiments.report.words import in_order, word

STRIP, STRIP_HEIGHT = 170, 20  # px
POINTS = 30  # of a curve
FRAME, FRAME_HEIGHT = 300, 130  # px of a chart of curves
SEEDS_SHOWN = 5  # up to so many are drawn beside their interval

Seeds = Mapping[int, float]


def number(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A number as a page prints it, with a true minus; "" for nan."""
    if math.isnan(value):
        return ""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−")


def short(value: float) -> str:
    """A coordinate in as few letters as tenths of a pixel take."""
    return f"{value:.1f}".removesuffix(".0").replace("-0.", "-.").removeprefix("0") or "0"


def figure(body: str, width: int, height: int, label: str, kind: str) -> Markup:
    """An SVG that says in words what it shows; the style sheet has the size of strips, of which there are many."""
    size = "" if kind.startswith("strip") else f' width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return Markup(f'<svg class="{kind}" role="img" aria-label="{escape(label)}"{size}>{body}</svg>')


def symmetric(values: Sequence[float], least: float = 1.0) -> float:
    """A round number that no value is beyond, for an axis with 0 in its middle."""
    most = max([least, *(abs(value) for value in values if not math.isnan(value))])
    power = 10 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= most * 0.999)


def strip(
    mean: float,
    low: float,
    high: float,
    *,
    limit: float,
    tone: str,
    label: str,
    published: float = math.nan,
    seeds: Sequence[float] = (),
) -> Markup:
    """An interval on an axis from -limit to limit: zero line, whisker, mean, seeds, and what is published as a hollow
    diamond. What lies beyond the axis ends at its edge in an arrow."""
    middle, y = STRIP / 2, STRIP_HEIGHT / 2

    def x(value: float) -> float:
        return middle + max(-1.0, min(1.0, value / limit)) * (middle - 6)

    parts = [f'<path class="z" d="M{short(middle)} 1v{STRIP_HEIGHT - 2}"/>']
    if not math.isnan(low):
        parts.append(f'<path class="i" d="M{short(x(low))} {short(y)}H{short(x(high))}"/>')
    for edge, turn, beyond in ((1, 5, min(low, mean) < -limit), (STRIP - 1, -5, max(high, mean) > limit)):
        if beyond:
            parts.append(f'<path class="i" d="M{edge + turn} {short(y - 4)}l{-turn} 4 {turn} 4"/>')
    if 1 < len(seeds) <= SEEDS_SHOWN:
        parts.append('<path class="s" d="' + "".join(f"M{short(x(seed))} {short(y)}h0" for seed in seeds) + '"/>')
    if not math.isnan(mean):
        parts.append(f'<circle class="m" cx="{short(x(mean))}" cy="{short(y)}" r="3.5"/>')
    if not math.isnan(published):
        parts.append(f'<path class="p" d="M{short(x(published) - 5)} {short(y)}l5-5 5 5-5 5z"/>')
    return figure("".join(parts), STRIP, STRIP_HEIGHT, label, f"strip {tone}")


def scale(limit: float) -> Markup:
    """The ends of a strip's axis, as it stands in the head of its column."""
    ends = (f"{number(-limit, digits)} 0 {number(limit, digits, signed=True)}" for digits in (0 if limit >= 2 else 1,))
    left, zero, right = next(ends).split()
    return Markup(f'<span class="scale"><span>{left}</span><span>{zero}</span><span>{right}</span></span>')


def bar(counts: dict[str, int], width: int = 160) -> Markup:
    """Counts of words as one stacked bar."""
    counts = in_order(counts)
    total, left, parts = sum(counts.values()), 0.0, []
    for name, count in counts.items():
        share = width * count / total
        parts.append(
            f'<rect class="f {word(name).tone}" x="{short(left)}" width="{short(max(share - 1, 1))}" height="12"/>'
        )
        left += share
    text = ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing judged"
    return figure("".join(parts), width, 12, text, "bar")


def dots(ours: Seeds, theirs: Seeds, names: tuple[str, str], digits: int = 1) -> Markup:
    """Values by seed, of a cell and of its baseline below, equal seeds joined by lines."""
    values = [*ours.values(), *theirs.values()]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    width, left, right = 360, 12, 348

    def x(value: float) -> float:
        return left + (value - low) / room * (right - left) if high > low else (left + right) / 2

    lines = (ours, theirs) if theirs else (ours,)
    parts = []
    joined = [f"M{short(x(ours[seed]))} 26L{short(x(theirs[seed]))} 56" for seed in ours if seed in theirs]
    parts.append(f'<path class="j" d="{"".join(joined)}"/>' if joined else "")
    for i, (name, by_seed) in enumerate(zip(names, lines, strict=False)):
        y = 26 + 30 * i
        parts.append(f'<text class="t" x="0" y="{y - 10}">{escape(name)}</text>')
        places = "".join(f"M{short(x(value))} {y}h0" for value in by_seed.values())
        parts.append(f'<path class="d{" b" if i else ""}" d="{places}"/>')
    bottom = 30 + 30 * len(lines) - 12
    parts.append(f'<path class="z" d="M{left} {bottom}H{right}"/>')
    parts.append(f'<text class="t" x="{left}" y="{bottom + 14}">{number(low, digits)}</text>')
    if high > low:
        parts.append(f'<text class="t e" x="{right}" y="{bottom + 14}">{number(high, digits)}</text>')
    label = "; ".join(
        f"{name}: " + ", ".join(f"seed {seed} {number(value, digits + 1)}" for seed, value in by_seed.items())
        for name, by_seed in zip(names, lines, strict=False)
    )
    return figure("".join(parts), width, bottom + 18, label, "dots measured")


def curves(title: str, by_seed: Mapping[int, Sequence[tuple[float, float]]]) -> Markup:
    """One series over epochs, a line per seed of at most `POINTS` points.

    Args:
        title: of the series.
        by_seed: (epoch, value) in order.
    """
    points = [point for line in by_seed.values() for point in line]
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    first, last, low, high = min(epochs), max(epochs), min(values), max(values)
    left, right, top, bottom = 4, FRAME - 4, 18, FRAME_HEIGHT - 18
    across, up = (last - first) or 1, (high - low) or 1

    def place(epoch: float, value: float) -> tuple[int, int]:
        return round(left + (epoch - first) / across * (right - left)), round(
            bottom - (value - low) / up * (bottom - top)
        )

    parts = [f'<path class="z" d="M{left} {bottom}H{right}"/>']
    for line in by_seed.values():
        last_of = len(line) - 1
        kept = line if last_of < POINTS else [line[round(i * last_of / (POINTS - 1))] for i in range(POINTS)]
        places = [place(*point) for point in kept]
        steps = zip(places[1:], places[:-1], strict=True)
        path = " ".join(f"{x - a} {y - b}" for (x, y), (a, b) in steps).replace(" -", "-")
        start = f"M{places[0][0]} {places[0][1]}"
        parts.append(f'<path class="c" d="{start}{f"l{path}" if path else "h0"}"/>')
    texts = (
        ("", left, 12, title),
        (" e", right, 12, f"{value_text(low)} to {value_text(high)}"),
        ("", left, FRAME_HEIGHT - 4, f"epoch {first:g}"),
        (" e", right, FRAME_HEIGHT - 4, f"{last:g}"),
    )
    parts += [f'<text class="t{end}" x="{x}" y="{y}">{escape(text)}</text>' for end, x, y, text in texts]
    ends = ", ".join(f"seed {seed} ends at {value_text(line[-1][1])}" for seed, line in by_seed.items())
    return figure("".join(parts), FRAME, FRAME_HEIGHT, f"{title} over epochs: {ends}", "curve measured")


def value_text(value: float) -> str:
    """A value of a curve: three significant digits."""
    return f"{value:.3g}".replace("-", "−")
