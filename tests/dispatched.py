"""Counts the operators that torch dispatches: on a GPU, the kernels that Python launches."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# They only describe memory that exists, or allocate it.
WITHOUT_KERNELS = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
    *("empty", "empty_like", "empty_strided", "new_empty", "promote_types"),
}


class Dispatched(TorchDispatchMode):
    """Counts the operators within a `with` block, in `names` in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in WITHOUT_KERNELS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))
