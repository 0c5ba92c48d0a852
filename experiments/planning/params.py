"""params.yaml: the scale a user asked for, read strictly."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from experiments import places
from hkd.errors import UserError
from hkd.registry import nearest

NAME = "params.yaml"


@dataclass(frozen=True, kw_only=True)
class Params:
    """profile: a name in experiments/profiles. seeds: per cell, None takes the profile's. recipe: what to override."""

    profile: str = "laptop"
    seeds: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


def load_params(path: Path | None = None) -> Params:
    """The parameters in the repository's params.yaml (or another file); the defaults where there is none.

    Raises:
        UserError: not YAML, an unknown key (the sentence has the line and the nearest key), or a value of another kind.
    """
    path = path or places.repository() / NAME
    try:
        document = YAML(typ="rt").load(path.read_text()) or {}
    except FileNotFoundError:
        return Params()
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{NAME}:{line}: not valid YAML: {error.problem}.") from None
    if not isinstance(document, dict):
        raise UserError(f"{NAME}:1: keys are expected, such as `profile: laptop`.")
    known = list(Params.__dataclass_fields__)
    for name in document:
        if name not in known:
            raise complaint(document, name, f"unknown key '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    profile, seeds, recipe = (document.get(name) for name in known)
    if profile is not None and not isinstance(profile, str):
        raise complaint(document, "profile", f"profile must be a name, got {profile!r}.")
    if seeds is not None and type(seeds) is not int:
        raise complaint(document, "seeds", f"seeds must be a whole number or null, got {seeds!r}.")
    if recipe is not None and not isinstance(recipe, dict):
        raise complaint(document, "recipe", "recipe must hold keys, such as `epochs: 100`.")
    return Params(profile=str(profile or Params.profile), seeds=seeds, recipe=dict(recipe or {}))


def complaint(document: Any, name: str, message: str) -> UserError:
    """A sentence that starts with the place of a key."""
    return UserError(f"{NAME}:{document.lc.key(name)[0] + 1}: {message}")
