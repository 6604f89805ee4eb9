"""Run the notebook that keeps its outputs, and keep them anew: `make outputs`, or `python tests/keep_outputs.py`.

What nbval compares is stored; cells tagged nbval-ignore-output (weights, clock, live kernel) run but store nothing, so
new weights leave the file as it is. Look at the difference before you commit it: every changed line is a claim.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from mhvae_kit.files import write_text
from mhvae_kit.notebook_process import own_kernel

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "05_product_of_experts.ipynb"
NOT_STORED = "nbval-ignore-output"
LIMIT_S = 270


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook as this Python runs it, headless and in a folder that is gone afterwards."""
    node = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="mhvae-outputs-") as folder:
        os.environ |= {"MHVAE_RUNS": folder, "MHVAE_HEADLESS": "1"}
        own_kernel(Path(folder))
        NotebookClient(node, kernel_name="python3", timeout=LIMIT_S, store_widget_state=False).execute(cwd=folder)
    return node


def kept(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs that are compared and nothing of the machine: no times, no versions, no widgets."""
    node.metadata.language_info = {"name": "python"}
    for cell in node.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code" and NOT_STORED in cell.metadata.get("tags", ()):
            cell.outputs = []
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return node


def smaller(picture: str) -> str:
    """A curve drawing in 64 colours, a third of its size: the file is read with every clone."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    write_text(NOTEBOOK, nbformat.writes(kept(executed(NOTEBOOK))) + "\n")
    print(f"run again and kept: {NOTEBOOK.name}; look at `git diff --stat` and at the lines before you commit them")
