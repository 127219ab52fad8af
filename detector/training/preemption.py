"""Requests to leave: a run that gets one finishes its step, saves and goes.

The same command then continues it. Clusters send SIGTERM or SIGUSR1 some time before they take a
machine away, people press Ctrl-C.
"""

import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from detector import exit_codes
from detector.data.loading import SIGNALS
from detector.training.distribution import ALONE, Ranks

LEAVE = "leave"  # left by a rank that was told to
LOOK = 0.2  # seconds between two looks for such a word

Item = TypeVar("Item")


class Preempted(Exception):
    """The run was asked to leave, and its state is that of a whole number of steps."""

    exit_code = exit_codes.PREEMPTED


class StopRequest:
    """While it is entered, a signal is noted instead of obeyed, but for a later second Ctrl-C.

    Attributes:
        signal: the first that this process got.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._noted = 0.0
        self._looked = 0.0
        self._is_posted = False
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

    def before(self, items: Iterable[Item], ranks: Ranks = ALONE) -> Iterator[Item]:
        """The items, until any rank is told to leave: then there are no more.

        `raise_for` then tells this end from the other.
        """
        iterator = iter(items)
        while not self._is_known(ranks):
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item

    def _is_known(self, ranks: Ranks) -> bool:
        """Whether a rank was told to leave, as far as is known here; if this one was, all know."""
        if self.signal is not None:
            if not self._is_posted:
                ranks.post(LEAVE)
            self._is_posted = True
        elif not self._is_posted and time.monotonic() - self._looked > LOOK:
            self._is_posted, self._looked = ranks.is_posted(LEAVE), time.monotonic()
        return self._is_posted

    def raise_for(self, ranks: Ranks) -> None:
        """Leave, if any rank was told to; all of them call this. Who waits here for others and is
        told to leave has them come at once.

        Raises:
            Preempted: on every rank, with the name of the signal.
        """
        ranks.barrier(meanwhile=lambda: self._is_known(ranks))
        names = ranks.all_gather(self.signal.name if self.signal else None)
        for name in names:
            if name is not None:
                raise Preempted(name)
