"""The failures this library tells apart. Everything else is a bug and keeps its traceback."""

from hkd.files import printable


class UserError(ValueError):
    """A mistake in what the user gave: one sentence saying what was wrong, where, and what would be right.

    It is one line whatever names and values of files it quotes: what would break the line is shown as escapes.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Refused(UserError):
    """The method cannot serve this student, these teachers or this recipe; trying again would not change that."""


class Diverged(RuntimeError):
    """A loss stopped being finite.

    Args:
        step: optimiser step (0-based, over the whole run) at which it happened.
        terms: the loss terms of that step by name, as floats (nan and inf among them).
    """

    def __init__(self, step: int, terms: dict[str, float]):
        self.step, self.terms = step, terms
        shown = ", ".join(f"{name}={value:g}" for name, value in terms.items())
        super().__init__(f"the loss is not finite at step {step}: {shown}")
