"""Requests to leave: a run that gets one finishes its step, saves and goes.

The same command then continues it. Clusters send SIGTERM or SIGUSR1 some time before they take a
machine away, people press Ctrl-C.
"""

import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from detector.data.loading import SIGNALS

Item = TypeVar("Item")

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preempted(Exception):
    """The run was asked to leave, and its state is that of a whole number of steps."""


class StopRequest:
    """While it is entered, a signal is noted instead of obeyed, but for a second Ctrl-C."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
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
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, until a request comes.

        Raises:
            Preempted: before the next item, or after the last.
        """
        iterator = iter(items)
        while True:
            self._raise_if_requested()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._raise_if_requested()
            yield item

    def _raise_if_requested(self) -> None:
        if self.signal is not None:
            raise Preempted(self.signal.name)
