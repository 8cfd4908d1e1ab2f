"""Running the contention test: scratch folder, one scenario after the other, the verdict on the whole."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from carolctl.contention.figures import Measured, Result, judge
from carolctl.contention.scenarios import SCENARIOS, Scenario, Trial
from carolctl.contention.site import scratch_folder
from carolctl.errors import Refused, UsageError
from carolctl.lockguard import require_unlocked

_SET_UP_SEC = 1.0
_SET_UP_EACH_SEC = 0.05
"""What a scenario takes beside its own time: for a rough word beforehand, measured on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for; `chosen` empty means every scenario."""

    writers: int
    seconds: float
    deadline_ms: int
    chosen: tuple[str, ...] = ()
    broken: bool = False

    def scenarios(self) -> dict[str, Scenario]:
        """The scenarios to run, in their order. Raises `UsageError` for an unknown name."""
        known = _known(broken=self.broken)
        unknown = [name for name in self.chosen if name not in known]
        if unknown:
            raise UsageError(
                f"no such scenario: {unknown[0][:80]!r}", field="--scenario", hint=", ".join(known)
            )
        return {name: known[name] for name in known if name in self.chosen or not self.chosen}

    def about_sec(self) -> int:
        """About how long it will take, in seconds."""
        each = self.seconds + _SET_UP_SEC + self.writers * _SET_UP_EACH_SEC
        return round(each * len(self.scenarios()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it; `toothless` are the broken designs that passed."""

    passed: bool
    results: tuple[Result, ...]
    elapsed_sec: float
    toothless: tuple[str, ...] = ()


def run(options: Options, *, data_home: str, scratch: str | None, announce: Callable[[str], None]) -> Report:
    """Run the scenarios; `announce` is told the name of each beforehand.

    Raises what `scratch_folder` raises, and KeyboardInterrupt, also for SIGTERM and SIGHUP, with nothing left behind.
    """
    require_unlocked("running the contention test")
    began = time.monotonic()
    results = []
    with _ended_by_any_signal(), scratch_folder(data_home, scratch) as folder:
        for name, scenario in options.scenarios().items():
            announce(name)
            trial = Trial(
                name=name,
                folder=folder,
                writers=options.writers,
                seconds=options.seconds,
                deadline_ms=options.deadline_ms,
            )
            results.append(_result(scenario, trial, broken=options.broken))
    toothless = tuple(result.name for result in results if options.broken and result.passed)
    return Report(
        passed=not options.broken and all(result.passed for result in results),
        results=tuple(results),
        elapsed_sec=time.monotonic() - began,
        toothless=toothless,
    )


def _known(*, broken: bool) -> Mapping[str, Scenario]:
    if not broken:
        return SCENARIOS
    # Nothing but --broken ever loads the wrong designs.
    from carolctl.contention.broken import BROKEN

    return BROKEN


def _result(scenario: Scenario, trial: Trial, *, broken: bool) -> Result:
    """The verdict; a child that died is one too, but no proof that a broken design was found out."""
    try:
        return scenario(trial)
    except Refused as trouble:
        if broken:
            raise
        return replace(judge(trial.name, Measured(), []), reason=trouble.message)


_SIGNALS: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _ended_by_any_signal() -> Iterator[None]:
    """The first signal that asks us to end is a KeyboardInterrupt; a second one does not disturb the clearing up."""

    def interrupt(_number: int, _frame: object) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    heeded = [one for one in _SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
    before = {one: signal.signal(one, interrupt) for one in heeded}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
