"""Who may know whom, checked on a fresh interpreter; the rest of the boundaries are import-linter's."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["app.main", "app.cli", "cognate.config", "cognate.metrics", "cognate.events", "cognate.rundir", "cognate.shim", "cognate.wandb_mode"],
)
def test_importing_it_does_not_import_torch(module: str) -> None:
    """The server starts in a second and stays small because torch is the worker's alone."""
    script = (
        f"import sys, {module}; print([name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy', 'tokenizers', 'wandb')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_optimizer_needs_torch_alone() -> None:
    """`from cognate.optimizer import MuGrokfast` on any model."""
    loaded = "sorted({name.split('.')[1] for name in sys.modules if name.startswith('cognate.')})"
    script = f"import sys, cognate.optimizer; print({loaded}, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['optimizer', 'precision'] False"
