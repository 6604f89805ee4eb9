"""What a result depends on besides its parameters: code, libraries, device; and where the project's folders are."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "nibabel", "nilearn", "matplotlib", "papermill")


def source_folder() -> Path | None:
    """The checkout that the package is imported from, or None when it is installed as a wheel."""
    folder = Path(__file__).resolve().parent.parent
    return folder if _is_project(folder) else None


def project_folder() -> Path | None:
    """The project folder at or above the working directory, or None when there is none."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if _is_project(folder)), None)


def _is_project(folder: Path) -> bool:
    return (folder / "notebooks").is_dir() and (folder / "Snakefile").is_file()


def code_version() -> str:
    """The version of mhvae_kit."""
    import mhvae_kit

    return mhvae_kit.__version__


def git_commit() -> str | None:
    """The commit of the checkout, with "+changes" when tracked files differ from it; None outside git."""
    folder = source_folder()
    if folder is None or not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None when there is no git or it fails."""
    try:
        call = ["git", "-C", str(folder), *arguments]
        return subprocess.run(call, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def library_versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on; one that is not installed is left out."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def device_name() -> str:
    """The device torch would use in this process, in words: "cpu (2 threads)" or the name of the GPU."""
    torch = sys.modules.get("torch")
    if torch is None:
        return f"cpu ({os.cpu_count()} cores)"
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({torch.get_num_threads()} threads)"
