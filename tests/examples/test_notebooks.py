"""The notebooks, run in a kernel of Jupyter, and a kernel that is interrupted."""

import os
from pathlib import Path

import pytest

import facm

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
SMALLER = {"SCALE = 0.1": "SCALE = 0.01", "STEPS, IMAGES = 800, 60_000": "STEPS, IMAGES = 300, 1_280"}

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient ipykernel")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install nbclient ipykernel")
pytestmark = pytest.mark.slow


def run(notebook, folder, monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(facm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize("name", sorted(file.name for file in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # kept without what they gave
    for cell in notebook.cells:
        for text, small in SMALLER.items():
            cell.source = cell.source.replace(text, small)
    done = run(notebook, tmp_path, monkeypatch)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("<progress" in output.get("data", {}).get("text/html", "") for output in outputs)


def test_an_interrupted_kernel_saves_and_goes_on_and_its_own_classes_are_found_again(tmp_path, monkeypatch):
    parts = """
import os, signal, torch, facm
from dataclasses import dataclass
class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x, t, cond=None):
        return self.layer(torch.cat([x, t[:, None]], 1))
@dataclass(frozen=True)
class Net:
    def build(self):
        return Inner()
"""
    begin = """
from facm.data import Gaussian
every = facm.Intervals(log=16, checkpoint=64, ema_snapshots=0)
run = facm.Run(Net(), Gaussian(), facm.FlowMatching(facm.Unconditional()), images=160, batch_size=16, every=every)
interrupt = lambda record: os.kill(os.getpid(), signal.SIGINT) if record["images"] == 48 else None
try:
    facm.train(run, "run", callbacks=[interrupt])
except KeyboardInterrupt as stopped:
    print(stopped)
"""
    again = 'print(facm.resume("run").images_seen)'
    cells = nbformat.v4.new_code_cell
    done = run(nbformat.v4.new_notebook(cells=[cells(parts), cells(begin)]), tmp_path, monkeypatch)
    said = "".join(output.get("text", "") for cell in done.cells for output in cell.outputs)
    assert "saved at 48 of 160 images in run: facm.resume('run') goes on" in said
    assert "only here can it be opened, where Net is defined" in said
    done = run(nbformat.v4.new_notebook(cells=[cells(parts), cells(again)]), tmp_path, monkeypatch)
    said = "".join(output.get("text", "") for cell in done.cells for output in cell.outputs)
    assert said.endswith("160\n")
