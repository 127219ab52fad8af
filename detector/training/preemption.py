"""Requests to stop: a run that is asked to stop finishes its step, saves a checkpoint and exits.

The same command then resumes it. Clusters send SIGTERM or SIGUSR1 some time before they take a
machine away; people press Ctrl-C.
"""

import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from detector import exit_codes
from detector.data.loading import SIGNALS
from detector.training.distribution import SINGLE_PROCESS, Ranks

STOP = "stop"  # posted by a rank that was asked to stop
POLL_SECONDS = 0.2  # seconds between two checks for a posted STOP

Item = TypeVar("Item")


class Preempted(Exception):
    """The run was asked to stop, and its state is that after a whole number of steps."""

    exit_code = exit_codes.PREEMPTED


class StopRequest:
    """A context manager that records signals, so that a run can stop between two steps.

    Within the context the signals that ask a process to stop are recorded and do nothing else. Only
    a Ctrl-C more than a second after the first signal raises KeyboardInterrupt at once.

    Attributes:
        signal: the first signal that this process received, or None.
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
        # For one Ctrl-C, the terminal and the launcher that ends may each send a signal.
        is_second = self.signal is not None and time.monotonic() - self._noted > 1
        if is_second and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._noted = signal.Signals(number), time.monotonic()

    def until_stopped(self, items: Iterable[Item], ranks: Ranks = SINGLE_PROCESS) -> Iterator[Item]:
        """Yield the items, and end early as soon as any rank was asked to stop.

        Call `raise_if_stopped` afterwards: it raises an error if the items ended early.
        """
        iterator = iter(items)
        while not self._is_known(ranks):
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item

    def _is_known(self, ranks: Ranks) -> bool:
        """Return whether this rank knows of a rank that was asked to stop. If this rank was asked
        to, tell the others.
        """
        if self.signal is not None:
            if not self._is_posted:
                ranks.post(STOP)
            self._is_posted = True
        elif not self._is_posted and time.monotonic() - self._looked > POLL_SECONDS:
            self._is_posted, self._looked = ranks.is_posted(STOP), time.monotonic()
        return self._is_posted

    def raise_if_stopped(self, ranks: Ranks) -> None:
        """Raise Preempted if any rank was asked to stop. All ranks must call this.

        A rank waits here for the others. If it receives a signal meanwhile, it tells them, so that
        they end `until_stopped` early and come here too.

        Raises:
            Preempted: on every rank, with the name of the signal.
        """
        ranks.barrier(meanwhile=lambda: self._is_known(ranks))
        names = ranks.all_gather(self.signal.name if self.signal else None)
        for name in names:
            if name is not None:
                raise Preempted(name)
