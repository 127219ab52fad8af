"""Finds and loads the compiled kernels: `_cpu.so`, without which nothing works, and `_cuda.so`.

Attributes:
    folder: where they are.
    cuda_missing: why those for CUDA are not loaded, in one line; None where they are.
"""

import sys
from pathlib import Path

import torch

COMMAND = "run `pip install -e .` in the project's folder"
REASON = "_cuda_missing.txt"  # what the build leaves in the place of _cuda.so; see build.py


def _find_folder() -> Path:
    """That of this file or, where it is a checkout in front of a plain install, the installed one.

    Raises:
        ImportError: the kernels are nowhere.
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
    """Load the kernels for CUDA; return why that cannot be."""
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
