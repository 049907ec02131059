"""Make the notebooks from the scripts: ``python examples/make_notebooks.py [NAME ...]``; needs ``.[docs]``.

Each script is run as a notebook, at its default settings, in an empty folder; what it prints and its pictures are kept
in the notebook, those that the README shows in ``pictures`` too.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

IN_README = {"step_by_step": ["regions"], "lecture": ["features", "interpolant"]}

here = Path(__file__).resolve().parent
names = sys.argv[1:] or sorted(path.stem for path in here.glob("*.py") if path != Path(__file__).resolve())
for name in names:
    notebook = jupytext.read(here / f"{name}.py")
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
        for picture in IN_README.get(name, ()):
            shutil.copy(Path(folder, "runs", name, f"{picture}.png"), here / "pictures" / f"{name}-{picture}.png")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(notebook.cells):
        # the same run gives the same file: no names drawn by chance, no times, of a picture only the picture
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": output.data["image/png"]}
    nbformat.write(nbformat.from_dict(notebook), here / f"{name}.ipynb")
    print(f"{name}.ipynb: {(here / name).with_suffix('.ipynb').stat().st_size:,} bytes")
