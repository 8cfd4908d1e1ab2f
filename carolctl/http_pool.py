"""HTTP runs side by side in one process: a thread waits for each answer, the main one alone writes to the store.

The only threads of the program. They hold no connection and no lock: what they bring back goes through a queue.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from carolctl import clock, http_call
from carolctl.claims import Started, failed, finish, launch_all, start_all
from carolctl.errors import CarolError
from carolctl.http_call import HttpResult
from carolctl.http_request import HttpRequest
from carolctl.launch.process import LARGEST_CHUNK
from carolctl.launch.supervisor import Signals, boot_seconds
from carolctl.model import Claimed, HttpAction, Outcome, Run
from carolctl.notices import warn
from carolctl.session import Session

_ACCEPT_TRIES, _ACCEPT_PAUSE_SEC = 12, 0.5
_LONGEST_LINGER_SEC, _MOST_LINGERS = 0.02, 4


@dataclass(frozen=True, slots=True)
class Flight:
    """A request under way."""

    run: Run
    request: HttpRequest


class HttpPool:
    """HTTP runs side by side: a thread waits for each answer, this one alone writes to the store.

    The runs that take the place of those that ended go on in the same pool, as far as there is room.
    """

    def __init__(self, session: Session, signals: Signals) -> None:
        with session.store.read() as snapshot:
            self._store_uuid = snapshot.store_uuid()
            self._ca_file = session.settings(snapshot).http_ca_file
        self._store = session.store
        self._signals = signals
        self._flying: dict[tuple[int, int], Flight] = {}
        self._waiting: deque[tuple[int, int]] = deque()
        #: Runs that the other side took on, which the store does not know yet.
        self._accepted: list[Run] = []
        self._accept_failures = 0
        #: Its put() may be called from a signal handler; None says that there is something to look at.
        self._landed: queue.SimpleQueue[tuple[Flight, HttpResult] | None] = queue.SimpleQueue()
        signals.on_stop = lambda: self._landed.put(None)
        # Commands that are launched from here are nobody's to wait for: the kernel takes their ends.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def work(self, claims: Sequence[tuple[int, int]]) -> None:
        """Carry out the claims, and those that take their place; at SIGTERM end at once."""
        self._waiting.extend(claims)
        while self._waiting or self._flying or self._accepted:
            if self._signals.stop_asked:
                self._signals.stop_asked = False
                if not self._end_those_asked():
                    return self._abort()
            elif self._waiting:
                self._take_off()
            elif self._accepted:
                self._accept()
            else:
                self._go_on(self._record(self._arrivals()))
        return None

    def _take_off(self) -> None:
        """Start whatever waits in one write, then send: an outsider that writes meets one lock, not one a run."""
        claims, self._waiting = list(self._waiting), deque()
        try:
            started = start_all(self._store, claims)
        except CarolError as trouble:
            # They stay claimed, and a sweep launches them again.
            runs = ", ".join(str(run_id) for run_id, _ in claims)
            warn(f"not started, run {runs}: {trouble.message}")
            return
        refusals = [refusal for one in started if (refusal := _refusal(one) or self._send(one))]
        self._go_on(self._record(refusals))

    def _send(self, started: Started) -> Outcome | None:
        """Send it from a thread of its own; its end, where there is no room for a thread."""
        run = started.run
        flight = Flight(run, self._request(started))
        thread = threading.Thread(target=self._fly, args=(flight,), name=f"run-{run.run_id}", daemon=True)
        try:
            thread.start()
        except RuntimeError as trouble:
            return failed(run, "launch_failed", f"nothing was sent: {trouble}")
        self._flying[run.run_id, run.claim_no] = flight
        return None

    def _request(self, started: Started) -> HttpRequest:
        run, action = started.run, started.claimed.action
        assert isinstance(action, HttpAction)
        return HttpRequest(
            run_id=run.run_id,
            job_id=run.job_id,
            claim_no=run.claim_no,
            scheduled_for_iso=clock.iso(run.scheduled_for),
            attempt=run.attempt,
            max_turns=run.max_turns,
            idempotency_key=f"{self._store_uuid}:{run.run_id}",
            action=action,
            deadline_monotonic=time.monotonic() + started.deadline - boot_seconds(),
            ca_file=self._ca_file,
        )

    def _fly(self, flight: Flight) -> None:
        """In a thread of its own: send, wait, and say what came of it. Never touches the store."""
        try:
            result = http_call.send(flight.request)
        except Exception:  # noqa: BLE001 - a bug in one dispatch must not take the others with it
            traceback.print_exc()
            result = http_call.HttpResult(
                kind="failed",
                failure_reason="outcome_unknown",
                summary="a bug of carolctl ended the dispatch",
            )
        self._landed.put((flight, result))

    def _arrivals(self) -> list[Outcome]:
        """Wait for an answer, and after each for as long as a write takes for one more; the ends to record.

        What comes together is written together: on a slow disk, an outsider meets one lock instead of many.
        """
        landed: list[tuple[Flight, HttpResult]] = []
        linger = min(self._store.write_lock_ms / 1000, _LONGEST_LINGER_SEC)
        arrived = self._landed.get()
        until = time.monotonic() + _MOST_LINGERS * linger
        while arrived is not None:
            landed.append(arrived)
            left = min(linger, until - time.monotonic()) if len(landed) < len(self._flying) else 0
            try:
                arrived = self._landed.get(timeout=left) if left > 0 else self._landed.get_nowait()
            except queue.Empty:
                break
        return self._land(landed)

    def _all_arrived(self) -> list[Outcome]:
        """The ends that have come by now, without waiting, whatever else the queue holds."""
        landed: list[tuple[Flight, HttpResult]] = []
        with suppress(queue.Empty):
            while True:
                if (arrived := self._landed.get_nowait()) is not None:
                    landed.append(arrived)
        return self._land(landed)

    def _land(self, landed: Sequence[tuple[Flight, HttpResult]]) -> list[Outcome]:
        """The ends in what has come; runs whose end was recorded already, at a stop, have none."""
        ours = [
            (flight, result)
            for flight, result in landed
            if self._flying.pop((flight.run.run_id, flight.run.claim_no), None) is not None
        ]
        self._accepted += [flight.run for flight, result in ours if result.kind == "accepted"]
        return [
            _http_outcome(flight.run, result, late=time.monotonic() >= flight.request.deadline_monotonic)
            for flight, result in ours
            if result.kind != "accepted"
        ]

    def _accept(self) -> None:
        """From here these runs live without us; unwritten, they would count as lost when this process ends."""
        waiting, self._accepted = self._accepted, []
        try:
            with self._store.write() as tx:
                for run in waiting:
                    tx.accept(run.run_id, run.claim_no)
        except CarolError as trouble:
            self._accept_failures += 1
            time.sleep(_ACCEPT_PAUSE_SEC)
            warn(f"accepted, run {', '.join(str(run.run_id) for run in waiting)}: {trouble.message}")
            if self._accept_failures < _ACCEPT_TRIES:
                self._accepted = waiting

    def _record(self, outcomes: Sequence[Outcome]) -> list[Claimed]:
        return finish(self._store, outcomes) if outcomes else []

    def _go_on(self, claimed: Sequence[Claimed]) -> None:
        """Keep the HTTP runs for which there is room; the rest is launched as anywhere else."""
        calls = [one for one in claimed if isinstance(one.action, HttpAction)]
        ours = calls[: max(0, LARGEST_CHUNK - len(self._flying) - len(self._waiting))]
        self._waiting.extend((one.run.run_id, one.run.claim_no) for one in ours)
        launch_all(self._store, [one for one in claimed if one not in ours])

    def _end_those_asked(self) -> bool:
        """End the runs that are to stop, by their rows; whether there were any. The others go on.

        Whoever sent SIGTERM looked at the store a moment ago; other runs may have taken off since.
        """
        with self._store.read() as snapshot:
            rows = {run.run_id: run for run in snapshot.runs_by_id([run_id for run_id, _ in self._flying])}
        asked = [
            flight
            for (run_id, _), flight in self._flying.items()
            if (run_id in rows and rows[run_id].stop_reason is not None)
            or time.monotonic() >= flight.request.deadline_monotonic
        ]
        for flight in asked:
            del self._flying[flight.run.run_id, flight.run.claim_no]
        # The row's stop reason stands above the class; only a deadline is left without one.
        self._go_on(self._record([failed(flight.run, "lease_expired") for flight in asked]))
        return bool(asked)

    def _abort(self) -> None:
        """Nobody asked for single runs: the whole process is to go, and the answers are not waited for.

        Those that were not started yet stay claimed, and are claimed again.
        """
        outcomes = self._all_arrived()
        outcomes += [
            failed(flight.run, "outcome_unknown", "the runner was ended while the request was under way")
            for flight in self._flying.values()
        ]
        launch_all(self._store, self._record(outcomes))
        if self._accepted:
            self._accept()


def _refusal(started: Started) -> Outcome | None:
    if not isinstance(started.claimed.action, HttpAction):
        return failed(started.run, "launch_failed", "the job has no HTTP call to make")
    if boot_seconds() >= started.deadline:
        return failed(started.run, "lease_expired", "the lease had run out before anything was sent")
    return None


def _http_outcome(run: Run, result: HttpResult, *, late: bool) -> Outcome:
    outcome = Outcome(
        run_id=run.run_id,
        claim_no=run.claim_no,
        status="failed" if result.kind == "failed" else "completed",
        completed_at=clock.now(),
        failure_reason=result.failure_reason,
        turns=result.turns,
        summary=result.summary,
        http_status=result.http_status,
        retry_after_sec=result.retry_after_sec,
    )
    unanswered = result.http_status is None or result.failure_reason == "outcome_unknown"
    if late and outcome.status == "failed" and unanswered:
        # The deadline of the dispatch is the end of the lease, and every end by lease is called that.
        return replace(outcome, failure_reason="lease_expired")
    return outcome
