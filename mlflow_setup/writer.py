"""A thread that sends a sweep's writes to the store in order, also when the store is slow or away."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Protocol

from fine_core.text import without_password
from mlflow_setup.spool import Spool, Write

POLL_S = 0.05
FIRST_PAUSE_S, LONGEST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0, 2.0  # between tries; LAST_PAUSE_S while the sweep waits for the end
WARN_AFTER = 2  # failed tries: a single one is not an outage
BLAMED_AFTER = 5  # failed tries of one write while the store answers other requests
TOGETHER = 64  # writes of metrics per request, to catch up after an outage
DRAIN_FAILING_S = 30.0  # longest wait at the end of a sweep for a store that accepts nothing
DRAIN_STUCK_S = 300.0  # longest wait for a store that is busy with one write
SAY_DRAINING_AFTER_S = 3.0

logger = logging.getLogger("fine-sweeps")


class Target(Protocol):
    """Destination of writes. Writes are idempotent."""

    together: str

    def take(self, writes: list[Write]) -> None: ...
    def is_refusal(self, error: Exception) -> bool:
        """Whether the same write would always fail."""

    def is_away(self, error: Exception) -> bool:
        """Whether the store is away, so that the write is not the cause. Asks the store if the error does not tell."""


class BackgroundWriter:
    """Sends the spool's writes; callers only append. It waits by polling, because of Ctrl-C (see `Spool`)."""

    def __init__(self, spool: Spool, target: Target) -> None:
        self.spool, self.target = spool, target
        self.num_taken = self.failures = self.blamed = self.singly = 0
        self.closing = self.stopped = False
        self.refused: dict[str | None, int] = {}
        self.thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopped:
            writes = self.spool.head(1 if self.singly else TOGETHER, self.target.together)
            if not writes:
                time.sleep(POLL_S)
                continue
            try:
                self.target.take(writes)
            except Exception as error:
                self._failed(writes, error)
            else:
                self._taken(len(writes))
        self.spool.close()

    def _taken(self, count: int) -> None:
        self.spool.done(count)
        self.num_taken += count
        self.singly = max(0, self.singly - count)
        if self.failures >= WARN_AFTER:
            logger.warning("MLflow takes records again; %d are to be written", len(self.spool))
        self.failures = self.blamed = 0

    def _failed(self, writes: list[Write], error: Exception) -> None:
        if len(writes) > 1:
            self.singly = len(writes)  # send these one by one: any of them may be the cause
            return
        if self.target.is_refusal(error):
            self._drop(writes[0], error)
            return
        self.blamed = 0 if self.target.is_away(error) else self.blamed + 1
        if self.blamed >= BLAMED_AFTER:
            self._drop(writes[0], error)
            return
        self.failures += 1
        if self.failures == WARN_AFTER:
            where = self.spool.path if self.spool.is_durable else "memory"
            logger.warning("MLflow does not take records (%s); they are kept in %s until it does", one_line(error), where)
        self._pause()

    def _pause(self) -> None:
        started, pause = time.monotonic(), min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.failures - 1, 10))
        while not self.stopped and time.monotonic() < started + (min(pause, LAST_PAUSE_S) if self.closing else pause):
            time.sleep(POLL_S)

    def _drop(self, write: Write, error: Exception) -> None:
        """Drop a refused write. The warning appears once per run, because later writes of a deleted run are refused too."""
        if write.trial_id not in self.refused:
            run = f"the run of {write.trial_id}" if write.trial_id else "the sweep's run"
            logger.warning("MLflow refuses a record of %s (%s: %s); going on without it", run, write.action, one_line(error))
        self.refused[write.trial_id] = self.refused.get(write.trial_id, 0) + 1
        self._taken(1)

    def close(self) -> None:
        """Wait for pending writes while the store accepts some, then report what stays in the spool."""
        self.closing = True
        try:
            self._drain()
        finally:
            self._say_what_is_left()
            self.stopped = True
        self.thread.join(timeout=LAST_PAUSE_S)  # it may still wait for an answer; a daemon thread does not block the exit

    def _say_what_is_left(self) -> None:
        if left := len(self.spool):
            where = f"kept in {self.spool.path}" if self.spool.is_durable else "lost but for what the results hold"
            logger.warning("%d MLflow records are not written; they are %s; the same command completes them", left, where)
        if sum(self.refused.values()) > len(self.refused):
            logger.warning("MLflow refused %d records in all", sum(self.refused.values()))

    def _drain(self) -> None:
        started = progress = time.monotonic()
        taken, said = self.num_taken, False
        while len(self.spool):
            now = time.monotonic()
            if self.num_taken > taken:
                taken, progress = self.num_taken, now
            if now - progress > (DRAIN_FAILING_S if self.failures else DRAIN_STUCK_S):
                return
            if not said and now - started > SAY_DRAINING_AFTER_S:
                said = True
                logger.warning("writing the last %d MLflow records; Ctrl-C leaves them for the next run", len(self.spool))
            time.sleep(POLL_S)


def one_line(error: Exception) -> str:
    """One line for an error: the first line of the innermost wrapped error, without passwords in addresses."""
    line = without_password((str(error).strip() or type(error).__name__).splitlines()[0])
    if caused := re.search(r"\(Caused by \w+\([\"']?(.*?)[\"')]*$", line):
        line = caused[1]
    return line[:200]
