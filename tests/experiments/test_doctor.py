"""The doctor finds what is there and says how to get what is not."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.doctor import Finding, examine, readiness
from experiments.planning import schema


@pytest.fixture
def findings(tmp_path, monkeypatch):
    for name in ("HKD_RUNS", "HKD_RESULTS", "HKD_DATA", "HKD_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    (tmp_path / "hkd_weights").mkdir()
    save_file({"w": np.zeros(1)}, tmp_path / "hkd_weights" / "swin_s.safetensors")
    (tmp_path / "hkd_weights" / "eva_l14.safetensors").write_bytes(b"\0" * 8)
    for split in ("train", "val"):
        (tmp_path / "hkd_data" / "imagenet" / split / "n01440764").mkdir(parents=True)
    return {(finding.group, finding.name): finding for finding in examine()}


def test_versions_of_installed_packages_are_found(findings):
    assert findings["versions", "torch"].state == "ok"
    assert findings["versions", "torch"].text[0].isdigit()


def test_the_digits_are_there_without_a_download(findings):
    assert findings["data", "digits"].state == "ok"


def test_a_missing_data_set_comes_with_the_path_looked_at(findings, tmp_path):
    finding = findings["data", "imagenet1k"]
    assert finding.state == "missing"
    assert str(tmp_path / "hkd_data") in finding.step
    assert "has 1 classes, 1000 are needed" in finding.step
    assert findings["data", "imagenet1k_unlabelled"].step == finding.step


def test_missing_weights_come_with_the_command_that_gets_them(findings):
    assert findings["weights", "swin_s.safetensors"].state == "ok"
    assert "truncated or not a safetensors file" in findings["weights", "eva_l14.safetensors"].step
    assert findings["weights", "swin_l.safetensors"].step == "hkd weights fetch swin_l"
    assert findings["weights", "beit_b16.safetensors"].step.startswith("hkd weights convert beit_b16 FILE")


def test_every_data_set_of_every_profile_is_looked_for(findings):
    used = {mapping.name for name in schema.names("profiles") for mapping in schema.load_profile(name).data.values()}
    assert {name for group, name in findings if group == "data"} == used


def test_it_ends_with_what_each_profile_lacks(findings):
    said = readiness(list(findings.values()))
    assert "laptop: ready" in said
    lacking = [finding for finding in findings.values() if finding.state == "missing" and "paper" in finding.profiles]
    sets, files = (sum(finding.group == group for finding in lacking) for group in ("data", "weights"))
    assert f"paper: {sets} data sets and {files} weights files missing" in said


def test_what_every_profile_needs_is_missing_from_all():
    package = Finding(group="versions", name="torch", state="missing", text="not installed")
    assert readiness([package]).count("1 package missing") == len(schema.names("profiles"))
