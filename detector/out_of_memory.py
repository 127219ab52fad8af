"""Which errors say that there is no memory; torch is not imported to tell."""

import sys


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation asked for more memory than there is."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and "can't allocate memory" in str(error)  # on the CPU
