"""Finds and loads the compiled libraries: `_cpu.so`, which is required, and `_cuda.so`.

Attributes:
    folder: the folder of the libraries.
    cuda_missing: why the CUDA library is not loaded, in one line; None if it is loaded.
"""

import sys
from pathlib import Path

import torch

COMMAND = "run `pip install -e .` in the project's folder"
REASON = "_cuda_missing.txt"  # what build.py writes if it does not build _cuda.so


def _find_folder() -> Path:
    """Return the folder of the libraries: this one, or the first `ops` on `sys.path` that has them.

    The latter is needed where a checkout without libraries precedes an installed package.

    Raises:
        ImportError: no folder has the CPU library.
    """
    own = Path(__file__).parent
    for folder in (own, *(Path(entry) / "ops" for entry in sys.path)):
        if (folder / "_cpu.so").exists():
            return folder
    raise ImportError(f"the compiled operators are missing ({own / '_cpu.so'}): {COMMAND}")


def _load_cpu(folder: Path) -> None:
    library = folder / "_cpu.so"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        found = f"torch {torch.__version__} cannot load {library}"
        raise ImportError(f"{found} ({error}): {COMMAND}") from error


def _load_cuda(folder: Path) -> str | None:
    """Load the CUDA library; return the reason if it cannot be loaded, else None."""
    library = folder / "_cuda.so"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is for the CPU only"
    if not library.exists():
        reason = folder / REASON
        return reason.read_text().strip() if reason.exists() else f"there is no {library}"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"torch {torch.__version__} cannot load {library}: {error}"
    return None


folder = _find_folder()
_load_cpu(folder)
cuda_missing = _load_cuda(folder)
