"""Compiled kernels: when they are used, on which threads, and what is done where they cannot be had."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mhvae_kit.kernels import team
from mhvae_kit.networks.fused import norm_silu

ROOT = Path(__file__).resolve().parent.parent.parent


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_python(code: str, cache: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "MHVAE_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def test_they_apply_to_float32_on_a_processor_alone():
    x = noise(1, 2, 3, 3)
    assert team.apply_to(x)
    assert not team.apply_to(x.double()) and not team.apply_to(x.bfloat16()) and not team.apply_to(x.to("meta"))
    assert not team.apply_to(x, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not team.apply_to(x)


def test_they_can_be_switched_off_for_a_while():
    x = noise(1, 2, 3, 3)
    with pytest.raises(RuntimeError, match="inside"), team.without_kernels():
        assert not team.apply_to(x)
        raise RuntimeError("inside")
    assert team.apply_to(x)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    x, before = noise(3, 5, 17, 13), torch.get_num_threads()
    expected = norm_silu(x)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(norm_silu(x), expected)
    finally:
        torch.set_num_threads(before)


def test_threads_of_python_do_where_torchs_cannot_be_had(monkeypatch):
    x = noise(3, 5, 17, 13)
    expected = norm_silu(x)
    monkeypatch.setattr(team, "_team", lambda: team.python_threads)
    assert torch.equal(norm_silu(x), expected)


def test_several_callers_at_once_do_not_disturb_each_other():
    inputs = [noise(2, 4, 40, 40, seed=i) for i in range(8)]
    expected = [norm_silu(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(norm_silu, inputs), expected, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(bad):
    x = noise(1, 2, 4, 4)
    x[0, 1, 2, 2] = bad
    y = norm_silu(x)
    assert y[0, 1].isnan().all() == F.silu(F.instance_norm(x))[0, 1].isnan().all()
    assert y[0, 1].isnan().any() and y[0, 0].isfinite().all()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_sizes_far_from_one_are_those_of_torch(scale):
    x = scale * noise(2, 3, 9, 11)
    torch.testing.assert_close(norm_silu(x), F.silu(F.instance_norm(x.double())).float(), rtol=1e-5, atol=1e-6)


def test_an_empty_batch_stays_empty():
    assert norm_silu(noise(0, 4, 5, 5)).shape == (0, 4, 5, 5)


def test_no_thread_with_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(team, "_team", lambda: lambda kernel, arguments, threads: None)
    with pytest.raises(MemoryError, match="'norm_silu'.*smaller batch"):
        norm_silu(noise(1, 2, 3, 3))


def test_without_numba_torch_does_the_work_and_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "mhvae_kit.kernels.wide", None)
    monkeypatch.setitem(sys.modules, "mhvae_kit.kernels.heads", None)
    monkeypatch.delattr("mhvae_kit.kernels.wide", raising=False)
    monkeypatch.delattr("mhvae_kit.kernels.heads", raising=False)
    team.known.cache_clear()
    try:
        with pytest.warns(UserWarning, match="pip install numba"):
            assert not team.apply_to(noise(1, 2, 3, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not team.apply_to(noise(1, 2, 3, 3))
    finally:
        team.known.cache_clear()


def test_a_cache_folder_that_cannot_be_made_costs_time_alone(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    code = "from mhvae_kit.kernels import vectors; print(vectors.kernel(lambda arguments: None).address > 0)"
    done = run_python(code, blocked)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr


def test_kernels_are_kept_on_disk_by_the_state_of_their_sources(tmp_path):
    code = """
from pathlib import Path
from mhvae_kit.kernels import vectors
source = Path("made_here.py")
source.write_text("from mhvae_kit.kernels.vectors import kernel\\n@kernel\\ndef nothing(arguments):\\n    pass\\n")
import sys; sys.path.insert(0, ".")
import made_here
assert made_here.nothing.address
print(vectors._CACHE)
"""
    environment = {**os.environ, "MHVAE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path / "cache" / "kernels"
    assert list(folder.rglob("made_here.nothing*.nbc"))


def test_a_process_that_compiles_computes_the_bits_of_later_ones(tmp_path):
    code = """
import hashlib
import torch
from mhvae_kit.gaussian import Gaussian, kl_divergence, product_of_experts
from mhvae_kit.kernels.team import has_compiled
from mhvae_kit.networks.blocks import TopDownCell, soft_clamped_halves
torch.manual_seed(0)
cell, x = TopDownCell(8, 3), torch.randn(2, 8, 24, 26, requires_grad=True)
p, q = (Gaussian(*soft_clamped_halves(part, 3.0)) for part in (cell(x), 2 * cell(x)))
fused = product_of_experts(p, [q])
y = fused.sample(torch.randn(2, 4, 24, 26)) * kl_divergence(fused, p)[:, None, None, None]
found = [y, *torch.autograd.grad(y.square().sum(), [x, *cell.parameters()])]
print(has_compiled(), hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in found)).hexdigest())
"""
    first, second = (run_python(code, tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    (compiled, bits), (compiled_again, bits_again) = first.stdout.split(), second.stdout.split()
    assert (compiled, compiled_again) == ("True", "False")
    assert bits == bits_again
