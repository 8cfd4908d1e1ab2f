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
from dataclasses import dataclass, replace

from carolctl import clock, http_call
from carolctl.claims import Started, failed, finish, launch_all, start_all
from carolctl.errors import StoreBusy
from carolctl.http_call import HttpResult
from carolctl.http_request import HttpRequest
from carolctl.launch.process import LARGEST_CHUNK
from carolctl.launch.supervisor import Signals, boot_seconds
from carolctl.model import Claimed, HttpAction, Outcome, Run
from carolctl.notices import warn
from carolctl.session import Session

_ACCEPT_TRIES = 12
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
        #: Its put() may be called from a signal handler; None says that there is something to look at.
        self._landed: queue.SimpleQueue[tuple[Flight, HttpResult] | None] = queue.SimpleQueue()
        signals.on_stop = lambda: self._landed.put(None)
        # Commands that are launched from here are nobody's to wait for: the kernel takes their ends.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def work(self, claims: Sequence[tuple[int, int]]) -> None:
        """Carry out the claims, and those that take their place; at SIGTERM end at once."""
        self._waiting.extend(claims)
        while self._waiting or self._flying:
            if self._signals.stop_asked:
                self._signals.stop_asked = False
                if not self._end_those_asked():
                    return self._abort()
            elif self._waiting:
                self._take_off()
            else:
                self._go_on(self._record(self._arrivals()))
        return None

    def _take_off(self) -> None:
        """Start whatever waits in one write, then send: an outsider that writes meets one lock, not one a run."""
        claims, self._waiting = list(self._waiting), deque()
        try:
            started = start_all(self._store, claims)
        except StoreBusy as busy:
            runs = ", ".join(str(run_id) for run_id, _ in claims)
            warn(f"not started, run {runs}: {busy.message}")
            return
        refusals = []
        for one in started:
            if refusal := _refusal(one):
                refusals.append(refusal)
            else:
                self._send(one)
        self._go_on(self._record(refusals))

    def _send(self, started: Started) -> None:
        run = started.run
        flight = Flight(run, self._request(started))
        self._flying[run.run_id, run.claim_no] = flight
        threading.Thread(target=self._fly, args=(flight,), name=f"run-{run.run_id}", daemon=True).start()

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
        outcomes: list[Outcome] = []
        linger = min(self._store.write_lock_ms / 1000, _LONGEST_LINGER_SEC)
        arrived = self._landed.get()
        until = time.monotonic() + _MOST_LINGERS * linger
        while arrived is not None:
            if outcome := self._land(*arrived):
                outcomes.append(outcome)
            left = min(linger, until - time.monotonic()) if self._flying else 0
            try:
                arrived = self._landed.get(timeout=left) if left > 0 else self._landed.get_nowait()
            except queue.Empty:
                break
        return outcomes

    def _land(self, flight: Flight, result: HttpResult) -> Outcome | None:
        run = flight.run
        if self._flying.pop((run.run_id, run.claim_no), None) is None:
            # Its end was recorded already, at a stop.
            return None
        if result.kind == "accepted":
            self._accept(run)
            return None
        return _http_outcome(run, result, late=time.monotonic() >= flight.request.deadline_monotonic)

    def _accept(self, run: Run) -> None:
        """From here the run lives without us; unwritten, it would count as lost when this process ends."""
        for _ in range(_ACCEPT_TRIES):
            try:
                with self._store.write() as tx:
                    tx.accept(run.run_id, run.claim_no)
            except StoreBusy as busy:
                warn(f"run {run.run_id} was accepted: {busy.message}")
            else:
                return

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
        self._landed.put(None)
        outcomes = self._arrivals()
        outcomes += [
            failed(flight.run, "outcome_unknown", "the runner was ended while the request was under way")
            for flight in self._flying.values()
        ]
        launch_all(self._store, self._record(outcomes))


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
