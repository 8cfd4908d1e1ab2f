"""The scenarios of the contention test: each sets a site up, lets real processes at it, and judges what came of it.

The limits are such that a busy machine keeps them and the designs of `broken` do not: nothing failed, nothing
acknowledged was lost, nothing waited longer than the busy deadline; where latency itself is the matter, it is
compared with the same write beside nobody.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from carolctl import clock, job_plans
from carolctl.config import Settings
from carolctl.contention import worker
from carolctl.contention.crew import WORKER, Crew, measured
from carolctl.contention.cue import Brief
from carolctl.contention.endpoint import SlowEndpoint
from carolctl.contention.figures import (
    Check,
    Measured,
    Result,
    judge,
    missing,
    most_at_once,
    percentile,
    repeated,
    together,
)
from carolctl.contention.site import Site, make_site
from carolctl.finish import claimant_now
from carolctl.job_values import Said
from carolctl.launch.owner import start_time
from carolctl.model import Job, Millis
from carolctl.store.scratch import audited, lock_is_held, plain_client, stored_events

THINK_SEC = 0.02
AGENTS = 8
"""Dispatches at once in `writes_during_dispatch`."""
CAP = 2
QUEUED = 50
HELD_SEC = 0.002

PATIENCE_MS = 2000
"""How long an outsider waits for a database beside which work is dispatched."""
LONGEST_WAIT_SEC = PATIENCE_MS / 1000 + 0.5
FLOOR_MS = 250.0
TIMES_IDLE = 10
MONITOR_MS = 1000.0
TIMES_QUIET = 8

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a scenario is given: its name, a folder to make its site in, how many writers, for how long."""

    name: str
    folder: str
    writers: int
    seconds: float
    deadline_ms: int

    def site(self, *, jobs: Sequence[Job] = (), cap: int = CAP) -> Site:
        """Make the scenario's own data home."""
        return make_site(
            os.path.join(self.folder, self.name), deadline_ms=self.deadline_ms, jobs=jobs, cap=cap
        )


Scenario = Callable[[Trial], Result]


# -- the job list ----------------------------------------------------------------------------------------------


def job_list_update(trial: Trial) -> Result:
    """Edits of a job land while another program holds the planner database."""
    site = trial.site(jobs=[manual_job("edited")])
    milliseconds: list[float] = []
    failures = 0
    with Crew(site.environment) as holder:
        holder.add("hold", path=site.planner_db)
        holder.start()
        until = time.monotonic() + trial.seconds
        while time.monotonic() < until or not milliseconds:
            took, done = _edit(site, f"edit {len(milliseconds)}")
            milliseconds.append(took)
            failures += not done
        locked = lock_is_held(site.planner_db)
        holder.stop()
    result = Measured(milliseconds=milliseconds, failures=failures)
    landed = audited(site.scheduler_db, "edit-job").get("edited", 0)
    return judge(
        trial.name,
        result,
        [
            Check(what="failures", value=failures, most=0),
            Check(what="edits lost", value=result.writes - landed, most=0),
            Check(what="longest", value=max(milliseconds), most=trial.deadline_ms, unit=" ms"),
            Check(what="planner locked to the end", value=int(locked), least=1),
        ],
    )


def _edit(site: Site, text: str) -> tuple[float, bool]:
    began = time.perf_counter()
    done = site.carolctl("edit-job", "edited", "--description", text)
    return (time.perf_counter() - began) * 1000, done.returncode == 0


# -- dispatch --------------------------------------------------------------------------------------------------

Dispatch = Callable[[Site, Crew, SlowEndpoint], int]
"""Starts the work on a site's due jobs; how many requests will then be in flight."""


def writes_during_dispatch(trial: Trial) -> Result:
    """An outsider writes to both databases while a tick dispatches to endpoints that take their time."""
    return beside_dispatch(trial, _tick, runs=AGENTS)


def beside_dispatch(trial: Trial, dispatch: Dispatch, *, runs: int) -> Result:
    """The scenario for any way to dispatch; so many `runs` are to be recorded as completed in the end."""
    with SlowEndpoint() as endpoint:
        due = [_due_job(f"agent-{number}", endpoint.url) for number in range(AGENTS)]
        site = trial.site(jobs=due, cap=AGENTS)
        try:
            with Crew(site.environment) as outsider, Crew(site.environment) as dispatcher:
                outsider.add("outside", databases=_databases(site), patience_ms=PATIENCE_MS, think_sec=0.01)
                outsider.start()
                wanted = dispatch(site, dispatcher, endpoint)
                in_flight = endpoint.wait_for(wanted, timeout_sec=20)
                # Longer than the outsider's patience: a lock that is held all the while shows as a failure.
                time.sleep(max(trial.seconds, LONGEST_WAIT_SEC))
                [report] = outsider.stop()
                endpoint.release()
                completed = site.wait_for_runs(timeout_sec=10)
            checks = [
                Check(what="requests in flight", value=in_flight, least=wanted),
                Check(what="runs completed", value=completed, least=runs),
            ]
            return _judge_outsider(trial, site, report, checks)
        finally:
            site.end_runs()


def _databases(site: Site) -> dict[str, str]:
    return {"scheduler": site.scheduler_db, "planner": site.planner_db, "idle": site.idle_db}


def _tick(site: Site, _crew: Crew, _endpoint: SlowEndpoint) -> int:
    site.carolctl("tick")
    return AGENTS


def _judge_outsider(trial: Trial, site: Site, report: Brief, also: Sequence[Check]) -> Result:
    felt = {name: measured(figures) for name, figures in report.items()}
    idle = percentile(felt.pop("idle").milliseconds, 0.95) or 0.0
    beside = together(felt.values())
    rows = 0
    for name in felt:
        with plain_client(_databases(site)[name], patience_ms=PATIENCE_MS) as client:
            rows += client.written().get("outsider", 0)
    return judge(
        trial.name,
        beside,
        [
            Check(what="failures", value=beside.failures, most=0),
            Check(what="writes lost", value=beside.writes - rows, most=0),
            Check(
                what="p95",
                value=percentile(beside.milliseconds, 0.95),
                most=max(FLOOR_MS, TIMES_IDLE * idle),
                unit=" ms",
            ),
            *also,
        ],
    )


# -- many writers ----------------------------------------------------------------------------------------------


def writers(trial: Trial) -> Result:
    """Short writers on one job store, each its share."""
    site = trial.site()
    reports = _write_together(trial, site, lambda: time.sleep(trial.seconds))
    return judge_writers(trial, reports, stored=audited(site.scheduler_db, worker.WRITE), least_share=0.2)


def foreign_hog(trial: Trial) -> Result:
    """The same beside a foreign program that holds the lock nine tenths of the time."""
    site = trial.site()
    with Crew(site.environment) as rival:
        rival.add("hog", path=site.scheduler_db, on_sec=0.09, off_sec=0.01)
        rival.start()
        reports = _write_together(trial, site, lambda: time.sleep(trial.seconds))
        [hogged] = rival.stop()
    # How much the hog gets is the machine's affair, but a hog that got next to nothing proves nothing.
    held = Check(what="lock held by the hog", value=hogged["held_share"] * 100, least=25, unit=" %")
    return judge_writers(
        trial, reports, stored=audited(site.scheduler_db, worker.WRITE), least_share=0, also=[held]
    )


def monitor_under_load(trial: Trial) -> Result:
    """``monitor --json`` answers while the writers write."""
    site = trial.site(jobs=[manual_job("watched")])
    run_id = _run_of_this_process(site, "watched")
    quiet = [_monitor(site, run_id)[0] for _ in range(3)]
    answers: list[tuple[float, bool]] = []

    def watch() -> None:
        until = time.monotonic() + trial.seconds
        while time.monotonic() < until or not answers:
            answers.append(_monitor(site, run_id))

    reports = _write_together(trial, site, watch)
    load = together(measured(report) for report in reports)
    asked = Measured(
        milliseconds=[took for took, _ in answers], failures=sum(not right for _, right in answers)
    )
    limit = max(MONITOR_MS, TIMES_QUIET * (percentile(quiet, 0.5) or 0))
    return judge(
        trial.name,
        asked,
        [
            Check(what="failures", value=asked.failures, most=0),
            Check(what="p95", value=percentile(asked.milliseconds, 0.95), most=limit, unit=" ms"),
            Check(what="writes beside it", value=load.writes, least=1),
        ],
    )


def _monitor(site: Site, run_id: int) -> tuple[float, bool]:
    """How long an answer took, and whether it named the one live run."""
    began = time.perf_counter()
    done = site.carolctl("monitor", "--json")
    took = (time.perf_counter() - began) * 1000
    try:
        shown = [row["run_id"] for row in json.loads(done.stdout)]
    except (ValueError, KeyError, TypeError):
        return took, False
    return took, done.returncode == 0 and shown == [run_id]


def _write_together(trial: Trial, site: Site, meanwhile: Callable[[], None]) -> list[Brief]:
    with Crew(site.environment) as crew:
        for number in range(trial.writers):
            crew.add(
                "write",
                path=site.scheduler_db,
                deadline_ms=trial.deadline_ms,
                think_sec=THINK_SEC,
                writer=f"writer-{number}",
            )
        crew.start()
        meanwhile()
        return crew.stop()


def judge_writers(
    trial: Trial,
    reports: Sequence[Brief],
    *,
    stored: Mapping[str, int],
    least_share: float,
    also: Sequence[Check] = (),
) -> Result:
    """Nothing failed, nothing lost, everybody got something; `least_share` is what, of the mean."""
    each = {report["writer"]: measured(report) for report in reports}
    whole = together(each.values())
    acknowledged = {name: part.writes for name, part in each.items()}
    mean = whole.writes / len(each)
    return judge(
        trial.name,
        whole,
        [
            Check(what="failures", value=whole.failures, most=0),
            Check(what="writes lost", value=missing(acknowledged, stored), most=0),
            Check(
                what="p99",
                value=percentile(whole.milliseconds, 0.99),
                most=trial.deadline_ms / 2,
                unit=" ms",
            ),
            Check(what="least served", value=min(acknowledged.values()), least=max(1, least_share * mean)),
            *also,
        ],
    )


# -- claims ----------------------------------------------------------------------------------------------------


def claims(trial: Trial) -> Result:
    """Claimers under a cap: never more at once than it, and no run twice."""
    site = trial.site(jobs=[manual_job("claimed")])
    with site.store() as store, store.write() as tx:
        for _ in range(QUEUED):
            tx.insert_run("claimed", source="manual", now=clock.now())
    return compete(trial, site, WORKER)


def compete(trial: Trial, site: Site, module: str) -> Result:
    """Let the claimers of `module` at it, and judge what they held when."""
    with Crew(site.environment) as crew:
        for _ in range(trial.writers):
            crew.add(
                "claim",
                module=module,
                path=site.scheduler_db,
                deadline_ms=trial.deadline_ms,
                cap=CAP,
                held_sec=HELD_SEC,
                think_sec=THINK_SEC,
            )
        crew.start()
        time.sleep(trial.seconds)
        reports = crew.stop()
    attempts = together(measured(report) for report in reports)
    held = [span for report in reports for span in report["held"]]
    return judge(
        trial.name,
        attempts,
        [
            Check(what="failures", value=attempts.failures, most=0),
            Check(what="runs claimed", value=len(held), least=1),
            Check(what="runs claimed twice", value=repeated(run for run, _, _ in held), most=0),
            Check(
                what="runs at once", value=most_at_once((began, ended) for _, began, ended in held), most=CAP
            ),
        ],
    )


# -- events ----------------------------------------------------------------------------------------------------


def emits(trial: Trial) -> Result:
    """Agents emit events, half of them are killed while they do; what was acknowledged is stored, once."""
    site = trial.site(jobs=[manual_job("emitting")])
    run_id = _run_of_this_process(site, "emitting")
    with Crew(site.environment) as crew:
        for number in range(trial.writers):
            crew.add("agent", agent=f"agent-{number}", run=run_id, doomed=bool(number % 2), longest_sec=0.1)
        crew.start()
        time.sleep(trial.seconds / 2)
        site.carolctl("drain")
        time.sleep(trial.seconds / 2)
        reports = crew.stop()
    drained = site.carolctl("drain").returncode
    return judge_events(
        trial,
        reports,
        [event for report in reports for event in report["acknowledged"]],
        stored_events(site.scheduler_db),
        killed=sum(report["killed"] for report in reports),
        also=[Check(what="exit code of drain", value=drained, most=0)],
    )


def judge_events(
    trial: Trial,
    reports: Sequence[Brief],
    acknowledged: Iterable[str],
    stored: Mapping[str, int],
    *,
    killed: int,
    also: Sequence[Check] = (),
) -> Result:
    """Everything acknowledged is stored exactly once."""
    attempts = together(measured(report) for report in reports)
    events = dict.fromkeys(acknowledged, 1)
    return judge(
        trial.name,
        attempts,
        [
            Check(what="failures", value=attempts.failures, most=0),
            Check(what="events acknowledged", value=len(events), least=1),
            Check(what="events lost", value=missing(events, stored), most=0),
            Check(what="events stored twice", value=sum(stored.values()) - len(stored), most=0),
            Check(what="killed", value=killed, least=1),
            *also,
        ],
    )


# -- jobs ------------------------------------------------------------------------------------------------------


def manual_job(job_id: str) -> Job:
    """A job that fires by hand only, as often at once as the cap allows."""
    said = Said(manual=True, argv=["true"], overlap="allow")
    return job_plans.build(job_id, said, now=clock.now())


def _due_job(job_id: str, url: str) -> Job:
    """A job whose first slot came a second ago."""
    since = Millis(clock.now() - HOUR_MS - 1000)
    return job_plans.build(job_id, Said(every="1h", url=url), now=since)


def _run_of_this_process(site: Site, job_id: str) -> int:
    """A live run whose owner is this process."""
    now, pid = clock.now(), os.getpid()
    claimant = claimant_now(now, Settings())
    with site.store() as store, store.write() as tx:
        tx.insert_run(job_id, source="manual", now=now)
        [claimed] = tx.claim(claimant, cap=CAP)
        run_id, claim_no = claimed.run.run_id, claimed.run.claim_no
        tx.start(run_id, claim_no, now=now, pid=pid, pid_start=start_time(pid), unit=None)
    return run_id


SCENARIOS: dict[str, Scenario] = {
    "job-list-update": job_list_update,
    "writes-during-dispatch": writes_during_dispatch,
    "writers": writers,
    "foreign-hog": foreign_hog,
    "claims": claims,
    "monitor-under-load": monitor_under_load,
    "emits": emits,
}
