"""What is forecast as one SVG file: a bar a run, the wait before it lighter; text only, no script, nothing fetched.

It says what it is to a screen reader, each bar says its figures when pointed at, and it follows the reader's
choice of light or dark. However much is foreseen, it stays of a size that a browser shows at once: so many lines, and
bars that lie next to each other drawn as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from carolctl import simulation
from carolctl.cli.gantt import moment
from carolctl.cli.heatmap_svg import write_whole
from carolctl.cli.output import safe
from carolctl.clock import iso
from carolctl.model import Millis
from carolctl.outlook import Forecast
from carolctl.simulation import Expected, Outlook

_LEFT, _TOP, _ROW, _WIDTH = 220, 94, 20, 960
_DAY_MS = 86_400_000
MOST_JOBS = 100
_MOST_BARS = 12_000
#: Between marks of the axis, in minutes.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 5760, 10080)


class _Bar(NamedTuple):
    """Something from one instant to another, in words; `number` of its like are drawn as one."""

    kind: str
    begin: int
    end: int
    told: str
    number: int = 1


_STYLE = """
  svg { background: #ffffff; font: 12px system-ui, sans-serif }
  text { fill: #24292f } .head { font-size: 16px; font-weight: 600 } .axis { fill: #57606a }
  line { stroke: #d0d7de } .run { fill: #2171b5 } .wait { fill: #f0a03c } .skip, .cut { fill: #cf222e }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 } text { fill: #e6edf3 } .axis { fill: #9198a1 }
    line { stroke: #30363d } .run { fill: #79c0ff } .wait { fill: #b35900 } .skip, .cut { fill: #ff7b72 }
  }
"""


def write(path: str, found: Forecast) -> None:
    """Write the picture to `path`, whole or not at all; errors as of the heat map."""
    write_whole(path, svg(found))


def svg(found: Forecast) -> str:
    """The document."""
    outlook = found.outlook
    everyone = list(simulation.by_job(outlook).items())
    lines = everyone[:MOST_JOBS]
    width, height = _LEFT + _WIDTH + 48, _TOP + max(1, len(lines)) * _ROW + 68
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img" aria-labelledby="title desc">',
            '<title id="title">Runs that are expected, by job</title>',
            f'<desc id="desc">{_text(_subtitle(found))}</desc>',
            f"<style>{_STYLE}</style>",
            f'<text class="head" x="16" y="28">Expected runs under a cap of {outlook.cap}</text>',
            f'<text class="axis" x="16" y="48">{_text(_subtitle(found))}</text>',
            *_cut(found),
            *_axis(outlook, height),
            *(text for place, line in enumerate(lines) for text in _line(outlook, place, len(lines), *line)),
            *_legend(height),
            *_left_out(len(everyone) - len(lines), height),
            "</svg>\n",
        ]
    )


def _text(value: object) -> str:
    return escape(safe(value))


def _subtitle(found: Forecast) -> str:
    outlook = found.outlook
    running, queued = simulation.running_peak(outlook), simulation.queue_peak(outlook)
    return (
        f"{iso(outlook.begin)} to {iso(outlook.until)}: {len(outlook.starts())} runs; at most {running.count} at"
        f" once, {queued.count} waiting; longest wait {found.longest_wait_ms() // 1000} s"
    )


def _x(outlook: Outlook, at: int) -> float:
    inside = min(max(at, outlook.begin), outlook.until)
    return round(_LEFT + (inside - outlook.begin) * _WIDTH / (outlook.until - outlook.begin), 1)


def _cut(found: Forecast) -> Iterator[str]:
    cut = found.cut()
    if cut:
        yield f'<text class="cut" x="16" y="66">{_text(cut)}</text>'


def _left_out(jobs: int, height: int) -> Iterator[str]:
    if jobs:
        words = f"and {jobs} more jobs (forecast --json shows all)"
        yield f'<text class="axis" x="{_LEFT}" y="{height - 44}">{words}</text>'


def _axis(outlook: Outlook, height: int) -> Iterator[str]:
    span = outlook.until - outlook.begin
    dated = span > _DAY_MS
    most = 9 if dated else 12
    step = next((one for one in _STEPS if span <= most * one * 60_000), _STEPS[-1]) * 60_000
    for at in range(-(-outlook.begin // step) * step, outlook.until + 1, step):
        x = _x(outlook, at)
        yield f'<line x1="{x}" y1="{_TOP - 4}" x2="{x}" y2="{height - 64}"/>'
        told = moment(Millis(at), dated=dated)
        yield f'<text class="axis" x="{x}" y="{_TOP - 8}" text-anchor="middle">{told}</text>'


def _line(
    outlook: Outlook, place: int, lines: int, job_id: str, expected: Sequence[Expected]
) -> Iterator[str]:
    y = _TOP + place * _ROW
    yield f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{_text(job_id[:32])}</text>'
    bars: dict[str, list[_Bar]] = {"skip": [], "wait": [], "run": []}
    for one in expected:
        for bar in _bars(outlook, one):
            bars[bar.kind].append(bar)
    for alike in bars.values():
        for bar in _thinned(outlook, alike, most=max(10, _MOST_BARS // lines // 3)):
            yield _rect(outlook, bar, y, job_id)


def _bars(outlook: Outlook, one: Expected) -> Iterator[_Bar]:
    due = f"due {iso(one.scheduled_for) or 'by hand'}"
    if one.skip_reason is not None:
        slots = f"{one.coalesced} slots to {iso(one.scheduled_for)}" if one.coalesced > 1 else due
        told = f"{slots}, skipped: {one.skip_reason}"
        yield _Bar("skip", one.queued_at, one.skips_until or one.queued_at, told)
        return
    begin = outlook.until if one.start is None else one.start
    if begin - one.queued_at >= 1000:
        ends = f"until {iso(begin)}" if one.start is not None else f"still at {iso(begin)}"
        yield _Bar("wait", one.queued_at, begin, f"{due}, waits {ends}")
    if one.start is not None and one.end is not None and one.start < outlook.until:
        yield _Bar("run", one.start, one.end, f"{due}, runs {iso(one.start)} to {iso(one.end)}")


def _thinned(outlook: Outlook, bars: Sequence[_Bar], *, most: int) -> Iterator[_Bar]:
    """At most so many: where there are more, those that begin in the same part of the line are drawn as one."""
    if len(bars) <= most:
        yield from bars
        return
    span = outlook.until - outlook.begin
    parts: dict[int, list[_Bar]] = {}
    for bar in bars:
        parts.setdefault((max(bar.begin, outlook.begin) - outlook.begin) * most // span, []).append(bar)
    for alike in parts.values():
        first, end = alike[0], max(bar.end for bar in alike)
        yield first if len(alike) == 1 else _Bar(first.kind, first.begin, end, "", len(alike))


def _rect(outlook: Outlook, bar: _Bar, y: int, job_id: str) -> str:
    x = _x(outlook, bar.begin)
    width = max(2.0, round(_x(outlook, bar.end) - x, 1))
    several = f"{bar.number} x {_WORDS[bar.kind]} between {iso(bar.begin)} and {iso(bar.end)}"
    told = f"{job_id}: {bar.told or several}"
    return (
        f'<rect class="{bar.kind}" x="{x}" y="{y + 2}" width="{width}" height="{_ROW - 6}" rx="2">'
        f"<title>{_text(told)}</title></rect>"
    )


_WORDS = {"run": "runs", "wait": "waits for a slot", "skip": "skipped"}


def _legend(height: int) -> Iterator[str]:
    for place, (kind, word) in enumerate(_WORDS.items()):
        x = _LEFT + place * 150
        yield f'<rect class="{kind}" x="{x}" y="{height - 30}" width="16" height="14" rx="2"/>'
        yield f'<text x="{x + 22}" y="{height - 18}">{word}</text>'
