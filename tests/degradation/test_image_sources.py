"""Where training images come from: patients, kept synthetic images, and models by condition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit import MHVAE
from mhvae_kit.baselines import registry
from mhvae_kit.config import TrainingConfig
from mhvae_kit.degradation import sources
from mhvae_kit.degradation.plan import study_of
from mhvae_kit.degradation.sources import (
    Cohort,
    age_folder,
    aged_model,
    condition_model,
    synthetic,
    to_levels,
    weights_digest,
)
from mhvae_kit.errors import MissingError
from mhvae_kit.files import write_json
from mhvae_kit.plain import json_safe
from mhvae_kit.training.state import TrainingState, write_checkpoint


def test_a_cohort_is_the_first_patients_of_its_split(cohort):
    assert cohort.cases == ["phantom-train-000", "phantom-train-001"]
    assert cohort.spacing_mm == 1.5
    assert Cohort("smoke", "test", None).cases == ["phantom-test-000", "phantom-test-001"]


def test_a_patient_s_images_are_background_outside_the_fan(cohort):
    patient = cohort.patient(cohort.cases[0])
    assert patient.labels.dtype == patient.fov.dtype == bool and patient.labels.any()
    assert not (patient.labels & ~patient.fov).any()
    for image in patient.images.values():
        assert image.shape == patient.fov.shape and image.dtype == np.float32
        assert (image[~patient.fov] == -1).all() and (image[patient.fov] > -1).all() and image.max() <= 1


def test_synthetic_images_are_as_stored_ones(cohort, model, tmp_path):
    made = synthetic(cohort, model, temperature=0.7, cache=tmp_path)
    assert list(made) == cohort.cases
    for case, images in made.items():
        fov = cohort.patient(case).fov
        assert images.dtype == np.float32 and images.shape == fov.shape
        assert (images[~fov] == -1).all() and (images[fov] > -1).all() and images.max() <= 1
        levels = (images + 1) * 127.5
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)


def counted(monkeypatch) -> list[float]:
    calls, made = [], sources._made

    def spy(cohort, model, shape, options):
        calls.append(options["temperature"])
        return made(cohort, model, shape, options)

    monkeypatch.setattr(sources, "_made", spy)
    return calls


def test_images_are_kept_and_used_again(cohort, model, tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    first, second = (synthetic(cohort, model, temperature=0.7, cache=tmp_path) for _ in range(2))
    assert calls == [0.7]
    assert all(np.array_equal(first[c], second[c]) for c in cohort.cases)
    assert len(list((tmp_path / "degradation").iterdir())) == 1


def test_each_setting_has_images_of_its_own(cohort, model, tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    options = [{"temperature": 0.7}, {"temperature": 0.0}, {"temperature": 0.7, "seed": 1}]
    options.append({"temperature": 0.7, "observed": ("t2", "us")})
    made = [synthetic(cohort, model, cache=tmp_path, **o)[cohort.cases[0]] for o in options]
    assert len(calls) == 4
    assert all(not np.array_equal(made[0], other) for other in made[1:])


@pytest.mark.parametrize("damage", ["cut", "empty", "words", "shape", "type"])
def test_a_damaged_file_is_made_again(cohort, model, tmp_path, monkeypatch, damage):
    first = synthetic(cohort, model, temperature=0.7, cache=tmp_path)
    (path,) = (tmp_path / "degradation").iterdir()
    whole = path.read_bytes()
    kept = np.load(path)
    if damage in ("shape", "type"):
        np.save(path, kept[:1] if damage == "shape" else kept.astype(np.int16))
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "words": b"no array"}[damage])
    calls = counted(monkeypatch)
    second = synthetic(cohort, model, temperature=0.7, cache=tmp_path)
    assert calls == [0.7] and path.read_bytes() == whole
    assert all(np.array_equal(first[c], second[c]) for c in cohort.cases)


def test_other_weights_have_images_of_their_own(cohort, model, tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    synthetic(cohort, model, temperature=0.0, cache=tmp_path)
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1e-3
    synthetic(cohort, model, temperature=0.0, cache=tmp_path)
    assert len(calls) == 2


def test_the_digest_of_weights_changes_with_one_weight_alone(model):
    before = weights_digest(model)
    assert weights_digest(model.train()) == before
    weight = next(model.parameters())
    with torch.no_grad():
        old = weight.flatten()[0].item()
        weight.view(-1)[0] = old + 1.0
        assert weights_digest(model) != before
        weight.view(-1)[0] = old
    assert weights_digest(model) == before


def test_the_digest_of_weights_changes_with_a_name():
    first, second = torch.nn.ModuleDict(), torch.nn.ModuleDict()
    first["a"], second["b"] = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second["b"].load_state_dict(first["a"].state_dict())
    assert weights_digest(first) != weights_digest(second)


@pytest.mark.parametrize("name", ["flow", "pix2pix", "resvit", "spade"])
def test_every_method_of_table_1_has_a_digest(name):
    with torch.random.fork_rng(devices=[]):
        method = registry.make_method(name, registry.preset_settings(name, "smoke"))
    assert weights_digest(method) == weights_digest(method)


def test_the_digest_changes_with_what_a_state_holds_besides_tensors():
    class WithTerm(torch.nn.Linear):
        def __init__(self, term):
            super().__init__(1, 1)
            self.term = term

        def get_extra_state(self):
            return {"term": self.term}

        def set_extra_state(self, state):
            self.term = state["term"]

    first, second = WithTerm("vgg19"), WithTerm(None)
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            b.copy_(a)
    assert weights_digest(first) != weights_digest(second)


def test_levels_by_hand():
    images = np.array([-1.0, -0.999, 0.0, 0.5, 1.0, 3.0, -3.0, 0.5])
    fov = np.array([True] * 7 + [False])
    levels = to_levels(images, fov)
    assert levels.tolist() == [1, 1, 128, 191, 255, 255, 1, 0] and levels.dtype == np.uint8


@settings(max_examples=30)
@given(level=st.integers(1, 255))
def test_stored_levels_survive(level):
    image = np.array([level], np.uint8).astype(np.float32) / np.float32(127.5) - 1
    assert to_levels(image, np.array([True])).tolist() == [level]


TINY = {"levels": 3, "base_channels": 2, "max_channels": 4, "decoder_blocks": 1, "steps": 20}
TINY |= {"discriminator_channels": 2, "discriminator_layers": 1}


def aged_training(root: Path) -> TrainingState:
    folder = age_folder("smoke", root)
    (folder / "checkpoints").mkdir(parents=True)
    config = TrainingConfig.from_preset("smoke", **TINY)
    write_json(folder / "config.json", json_safe(config.to_dict()))
    state = TrainingState(config, torch.device("cpu"))
    write_checkpoint(state, folder / "checkpoints" / "step_000010.pt")
    return state


def test_a_model_of_an_age_has_the_averaged_weights_of_its_checkpoint(tmp_path):
    state = aged_training(tmp_path)
    model = aged_model(0.5, "smoke", tmp_path)
    assert not model.training
    expected, found = state.to_dict()["average"], model.state_dict()
    assert set(expected) == set(found) and all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_age_without_its_training_says_how_to_make_it(tmp_path):
    with pytest.raises(MissingError, match="no training with its checkpoints in .*smoke-degradation-training; run "
                       "`mhvae degradation-training --preset smoke`"):  # fmt: skip
        aged_model(0.5, "smoke", tmp_path)


def test_an_age_without_its_checkpoint_says_which_there_are(tmp_path):
    aged_training(tmp_path)
    with pytest.raises(MissingError, match="step_000001.pt is not in .*; expected checkpoints at 5%, 20%, 50%, 100%"):
        aged_model(0.95, "smoke", tmp_path)


def test_conditions_name_their_models(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "find_model", lambda name: asked.append(name))
    monkeypatch.setattr(sources, "row_model", lambda row, *_: asked.append(f"row {row}"))
    monkeypatch.setattr(sources, "aged_model", lambda dose, *_: asked.append(f"age {dose}"))
    study = study_of("demo")
    for name, dose in (("blur", 0.5), ("gan-off", 1.0), ("synthetic", None), ("table1-spade", None), ("age", 0.8)):
        condition_model(name, dose, study, "demo", tmp_path)()
    assert asked == ["demo-gan", "demo", "demo-gan", "row spade", "age 0.8"]


def test_a_row_that_is_not_trained_is_missed(tmp_path):
    with pytest.raises(MissingError):
        condition_model("table1-pix2pix", None, study_of("demo"), "demo", tmp_path)()


def test_the_models_of_the_demo_study_are_shipped():
    study = study_of("demo")
    for name in ("synthetic", "gan-off"):
        assert isinstance(condition_model(name, None, study, "demo", Path("nowhere"))(), MHVAE)
