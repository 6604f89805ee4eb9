"""The process that runs one notebook: papermill with a kernel of this very Python, telling its parent how far it came.

Started by `mhvae_kit.runner` as `python -m mhvae_kit.notebook_process JOB.json`, never imported by the rest.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from mhvae_kit.files import write_json
from mhvae_kit.processes import end_children, living_children

EXIT_FAILED, EXIT_CELL_TIMEOUT, EXIT_KERNEL_DIED, EXIT_NO_KERNEL = 1, 3, 4, 5


def own_kernel(folder: Path) -> None:
    """Make `python3` mean this interpreter, whatever kernel a user has installed under that name.

    Args:
        folder: An empty folder for the kernel's description; put first on JUPYTER_PATH.
    """
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    write_json(folder / "kernels" / "python3" / "kernel.json", spec)
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("JUPYTER_PATH")]))


def tell_started_cells(path: Path) -> None:
    """Register an engine that writes to `path` each cell it starts and the kernel it has: readable after any end."""

    class TellingEngine(NBClientEngine):
        """papermill's own engine; a killed kernel leaves all its cells marked completed, so the index is kept apart."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
            start = nb_man.cell_start

            def told_start(cell: Any, cell_index: int | None = None, **kwargs: Any) -> Any:
                write_json(path, {"cell": cell_index, "processes": living_children()})
                return start(cell, cell_index, **kwargs)

            nb_man.cell_start = told_start
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register("telling", TellingEngine)


def end_with_parent() -> None:
    """End this process and its kernel as soon as the process that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        end_children(os.getpid(), grace_s=0)
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, daemon=True).start()


def run(job: dict[str, Any]) -> int:
    """Run the notebook of a job and say by the exit code how it ended."""
    tell_started_cells(Path(job["told"]))
    try:
        papermill.execute_notebook(
            job["input"],
            job["output"],
            parameters=job["parameters"],
            engine_name="telling",
            kernel_name="python3",
            language="python",
            cwd=job["cwd"],
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            start_timeout=job["start_timeout_s"],
            execution_timeout=job["cell_timeout_s"],
        )
    except PapermillExecutionError:
        return EXIT_FAILED
    except CellTimeoutError:
        return EXIT_CELL_TIMEOUT
    except DeadKernelError:
        return EXIT_KERNEL_DIED
    except RuntimeError as error:
        if "Kernel" not in str(error):
            raise
        print(error, file=sys.stderr)
        # Before the first cell it never answered; after it, it died between two messages.
        return EXIT_KERNEL_DIED if Path(job["told"]).exists() else EXIT_NO_KERNEL
    return 0


def main() -> None:
    """Read the job, run it, exit."""
    # Remarks of Jupyter and papermill about themselves; warnings of the notebook are in its cells.
    warnings.filterwarnings("ignore")
    logging.getLogger("papermill").setLevel(logging.ERROR)
    end_with_parent()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="mhvae-kernel-") as folder:
        own_kernel(Path(folder))
        code = run(job)
    sys.exit(code)


if __name__ == "__main__":
    main()
