"""The objective of patients who lack images: passes, weights, losses and critics, slice by slice."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pandas as pd
import pytest
import torch
from torch import nn

from mhvae_kit import load_model
from mhvae_kit.config import TrainingConfig
from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError
from mhvae_kit.losses import discriminator_loss, generator_adversarial, synthetic_images
from mhvae_kit.networks import Synthesis
from mhvae_kit.training import schedule, train
from mhvae_kit.training.batches import batch_of_step
from mhvae_kit.training.distributed import Processes
from mhvae_kit.training.loop import Trainer
from mhvae_kit.training.mixture import discriminator_by_row, generator_by_row, pass_shares, synthetic_rows
from mhvae_kit.training.state import TrainingState, read_checkpoint, write_checkpoint
from mhvae_kit.training.step import Batch, train_step

CPU = torch.device("cpu")
FOUR = ("us", "t2", "cet1", "flair")
TINY = {"levels": 3, "base_channels": 2, "max_channels": 4, "decoder_blocks": 1, "batch_size": 4, "steps": 4}
TINY |= {"discriminator_channels": 2, "discriminator_layers": 1, "image_size": (16, 16), "warmup_steps": 1}
HAS = {"us": [1, 0, 1, 1], "t2": [1, 1, 0, 1], "cet1": [1, 1, 0, 0], "flair": [1, 0, 0, 1]}


def config_of(**overrides) -> TrainingConfig:
    return TrainingConfig.from_preset("smoke", **{"modalities": FOUR, "objective": "mmhvae", **TINY, **overrides})


def present_of(has: dict[str, list[int]] = HAS) -> dict[str, torch.Tensor]:
    return {m: torch.tensor(rows, dtype=torch.bool) for m, rows in has.items()}


def batch_of(config: TrainingConfig, step: int = 0, has: dict[str, list[int]] | None = None) -> Batch:
    source = torch.Generator().manual_seed(step)
    images = {m: torch.rand(4, 1, 16, 16, generator=source) * 2 - 1 for m in config.model.modalities}
    present = present_of(has or {m: HAS[m] for m in config.model.modalities})
    return Batch(images, [0, 1, 2, 3], [("case", k) for k in range(4)], present)


def gradients(state: TrainingState) -> dict[str, torch.Tensor]:
    """By the first two parts of a parameter's name, for example "encoder.us", the sum of its absolute gradient."""
    found: dict[str, float] = {}
    for name, parameter in state.model.named_parameters():
        key = ".".join(name.split(".")[:2])
        found[key] = found.get(key, 0.0) + float(parameter.grad.abs().sum())
    return found


def drawn(passes, row: int) -> list[tuple[str, ...]]:
    return [tuple(m for m, rows in p.items() if rows[row]) for p in passes]


def test_a_whole_slice_has_all_us_and_a_subset_of_the_others_in_turn():
    config = config_of()
    everything = present_of({m: [1] for m in FOUR})
    seen = Counter()
    for step in range(700):
        whole, alone, some = drawn(schedule.mixture_of_step(config, step, [2], everything), 0)
        assert (whole, alone) == (FOUR, ("us",))
        seen[some] += 1
    assert len(seen) == 7 and all("us" not in some and some for some in seen)
    assert all(abs(n - 100) < 5 * 100**0.5 for n in seen.values())


def test_a_slice_goes_as_far_as_its_patient_s_images():
    passes = [schedule.mixture_of_step(config_of(), step, [0, 1, 2, 3], present_of()) for step in range(40)]
    assert {drawn(p, 1)[0] for p in passes} == {("t2", "cet1")}
    assert {drawn(p, 1)[1] for p in passes} == {()}
    assert {drawn(p, 1)[2] for p in passes} == {("t2",), ("cet1",), ("t2", "cet1")}
    assert {tuple(drawn(p, 2)) for p in passes} == {(("us",), ("us",), ())}


def test_a_pass_does_not_depend_on_who_draws_it():
    whole = schedule.mixture_of_step(config_of(), 7, [0, 1, 2, 3], present_of())
    half = schedule.mixture_of_step(config_of(), 7, [2, 3], {m: rows[2:] for m, rows in present_of().items()})
    assert all(torch.equal(half[i][m], rows[2:]) for i, p in enumerate(whole) for m, rows in p.items())


def test_the_image_that_is_observed_alone_has_any_name():
    config = config_of(modalities=("pet", "ct", "mr"), alone="ct")
    passes = schedule.mixture_of_step(config, 0, [0], present_of({m: [1] for m in ("pet", "ct", "mr")}))
    assert drawn(passes, 0)[1] == ("ct",)
    assert set(passes[2]) == {"pet", "mr"}


def test_shares_add_up_to_one_and_leave_out_what_observes_nothing():
    passes = schedule.mixture_of_step(config_of(), 0, [0, 1, 2, 3], present_of())
    shares = pass_shares(config_of(), passes)
    assert shares[:, 0].tolist() == pytest.approx([1 / 3] * 3)
    assert shares[:, 1].tolist() == [0.5, 0.0, 0.5]
    assert shares[:, 2].tolist() == [0.5, 0.5, 0.0]
    weighted = pass_shares(config_of(joint_weight=2.0), passes)
    assert weighted[:, 0].tolist() == pytest.approx([0.5, 0.25, 0.25])
    synthesis = pass_shares(config_of(synthesis_weight=2.0), passes)
    assert synthesis[:, 0].tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert synthesis[:, 1].tolist() == pytest.approx([1 / 3, 0.0, 2 / 3])
    assert synthesis[:, 2].tolist() == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("stage", ["reconstruction", "adversarial"])
def test_two_whole_modalities_are_the_objective_of_the_paper(tmp_path, stage):
    values = {}
    for objective in ("mhvae", "mmhvae"):
        config = config_of(modalities=("us", "t2"), objective=objective, steps=10)
        state = TrainingState(config, CPU)
        state.step = 0 if stage == "reconstruction" else 9
        batch = dataclasses.replace(batch_of(config), present=None)
        values[objective] = train_step(state, batch, Processes(), tmp_path)
    for name in ("loss", "kl_nats", "adversarial", "discriminator", "grad_norm"):
        assert values["mmhvae"][name] == pytest.approx(values["mhvae"][name], rel=1e-3), name
    assert (values["mmhvae"]["adversarial"] > 0) == (stage == "adversarial")


def test_what_a_slice_lacks_changes_nothing(tmp_path):
    values, weights = [], []
    for filler in (-1.0, 0.7):
        state = TrainingState(config_of(steps=10), CPU)
        state.step = 9
        batch = batch_of(state.config)
        absent = {m: ~has[:, None, None, None] for m, has in batch.present.items()}
        images = {m: torch.where(absent[m], torch.tensor(filler), x) for m, x in batch.images.items()}
        values.append(train_step(state, dataclasses.replace(batch, images=images), Processes(), tmp_path))
        weights.append(state.model.state_dict() | state.critics.state_dict())
    assert values[0] == values[1]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_an_image_that_nobody_has_is_not_learnt_from_and_not_a_target(tmp_path):
    has = {**HAS, "flair": [0, 0, 0, 0]}
    state = TrainingState(config_of(), CPU)
    train_step(state, batch_of(state.config, has=has), Processes(), tmp_path)
    found = gradients(state)
    assert found["encoder.flair"] == found["image_head.flair"] == 0
    assert all(found[f"{part}.{m}"] > 0 for part in ("encoder", "image_head") for m in ("us", "t2", "cet1"))


def test_the_generator_is_judged_on_images_that_the_patient_lacks(tmp_path):
    has = {**HAS, "flair": [0, 0, 0, 0]}
    state = TrainingState(config_of(steps=10), CPU)
    state.step = 9
    train_step(state, batch_of(state.config, has=has), Processes(), tmp_path)
    assert gradients(state)["image_head.flair"] > 0
    assert all(float(p.grad.abs().sum()) == 0 for p in state.critics["flair"].parameters())


def synthesis(value: float, rows: dict[str, list[int]], names: tuple[str, ...]) -> Synthesis:
    images = {m: torch.full((2, 1, 2, 2), value) for m in names}
    return Synthesis(images, {}, {}, {}, {}, tuple(rows), present_of(rows))


def test_adversarial_terms_by_hand():
    names, critics = ("us", "t2"), nn.ModuleDict({"us": nn.Identity(), "t2": nn.Identity()})
    present = present_of({"us": [1, 1], "t2": [1, 0]})  # the second slice has no T2
    passes = [synthesis(0.1, {"us": [1, 1], "t2": [1, 0]}, names), synthesis(0.2, {"us": [1, 1]}, names)]
    passes.append(synthesis(0.3, {"t2": [1, 0]}, names))
    made = synthetic_rows(passes, present)
    # Slice 0 makes T2 from US (0.2) and US from T2 (0.3); slice 1 makes T2 from all it has (0.1) and from US (0.2).
    first, second = (0.8**2 + 0.7**2) / 2, (0.9**2 + 0.8**2) / 2
    assert generator_by_row(critics, made).item() == pytest.approx((first + second) / 2)
    real = {m: torch.full((2, 1, 2, 2), 0.9) for m in names}
    # Slice 1 has no true T2 to hold against its synthetic ones, and no synthetic US: its critics learn nothing.
    first = ((0.1**2 + 0.2**2) + (0.1**2 + 0.3**2)) / 2
    assert discriminator_by_row(critics, real, made).item() == pytest.approx(first / 2)


def test_on_whole_slices_the_adversarial_terms_are_those_of_the_paper():
    names, critics = ("us", "t2"), nn.ModuleDict({"us": nn.Identity(), "t2": nn.Identity()})
    subsets = [("us", "t2"), ("us",), ("t2",)]
    by_row = [synthesis(0.1 * i, {m: [1, 1] for m in s}, names) for i, s in enumerate(subsets, 1)]
    plain = synthetic_images([dataclasses.replace(s, rows=None) for s in by_row], names)
    made = synthetic_rows(by_row, present_of({m: [1, 1] for m in names}))
    real = {m: torch.full((2, 1, 2, 2), 0.9) for m in names}
    assert generator_by_row(critics, made).item() == pytest.approx(generator_adversarial(critics, plain).item())
    expected = discriminator_loss(critics, real, plain).item()
    assert discriminator_by_row(critics, real, made).item() == pytest.approx(expected)


def test_parts_equal_the_whole_batch(tmp_path):
    values = []
    for parts in (1, 2, 4):
        state = TrainingState(config_of(steps=10, accumulate=parts), CPU)
        state.step = 9
        values.append(train_step(state, batch_of(state.config), Processes(), tmp_path))
    for name in ("loss", "l1", "kl_nats", "adversarial", "discriminator", "grad_norm"):
        assert [v[name] for v in values] == pytest.approx([values[0][name]] * 3, rel=1e-3), name


def test_critics_begin_at_79_percent_and_the_generator_s_term_at_80(tmp_path):
    config = config_of(steps=1000)
    state, at = TrainingState(config, CPU), {}
    for step in (789, 790, 799, 800):
        state.step = step
        at[step] = train_step(state, batch_of(config), Processes(), tmp_path)
    assert [at[s]["discriminator"] > 0 for s in at] == [False, True, True, True]
    assert [at[s]["adversarial"] > 0 for s in at] == [False, False, False, True]


def test_resumed_equals_uninterrupted(tmp_path):
    config = config_of(steps=4)
    whole = TrainingState(config, CPU)
    for step in range(4):
        if step == 2:
            write_checkpoint(whole, tmp_path / "half.pt")
        train_step(whole, batch_of(config, step), Processes(), tmp_path)
    resumed = TrainingState(config, CPU)
    resumed.restore(read_checkpoint(tmp_path / "half.pt", CPU))
    for step in (2, 3):
        train_step(resumed, batch_of(config, step), Processes(), tmp_path)
    assert all(torch.equal(resumed.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())
    assert all(torch.equal(resumed.critics.state_dict()[k], v) for k, v in whole.critics.state_dict().items())


class Half(Processes):
    """One of two processes, run one after the other: hands its gradients over instead of averaging them."""

    def __init__(self, others: list[list[torch.Tensor]]) -> None:
        super().__init__()
        self.others, self.calls, self.given = others, 0, []

    def average_gradients(self, parameters) -> None:
        parameters = [p for p in parameters if p.grad is not None]
        self.given.append([p.grad.clone() for p in parameters])
        if self.others:
            for p, other in zip(parameters, self.others[self.calls], strict=True):
                p.grad.add_(other).div_(2)
        self.calls += 1


@pytest.mark.parametrize("first", [0, 1])
def test_two_processes_have_gradients_for_the_same_parameters_and_average_to_one_s(tmp_path, first):
    """With an image that only one of the two sees: a process without it must hand over a zero, not nothing."""
    has = {"us": [1, 1, 1, 1], "t2": [1, 0, 0, 0], "cet1": [0, 1, 0, 0], "flair": [0, 0, 0, 0]}
    config = config_of(steps=10)
    whole = batch_of(config, has=has)
    halves = [whole.parts(2)[i] for i in (first, 1 - first)]
    states = [TrainingState(config, CPU) for _ in range(3)]
    for state in states:
        state.step = 9
    other = Half([])
    train_step(states[0], halves[0], other, tmp_path)
    train_step(states[1], halves[1], Half(other.given), tmp_path)
    one = Half([])
    train_step(states[2], whole, one, tmp_path)
    assert [len(given) for given in one.given] == [len(given) for given in other.given]
    for mine, theirs in zip(states[2].model.parameters(), states[1].model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(states[2].critics.parameters(), states[1].critics.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_missing_images_are_drawn_by_seed_and_case_alone():
    cases = [f"case-{i}" for i in range(400)]
    config = config_of(missing=0.3)
    lacking = schedule.missing_images(config, cases)
    assert schedule.missing_images(config, cases[::-1]) == lacking
    assert schedule.missing_images(dataclasses.replace(config, steps=9, batch_size=2), cases) == lacking
    assert schedule.missing_images(dataclasses.replace(config, seed=1), cases) != lacking
    turned = config_of(missing=0.3, modalities=FOUR[::-1])
    assert {c: set(names) for c, names in schedule.missing_images(turned, cases).items()} == {
        c: set(names) for c, names in lacking.items()
    }
    counts = Counter(m for names in lacking.values() for m in names)
    assert all(abs(counts[m] - 120) < 4 * (400 * 0.3 * 0.7) ** 0.5 for m in FOUR)


def test_one_image_is_always_left():
    cases = [f"case-{i}" for i in range(200)]
    lacking = schedule.missing_images(config_of(missing=0.97), cases)
    assert max(len(names) for names in lacking.values()) == 3
    kept = Counter(m for c in cases for m in FOUR if m not in lacking.get(c, ()))
    assert min(kept[m] for m in FOUR) > 25  # 50 each in the mean, none is favoured
    assert schedule.missing_images(config_of(missing=0.0), cases) == {}


def test_images_that_were_never_taken_stay_missing():
    absent = {"a": ["t2", "ct"], "b": ["us", "cet1", "flair"]}
    assert schedule.missing_images(config_of(), ["a", "b", "c"], absent) == {
        "a": ("t2",),
        "b": ("us", "cet1", "flair"),
    }
    drawn_too = schedule.missing_images(config_of(missing=0.97), ["b"], absent)
    assert drawn_too == {"b": ("us", "cet1", "flair")}


@pytest.fixture(scope="module")
def phantom():
    return load_phantom("smoke", splits=("train", "validation"), show_progress=False)


RUN = {**TINY, "image_size": (64, 64), "batch_size": 2, "validation_slices": 1, "validate_every": 4, "log_every": 2}
RUN |= {"checkpoint_every": 4, "missing": 0.4}


def test_a_run_with_missing_images_ends_in_a_model_and_names_them(phantom, tmp_path):
    config = config_of(**RUN)
    folder = train(config, tmp_path / "run", dataset=phantom)
    card = load_model(folder / "model").card
    cases = phantom.case_ids("train")
    assert card["missing_images"] == {c: list(n) for c, n in schedule.missing_images(config, cases).items()} != {}
    metrics = pd.read_csv(folder / "metrics.csv")
    assert {"loss", "l1", "kl_nats", "adversarial", "discriminator"} <= set(metrics.columns)
    assert metrics.drop(columns="stage").notna().all(axis=None)


def test_batches_hold_background_where_an_image_is_missing(phantom, tmp_path):
    trainer = Trainer(config_of(**RUN), tmp_path, phantom, Processes())
    case = next(iter(trainer.lacking))
    indices = [i for i in range(len(trainer.slices)) if trainer.slices[i]["case"] == case][:2]
    batch = trainer.slices.batch(indices)
    for m in FOUR:
        has = m not in trainer.lacking[case]
        assert batch["present"][m].tolist() == [has, has]
        assert bool((batch["images"][m] == -1).all()) != has
    placed = batch_of_step(trainer.slices, trainer.config, 0, [0, 1], CPU)
    sources = [case for case, _ in placed["sources"]]
    assert placed["present"]["t2"].tolist() == [trainer.slices.has(c, "t2") for c in sources]
    assert len(trainer.validation) == len(phantom.case_ids("validation")) * phantom.shape[2]


class Incomplete:
    """The phantom as if some images had never been taken."""

    def __init__(self, phantom, absent):
        self.absent, self.phantom = absent, phantom

    def __getattr__(self, name):
        return getattr(self.phantom, name)


def test_images_that_a_data_set_lacks_need_this_objective(phantom, tmp_path):
    first, second = phantom.case_ids("train")[0], phantom.case_ids("validation")[0]
    data = Incomplete(phantom, {first: ["t2"], second: ["flair"]})
    trainer = Trainer(config_of(**{**RUN, "missing": 0.0}), tmp_path, data, Processes())
    assert trainer.lacking == {first: ("t2",)}
    assert second not in trainer.validation.cases
    with pytest.raises(InputError, match=f"objective mhvae needs every image.*first {first} without t2.*mmhvae"):
        Trainer(config_of(**{**RUN, "missing": 0.0, "objective": "mhvae"}), tmp_path, data, Processes())


@pytest.mark.parametrize("settings", [{"architecture": "mvae"}, {"precision": "bfloat16"}, {"fusion": "scale"}])
def test_other_architectures_rules_and_precisions_learn_from_missing_images_too(tmp_path, settings):
    state = TrainingState(config_of(steps=10, **settings), CPU)
    state.step = 9
    values = train_step(state, batch_of(state.config), Processes(), tmp_path)
    assert all(math.isfinite(v) for v in values.values()) and values["adversarial"] > 0
    assert all(p.isfinite().all() for p in state.model.parameters())
