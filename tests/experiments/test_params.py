"""params.yaml is read strictly."""

import pytest

from experiments.planning.schema import Params, load_params
from hkd.errors import UserError


def load(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return load_params(path)


def test_values_are_read(tmp_path):
    text = "profile: smoke\nseeds: 3\nrecipe:\n  epochs: 5\n  lr: null\n"
    assert load(tmp_path, text) == Params(profile="smoke", seeds=3, recipe={"epochs": 5, "lr": None})


def test_without_a_file_the_defaults_hold(tmp_path):
    assert load_params(tmp_path / "none.yaml") == Params(profile="laptop")


def test_null_is_the_default(tmp_path):
    assert load(tmp_path, "profile: null\nseeds: null\nrecipe: null\n") == Params()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("profile: laptop\nseds: 3\n", r"^params\.yaml:2: seds: unknown key 'seds'\. Did you mean 'seeds'\?"),
        ("profile: laptop\nseeds: many\n", r"^params\.yaml:2: seeds: must be a whole number, got 'many'\.$"),
        ("seeds: true\n", r"^params\.yaml:1: seeds: must be a whole number, got True\.$"),
        ("seeds: 1000000000\n", r"^params\.yaml:1: seeds: must be less than or equal to 1000, got 1000000000\.$"),
        ("profile: 3\n", r"^params\.yaml:1: profile: must be a text, got 3\.$"),
        ("recipe: 3\n", r"^params\.yaml:1: recipe: must be names with values, got 3\.$"),
        ("recipe:\n  epochs: 3\n  lr: -1\n", r"^params\.yaml:3: recipe.lr: Recipe: lr must be greater than 0, got -1"),
        ("recipe: {epohcs: 3}\n", r"^params\.yaml:1: .*Recipe has no option 'epohcs'\. Did you mean 'epochs'\?"),
        ("seeds: [\n", r"^params\.yaml:2: not valid YAML"),
        ("laptop\n", r"^params\.yaml:1: keys are expected"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, text)
