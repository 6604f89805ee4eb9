"""Figures: what is drawn, with which limits and words, alternative text, and writing to files."""

from __future__ import annotations

import base64
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mhvae_kit import figures
from mhvae_kit.errors import InputError

SIZE = 24


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE))


@pytest.fixture
def fan() -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[3:21, 4:20] = True
    return mask


@pytest.fixture
def metrics() -> pd.DataFrame:
    """A metrics.csv of 30 steps over three stages, with the adversarial columns empty at first."""
    step = np.arange(30)
    late = np.where(step < 20, np.nan, 1.0)
    stages = np.repeat(["reconstruction", "kl_ramp", "adversarial"], 10)
    losses = {"loss": 3.0 - step / 30, "l1_us": 0.3 / (step + 1), "l1_t2": 0.2 / (step + 1), "lr": 1e-3}
    kl = {f"kl_z{i}": 10.0**i for i in range(1, 5)}
    return pd.DataFrame({"step": step, "stage": stages, **losses, **kl, "adversarial": late, "discriminator": late})


@pytest.fixture
def summary() -> pd.DataFrame:
    rows = [
        {"observed": o, "target": t, "temperature": 0.0, "n_patients": 10, "psnr_fov_db": m}
        for o, t, m in [
            ("t2", "us", 22.0),
            ("t2+us", "us", 31.0),
            ("t2", "t2", 33.0),
            ("constant image", "us", 18.0),
            ("oracle", "us", 23.0),
        ]
    ]
    table = pd.DataFrame(rows)
    return table.assign(psnr_fov_db_low=table["psnr_fov_db"] - 0.5, psnr_fov_db_high=table["psnr_fov_db"] + 0.5)


def words(figure: Figure) -> str:
    """All text of a figure."""
    artists = figure.findobj(lambda a: isinstance(a, Text))
    return " | ".join(a.get_text() for a in artists)


def drawn(figure: Figure) -> list:
    """All images of a figure's panels, colour bars left out."""
    return [i for a in figure.axes for i in a.images]


def row(image: np.ndarray, fan: np.ndarray | None = None, **changes: object) -> figures.SynthesisRow:
    predictions = {"mean": image * 0.9, "temperature 0.7": -image}
    options = {"label": "case 1", "inputs": {"t2": image}, "target_name": "us", "target": image, "fov": fan}
    return figures.SynthesisRow(**{**options, "predictions": predictions, **changes})


def every_figure(image: np.ndarray, metrics: pd.DataFrame, summary: pd.DataFrame, data: str) -> list[Figure]:
    frequency, power = np.linspace(0.1, 0.5, 5), np.ones((3, 5))
    return [
        figures.case_grid({"a": {"t2": image}}, data=data),
        figures.synthesis_grid([row(image)], data=data),
        figures.level_strip({"z2": image, "z1": image}, data=data),
        figures.loss_curves(metrics, data=data),
        figures.score_intervals(summary, data=data),
        figures.spectrum_plot(frequency, {"real": power}, data=data),
        figures.envelope_histogram({"real": np.linspace(0.1, 1, 50)}, data=data),
    ]


# --- every figure ---


def test_every_figure_names_its_data_and_can_be_drawn(image, metrics, summary):
    for figure in every_figure(image, metrics, summary, "phantom"):
        assert isinstance(figure, Figure) and "phantom data" in figure.get_suptitle()
        assert figures.png_bytes(figure)[:4] == b"\x89PNG"


def test_no_figure_goes_out_without_naming_its_data(image, metrics, summary):
    with pytest.raises(InputError, match="what data"):
        every_figure(image, metrics, summary, " ")
    with pytest.raises(TypeError, match="data"):
        figures.case_grid({"a": {"t2": image}})


def test_figures_are_made_in_threads_without_pyplot(image):
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: figures.png_bytes(figures.case_grid({"a": {"t2": image}}, data="x")), range(4)))
    assert len(set(made)) == 1
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


# --- images ---


def test_anatomy_is_grey_from_minus_one_to_one_with_the_probe_on_top(image):
    figure = figures.case_grid({"a": {"t2": image * 0.1, "us": image}}, data="phantom")
    for picture in drawn(figure):
        assert picture.get_clim() == (-1, 1) and picture.get_cmap().name == "gray" and picture.origin == "upper"


def test_pixels_keep_their_proportions(image):
    figure = figures.case_grid({"a": {"t2": image}}, data="phantom", spacing_mm=(0.5, 1.0))
    assert figure.axes[0].get_aspect() == 0.5


def test_tensors_and_8_bit_images_are_shown_alike(image):
    stored = np.round((image + 1) * 127.5).astype(np.uint8)
    tensor = torch.from_numpy(stored / 255.0 * 2 - 1)[None, None]
    figure = figures.case_grid({"a": {"8 bit": stored, "tensor": tensor}}, data="phantom")
    first, second = (p.get_array() for p in drawn(figure))
    np.testing.assert_allclose(first, second)


def test_fan_and_tumour_are_outlined(image, fan):
    plain = figures.case_grid({"a": {"t2": image}}, data="phantom")
    outlined = figures.case_grid({"a": {"t2": image}}, data="phantom", fov={"a": fan}, tumour={"a": fan[::-1]})
    assert len(outlined.axes[0].collections) == len(plain.axes[0].collections) + 2


def test_a_missing_column_stays_empty(image):
    figure = figures.case_grid({"a": {"t2": image, "us": image}, "b": {"t2": image}}, data="phantom")
    assert len(drawn(figure)) == 3


def test_differences_share_symmetric_limits_on_one_diverging_map(image, fan):
    figure = figures.synthesis_grid([row(image, fan), row(image, fan)], data="phantom", difference_limit=0.4)
    coloured = [p for p in drawn(figure) if p.get_cmap().name != "gray"]
    assert len(coloured) == 4 and {p.get_clim() for p in coloured} == {(-0.4, 0.4)}
    expected = np.where(fan, image * 0.9 - image, 0)
    np.testing.assert_allclose(coloured[0].get_array(), expected)
    assert "prediction - target" in words(figure)


def test_scores_stand_under_the_predictions(image, fan):
    target = image * 0.5
    changes = {"target": target, "predictions": {"mean": np.clip(target + 0.2, -1, 1)}}
    assert "PSNR 20.0 dB" in words(figures.synthesis_grid([row(image, fan, **changes)], data="phantom"))
    given = figures.synthesis_grid([row(image, fan, scores={"mean": "17 dB"})], data="phantom")
    assert "17 dB" in words(given) and "PSNR" not in words(given)


def test_levels_go_from_coarse_to_fine(image):
    strip = figures.level_strip({f"z{i}": image for i in (1, 10, 2)}, data="phantom")
    assert [a.get_title() for a in strip.axes if a.get_title()] == ["z10", "z2", "z1"]
    rows = figures.level_strip({"us": {"z1": image, "z2": image}, "t2": {"z1": image, "z2": image}}, data="phantom")
    assert len(drawn(rows)) == 4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "no image to show"),
        ({"a": {"t2": np.full((4, 4), 3.0)}}, r"not in \[-1, 1\]"),
        ({"a": {"t2": np.full((4, 4), np.nan)}}, "NaN"),
        ({"a": {"t2": np.zeros((4, 4)), "us": np.zeros((4, 5))}}, "differ in size"),
        ({"a": {"t2": np.zeros((2, 4, 4))}}, "not one image"),
    ],
)
def test_unfit_images_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        figures.case_grid(images, data="phantom")


def test_unfit_rows_masks_and_levels_are_refused(image, fan):
    with pytest.raises(InputError, match="do not fit together"):
        figures.synthesis_grid([], data="phantom")
    with pytest.raises(InputError, match="do not fit together"):
        figures.synthesis_grid([row(image), row(image, predictions={"mean": image})], data="phantom")
    with pytest.raises(InputError, match="does not fit its image"):
        figures.case_grid({"a": {"t2": image}}, data="phantom", fov={"a": fan[:5]})
    with pytest.raises(InputError, match="not a latent level"):
        figures.level_strip({"top": image}, data="phantom")


# --- curves ---


def test_loss_curves_have_a_panel_for_each_kind_and_shade_the_stages(metrics):
    figure = figures.loss_curves(metrics, data="phantom")
    labels = [a.get_ylabel() for a in figure.axes if a.get_visible()]
    assert labels == ["loss", "L1, full frame", "KL by level (nats per image)", "adversarial terms", "learning rate"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["reconstruction", "kl ramp", "adversarial"]
    assert len(figure.axes[0].patches) == 3


def test_modalities_keep_their_colour_and_levels_are_in_order(metrics):
    l1, kl = figures.loss_curves(metrics, data="phantom").axes[1:3]
    assert {line.get_label(): line.get_color() for line in l1.lines} == {
        m: figures.modality_colour(m) for m in ("us", "t2")
    }
    assert [line.get_label() for line in kl.lines] == ["z4", "z3", "z2", "z1"]


def test_subsets_of_a_training_run_share_the_colour_of_their_target(metrics):
    names = {"l1_us": "l1_us+t2_to_us", "l1_t2": "l1_us_to_t2", "lr": "learning_rate"}
    scores = pd.DataFrame({"step": [10, 20], "psnr_us+t2_to_us_db": [20.0, 25.0], "psnr_mean_db": [20.0, 25.0]})
    run = metrics.rename(columns=names).assign(l1_t2_to_us=0.5, kl_nats=11110.0)
    _, l1, checked, kl, *_ = figures.loss_curves(run, data="phantom", validation=scores).axes
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in l1.lines}
    assert list(looks) == ["us → t2", "t2 → us", "t2+us → us"]
    assert looks["t2 → us"][0] == looks["t2+us → us"][0] == figures.modality_colour("us")
    assert len({style for _, style in looks.values()}) == 3
    assert [line.get_label() for line in checked.lines] == ["t2+us → us"] and kl.lines[-1].get_label() == "all"


def test_many_validation_curves_become_the_mean_synthesis_of_each_target(metrics):
    names = ("us", "t2", "flair", "cet1")
    subsets = [s for n in range(1, 5) for s in itertools.combinations(names, n)]
    scores = {f"psnr_{'+'.join(s)}_to_{t}_db": [30.0 if t in s else 10.0 + len(s)] for s in subsets for t in names}
    figure = figures.loss_curves(metrics, data="phantom", validation=pd.DataFrame({"step": [4], **scores}))
    panel = next(a for a in figure.axes if a.get_ylabel().startswith("validation"))
    assert "mean over inputs without the target" in panel.get_ylabel()
    assert sorted(line.get_label() for line in panel.lines) == sorted(names)
    # from three single images 11, three pairs 12 and one triple 13; what was observed is left out
    assert panel.lines[0].get_ydata().tolist() == pytest.approx([(3 * 11 + 3 * 12 + 13) / 7])


def test_terms_that_are_zero_before_their_stage_are_left_out(metrics):
    panel = figures.loss_curves(metrics.fillna(0.0), data="phantom").axes[3]
    assert all(line.get_xdata()[0] == 20 for line in panel.lines)


def test_columns_without_values_make_no_panel(metrics):
    early = metrics.iloc[:10]
    labels = [a.get_ylabel() for a in figures.loss_curves(early, data="phantom").axes]
    assert "adversarial terms" not in labels
    late = figures.loss_curves(metrics, data="phantom").axes[3]
    assert all(len(line.get_xdata()) == 10 for line in late.lines)


def test_a_single_step_can_be_drawn(metrics):
    assert figures.png_bytes(figures.loss_curves(metrics.iloc[:1], data="phantom"))


def test_long_curves_are_drawn_under_their_running_median():
    step = np.arange(1000)
    noisy = pd.DataFrame({"step": step, "loss": 1 + np.random.default_rng(0).normal(0, 0.1, 1000)})
    pale, smooth = figures.loss_curves(noisy, data="phantom").axes[0].lines
    assert pale.get_alpha() < 0.5 and np.std(smooth.get_ydata()) < 0.5 * np.std(pale.get_ydata())


def test_scores_are_dots_with_intervals_and_references_are_lines(summary):
    figure = figures.score_intervals(summary, data="phantom")
    us, t2 = figure.axes
    dots = [line for line in us.lines if line.get_marker() == "o"]
    assert [float(np.ravel(d.get_xdata())[0]) for d in dots] == [22.0, 31.0]
    dashed = [line.get_xdata()[0] for line in us.lines if line.get_linestyle() == "--"]
    assert dashed == [18.0, 23.0] and not [line for line in t2.lines if line.get_linestyle() == "--"]
    assert "n = 10 patients" in words(figure) and "oracle" in words(figure)


def test_temperatures_are_told_apart_and_infinite_scores_written(summary):
    warm = summary.iloc[:2].assign(temperature=0.7, psnr_fov_db=[21.0, np.inf])
    text = words(figures.score_intervals(pd.concat([summary, warm]), data="phantom"))
    assert "t2, temperature 0.7" in text and "inf" in text


def test_spectra_show_mean_and_spread():
    power = np.array([[1.0, 10.0], [1.0, 1000.0]])
    axes = figures.spectrum_plot(np.array([0.1, 0.2]), {"real": power, "mean": power[0]}, data="phantom").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 10 * np.log10(505)])
    assert len(axes.collections) == 1 and axes.lines[0].get_color() == "#000000"


def test_the_envelope_histogram_of_rayleigh_noise_follows_the_rayleigh_density():
    noise = np.random.default_rng(0).rayleigh(3.0, 100_000)
    steps, density = figures.envelope_histogram({"real": noise}, data="phantom").axes[0].lines
    x, y = steps.get_xdata(), steps.get_ydata()
    np.testing.assert_allclose(y, np.interp(x, density.get_xdata(), density.get_ydata()), atol=0.03)


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.loss_curves(pd.DataFrame(), data="x"),
        lambda: figures.loss_curves(pd.DataFrame({"step": [1], "stage": ["a"]}), data="x"),
        lambda: figures.score_intervals(pd.DataFrame({"observed": ["t2"]}), data="x"),
        lambda: figures.spectrum_plot(np.ones(3), {"a": np.zeros(3)}, data="x"),
        lambda: figures.spectrum_plot(np.ones(3), {}, data="x"),
        lambda: figures.envelope_histogram({"a": np.array([-1.0])}, data="x"),
        lambda: figures.envelope_histogram({}, data="x"),
    ],
)
def test_curves_without_data_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_modality_colours_differ_and_are_fixed_for_any_name():
    assert len(set(figures.MODALITY_COLOURS.values())) == 4
    assert figures.modality_colour("dwi") == figures.modality_colour("dwi")


# --- showing and saving ---


@pytest.fixture
def displayed(monkeypatch) -> list[tuple[dict, dict]]:
    """What `show` hands to IPython, as if a kernel ran."""
    import IPython
    import IPython.display

    calls: list[tuple[dict, dict]] = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda d, metadata, raw: calls.append((d, metadata)))
    return calls


def test_show_displays_a_png_with_alternative_text(displayed, image):
    figure, same = (figures.case_grid({"a": {"t2": image}}, data="phantom") for _ in range(2))
    assert figures.show(figure, alt="A phantom patient: \n bright tumour.") is None
    (bundle, metadata) = displayed[0]
    assert base64.b64decode(bundle["image/png"]) == figures.png_bytes(same)
    assert metadata == {"image/png": {"alt": "A phantom patient: bright tumour."}}
    assert bundle["text/plain"] == "A phantom patient: bright tumour."


def test_show_adds_the_word_phantom_where_it_lacks(displayed, image):
    figures.show(figures.case_grid({"a": {"t2": image}}, data="phantom-demo"), alt="One patient.")
    figures.show(figures.case_grid({"a": {"t2": image}}, data="ReMIND"), alt="One patient.")
    assert [m["image/png"]["alt"] for _, m in displayed] == ["One patient. (phantom data)", "One patient."]


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_a_figure_without_alternative_text_is_refused(displayed, image, alt):
    with pytest.raises(InputError, match="alternative text"):
        figures.show(figures.case_grid({"a": {"t2": image}}, data="phantom"), alt=alt)


def test_show_outside_a_notebook_writes_nothing(capsys, image):
    figures.show(figures.case_grid({"a": {"t2": image}}, data="phantom"), alt="One patient.")
    assert capsys.readouterr().out == ""


def test_save_writes_png_and_csv_and_no_leftovers(tmp_path, metrics):
    figure = figures.loss_curves(metrics, data="phantom")
    path = figures.save(figure, tmp_path / "figures" / "loss", data=metrics)
    assert path == tmp_path / "figures" / "loss.png"
    assert sorted(p.name for p in path.parent.iterdir()) == ["loss.csv", "loss.png"]
    with Image.open(path) as picture:
        assert picture.width > 500
    pd.testing.assert_frame_equal(pd.read_csv(path.with_suffix(".csv")), metrics)


def test_saving_twice_gives_the_same_bytes(tmp_path, image):
    paths = [
        figures.save(figures.case_grid({"a": {"t2": image}}, data="phantom"), tmp_path / f"{i}.png") for i in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_failed_save_leaves_the_old_file(tmp_path, image, monkeypatch):
    path = figures.save(figures.case_grid({"a": {"t2": image}}, data="phantom"), tmp_path / "a.png")
    before = path.read_bytes()
    figure = figures.case_grid({"a": {"t2": image}}, data="phantom")
    monkeypatch.setattr(figure, "savefig", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        figures.save(figure, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("name", "data"), [("a.jpg", None), ("a.png", [1, 2])])
def test_other_endings_and_tables_are_refused(tmp_path, image, name, data):
    with pytest.raises(InputError):
        figures.save(figures.case_grid({"a": {"t2": image}}, data="phantom"), tmp_path / name, data=data)
    assert list(tmp_path.iterdir()) == []
