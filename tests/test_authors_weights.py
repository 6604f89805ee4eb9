"""The authors' weights: the grammar of their state dicts, what a model made of one computes, and what is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from authors_restated import MHVAE2D, random_state, shapes

from mhvae_kit import cli, load_authors_checkpoint, load_model
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.networks.authors_verify import check_agreement, made_image, verify_against

TWO, FOUR = ("US", "T2"), ("us", "t2", "cet1", "flair")
LATER = {"new_norm": True, "numbered": False}


@pytest.fixture
def saved(tmp_path):
    """Write a state dict and return its path."""

    def save(state, name: str = "CP_main_1000.pth") -> Path:
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def repo(tmp_path):
    """A stand-in for a checkout of their repository; with a word replaced when one is given."""

    def make(old: str = "", new: str = "") -> Path:
        text = (Path(__file__).parent / "authors_restated.py").read_text()
        folder = tmp_path / "their repo" / "network"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mhvae.py").write_text(text.replace(old, new) if old else text)
        return folder.parent

    return make


@pytest.mark.parametrize(
    ("names", "style", "tensors", "parameters"),
    [(TWO, {}, 340, 10_099_032), (FOUR, LATER, 536, 13_774_770)],
)
def test_the_grammar_has_the_published_numbers_of_tensors_and_parameters(names, style, tensors, parameters):
    found = shapes(names, base=16, top=128, pools=6, blocks=6, area=9, **style)
    assert len(found) == tensors
    assert sum(math.prod(s) for s in found.values()) == parameters


@pytest.mark.parametrize(("names", "style", "tensors"), [(TWO, {}, 340), (FOUR, LATER, 536)])
def test_every_tensor_of_seven_levels_finds_its_place(saved, names, style, tensors):
    state = random_state(shapes(names, base=2, top=4, pools=6, blocks=6, area=9, **style))
    model = load_authors_checkpoint(saved(state), [m.lower() for m in names])
    assert len(state) == tensors == len(model.state_dict())
    config = model.config
    assert config.image_size == (192, 192) and config.levels == 7 and config.decoder_blocks == 6
    assert config.fusion == "scale" and config.modalities == tuple(m.lower() for m in names)
    assert model.card["protocol"] == "authors" and not model.training


@pytest.mark.parametrize(
    ("names", "style"),
    [
        (TWO, {}),
        (TWO, {"new_norm": True, "blocks": 1}),
        (TWO, {"numbered": False, "width": 6}),
        (("us", "t2", "flair"), {**LATER, "pools": 3, "base": 2, "top": 8, "blocks": 3}),
    ],
)
def test_it_computes_what_the_formulas_say(saved, names, style):
    state = random_state(shapes(names, **style))
    model = load_authors_checkpoint(saved(state))
    theirs = MHVAE2D(list(names), 0, model.config.levels - 1)
    theirs.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    images = {m: made_image(model.config.image_size, generator).clamp(min=-0.99) for m in names}
    for subset in (names[:1], names[1:], names):
        mine = model({m.lower(): images[m] for m in subset}, temperature=0.0).images
        other, _ = theirs({m: images[m] for m in subset}, 1e-9)
        for m in names:
            assert other[m].std() > 0.05, "a flat image would prove nothing"
            torch.testing.assert_close(mine[m.lower()], other[m], atol=1e-4, rtol=0)


def test_width_depth_and_size_are_read_off_the_shapes(saved):
    state = random_state(shapes(TWO, base=6, top=12, pools=3, blocks=4, width=10, area=9))
    config = load_authors_checkpoint(saved(state)).config
    assert (config.base_channels, config.max_channels, config.levels) == (6, 12, 4)
    assert (config.decoder_blocks, config.head_channels, config.image_size) == (4, 10, (24, 24))


def test_a_size_that_is_not_square_has_to_be_given(saved):
    path = saved(random_state(shapes(TWO, area=6)))
    with pytest.raises(InputError, match="not square.*give image_size"):
        load_authors_checkpoint(path)
    assert load_authors_checkpoint(path, image_size=(8, 12)).config.image_size == (8, 12)
    with pytest.raises(InputError, match="got 12 x 12"):
        load_authors_checkpoint(path, image_size=(12, 12))


def test_modalities_can_be_renamed_and_numbered_heads_keep_their_order(saved):
    path = saved(random_state(shapes(("0000", "0002"))))
    assert load_authors_checkpoint(path, {"0000": "us", "0002": "t2"}).config.modalities == ("us", "t2")
    path = saved(random_state(shapes(TWO)))
    with pytest.raises(InputError, match="US, T2, in this order"):
        load_authors_checkpoint(path, ("t2", "us"))
    with pytest.raises(InputError, match="got US, flair"):
        load_authors_checkpoint(path, ("us", "flair"))


def test_a_model_that_was_read_can_be_saved_and_read_again(saved, tmp_path, capsys):
    path = saved(random_state(shapes(TWO)))
    cli.app(["import-authors", str(path), "--output", str(tmp_path / "model")], standalone_mode=False)
    again, first = load_model(tmp_path / "model"), load_authors_checkpoint(path)
    assert again.config == first.config and again.card["sha256"] == first.card["sha256"]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    assert "parameters, us, t2" in capsys.readouterr().out


# --- Verifying against a checkout ---


def test_verifying_agrees_with_code_that_computes_the_same(saved, repo):
    path = saved(random_state(shapes(TWO)))
    lines = verify_against(repo(), path, load_authors_checkpoint(path), draws=64, batch_size=32)
    check_agreement(lines, repo())
    assert {line.observed for line in lines} == {"us", "t2", "us+t2"} and len(lines) == 6
    drawn = [line for line in lines if line.mean_ratio is not None]
    assert len(drawn) == 4 and all(0.5 < line.mean_ratio < 1.5 for line in drawn)


@pytest.mark.parametrize(
    ("old", "new", "measured"),
    [
        ("POWER = 1", "POWER = 2", "largest difference"),
        ("temp * total", "0.5 * temp * total", "spread ratio"),
    ],
)
def test_verifying_finds_code_that_computes_something_else(saved, repo, old, new, measured):
    path = saved(random_state(shapes(TWO)))
    changed = repo(old, new)
    lines = verify_against(changed, path, load_authors_checkpoint(path), draws=64, batch_size=32)
    with pytest.raises(DataError, match=f"does not compute what .*{measured}"):
        check_agreement(lines, changed)


def test_a_model_that_fails_its_check_is_not_written(saved, repo, tmp_path, capsys):
    path = saved(random_state(shapes(TWO)))
    with pytest.raises(SystemExit):
        call = [
            "import-authors",
            str(path),
            "--output",
            str(tmp_path / "m"),
            "--verify",
            str(repo("POWER = 1", "POWER = 2")),
        ]
        cli.app(call, standalone_mode=False)
    assert "does not compute what" in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_a_folder_without_their_code_is_named(saved, tmp_path):
    path = saved(random_state(shapes(TWO)))
    with pytest.raises(MissingError, match="no network/mhvae.py; expected a checkout"):
        verify_against(tmp_path, path, load_authors_checkpoint(path))


def test_code_that_does_not_take_the_weights_is_named(saved, repo):
    path = saved(random_state(shapes(TWO)))
    strict = repo("self.state = dict(state)", 'raise RuntimeError("Missing key(s)")')
    with pytest.raises(DataError, match=r"does not take .*Missing key"):
        verify_against(strict, path, load_authors_checkpoint(path))


# --- What is refused ---


class Bomb:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_in_it_is_refused_and_its_code_not_run(saved, tmp_path):
    path = saved({"first_conv.US.weight": Bomb(tmp_path / "exploded")})
    with pytest.raises(DataError, match="something else than tensors.*posix.system.*none of its code was run"):
        load_authors_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused(saved, kept):
    path = saved(random_state(shapes(TWO)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match="CP_main_1000.pth .*damaged"):
        load_authors_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingError, match="CP_main_2.pth is not there"):
        load_authors_checkpoint(tmp_path / "CP_main_2.pth")


def without(state, part):
    return {k: v for k, v in state.items() if part not in k}


GOOD = random_state(shapes(TWO))
NARROW = {**GOOD, "tu.1.conv_1.weight": torch.zeros(4, 3, 3, 3)}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"model.0.weight": torch.zeros(64, 1, 4, 4)}, "critic of one modality.*CP_main"),
        ({"encoder.us.first.weight": torch.zeros(4, 1, 3, 3)}, "model of this kit.*load_model"),
        ({f"module.{k}": v for k, v in GOOD.items()}, "several GPUs.*network.module"),
        (without(GOOD, "pz."), "MVAE"),
        (without(GOOD, "bottleneck_up"), "no bottleneck_up"),
        (without(GOOD, "td.US.1.bias"), r"1 tensors that do not fit, first encoder.us.down.1.bias absent"),
        ({**GOOD, "extra.weight": torch.zeros(1)}, "1 unknown tensors, first extra.weight"),
        (NARROW, r"first up.z1.conv.weight \(4, 3, 3, 3\); expected \(4, 4, 3, 3\)"),
        (without(GOOD, "final_blocks.1"), "heads 0 for US, T2"),
        ({"state_dict": GOOD, "epoch": 3}, "is not a state dict; got state_dict, epoch"),
        (torch.zeros(3), "is not a state dict; got Tensor"),
        ({**GOOD, "pz.0.weight_g": torch.full((4, 1, 1, 1), float("nan"))}, "pz.0.weight_g .*NaN"),
    ],
)
def test_another_architecture_is_refused_by_name(saved, state, sentence):
    with pytest.raises(DataError, match=sentence):
        load_authors_checkpoint(saved(state))
