"""What params.yaml says now, and where that is not what is committed.

`dvc exp run -S recipe.epochs=2` leaves the 2 in params.yaml, where the next command finds it: that must not be silent.
"""

import io
import json
import subprocess
from collections.abc import Collection
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from experiments import places
from experiments.planning.schema import load_params

Values = dict[str, Any]


def sentence(given: Collection[str] = ()) -> str:
    """The parameters that a command begins with, in one line; those that differ from the committed ones are marked.

    `params.yaml: profile laptop, recipe.epochs 2 (committed: null).`; "" where nothing is set.

    Args:
        given: names that the command line says otherwise, so that params.yaml does not count.
    """
    now, before = current(), committed()
    now = {name: value for name, value in now.items() if name not in given}
    before = before and {name: value for name, value in before.items() if name not in given}
    parts = []
    for name in dict.fromkeys((*now, *(before or ()))):
        value, was = now.get(name), None if before is None else before.get(name)
        if before is not None and value != was:
            parts.append(f"{name} {shown(value)} (committed: {shown(was)})")
        elif value is not None:
            parts.append(f"{name} {shown(value)}")
    changed = before is not None and any(now.get(name) != before.get(name) for name in {*now, *before})
    back = " `git checkout params.yaml` takes back what differs." if changed else ""
    return f"params.yaml: {', '.join(parts)}.{back}" if parts else ""


def current() -> Values:
    """The parameters of params.yaml by dotted name."""
    params = load_params()
    return {"profile": params.profile, "seeds": params.seeds, **{f"recipe.{k}": v for k, v in params.recipe.items()}}


def committed() -> Values | None:
    """Those of the commit that is checked out; None where there is none, no git, or no params.yaml in it."""
    command = ["git", "-C", str(places.repository()), "show", "HEAD:./params.yaml"]
    try:
        done = subprocess.run(command, capture_output=True)
        held = YAML(typ="safe").load(io.BytesIO(done.stdout)) if done.returncode == 0 else None
    except (OSError, YAMLError):
        return None
    if not isinstance(held, dict):
        return None
    recipe = held.get("recipe")
    fields = recipe if isinstance(recipe, dict) else {}
    top = {name: held.get(name) for name in ("profile", "seeds")}
    return {**top, **{f"recipe.{name}": value for name, value in fields.items()}}


def shown(value: Any) -> str:
    """A value as params.yaml has it."""
    return value if isinstance(value, str) else json.dumps(value)
