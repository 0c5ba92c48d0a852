"""Options: every field says its range, takes what is inside and refuses everything else in one sentence."""

import itertools
import json
import math
import operator
import pickle
import re
import subprocess
import sys
import types
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import Field

from experiments.planning import declared
from experiments.planning.declared import WORDS, options_of, settled
from hkd.methods.hybrid import HybridConfig
from hkd.options import (
    Count,
    Different,
    NoOptions,
    OptionError,
    Positive,
    Rising,
    Share,
    Stages,
    Switch,
    configured,
    options,
    together,
)
from hkd.spec import Recipe
from hkd.training.job import Runtime
from hkd.units import KINDS

UNITS = [(kind, name) for kind in WORDS for name in KINDS[kind]]
CLASSES = {f"{kind}/{name}": options_of(kind, name) for kind, name in UNITS} | {"recipe": Recipe, "runtime": Runtime}
REQUIRED: dict[str, dict[str, Any]] = {"recipe": {"epochs": 1, "batch_size": 1}}
NUMBERS = [-1, 0, -1.0, 0.0, 0.5, math.nan, math.inf, -math.inf, 1e30, 10**30, 10**400, -(10**5000)]
VALUES = [
    *NUMBERS,
    "x",
    "1e-3",
    "",
    [1],
    [],
    [[]],
    [None, True],
    [1e30, "x"],
    [10**5000] * 9,
    {},
    {"x": 1},
    None,
    True,
    False,
    b"x",
    object(),
]
BOUNDS = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}


@options
class Example:
    tau: Positive = 1.0
    share: Share = 0.5
    count: Count | None = None
    on: Switch = False
    form: Literal["paper", "code"] = "code"
    stages: Stages = (1, 2)
    crop: Annotated[tuple[Share, Share], Rising] = (0.1, 1.0)
    late: Annotated[tuple[Count, ...], Field(min_length=1), Different] | Literal["middle", "back"] | None = None

    @together
    def _share(self) -> None:
        if self.on and self.share == 0:
            raise ValueError("on=true does nothing with share 0")


def test_every_class_of_options_is_looked_at_here():
    """Each that the library defines is that of a unit, of recipes or of machines, or is what one of these builds on."""
    defined = {
        name
        for path in (Path(__file__).parents[2] / "hkd").rglob("*.py")
        for name in re.findall(r"^@options\nclass (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(defined) > 40
    assert defined == {base.__name__ for kind in CLASSES.values() for base in kind.__mro__} - {"object"}


def leaves(hint: Any, value: Any) -> list[tuple[type, Any, list[Any]]]:
    """(type, value, constraints) of every plain value that a field holds; the alternatives of a union are tried."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        constraints = [each for item in metadata for each in [item, *getattr(item, "metadata", [])]]
        return [(kind, held, own + constraints) for kind, held, own in leaves(inner, value)]
    if get_origin(hint) in (Union, types.UnionType):
        (one,) = [each for each in get_args(hint) if isinstance(value, base(each))]
        return leaves(one, value)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return [leaf for part, held in zip(each, value, strict=True) for leaf in leaves(part, held)]
    if get_origin(hint) is dict:
        return [leaf for held in value.values() for leaf in leaves(get_args(hint)[1], held)]
    if get_origin(hint) is Literal:
        assert value in get_args(hint)
        return []
    return [(hint, value, [])]


def base(hint: Any) -> type:
    """The type of values of an annotation, without its constraints."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return str if get_origin(hint) is Literal else get_origin(hint) or hint


def assert_inside(hint: Any, value: Any) -> None:
    """The value is of the annotated type, and each number in it within bounds that stand at the field."""
    for kind, held, constraints in leaves(hint, value):
        assert type(held) is kind or isinstance(held, Path)
        if kind in (int, float):
            bounds = {name: [getattr(each, name) for each in constraints if hasattr(each, name)] for name in BOUNDS}
            assert bounds["ge"] or bounds["gt"], f"{hint} has no least value"
            assert bounds["le"] or bounds["lt"], f"{hint} has no greatest value"
            assert all(holds(held, bound) for name, holds in BOUNDS.items() for bound in bounds[name])


@pytest.mark.parametrize("of", CLASSES)
def test_every_field_takes_what_is_in_its_range_and_refuses_the_rest_in_one_sentence(of):
    kind = CLASSES[of]
    for name, value in itertools.product([item.name for item in fields(kind)], VALUES):
        try:
            made = kind(**{**REQUIRED.get(of, {}), name: value})
        except OptionError as error:
            text, loc = str(error), error.loc
            assert "\n" not in text
            assert text.endswith((".", "?"))
            assert loc == () or (loc[0] == name and name in text)
        else:
            assert_inside(next(item.type for item in fields(kind) if item.name == name), getattr(made, name))


@pytest.mark.parametrize("of", CLASSES)
def test_defaults_are_in_their_ranges_and_options_are_frozen(of):
    kind = CLASSES[of]
    made = kind(**REQUIRED.get(of, {}))
    for item in fields(kind):
        assert item.default is not MISSING or item.name in REQUIRED[of]
        if item.default is not MISSING:
            same = kind(**{**REQUIRED.get(of, {}), item.name: item.default})
            assert getattr(same, item.name) == item.default
            assert type(getattr(same, item.name)) is type(item.default)
    with pytest.raises(FrozenInstanceError):
        made.anything = 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"tau": -1.0}, "Method 'm': tau must be greater than 0, got -1.0."),
        ({"tau": math.nan}, "Method 'm': tau must be a finite number, got nan."),
        ({"tau": 1e30}, "Method 'm': tau must be less than or equal to 1000000, got 1e+30."),
        ({"tau": "1e-3"}, "Method 'm': tau must be a number, got '1e-3'."),
        ({"tau": True}, "Method 'm': tau must be a number, got True."),
        ({"count": 4.0}, "Method 'm': count must be a whole number, got 4.0."),
        ({"on": 1}, "Method 'm': on must be true or false, got 1."),
        ({"form": "papers"}, "Method 'm': form must be 'paper' or 'code', got 'papers'. Did you mean 'paper'?"),
        ({"stages": "x"}, "Method 'm': stages must be a list, got 'x'."),
        ({"stages": [1, 7]}, "Method 'm': stages.1 must be less than or equal to 4, got 7."),
        ({"stages": [1, 1]}, "Method 'm': stages must not name one twice, got [1, 1]."),
        ({"crop": [1.0]}, "Method 'm': crop.1 is missing."),
        ({"crop": [0.1, 0.2, 0.3]}, "Method 'm': crop must have at most 2 items, not 3, got [0.1, 0.2, 0.3]."),
        ({"crop": [0.5, 0.1]}, "Method 'm': crop must not fall from one value to the next, got [0.5, 0.1]."),
        ({"late": "bac"}, "Method 'm': late must be a list or must be 'middle' or 'back', got 'bac'. "
                          "Did you mean 'back'?"),
        ({"late": [0]}, "Method 'm': late.0 must be greater than or equal to 1, got 0."),
        ({"on": True, "share": 0.0}, "Method 'm': on=true does nothing with share 0."),
        ({"taw": 1.0}, "Method 'm' has no option 'taw'. Did you mean 'tau'? "
                       "Known: tau, share, count, on, form, stages, crop, late."),
        ({"count": list(range(100))}, "Method 'm': count must be a whole number, got "
                                      "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1...."),
    ],
)  # fmt: skip
def test_a_sentence_names_the_option_what_is_allowed_and_what_was_given(values, sentence):
    with pytest.raises(OptionError) as error:
        configured(Example, "Method 'm'", values)
    assert str(error.value) == sentence
    again = pickle.loads(pickle.dumps(error.value))  # from a worker
    assert (str(again), again.loc) == (sentence, error.value.loc)


def test_numbers_and_lists_of_json_and_yaml_are_taken():
    made = configured(Example, "Method 'm'", {"tau": 4, "stages": [2, 1], "crop": [0, 1], "late": [3]})
    assert (made.tau, made.stages, made.crop, made.late) == (4.0, (2, 1), (0.0, 1.0), (3,))
    assert [type(value) for value in (made.tau, *made.crop)] == [float] * 3
    assert replace(made, tau=2.0) == Example(tau=2.0, stages=(2, 1), crop=(0.0, 1.0), late=(3,))
    with pytest.raises(OptionError, match=r"^Example: tau must be greater than 0, got 0\.$"):
        replace(made, tau=0)


def test_options_enter_a_spec_as_given_but_whole_numbers_as_floats():
    found = settled("method", "ofa", {"tau": 4, "stages": [1, 2], "eps": [1, 2.0]})
    assert json.dumps(found) == '{"tau": 4.0, "stages": [1, 2], "eps": [1.0, 2.0]}'
    found = settled("data", "folder", {"expected": {"test": 3}, "crop_pct": 1})
    assert json.dumps(found) == '{"expected": {"test": 3}, "crop_pct": 1.0}'


def test_options_classes_are_had_from_the_sources_without_torch_as_importing_them_gives_them():
    code = (
        "import json, sys; from dataclasses import fields; from experiments.planning.declared import options_of;"
        f"found = [[[f.name, str(f.type), repr(f.default)] for f in fields(options_of(*unit))] for unit in {UNITS!r}];"
        "print(json.dumps([found, sorted({'torch', 'numpy'} & {*sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, heavy = json.loads(done.stdout)
    here = [[[f.name, str(f.type), repr(f.default)] for f in fields(options_of(*unit))] for unit in UNITS]
    assert re.sub("0x[0-9a-f]+", "", json.dumps(found)) == re.sub("0x[0-9a-f]+", "", json.dumps(here))
    assert heavy == []
    declared.declared.cache_clear()  # what is imported since is taken from there
    assert options_of("method", "hybrid") is HybridConfig
    assert options_of("task", "train") is NoOptions


@pytest.mark.parametrize(
    ("unit", "values", "sentence"),
    [
        ("method/hgkd", {"w_sim": 0.0, "w_feat": 0.0}, "must not both be 0"),
        ("method/hgkd", {"teacher_view": "visible"}, "set positions to visible"),
        ("method/hgkd", {"teacher_view": "visible", "positions": "visible", "multi_scale": True}, "to false"),
        ("method/hgkd", {"decoder": "none", "multi_scale": True}, "decoder=none has none"),
        ("method/hybrid", {"late_layers": [13]}, "from 1 to depth (12), got (13,)"),
        ("method/hybrid", {"depth": 2}, "at least 3"),
        ("method/hybrid", {"late_target": "both_last", "late_layers": [11]}, "leave late_layers out"),
        ("method/hybrid", {"late_target": "feature", "target_norm": False}, "leave target_norm on"),
        ("method/hybrid", {"targets": "c", "mask": "progressive"}, "set targets to c+m"),
        ("method/hybrid", {"task": "masked", "decoder": "linear"}, "set targets to c or m"),
        ("method/hybrid", {"task": "dbot", "targets": "c", "decoder": "linear"}, "set it to attn2"),
        ("method/hybrid", {"task": "masked", "targets": "c"}, "set it to linear"),
        ("method/hybrid", {"encoder": "asymmetric"}, "set late_target to feature"),
        ("method/hybrid", {"decoder_width": 510}, "multiple of 4"),
        ("method/mae", {"decoder_width": 16, "decoder_heads": 3}, "multiple of 4 and of decoder_heads, got 16 and 3"),
        ("method/ofa", {"eps": [1.0, 2.0]}, "eps needs one value, or one for each of 4 stages"),
        ("method/hcd", {"cfm": False, "concat": "student"}, "cfm is off: leave one out"),
        ("method/scalekd", {"beta": 0.5, "w_orig": 0.1}, "give one pair"),
        ("method/scalekd", {"stages": ["s3"], "tpp": "off"}, "compares nothing"),
        ("method/scalekd", {"stages": ["s3"], "tpp": "query_only"}, "needs stage s4"),
        ("task/detect", {"strides": [4, 16]}, "strides must double from one to the next, got [4, 16]"),
        ("task/detect", {"anchors": [14.0]}, "anchors must be 5 sides, one per stride, got [14.0]"),
        ("task/detect", {"pooled_levels": 6}, "pooled_levels must be 1 to 5, got 6"),
        ("task/segment", {"window": 10, "stride": 11}, "stride 11 would leave pixels between windows of 10 px"),
        ("data/coco", {"image_size": 900, "max_size": 800}, "max_size 800 must not be less than image_size 900"),
        ("data/numbers200", {"n_train": 199}, "n_train must be greater than or equal to 200, got 199"),
        ("data/cub200", {"folder": "../elsewhere"}, "folder must be a name below its root folder, got '../elsewhere'"),
        ("data/folder", {"expected": {"tests": 3}}, "expected.tests must be 'classes', 'train' or 'test', got"),
        ("data/ade20k", {"classes": 255}, "classes must be less than 255"),
        ("recipe", {"views": 2, "mixup": 0.2}, "cannot be combined with mixup or cutmix"),
        ("recipe", {"crop_scale": [5.0, 1.0]}, "crop_scale.0 must be less than or equal to 1, got 5.0"),
        ("recipe", {"randaugment": "rand-x3"}, "randaugment must match pattern"),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_refused(unit, values, sentence):
    with pytest.raises(OptionError) as error:
        configured(CLASSES[unit], "It", {**REQUIRED.get(unit, {}), **values})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_option_of_a_plain_dataclass_is_the_same_sentence():
    @dataclass(frozen=True, kw_only=True)
    class Plain:
        weight: float = 1.0

    assert configured(Plain, "Method 'mine'", {"weight": 2.0}).weight == 2.0
    with pytest.raises(OptionError) as caught:
        configured(Plain, "Method 'mine'", {"wieght": 2.0})
    assert str(caught.value) == "Method 'mine' has no option 'wieght'. Did you mean 'weight'? Known: weight."
    assert caught.value.loc == ("wieght",)
