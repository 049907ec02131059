"""`fastmlp warmup`: what it measures stands, until it is asked to measure again."""

import numpy as np
import pytest

import fastmlp
from fastmlp.backends.cpu import calibration

pytestmark = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available, reason=fastmlp.available_backends()["numba"].reason
)
TYPES = ("float32", "float64")


def test_warmup_again_measures_anew_and_forgets_what_trials_decided(monkeypatch, tmp_path, cli):
    monkeypatch.setattr(calibration, "kept_path", lambda what, dtype: tmp_path / f"{what}-{dtype}.json")
    monkeypatch.setattr(calibration, "time_meeting", iter((1e-7, 2e-7, 3e-7, 4e-7)).__next__)
    for dtype in TYPES:
        for what in ("steps", "backends", "proven-train"):
            (tmp_path / f"{what}-{dtype}.json").write_text("{}")

    def meetings(*options):
        """Return what is kept after the command, without options by a process of its own as far as tables go."""
        if not options:
            monkeypatch.setattr(calibration, "_tables", {})
            monkeypatch.setattr(calibration, "_settled", set())
        code, out, _ = cli("warmup", *options)
        assert code == 0 and "float64: " in out
        return [calibration._read(calibration.table_path(np.dtype(dtype))).meeting for dtype in TYPES]

    assert meetings() == meetings() == [1e-7, 2e-7]
    decided = {f"{what}-{dtype}.json" for what in ("steps", "backends") for dtype in TYPES}
    proven = {f"proven-train-{dtype}.json" for dtype in TYPES}
    before = {path.name for path in tmp_path.iterdir()}
    assert decided | proven < before
    assert meetings("--again") == [3e-7, 4e-7]
    assert {path.name for path in tmp_path.iterdir()} == before - decided
    monkeypatch.setattr(calibration, "kept_path", lambda what, dtype: None)  # no folder can be written
    assert cli("warmup", "--again")[0] == 0
    assert calibration._tables == dict.fromkeys(map(np.dtype, TYPES))
