"""What a row costs: parameters, multiplications, and time to make one slice."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.environment import device_name
from mhvae_kit.evaluation.predictions import inference

WARM_UP, REPEATS = 3, 9
OBSERVED, TARGET = "t2", "us"


def cost_of(model: Any) -> dict[str, Any]:
    """Cost of one slice from t2 to us at temperature 0, batch 1, on the device the model is on.

    Args:
        model: A `Translator` or an MHVAE.
    Returns:
        "parameters" (needed to synthesise, each counted once; both networks of a one-direction method),
        "parameters_per_direction", "macs" (multiply-accumulates of convolutions and matrix products of one slice),
        "ms_per_slice" (median), "ms_per_slice_range", "repeats", "threads", "load_average" (other work on the machine
        when it was measured, None where the system does not say) and "device".
    """
    parameters = (
        model.n_unique_parameters()
        if hasattr(model, "n_unique_parameters")
        else sum(p.numel() for p in model.parameters())
    )
    per_direction = model.parameters_per_direction() if hasattr(model, "parameters_per_direction") else parameters
    times = milliseconds(model)
    return {
        "direction": f"{OBSERVED}_to_{TARGET}",
        "parameters": parameters,
        "parameters_per_direction": per_direction,
        "macs": macs(model),
        "ms_per_slice": round(statistics.median(times), 3),
        "ms_per_slice_range": [round(min(times), 3), round(max(times), 3)],
        "repeats": len(times),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": device_name(),
    }


def _one_slice(model: Any, device: torch.device) -> None:
    """Make one us slice from a black t2 slice: the arithmetic does not depend on the values."""
    image = torch.full((1, 1, *model.config.image_size), -1.0, device=device)
    model.decode(model.encode({OBSERVED: image}), observed=(OBSERVED,), targets=(TARGET,), temperature=0.0)


def macs(model: Any) -> int:
    """Multiply-accumulates of one slice, as counted by torch while it is made; half its floating-point operations."""
    was_training = model.training
    model.eval()
    # The counter fails on weight norm in inference mode, and does not know the fused attention of some devices.
    # With gradients, as the short cuts without them multiply more to be quicker.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _one_slice(model, next(model.parameters()).device)
    model.train(was_training)
    return counter.get_total_flops() // 2


def milliseconds(model: Any) -> list[float]:
    """Wall-clock time of single slices after a warm-up."""
    times = []
    with inference(model) as device:
        for _ in range(WARM_UP + REPEATS):
            _wait(device)
            begun = time.perf_counter()
            _one_slice(model, device)
            _wait(device)
            times.append(1e3 * (time.perf_counter() - begun))
    return times[WARM_UP:]


def _wait(device: torch.device) -> None:
    """A GPU works behind the program's back; wait until it has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
