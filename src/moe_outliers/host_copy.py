"""Small tensors brought from a GPU to the host while it computes."""

from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Tensors on their way from a GPU to the host; those of the CPU stay where they are."""

    def __init__(self, store: dict[str, Tensor]) -> None:
        """Queue the copies of all tensors of a store, behind what the device has still to do."""
        self._store = store
        self._parts = {name: part for name, part in store.items() if part.is_cuda}
        self._hosts: dict[str, Tensor] = {}
        if not self.under_way:
            return
        sizes = [-(-part.nbytes // 8) * 8 for part in self._parts.values()]
        locked = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        pieces = zip(self._parts.items(), torch.split(locked, sizes), strict=True)
        for (name, part), piece in pieces:
            host = piece[: part.nbytes].view(part.dtype).view(part.shape)
            self._hosts[name] = host.copy_(part, non_blocking=True)
        self._done: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._done.record()

    @property
    def under_way(self) -> bool:
        """Whether there is something to finish."""
        return bool(self._parts)

    def finish(self) -> None:
        """Put copies in pageable memory in their places; the locked memory is used again.

        Fresh pageable memory can cost more than the copy: let another thread do it.
        """
        if self.under_way:
            self._done.synchronize()
        self._store.update({name: host.clone() for name, host in self._hosts.items()})
