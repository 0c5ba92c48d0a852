"""The tables around HCD: their pairs and published values, and that tables share the runs they have in common."""

import pytest

from experiments.planning import schema
from experiments.planning.plan import plan

TABLES = [name for name in schema.table_ids() if name.startswith("hcd_")]
BY_STUDENT = {
    "resnet18": ("swin_t_ofa", "vit_s16_ofa", "mixer_b16_ofa"),
    "mobilenet_v2": ("swin_t_ofa", "vit_s16_ofa", "mixer_b16_ofa"),
    "deit_t": ("convnext_t_ofa", "mixer_b16_ofa"),
    "swin_p": ("convnext_t_ofa", "mixer_b16_ofa"),
    "resmlp_s12": ("convnext_t_ofa", "swin_t_ofa"),
}
PAIRS = {(teacher, student) for student, teachers in BY_STUDENT.items() for teacher in teachers}
METHODS = ["supervised", "kd", "fitnet", "cc", "rkd", "crd", "dkd", "dist", "ofa", "scalekd", "hcd", "hcd"]


@pytest.fixture(scope="module")
def plans():
    return {name: plan(name, "laptop", 5) for name in TABLES}


@pytest.fixture(scope="module")
def published(plans):
    """Published values by table, row and column."""
    return {
        (name, cell.row, cell.method, cell.variant): cell.published
        for name, each in plans.items()
        for cell in each.cells
        if cell.published
    }


def test_the_main_table_has_the_twelve_pairs_of_the_protocol_and_eleven_methods(plans):
    cells = plans["hcd_cifar100"].cells
    assert {(cell.teacher, cell.student) for cell in cells} == PAIRS
    assert len(cells) == 12 * len(METHODS)
    assert [cell.method for cell in cells[: len(METHODS)]] == METHODS
    added = [(cell.method, cell.variant) for cell in cells[: len(METHODS)] if cell.added]
    assert added == [("scalekd", "")]  # of HCD both readings are the paper's as much


def test_the_core_has_four_of_these_pairs_and_exactly_their_runs(plans):
    whole, core = ({cell.id: cell.runs for cell in plans[name].cells} for name in ("hcd_cifar100", "hcd_cifar100_core"))
    assert len({row for row, _, _ in core}) == 4
    assert all(whole[cell] == runs for cell, runs in core.items())


def test_tables_on_the_same_data_share_what_they_have_in_common(plans):
    shared = {name: set(plans[name].runs) for name in ("hcd_cifar100", "hcd_ablations", "hcd_homogeneous")}
    main = {cell.id: cell.runs for cell in plans["hcd_cifar100"].cells}
    ablation = {cell.id: cell.runs for cell in plans["hcd_ablations"].cells}
    for method in (("supervised", ""), ("hcd", ""), ("hcd", "detached")):
        which = ("swin_t-resnet18", *method)
        assert main[which] == ablation[which]
    teachers = set(plans["hcd_homogeneous"].teachers.values()) & shared["hcd_cifar100"]
    assert len(teachers) == 1  # Swin-T; ResNet-50 teaches in one table only


@pytest.mark.parametrize("name", TABLES)
def test_no_two_cells_of_a_table_are_the_same_run(plans, name):
    cells = [
        cell for cell in plans[name].cells if cell.method != "supervised" and cell.metric == plans[name].metrics[0]
    ]  # which has no teacher, so rows share it
    keys = [key for cell in cells for key in cell.runs]
    assert len(keys) == len(set(keys)) == 5 * len([cell for cell in cells if cell.runs])


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_every_cell_can_be_planned(plans, name, profile):
    chosen = plans[name] if profile == "laptop" else plan(name, profile)
    assert {cell.refused for cell in chosen.cells if cell.method not in ("scalekd", "crd", "cc", "rkd")} == {None}


def test_values_of_other_papers_stand_beside_those_of_this_one(published):
    value = published["hcd_cifar100", "swin_t-resnet18", "ofa", ""]
    assert (value.value, value.confidence) == (80.54, "medium")
    assert "PAT" in value.source
    ours = published["hcd_cifar100", "swin_t-resnet18", "hcd", ""]
    assert (ours.value, ours.confidence) == (82.78, "low")
    assert published["hcd_cifar100", "mixer_b-deit_t", "supervised", ""].value == 68.0


def test_of_two_values_that_disagree_the_one_of_higher_confidence_is_printed(published):
    assert published["hcd_cifar100", "convnext_t-resmlp_s12", "ofa", ""].value == 81.22
    assert published["hcd_imagenet1k", "swin_t-resnet18", "ofa", ""].value == 71.85


def test_cells_that_no_source_has_stay_without_a_published_value(published):
    assert ("hcd_cifar100", "mixer_b-resnet18", "kd", "") not in published
    assert ("hcd_cifar100", "swin_t-resnet18", "cc", "") not in published
    assert ("hcd_cifar100", "convnext_t-swin_p", "supervised", "") not in published
    assert not any(table in ("hcd_cub200", "hcd_homogeneous") for table, *_ in published)


def test_every_value_of_hcd_is_unverified(published):
    assert {value.confidence for (_, _, method, _), value in published.items() if method == "hcd"} == {"low"}


def test_ablations_vary_one_thing_each_and_the_default_stands_once(plans):
    columns = [column for column in schema.load_table("hcd_ablations").columns if column.method == "hcd"]
    assert [len(column.options) for column in columns] == [0] + [1] * (len(columns) - 1)
    from hkd.methods.hcd import HCDConfig

    default = HCDConfig()
    for column in columns:
        for name, value in column.options.items():
            assert getattr(HCDConfig(**{name: value}), name) != getattr(default, name)


def test_ablations_are_measured_against_the_default(plans):
    cells = plans["hcd_ablations"].cells
    default = ("swin_t-resnet18", "hcd", "")
    assert {cell.baseline for cell in cells if cell.variant} == {default}
    assert {cell.baseline for cell in cells if not cell.variant} == {None}


def test_teachers_of_one_name_differ_by_data_and_are_shared_by_tables(plans):
    keys = {
        name: next(key for teacher, key in each.teachers.items() if teacher.startswith("swin_t_ofa@"))
        for name, each in plans.items()
    }
    assert keys["hcd_cifar100"] == keys["hcd_cifar100_core"] == keys["hcd_ablations"] == keys["hcd_homogeneous"]
    assert len({keys[name] for name in ("hcd_cifar100", "hcd_cub200", "hcd_imagenet1k")}) == 3


def test_at_paper_scale_teachers_are_fine_tuned_from_the_weights_that_imagenet_uses():
    cifar, imagenet = plan("hcd_ablations", "paper"), plan("hcd_imagenet1k", "paper")
    tuned = cifar.runs[cifar.teachers["swin_t_ofa@cifar100"]].spec
    measured = imagenet.runs[imagenet.teachers["swin_t_ofa@imagenet1k"]].spec
    assert (tuned.task, measured.task) == ("train", "evaluate")
    assert tuned.init == measured.init
    assert tuned.data.name == "cifar100"


def test_the_smoke_profile_has_two_pairs_of_the_core():
    chosen = plan("hcd_cifar100_core", "smoke")
    assert {cell.row for cell in chosen.cells if cell.refused is None} == {"vit_s-mobilenet_v2", "convnext_t-deit_t"}


def test_a_profile_may_give_a_table_its_own_number_of_seeds():
    assert len(plan("hcd_cifar100", "laptop").seeds) == schema.load_profile("laptop").table_seeds["hcd_cifar100"] == 3
    assert len(plan("hcd_cifar100_core", "laptop").seeds) == schema.load_profile("laptop").seeds == 5
    assert len(plan("hcd_cifar100", "laptop", 2).seeds) == len(plan("hcd_cifar100", "smoke").seeds) == 2
