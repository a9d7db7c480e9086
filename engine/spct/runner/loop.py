"""The one loop that owns the model: threads hand in groups and take turns in driving it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spct.errors import BackendError, SpctError
from spct.runner.runner import ModelRunner
from spct.scheduling.scheduler import Scheduler
from spct.scheduling.sequence import Group


class StepLoop:
    """Continuous batching behind `submit`, `step` and `cancel`; safe to call from any thread.

    `submit` and `cancel` never wait for a step that runs: they leave a note, read at once if the lock is free, else by
    whoever holds it. Whoever waits for a group drives the loop with `drive_until`; for callers that can't (an event loop),
    `start_thread` does it.
    """

    def __init__(self, scheduler: Scheduler, runner: ModelRunner) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self._lock = threading.RLock()
        self._gate = threading.RLock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._has_news = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, group: Group) -> None:
        """Queues a group for the next step.

        Raises: BackendError if the loop was closed.
        """
        if self._closed:
            raise BackendError("the engine is closed; make a new one with Engine.from_pretrained")
        self._note(lambda: self.scheduler.submit(group))

    def cancel(self, group: Group) -> None:
        """Ends a group's unfinished sequences before the next step and frees their memory; a finished group stays as it is."""
        if group.is_finished:
            return
        self._note(lambda: self._cancel(group))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No step of another thread runs inside the block.

        Locks of Python are not fair: a thread that steps in a loop would take the lock again before anybody who waits for
        it. So a waiter closes the gate that steps go through.
        """
        with self._gate, self._lock:
            yield

    def step(self) -> bool:
        """Runs one step; False if there was nothing to do.

        If the forward fails, every group in flight ends with a `BackendError`, and nothing that it left in the cache is used
        again.
        """
        finished: list[Group] = []
        with self._gate:
            pass
        with self._lock:
            self._read_notes()
            try:
                step = self.scheduler.schedule()
                if step is None:
                    return False
                drawn = self.runner.run(step)
                finished = self.scheduler.commit(step, drawn.token_ids, drawn.logprobs, drawn.meta_logits, drawn.read_logprobs)
            except Exception as error:
                finished = self._fail_all(error)
            except BaseException:
                self.scheduler.abandon()
                raise
        self._settle()
        for group in finished:
            if group.on_finished is not None:
                group.on_finished()
        return True

    def drive_until(self, group: Group) -> None:
        """Steps until `group` has finished, whoever runs the steps."""
        while not group.is_finished:
            stepped = self.step()
            assert stepped or group.is_finished, "a group that was never submitted can't finish"

    def drain(self) -> None:
        """Steps until nothing waits or runs. Inside `exclusive`, so that nothing new gets between the steps."""
        while self.step():
            pass

    def start_thread(self) -> None:
        """Starts the thread that drives the loop while there is work; once is enough."""
        with self._wake:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._drive, name="spct-loop", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends every group in flight as cancelled and stops the thread."""
        with self.exclusive():
            self._closed = True
            self._read_notes()
            for group in self._groups():
                self._cancel(group)
        with self._wake:
            self._wake.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _note(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        self._settle()
        with self._wake:
            self._has_news = True
            self._wake.notify_all()

    def _read_notes(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _settle(self) -> None:
        # Called after a note was left and after the lock was released, so that no note is left lying: either the lock
        # is free here, or its holder comes by here when done.
        while self._inbox and self._lock.acquire(blocking=False):
            try:
                self._read_notes()
            finally:
                self._lock.release()

    def _cancel(self, group: Group) -> None:
        if not group.is_finished:
            self.scheduler.cancel(group)
            if group.on_finished is not None:
                group.on_finished()

    def _groups(self) -> list[Group]:
        scheduler = self.scheduler
        return list(dict.fromkeys(s.group for s in (*scheduler.running, *scheduler.waiting)))

    def _fail_all(self, error: Exception) -> list[Group]:
        groups = self._groups()
        for group in groups:
            group.error = error if isinstance(error, SpctError) else BackendError(f"a step failed: {type(error).__name__}: {error}")
            group.error.__cause__ = error if group.error is not error else None
            self.scheduler.cancel(group)
        self.scheduler.tree.clear()
        return groups

    def _drive(self) -> None:
        while not self._closed:
            with self._wake:
                self._has_news = False
            while self.step():
                pass
            with self._wake:
                # A note left since the flag was cleared has set it again, so its wake-up can't be missed.
                self._wake.wait_for(lambda: self._has_news or self._closed)
