"""The tables of the recorded runs: what they say, and that their exit status follows."""

import pytest

from adafactor_spec import oracle
from parity_tests import recorded, replay, tables
from parity_tests.faults import FAULTS


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["paper"], ["no clip"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("14 of 14") == len(replay.RUNNERS)
    assert "Everything is matched" in printed


def test_a_run_that_is_not_matched(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS["no clip"](monkeypatch, oracle)
    assert tables.main(["paper"], []) == 1
    printed = capsys.readouterr().out
    assert printed.count("14 of 14") == len(replay.RUNNERS) - 1
    assert "NOT as it should be" in printed


def test_a_fault_that_nobody_rejects(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "none", lambda patch, kernels: None)
    assert tables.main(["paper"], ["none"]) == 1
    assert "REJECTED BY NOBODY" in capsys.readouterr().out


def test_an_unsupported_run_that_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = [setting for setting in recorded.settings("mesh_tensorflow") if setting.unsupported]
    monkeypatch.setattr(recorded, "settings", lambda name: stacked)
    assert list(tables.match_rows("mesh_tensorflow")) == [("unsupported", ["refused 12 of 12"] * 3, True)]
    monkeypatch.setattr(replay, "refuses", lambda *args: False)
    assert list(tables.match_rows("mesh_tensorflow")) == [("unsupported", ["refused 0 of 12"] * 3, False)]
