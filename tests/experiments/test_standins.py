"""No title, label, head, caption or picture says that data, heads or models were used which were not."""

import re
from dataclasses import replace

import pytest
import torch

from analysis import charts
from experiments.planning import schema, standins
from experiments.planning.plan import plan
from experiments.records.store import Store
from experiments.results import render
from experiments.results.claims.check import check_all
from experiments.results.claims.report import markdown
from experiments.results.compare import compare
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel

NAME = re.compile(r"CIFAR|CUB-200|ImageNet|COCO|ADE20K|\bCars\b|Aircraft|iNat|UperNet")
# Data sets of hkd.data that are papers' own, or parts of them.
LOADED = {"cifar100": "CIFAR", "cub200": "CUB-200", "aircraft": "Aircraft", "stanford_cars": "Cars"}
LAPTOP, PAPER = schema.load_profile("laptop"), schema.load_profile("paper")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("HCD on CIFAR-100: two pairs", "HCD on a stand-in for CIFAR-100: two pairs"),
        ("ImageNet-1K", "stand-in for ImageNet-1K"),
        ("Table 2: CIFAR-100, Cars, iNat-19",
         "Table 2: stand-in for CIFAR-100, stand-in for Stanford Cars, stand-in for iNaturalist 2019"),
        ("transfer to ADE20K, UperNet", "transfer to a stand-in for ADE20K, FPN (stand-in for UperNet)"),
        ("ResNet-50, top-1 on ImageNet-1K", "ResNet-50, top-1 on a stand-in for ImageNet-1K"),
        ("ImageNet-1K-like MSCOCO", "ImageNet-1K-like MSCOCO"),  # other names that only contain one
        ("Mask R-CNN", "Mask R-CNN"),
    ],
)  # fmt: skip
def test_a_name_becomes_what_stood_in_and_stays_where_it_is_the_papers_own(text, printed):
    assert standins.named(text, LAPTOP) == printed
    assert standins.named(printed, LAPTOP) == printed
    assert standins.named(text, PAPER) == text


def test_a_title_begins_with_a_capital():
    laptop = schema.load_profile("laptop")
    assert standins.titled("CIFAR-100, two pairs", laptop) == "Stand-in for CIFAR-100, two pairs"
    assert standins.titled("HCD on CIFAR-100", laptop) == "HCD on a stand-in for CIFAR-100"


def test_a_data_set_that_a_profile_lacks_is_said_to_be_missing():
    hour = schema.load_profile("gpu_hour")
    assert standins.named("HCD on CUB-200", hour) == "HCD on CUB-200 (not in this profile)"
    assert standins.named("UperNet", hour) == "UperNet (not in this profile)"


def test_the_sentence_names_data_and_the_range_of_sizes_of_the_models_used():
    rows = [("cifar100", ("resnet18", "swin_t_ofa")), ("cifar100", ("deit_t", "convnext_t_ofa"))]
    cards = ["resnet18_mini", "convnext_t_ofa_mini"]
    assert standins.used(LAPTOP, rows, cards) == (
        "Stand-in for CIFAR-100: two-digit numbers, 100 classes, 32 px (rows of DeiT-T: single digits, 10 classes, "
        "32 px); miniature models of 0.18–0.50 M parameters before the classifier."
    )
    assert standins.used(LAPTOP, rows[1:], cards[:1]) == (
        "Stand-in for CIFAR-100: single digits, 10 classes, 32 px; miniature models of 0.18 M parameters before the "
        "classifier."
    )
    assert standins.used(PAPER, rows, ["resnet18"]) == ""
    assert standins.of_profile(PAPER) == ""
    assert standins.in_short(PAPER) == ""


@pytest.mark.slow
@pytest.mark.long
def test_sizes_are_those_of_the_networks_that_are_built():
    cards = ZOO | {
        name: card for each in schema.names("profiles") for name, card in schema.read_profile(each).cards.items()
    }
    with torch.device("meta"):
        built = {name: TapModel(cards[name], 0) for name in schema.load_names().parameters}
    counted = {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in built.items()}
    assert schema.load_names().parameters == pytest.approx(counted, abs=5.1e-5)


def test_a_segmentation_head_other_than_the_papers_is_named():
    for name in schema.names("profiles"):
        profile = schema.load_profile(name)
        head = profile.tasks.get("segment", {}).get("head", "upernet")
        assert ("UperNet" in profile.heads) == (head != "upernet")


# -- every table at every small profile ----------------------------------------------------------------------------


def misleading(text: str, profile: schema.Profile | None = None) -> list[str]:
    """Sentences that name data or heads as if they had been used; those on the paper itself and its values do not.

    profile: the name of what it loads is right in a sentence on that (a caption, not a title).
    """
    loaded = {LOADED.get(data.name, "") for data in profile.data.values()} if profile else set()
    return [
        sentence
        for sentence in re.split(r"(?<=\.) ", text)
        if {*NAME.findall(sentence)} - loaded
        and not re.search(r"[Ss]tand-in for|not in this profile|[Pp]aper|published", sentence)
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param("laptop", marks=pytest.mark.slow), "smoke", "cifar_subset", "cub_subset"]
)
def test_nothing_printed_or_drawn_names_what_was_not_used(name, monkeypatch, tmp_path):
    drawn = []
    for figure in ("comparison_figure", "ranking_figure", "gain_map"):
        monkeypatch.setattr(charts, figure, lambda rows, path, **texts: drawn.append((rows, texts)))
    profile = schema.load_profile(name)
    for table in schema.table_ids():
        chosen = plan(table, name, 1)
        assert re.search(f"{profile.model_kind} models|Nothing of this table", chosen.here, flags=re.I)
        comparison = compare(chosen, {})
        page = render.markdown(chosen, {}, comparison)
        assert page.splitlines()[2].startswith(chosen.here)
        labels = [label for cell in chosen.cells for label in (cell.label, *cell.row_label)]
        assert [found for text in (chosen.title, chosen.here, *labels) for found in misleading(text)] == []
        heads = [cell for line in page.splitlines() if line.startswith("|") for cell in line.split("|")]
        assert [found for cell in heads for found in misleading(cell)] == []
        captions = [line for line in page.splitlines() if line.startswith("- ")]
        assert [found for line in captions for found in misleading(line, profile)] == []
        drawn.clear()
        for picture, metrics in render.compared_metrics(chosen).items():
            render.draw(chosen, comparison, tmp_path / picture, metrics)
        if render.is_ranked(chosen):
            render.draw_ranking(chosen, render.ranking(chosen, comparison), tmp_path / "ranking.png")
            render.draw_map(chosen, comparison, tmp_path / "gains.png")
        for rows, texts in drawn:
            assert texts["title"].endswith(f"\n{chosen.here}")
            labels = [text for row in rows for text in row.values() if isinstance(text, str)]
            assert [found for text in (*texts.values(), *labels) for found in misleading(text)] == []


def test_the_paper_profile_prints_the_papers_own_names():
    chosen = plan("hcd_cifar100", "paper", 1)
    assert chosen.title == "HCD on CIFAR-100: twelve heterogeneous pairs, eleven methods"
    assert chosen.heading == chosen.title
    assert chosen.marks == {}


def test_a_model_that_stands_in_is_marked_where_a_table_names_it_first():
    chosen = plan("scalekd_table3", "laptop", 1)
    page = render.markdown(chosen, {}, compare(chosen, {}))
    cells = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| ")]
    teachers = [line[1] for line in cells if line[1].startswith("Swin-L")]
    assert teachers == ["Swin-L (miniature, 0.27 M)", *7 * ["Swin-L"]]
    assert [line[2] for line in cells if "ResNet-50" in line[2]] == ["ResNet-50 (miniature, 0.31 M)", "ResNet-50"]
    assert render.markdown(replace(chosen, marks={}), {}, compare(chosen, {})).count("miniature, ") == 0


def test_published_columns_keep_the_papers_names_for_its_own_data():
    chosen = plan("hybrid_table1", "laptop", 1)
    page = render.markdown(chosen, {}, compare(chosen, {}))
    assert "| ImageNet-1K: published |" in re.sub(" +", " ", page)
    assert "| stand-in for ImageNet-1K: measured |" in re.sub(" +", " ", page)


@pytest.mark.slow
@pytest.mark.long
def test_the_listing_of_claims_says_under_each_profile_what_stood_in(tmp_path):
    page = markdown(check_all(["laptop"], Store(tmp_path / "none")))
    assert standins.of_profile(LAPTOP) in page.partition("\n## ")[2].split("\n\n")[1]


# -- mistakes in a profile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "update", "sentence"),
    [
        ("laptop", {"model_kind": None}, "is not the paper's model: say in model_kind"),
        ("paper", {"model_kind": "miniature"}, "all models are the paper's; leave model_kind out"),
        ("paper", {"heads": {"UperNet": "FPN"}}, "nothing may stand in"),
        ("laptop", {"heads": {"UperNett": "FPN"}}, "unknown head 'UperNett'. Did you mean 'UperNet'"),
        ("laptop", {"models": {"resnet50": "resnet50d_mini"}}, "'resnet50d_mini' has no size in"),
        ("laptop", {"data": {"coco": schema.DataMapping(name="scenes")}}, "say in stand_in what stands in"),
        ("laptop", {"data": {"cifar100": schema.DataMapping(name="cifar100", stand_in="x")}}, "leave stand_in out"),
        ("paper", {"data": {"mnist": schema.DataMapping(name="folder")}}, "has no name in"),
    ],
)  # fmt: skip
def test_a_profile_that_does_not_say_what_stands_in_is_refused(name, update, sentence):
    with pytest.raises(UserError, match=rf"experiments/profiles/{name}.yaml:\d+: .*{sentence}"):
        schema.check_stand_ins(schema.load_profile(name).model_copy(update=update))
