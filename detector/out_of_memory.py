"""Recognises errors that mean a lack of memory, without importing torch."""

import sys


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error was raised because memory could not be allocated."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and "can't allocate memory" in str(error)  # on the CPU
