"""YAML read by libyaml, fourteen times as fast as with the positions of its keys, which only a mistake needs.

For this package's own documents: the values are those of the slower reader (a test reads all of them both ways).
"""

from functools import cache
from typing import Any

from ruamel.yaml.resolver import implicit_resolvers


class Doubtful(Exception):
    """Read it with positions: the other reader will say what is wrong, if anything is."""


def read(text: str) -> Any:
    """What a document holds. Raises Doubtful where it is no YAML, has a key twice, or there is no libyaml."""
    import yaml  # late: few commands plan

    try:
        return yaml.load(text, loader())  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Doubtful from error


@cache
def loader() -> Any:
    """A safe loader of libyaml with the scalars of YAML 1.2 (`1e-3` is a number, `on` a text)."""
    import yaml  # late: few commands plan

    if not hasattr(yaml, "CSafeLoader"):
        raise Doubtful

    class Loader(yaml.CSafeLoader):
        yaml_implicit_resolvers: dict[str, list[Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if len(set(keys)) != len(keys) or "<<" in keys:  # whose keys the other reader has in another order
                raise Doubtful
            return super().construct_mapping(node, deep=deep)

    for versions, tag, pattern, begin in implicit_resolvers:
        if (1, 2) in versions:
            Loader.add_implicit_resolver(tag, pattern, begin)
    return Loader
