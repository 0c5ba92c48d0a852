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


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (BOMB.encode(), r"^params\.yaml:\d: a\d: this has more than 200,000 values"),
        (b"recipe: " + b"[" * 100_000, r"^params\.yaml is nested too deeply"),
        ("\n".join(" " * i + "a:" for i in range(800)).encode(), r"^params\.yaml is nested too deeply"),
        (b"profile: a\0b", r"^params\.yaml:1: not valid YAML"),
        (b"seeds: 1\nprofile: caf\xe9", r"^params\.yaml:2: not UTF-8"),
        (b"recipe: {lr: 2020-01-01}", r"^params\.yaml:1: recipe\.lr: 2020-01-01 is no text"),
        (b"recipe: {lr: 2020-13-41}", r"^params\.yaml is not valid YAML: month"),
        (b"recipe: {lr: .nan}", r"^params\.yaml:1: recipe\.lr: nan is no text, truth value or finite number"),
        (b"recipe: !!python/object:os.system x", r"is no text, truth value or finite number"),
        (b"recipe: {lr: " + b"9" * 5000 + b"}", r"^params\.yaml is not valid YAML"),
    ],
)
def test_what_is_no_plain_document_is_refused_quickly(tmp_path, content, sentence):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load_params(tmp_path / "params.yaml")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbfseeds: 2\n")
    assert load_params(tmp_path / "params.yaml").seeds == 2
