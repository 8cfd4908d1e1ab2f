"""Live runs: is their owner alive, and what follows from that. Shared by tick and reap.

Incident: an agent died mid-run and its row stayed ``running`` for 25 hours. Decision: every slot is leased, and
death is proved (pid, its start time, the boot) before a slot is freed; a live owner is stopped first.
Consequence: a lost process is noticed by the next tick, and no slot is freed under a live one.

The order is the point: probe first, list the spool second. A runner that writes its finish file and dies between
the two is then seen dead, but with its file; the other way round its outcome would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from carolctl import launch, policy, spool
from carolctl.failpoints import failpoint
from carolctl.finish import globally_paused
from carolctl.model import OCCUPYING, Claimed, HttpAction, Job, Outcome, Run
from carolctl.settle import Settled
from carolctl.store.runs import Claimant
from carolctl.store.tx import WriteTx


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What the probes showed, as decisions to apply under the lock and after it."""

    spooled: tuple[spool.SpoolFile, ...] = ()
    #: The runs to end, as they were judged, each with its outcome.
    ends: tuple[tuple[Run, Outcome], ...] = ()
    stops: tuple[tuple[Run, policy.Stop], ...] = ()
    stops_again: tuple[tuple[Run, policy.StopAgain], ...] = ()
    relaunches: tuple[Run, ...] = ()
    #: Every run that holds a slot: a process that several share ends only with all of them.
    occupying: tuple[Run, ...] = ()

    def ends_run(self, run: Run) -> bool:
        """Whether the run's present claim ends here: it is no longer live for the plans of the same tick."""
        claim = (run.run_id, run.claim_no)
        return any(claim == (ended.run_id, ended.claim_no) for ended, _ in self.ends) or any(
            claim == (file.outcome.run_id, file.outcome.claim_no) for file in self.spooled
        )

    def outcomes(self) -> list[Outcome]:
        """Every end that it may write."""
        return [file.outcome for file in self.spooled] + [outcome for _, outcome in self.ends]

    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.spooled or self.ends or self.stops or self.relaunches)


def look(
    live: Sequence[Run], jobs: dict[str, Job], claimant: Claimant, *, paused: bool, dry_run: bool = False
) -> Sweep:
    """Probe the owners of `live`, then list the spool, then judge.

    While paused only the spool counts, and what was asked to stop before. A dry run moves nothing in the spool.
    """
    occupying = [run for run in live if run.status in OCCUPYING]
    liveness = launch.probe(occupying, host=claimant.host, boot_id=claimant.boot_id)
    failpoint("sweep-probed")
    claims = [(run.run_id, run.claim_no) for run in occupying]
    spooled = tuple(spool.pending(claims, dry_run=dry_run))
    home = {(file.outcome.run_id, file.outcome.claim_no) for file in spooled}
    verdicts = [
        (
            run,
            policy.judge(
                run,
                liveness.get(run.run_id, "unknown"),
                now=claimant.now,
                boottime_ms=claimant.boottime_ms,
                boot_id=claimant.boot_id,
                is_http=_is_http(jobs.get(run.job_id)),
            ),
        )
        for run in occupying
        if (run.run_id, run.claim_no) not in home
    ]
    found = _sorted_out(spooled, verdicts, claimant, occupying)
    if paused:
        return Sweep(spooled=spooled, stops_again=found.stops_again, occupying=found.occupying)
    return found


def _is_http(job: Job | None) -> bool:
    return job is not None and isinstance(job.action, HttpAction)


def _sorted_out(
    spooled: tuple[spool.SpoolFile, ...],
    verdicts: list[tuple[Run, policy.Verdict]],
    claimant: Claimant,
    occupying: Sequence[Run],
) -> Sweep:
    return Sweep(
        spooled=spooled,
        ends=tuple((run, _end(run, v, claimant)) for run, v in verdicts if isinstance(v, policy.End)),
        stops=tuple((run, v) for run, v in verdicts if isinstance(v, policy.Stop)),
        stops_again=tuple((run, v) for run, v in verdicts if isinstance(v, policy.StopAgain)),
        relaunches=tuple(run for run, v in verdicts if isinstance(v, policy.Relaunch)),
        occupying=tuple(occupying),
    )


def _end(run: Run, verdict: policy.End, claimant: Claimant) -> Outcome:
    return Outcome(
        run_id=run.run_id,
        claim_no=run.claim_no,
        status="failed",
        completed_at=claimant.now,
        failure_reason=verdict.failure_reason,
        summary=verdict.summary,
    )


def bury_the_dead(sweep: Sweep) -> None:
    """Kill what is left of the sessions of dead owners, before their loss is recorded."""
    dead = [run for run, _ in sweep.ends if run.status == "running" and run.pid is not None]
    if dead:
        launch.bury(dead)


def unless_paused(tx: WriteTx, sweep: Sweep, claimant: Claimant) -> Sweep:
    """Under the lock: a pause that came after the look leaves only the spool to be taken in."""
    return Sweep(spooled=sweep.spooled) if globally_paused(tx, claimant.now) else sweep


def outcomes_to_settle(tx: WriteTx, sweep: Sweep) -> list[Outcome]:
    """The spool first: a finish that came home beats the reaper. Then the ends that still hold.

    What was judged may have moved on since it was looked at, without a new claim number: a claim that started
    after all, a request that was accepted. Such a run is left to the next sweep.
    """
    present = {run.run_id: run for run in tx.runs_by_id([run.run_id for run, _ in sweep.ends])}
    return [file.outcome for file in sweep.spooled] + [
        outcome for run, outcome in sweep.ends if _is_as_judged(run, present.get(run.run_id))
    ]


def _is_as_judged(judged: Run, present: Run | None) -> bool:
    return present is not None and all(
        getattr(judged, name) == getattr(present, name)
        for name in ("status", "claim_no", "pid", "pid_start", "unit")
    )


def write_stops(tx: WriteTx, sweep: Sweep, claimant: Claimant) -> list[Run]:
    """Set the stop reasons by compare-and-swap; the runs whose owners are to be asked after COMMIT."""
    return [
        replace(run, stop_reason=stop.reason)
        for run, stop in sweep.stops
        if tx.set_stop_reason(run.run_id, run.claim_no, stop.reason, now=claimant.now)
    ]


def stop_owners(sweep: Sweep, asked: Sequence[Run]) -> None:
    """After COMMIT: ask the owners to end, and kill those that outlived their grace.

    A process that several runs share is left alone until every run in it is to be stopped.
    """
    stopping = [*asked, *(run for run, _ in sweep.stops_again)]
    ids = {run.run_id for run in stopping}
    needed = {run.unit or run.pid for run in sweep.occupying if run.run_id not in ids}
    launch.stop([run for run in stopping if (run.unit or run.pid) not in needed])
    launch.kill(
        [run for run, again in sweep.stops_again if again.kill and (run.unit or run.pid) not in needed]
    )


#: Ends that are not a loss: what the run may use was used up, and nobody here is left to be stopped.
_LIMITS = frozenset({"lease_expired", "turn_limit_exceeded"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep changed, by run id."""

    leases: list[int]
    lost: list[int]
    relaunched: list[Claimed]
    stopped: list[Run]


def apply(tx: WriteTx, sweep: Sweep, settled: Settled, claimant: Claimant) -> Swept:
    """The sweep's own writes, after its outcomes were settled in the same transaction."""
    changed = {*settled.ended, *settled.requeued, *(run_id for run_id, _ in settled.damaged)}
    stopped = write_stops(tx, sweep, claimant)
    ended = [outcome for _, outcome in sweep.ends if outcome.run_id in changed]
    expired = [outcome.run_id for outcome in ended if outcome.failure_reason in _LIMITS]
    return Swept(
        leases=sorted([*expired, *(run.run_id for run in stopped)]),
        lost=sorted(outcome.run_id for outcome in ended if outcome.failure_reason not in _LIMITS),
        relaunched=tx.reclaim(sweep.relaunches, claimant),
        stopped=stopped,
    )
