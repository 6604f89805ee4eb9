"""The bench: its cases, what a worker does, how sides take turns, and what is said about them."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from mhvae_kit.bench import report, runner, sides, worker
from mhvae_kit.bench.cases import Case, all_cases, choose, gpu_cases, growth_cases, kind_of, quick_cases
from mhvae_kit.errors import InputError, RunError

CPU = {"device": "cpu"}


def task(case: Case, **more) -> dict:
    return {"case": vars(case), "side": "kit", "weights": None, **more}


def by_name(name: str) -> Case:
    return choose(quick_cases(), [name])[0]


def run_of(seconds: float, slices: int = 1, peak_mb: float = 100.0) -> dict:
    return {
        "seconds": [seconds] * 2,
        "cpu_seconds": [2 * seconds] * 2,
        "ms_per_slice": 1e3 * seconds / slices,
        "peak_mb": peak_mb,
    }


def test_names_of_cases_are_unique():
    names = [case.name for case in (*all_cases(), *growth_cases())]
    assert len(set(names)) == len(names)
    on_gpu = [case.name for case in gpu_cases()]
    assert len(set(on_gpu)) == len(on_gpu)
    assert {case.kind for case in quick_cases()} == {case.kind for case in all_cases()}


def test_an_unknown_case_names_those_there_are():
    with pytest.raises(InputError, match="no such case; got nonsense; expected some of arithmetic, "):
        choose(quick_cases(), ["nonsense"])


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"kind": "sleep"}, {"kind": "volume"}, {"n_observed": 5}])
def test_a_case_that_cannot_be_run_is_refused(wrong):
    with pytest.raises(InputError):
        Case(**{"name": "x", "kind": "inference", **wrong})


@pytest.mark.parametrize(
    ("file", "kind"), [("network/mhvae.py", "authors"), ("networks/mhvae_fast.py", "fast"), ("mhvae.py", None)]
)
def test_a_checkout_is_known_by_its_files(tmp_path, file, kind):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    if kind is None:
        with pytest.raises(InputError, match="no checkout that the bench can run"):
            kind_of(tmp_path)
    else:
        assert kind_of(tmp_path) == kind


@pytest.mark.parametrize("name", ["arithmetic", "inference", "temperatures", "volume", "training"])
def test_each_kind_of_work_runs(name):
    side = sides.prepare(task(by_name(name)))
    side.run()
    side.run()


def test_phantom_and_loading_run():
    for name in ("loading", "phantom"):
        sides.prepare(task(by_name(name))).run()


def test_a_volume_in_batches_is_the_volume_slice_by_slice():
    case = by_name("volume")
    side = sides.prepare(task(case))
    volume = side.images["t2"][:, 0].numpy()
    with torch.inference_mode():
        parts = sides.stream_volume(side.model, volume, batch=2)
        singly = np.concatenate([sides.stream_volume(side.model, volume[i : i + 1], batch=1) for i in range(5)])
    np.testing.assert_allclose(parts, singly, atol=1e-4)
    assert parts.shape == (5, 64, 64)


def test_both_sides_get_the_same_inputs():
    case = by_name("inference")
    config = sides.model_config(case)
    first, second = sides.inputs(case, config), sides.inputs(case, config)
    assert all(torch.equal(first[m], second[m]) for m in first)
    assert max(float(x.abs().max()) for x in first.values()) <= sides.EDGE


def test_a_worker_answers_line_by_line(tmp_path):
    given = task(by_name("inference"), output=str(tmp_path / "out.npy"))
    answers = list(worker._serve(io.StringIO("\n".join([json.dumps(given), "run", "work", "output", "end", "run"]))))
    assert answers[0] == {"ready": True}
    assert answers[1]["seconds"] > 0 and answers[1]["compiled"] in (True, False)
    assert answers[2]["gflop"] > 0
    assert answers[3] == {"saved": True}
    assert answers[4]["peak_mb"] >= 0
    assert len(answers) == 5
    assert np.load(tmp_path / "out.npy").shape == (2, 1, 64, 64)


class FakeWorker:
    """Stands for a process: each run takes longer on the peer's side."""

    calls: ClassVar[list[tuple[str, str]]] = []
    devices: ClassVar[list[str]] = []
    turns: ClassVar[list[float]] = []

    def __init__(self, task: dict, threads: int | None) -> None:
        self.side, self.task = task["side"], task
        self.devices.append(task["device"])
        self.turns.append(task["turn_s"])
        if task["case"]["name"] == "broken" and self.side != "kit":
            raise RunError("out of memory.")

    def ask(self, line: str) -> dict:
        self.calls.append((self.side, line))
        if line == "output":
            np.save(self.task["output"], np.full(3, 0.5 if self.side == "kit" else 0.25))
            return {"saved": True}
        seconds = 1.0 if self.side == "kit" else 3.0
        if line == "work":
            return {"gflop": 40.0 if self.task["case"]["kind"] == "arithmetic" else 10.0}
        if line == "end":
            return {"peak_mb": 100 * seconds, "baseline_mb": 1.0}
        compiled = self.task["case"]["name"] == "fresh" and self.calls.count((self.side, "run")) == 1
        return {"seconds": seconds, "cpu_seconds": 2 * seconds, "compiled": compiled}

    def end(self) -> None:
        pass


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(runner, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "calls", [])
    monkeypatch.setattr(FakeWorker, "devices", [])
    monkeypatch.setattr(FakeWorker, "turns", [])
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "mhvae.py").touch()
    return tmp_path


def test_sides_take_turns_and_are_compared_round_by_round(checkout):
    result = runner.bench([by_name("inference")], references=[checkout], rounds=2, output=checkout / "b.json")
    runs = [side for side, line in FakeWorker.calls if line == "run"]
    assert runs == ["authors", "kit"] * 3
    found = result["cases"][0]
    assert found["kit"]["ms_per_slice"] == 500.0
    assert found["authors"]["ratio"] == {"median": 3.0, "lowest": 3.0, "highest": 3.0}
    assert found["authors"]["memory_ratio"] == 3.0
    assert found["authors"]["largest_difference"] == 0.25
    assert json.loads((checkout / "b.json").read_text())["cases"][0]["name"] == "inference"
    assert "3.00 (3.00 to 3.00)" in report.table(result)


def test_a_turn_is_as_many_runs_as_fill_it_and_counts_as_their_mean():
    seen = []
    found = worker._timed(lambda: seen.append(time.sleep(0.002)), turn_s=0.02)
    assert found["runs"] == len(seen) > 1 and found["runs"] * found["seconds"] >= 0.02
    assert worker._timed(lambda: seen.append(None), turn_s=0.0)["runs"] == 1


def test_every_side_is_told_how_long_a_turn_is(checkout):
    runner.bench([by_name("inference")], references=[checkout], rounds=1, turn_s=0.5)
    assert FakeWorker.turns == [0.5, 0.5]


def test_the_arithmetic_of_a_large_convolution_is_what_shares_are_of(checkout):
    cases = [by_name("arithmetic"), by_name("inference"), Case(name="rough", kind="inference", precision="bfloat16")]
    lines = report.table(runner.bench(cases, rounds=1)).splitlines()
    assert "  40 GFLOP/s, 100% of a large convolution's" in lines[2]
    assert "  10 GFLOP/s, 25% of a large convolution's" in lines[3]
    assert lines[4].endswith("10 GFLOP/s")  # its limit was not measured


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_operations_of_a_large_convolution_are_counted(precision):
    case = Case(name="a", kind="arithmetic", batch=2, size=10, precision=precision)
    side = sides.prepare(task(case))
    assert sides.operations(side) == 2 * 2 * 10 * 10 * 9 * side.CHANNELS**2
    assert side.run().dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)


def test_operations_of_a_training_step_are_not_counted(checkout):
    result = runner.bench([by_name("training")], rounds=1)
    assert ("kit", "work") not in FakeWorker.calls and "gflop" not in result["cases"][0]["kit"]


def test_operations_grow_with_the_temperatures():
    once, twice = (
        sides.operations(sides.prepare(task(Case(name="a", kind="temperatures", preset="smoke", n_temperatures=n))))
        for n in (1, 2)
    )
    assert once < twice < 2 * once  # the encoding is shared


def test_a_process_that_had_to_compile_is_replaced_before_anything_counts(checkout):
    case = Case(name="fresh", kind="inference", preset="smoke")
    found = runner.bench([case], rounds=2)["cases"][0]
    assert len(FakeWorker.devices) == 2 and FakeWorker.calls.count(("kit", "run")) == 4
    assert found["kit"]["seconds"] == [1.0, 1.0]


def test_a_side_that_fails_is_said_and_the_other_measured(checkout):
    case = Case(name="broken", kind="inference", preset="smoke")
    result = runner.bench([case], references=[checkout], rounds=1)
    assert result["cases"][0]["authors"] == {"failed": "out of memory."}
    assert result["cases"][0]["kit"]["seconds"] == [1.0]
    assert "failed: out of memory." in report.table(result)


def test_what_no_peer_can_do_is_measured_alone(checkout):
    result = runner.bench([by_name("loading")], references=[checkout], rounds=1)
    assert "authors" not in result["cases"][0]


def test_every_side_is_told_the_device(checkout, monkeypatch):
    monkeypatch.setattr(runner, "_gpu", lambda: "Card 0")
    result = runner.bench([by_name("inference")], references=[checkout], rounds=1, device="cuda")
    assert FakeWorker.devices == ["cuda", "cuda"]
    assert report.table(result).startswith("Card 0; ")


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU that torch can use"):
        runner.bench(quick_cases(), rounds=1, device="cuda")


def test_a_device_of_another_name_is_refused():
    with pytest.raises(InputError, match="unknown device; got 'gpu'; expected cpu, cuda"):
        runner.bench(quick_cases(), rounds=1, device="gpu")


def test_growth_on_a_gpu_is_told_by_the_clock():
    cases = [{**vars(c), "kit": run_of(0.5 * c.batch)} for c in growth_cases() if c.growth == "batch"]
    points = report.growth_points({"cases": cases, "machine": {"device": "cuda"}})["batch"]
    assert [p["seconds"] for p in points] == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_no_round_is_refused():
    with pytest.raises(InputError, match="nothing is to be measured"):
        runner.bench(quick_cases(), rounds=0)


def test_a_process_that_dies_says_its_last_words():
    with pytest.raises(RunError, match="ended early; got .*unexpected keyword"):
        runner.Worker({"case": {"unknown": 1, "kind": "inference"}, "side": "kit"}, threads=1)


def test_growth_is_told_as_a_power():
    cases = [{**vars(c), "kit": run_of(0.5 * c.batch, c.batch)} for c in growth_cases() if c.growth == "batch"]
    points = report.growth_points({"cases": cases, "machine": CPU})["batch"]
    assert [p["x"] for p in points] == [1, 2, 4, 8, 16]
    assert report.exponent(points, "cpu_seconds") == pytest.approx(1.0)
    assert report.exponent(points, "peak_mb") == pytest.approx(0.0)


def test_curves_are_saved_with_their_points(tmp_path):
    cases = [{**vars(c), "kit": run_of(0.5)} for c in growth_cases()]
    path = report.save_growth({"cases": cases, "machine": CPU}, tmp_path / "bench.png")
    assert path.stat().st_size > 10_000
    assert len((tmp_path / "bench.csv").read_text().splitlines()) == 1 + len(cases)
