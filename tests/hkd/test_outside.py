"""What other packages bring: dotted paths and entry points, and the sentences where they cannot be had."""

import sys

import pytest
import torch

import hkd
from hkd import outside
from hkd.errors import UserError
from hkd.methods.base import Method, method_of
from hkd.methods.kd import KD
from hkd.registry import load, lookup

METHOD = '''
from hkd.methods.kd import KD

class Warm(KD):
    """As KD."""
'''


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A working folder outside the checkout, which Python forgets afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(outside.FOLDERS, raising=False)
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def package(scratch, monkeypatch):
    """An installed package of three entry points: a method, one that fails to import, and a name that is ours."""
    (scratch / "brought_pkg.py").write_text(METHOD)
    (scratch / "broken_pkg.py").write_text("raise RuntimeError('no licence\\nfound.')")
    facts = scratch / "brought_pkg-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-pkg\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[hkd.methods]\nbrought = brought_pkg:Warm\nbroken = broken_pkg:Bad\nkd = broken_pkg:Bad\n"
        "[hkd.models]\nmy_model = brought_pkg:model\n[hkd.datasets]\nmy_data = brought_pkg:Data\n"
    )
    monkeypatch.syspath_prepend(str(scratch))


def test_a_module_of_the_working_folder_is_found_by_its_dotted_path(scratch):
    (scratch / "mine_here.py").write_text(METHOD)
    assert lookup("method", "mine_here:Warm", {}) == "mine_here:Warm"
    assert issubclass(method_of("mine_here:Warm"), KD)


def test_a_folder_that_was_told_is_searched_here_and_by_other_processes(scratch, monkeypatch):
    (scratch / "beside").mkdir()
    (scratch / "beside" / "mine_beside.py").write_text(METHOD)
    outside.search(scratch / "beside")
    assert issubclass(method_of("mine_beside:Warm"), Method)
    assert str(scratch / "beside") in outside.os.environ[outside.FOLDERS]  # which they inherit


@pytest.mark.usefixtures("package")
def test_entry_points_of_all_groups_are_names_and_ours_come_first():
    assert outside.outside("hkd.methods")["brought"] == "brought_pkg:Warm"
    assert outside.outside("hkd.models") == {"my_model": "brought_pkg:model"}
    assert lookup("data set", "my_data", {}) == "brought_pkg:Data"
    assert issubclass(method_of("brought"), KD)
    assert method_of("kd") is KD
    with pytest.raises(UserError, match=r"Unknown method 'brough'\. Did you mean 'brought'"):
        method_of("brough")


@pytest.mark.usefixtures("package")
def test_an_entry_point_that_fails_is_named_in_a_line_and_stops_no_other():
    with pytest.raises(UserError) as caught:
        method_of("broken")
    assert str(caught.value).startswith(
        "'broken_pkg:Bad' (entry point 'broken' in hkd.methods of the package 'brought-pkg') cannot be imported: "
        "RuntimeError: no licence found ("
    )
    assert "\n" not in str(caught.value)
    assert issubclass(method_of("brought"), KD)


@pytest.mark.parametrize(
    ("text", "path", "sentence"),
    [
        ("", "nowhere_at_all:X", "there is no module 'nowhere_at_all'"),
        ("import not_installed_here", "scratch_mod:X", "No module named 'not_installed_here' .*scratch_mod.py, line 1"),
        ("class X(:", "scratch_mod:X", "scratch_mod.py, line 1: invalid syntax"),
        ("raise SystemExit(3)", "scratch_mod:X", "SystemExit: 3"),
        ("x = 1", "scratch_mod:X", "has no 'X'"),
        ("X = 1", "scratch_mod:X", "'scratch_mod:X' is no method: give a class that is derived from hkd.Method"),
        ("from hkd import Method\nclass X(Method): pass", "scratch_mod:X", "says nothing of its options"),
        (
            "from dataclasses import dataclass\nfrom hkd import Method\nclass X(Method):\n"
            " @dataclass(frozen=True)\n class Config: pass",  # of the standard library: that will do
            "scratch_mod:X",
            "lacks forward and needs",
        ),
        (
            "from hkd import Method\nfrom hkd.options import NoOptions\nclass X(Method):\n Config = NoOptions",
            "scratch_mod:X",
            "lacks forward and needs",
        ),
    ],
)
def test_what_cannot_be_had_is_one_sentence(scratch, text, path, sentence):
    (scratch / "scratch_mod.py").write_text(text)
    with pytest.raises(UserError, match=sentence):
        method_of(path)


BODY = """
from dataclasses import dataclass
import torch
from hkd.methods.base import Method, Needs
from hkd.models.taps import Want
from hkd.options import NoOptions

class X(Method):
    Config = NoOptions
{init}
    @classmethod
    def needs({needs}):
        return {needed}

    def forward({arguments}):
        return {losses}
"""
SOUND = {
    "init": "",
    "needs": "cls, config",
    "needed": "Needs()",
    "arguments": "self, batch, taps_s, taps_t",
    "losses": "{'task': self.task_loss(taps_s.logits, batch.y)}",
}


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ({"arguments": "self, batch"}, r"forward is called with \(batch, taps_s, taps_t\) and does not take that"),
        ({"needs": "cls"}, r"needs is called with \(config\) and does not take that"),
        (
            {"init": "    def __init__(self): super().__init__()"},
            r"__init__ is called with \(config, student, teachers",
        ),
        ({"needed": "{'teacher': Want()}"}, "needs must return an hkd.methods.base.Needs, and gives a dict"),
        ({"losses": "taps_s.logits.sum()"}, "a dict of named scalar losses; gives a Tensor"),
        ({"losses": "{}"}, "gives an empty one"),
        ({"losses": "{'task': 1.0}"}, "'task' is a float, not a tensor"),
        ({"losses": "{'task': taps_s.logits.sum(1)}"}, r"'task' has the shape \[2\], where a loss is one number"),
        ({"losses": "{'task': taps_s.logits.sum().detach()}"}, "none of its losses has a gradient"),
    ],
)
def test_what_somebody_elses_method_gives_is_looked_at(scratch, mistake, sentence):
    (scratch / "scratch_mod.py").write_text(BODY.format(**{**SOUND, **mistake}))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    def losses():
        made = hkd.Distiller(net, None, "scratch_mod:X", image_size=8, taps={"final": "0", "pooled": "2"})
        return made(torch.rand(2, 3, 8, 8), torch.tensor([0, 3]))

    with pytest.raises(UserError, match=sentence):
        losses()
    (scratch / "scratch_mod.py").write_text(BODY.format(**SOUND))
    del sys.modules["scratch_mod"]
    assert set(losses()) == {"task"}


def test_our_own_modules_keep_their_errors():
    with pytest.raises(AttributeError):
        load("hkd.methods.kd:KDD")


def test_a_distiller_takes_a_class_and_a_dotted_path(scratch):
    (scratch / "mine_loop.py").write_text(METHOD)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 3])
    taps = {"final": "0", "pooled": "2"}

    def losses(method):
        torch.manual_seed(0)
        student, teacher = (torch.nn.Sequential(*map(copied, net)) for _ in range(2))
        made = hkd.Distiller(student, teacher, method, image_size=8, taps=taps, teacher_taps=taps)
        return {name: float(value.detach()) for name, value in made(x, y).items()}

    assert losses("mine_loop:Warm") == losses(KD) == losses("kd")


def copied(layer):
    """A layer with the same numbers."""
    import copy

    return copy.deepcopy(layer)
