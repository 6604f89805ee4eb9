"""Virtual sweeps over one phantom patient: the probe elsewhere, seen by MR alone, ultrasound by the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mhvae_kit.data.phantom.atlas import load_atlas
from mhvae_kit.data.phantom.generate import Patient, make_images, make_patient
from mhvae_kit.data.phantom.presets import get_preset
from mhvae_kit.degradation.geometry import framed, rigid_px, warped
from mhvae_kit.degradation.operators import Scene
from mhvae_kit.degradation.plan import Study
from mhvae_kit.evaluation.predictions import inference, slices_first
from mhvae_kit.files import default_cache_dir
from mhvae_kit.networks.mhvae import MHVAE

LARGEST_TURN_RAD = float(np.radians(12.0))
LARGEST_SHIFT_MM = (4.0, 8.0)
"""Along the beam, and across it."""
TEMPERATURES = (0.3, 1.0)
N_LEVELS = 255.0


def wide_mr(patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """T2 and label of a patient beyond the fan, as a scanner has them.

    Returns:
        T2 (D, H, W) float32 in [-1, 1], on the grey scale of the fan's own image; the label (D, H, W) bool.
    """
    everywhere = np.ones(patient.grid.shape, dtype=bool)
    wide, inside = (
        slices_first(make_images(patient, mr_field)["t2"]).astype(np.float32) for mr_field in (everywhere, None)
    )
    fan = slices_first(patient.scan.fov)
    # Both images show one signal, each stretched to its own field: a straight line leads from one to the other.
    clear = fan & (wide > 1) & (wide < N_LEVELS) & (inside > 1) & (inside < N_LEVELS)
    slope, offset = np.polyfit(wide[clear], inside[clear], 1)
    level = np.clip(slope * wide + offset, 1.0, N_LEVELS)
    shares = sum(patient.maps[t] for t in ("tumour", "rim", "cyst", "calcification"))
    return (level / 127.5 - 1.0).astype(np.float32), slices_first(shares > 0.5)


def virtual_sweeps(
    case: str, study: Study, model: MHVAE, rng: np.random.Generator, *, data_dir: str | Path | None = None
) -> tuple[Scene, dict[str, Any]]:
    """Sweeps of the probe turned and shifted within the slices, each at a temperature of its own.

    Args:
        case: The patient.
        study: How many sweeps, and of which phantom.
        model: Makes ultrasound from T2.
        rng: Source of the draws.
        data_dir: Cache folder of the phantom; None = the default.
    Returns:
        All slices of all sweeps as one scene, and what was drawn for each.
    """
    preset = get_preset(study.phantom)
    atlas = load_atlas(Path(data_dir) if data_dir else default_cache_dir())
    patient = make_patient(case, preset, atlas)
    t2, label = wide_mr(patient)
    fan = slices_first(patient.scan.fov)
    parts, drawn = [], []
    for _ in range(study.sweeps):
        turn = float(rng.uniform(-LARGEST_TURN_RAD, LARGEST_TURN_RAD))
        shift = [float(rng.uniform(-s, s)) for s in LARGEST_SHIFT_MM]
        tau = float(rng.uniform(*TEMPERATURES))
        field = rigid_px(t2.shape, turn, (shift[0] / preset.spacing_mm, shift[1] / preset.spacing_mm))
        moved = framed(warped(t2, field), fan)
        labels = (warped(label.astype(np.float32), field) > 0.5) & fan
        seed = int(rng.integers(2**31))
        parts.append((framed(_ultrasound(model, moved, tau, seed), fan), labels))
        drawn.append({"angle_rad": turn, "shift_mm": shift, "temperature": tau, "seed": seed})
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Scene(images, labels, np.concatenate([fan] * study.sweeps), preset.spacing_mm), {"sweeps": drawn}


def _ultrasound(model: MHVAE, t2: np.ndarray, temperature: float, seed: int) -> np.ndarray:
    with inference(model) as device:
        encoding = model.encode({"t2": torch.from_numpy(t2)[:, None].to(device)})
        generator = torch.Generator().manual_seed(seed)
        noise = {k: z.to(device) for k, z in model.draw_noise(len(t2), generator).items()}
        made = model.decode(encoding, observed=("t2",), temperature=temperature, targets=["us"], noise=noise)
        return made.images["us"][:, 0].float().cpu().numpy()
