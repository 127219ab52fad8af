"""Requests to leave: a run that gets one finishes its step, saves and goes.

The same command then continues it. Clusters send SIGTERM or SIGUSR1 some time before they take a
machine away, people press Ctrl-C.
"""

import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from detector.data.loading import SIGNALS
from detector.training.distribution import Ranks

Item = TypeVar("Item")


class Preempted(Exception):
    """The run was asked to leave, and its state is that of a whole number of steps."""


class StopRequest:
    """While it is entered, a signal is noted instead of obeyed, but for a later second Ctrl-C.

    Attributes:
        signal: the first that this process got.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._noted = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        # The end of a launcher and a terminal may each send one of what is one Ctrl-C.
        is_second = self.signal is not None and time.monotonic() - self._noted > 1
        if is_second and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._noted = signal.Signals(number), time.monotonic()

    def before(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until this process is told to leave: then there are no more.

        `raise_for` then tells this end from the other.
        """
        iterator = iter(items)
        while self.signal is None:
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item

    def raise_for(self, ranks: Ranks) -> None:
        """Leave, if any rank was told to; all of them call this.

        Raises:
            Preempted: on every rank, with the name of the signal.
        """
        names = ranks.all_gather(self.signal.name if self.signal else None)
        for name in names:
            if name is not None:
                raise Preempted(name)
