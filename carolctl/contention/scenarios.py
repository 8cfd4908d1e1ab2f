"""The scenarios of the contention test: each sets a site up, lets real processes at it, and has it judged."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from carolctl import clock, job_plans
from carolctl.config import Settings
from carolctl.contention import verdicts, worker
from carolctl.contention.crew import WORKER, Crew
from carolctl.contention.cue import Brief
from carolctl.contention.endpoint import SlowEndpoint
from carolctl.contention.figures import Check, Measured, Result, measured, together
from carolctl.contention.site import Site, make_site
from carolctl.finish import claimant_now
from carolctl.launch.owner import start_time
from carolctl.model import Job, Millis
from carolctl.said import Said
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
    return verdicts.of_edits(
        trial.name,
        Measured(milliseconds=milliseconds, failures=failures),
        stored=audited(site.scheduler_db, "edit-job").get("edited", 0),
        locked=locked,
        deadline_ms=trial.deadline_ms,
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
            return verdicts.of_outsider(
                trial.name,
                {name: measured(figures) for name, figures in report.items()},
                stored=_outsiders_rows(site),
                in_flight=(in_flight, wanted),
                completed=(completed, runs),
            )
        finally:
            site.end_runs()


def _databases(site: Site) -> dict[str, str]:
    return {"scheduler": site.scheduler_db, "planner": site.planner_db, "idle": site.idle_db}


def _tick(site: Site, _crew: Crew, _endpoint: SlowEndpoint) -> int:
    site.carolctl("tick")
    return AGENTS


def _outsiders_rows(site: Site) -> int:
    rows = 0
    for path in (site.scheduler_db, site.planner_db):
        with plain_client(path, patience_ms=PATIENCE_MS) as client:
            rows += client.written().get("outsider", 0)
    return rows


# -- many writers ----------------------------------------------------------------------------------------------


def writers(trial: Trial) -> Result:
    """Short writers on one job store, each its share."""
    site = trial.site()
    reports = _write_together(trial, site, lambda: time.sleep(trial.seconds))
    return judged_writers(trial, reports, audited(site.scheduler_db, worker.WRITE), least_share=0.2)


def foreign_hog(trial: Trial) -> Result:
    """The same beside a foreign program that holds the lock nine tenths of the time."""
    site = trial.site()
    with Crew(site.environment) as rival:
        rival.add("hog", path=site.scheduler_db, on_sec=0.09, off_sec=0.01)
        rival.start()
        reports = _write_together(trial, site, lambda: time.sleep(trial.seconds))
        [hogged] = rival.stop()
    held = verdicts.hog_had_the_lock(hogged["held_share"])
    return judged_writers(
        trial, reports, audited(site.scheduler_db, worker.WRITE), least_share=0, also=[held]
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
    return verdicts.of_monitor(trial.name, asked, quiet=quiet, load=load)


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


def judged_writers(
    trial: Trial,
    reports: Sequence[Brief],
    stored: Mapping[str, int],
    *,
    least_share: float,
    also: Sequence[Check] = (),
) -> Result:
    """The verdict on what writers report, against the rows by writer."""
    each = {report["writer"]: measured(report) for report in reports}
    return verdicts.of_writers(
        trial.name, each, stored, deadline_ms=trial.deadline_ms, least_share=least_share, also=also
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
    held = [tuple(span) for report in reports for span in report["held"]]
    return verdicts.of_claims(trial.name, attempts, held, cap=CAP)


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
    return verdicts.of_events(
        trial.name,
        together(measured(report) for report in reports),
        [event for report in reports for event in report["acknowledged"]],
        stored_events(site.scheduler_db),
        killed=sum(report["killed"] for report in reports),
        also=[Check(what="exit code of drain", value=drained, most=0)],
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
