"""YAML read by libyaml, fourteen times as fast as with the positions of its keys, which only a mistake needs.

For this package's own documents: the values are those of the slower reader (a test reads all of them both ways).
"""

from contextlib import suppress
from functools import cache
from typing import Any

from ruamel.yaml.resolver import implicit_resolvers

MOST_LEVELS = 200  # that are read at all
MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`


class Doubtful(Exception):
    """Read it with positions: the other reader will say what is wrong, if anything is."""


def read(text: str) -> Any:
    """What a document holds. Raises Doubtful where it is no YAML, has a key twice, or there is no libyaml."""
    import yaml  # late: few commands plan

    if deeper(text, MOST_LEVELS):
        raise Doubtful
    try:
        return yaml.load(text, loader())  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Doubtful from error


def deeper(text: str, levels: int) -> bool:
    """Whether mappings and lists are nested deeper than so many levels, as far as it is YAML.

    Told by the parser's events, one after another: what makes values of them calls itself at every level, and ends the
    process where that is done some ten thousand times.
    """
    import yaml  # late: few commands plan

    depth = 0
    with suppress(yaml.YAMLError, ValueError, TypeError, AttributeError):  # the other reader says what is wrong
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > levels:
                    return True
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    return False


@cache
def loader() -> Any:
    """A safe loader of libyaml with the scalars of YAML 1.2 (`1e-3` is a number, `on` a text)."""
    import yaml  # late: few commands plan

    if not hasattr(yaml, "CSafeLoader"):
        raise Doubtful

    class Loader(yaml.CSafeLoader):
        yaml_implicit_resolvers: dict[str, list[Any]] = {}

        def flatten_mapping(self, node: Any) -> None:
            """Keys of its own first, then merged ones, of equal ones the first, as the other reader has them."""
            own = [(key, value) for key, value in node.value if key.tag != MERGE]
            if len({key.value for key, _ in own}) != len(own) or len(node.value) - len(own) > 1:
                raise Doubtful
            for _, merged in (pair for pair in node.value if pair[0].tag == MERGE):
                for each in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                    if not isinstance(each, yaml.MappingNode):
                        raise Doubtful
                    self.flatten_mapping(each)
                    held = {key.value for key, _ in own}
                    own += [(key, value) for key, value in each.value if key.value not in held]
            node.value = own

    for versions, tag, pattern, begin in implicit_resolvers:
        if (1, 2) in versions:
            Loader.add_implicit_resolver(tag, pattern, begin)
    return Loader
