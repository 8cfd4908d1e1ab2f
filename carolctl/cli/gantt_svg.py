"""What is forecast as one SVG file: a bar a run, the wait before it lighter; text only, no script, nothing fetched.

It says what it is to a screen reader, each bar says its figures when pointed at, and it follows the reader's
choice of light or dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from carolctl import simulation
from carolctl.cli.heatmap_svg import write_whole
from carolctl.cli.output import safe
from carolctl.clock import iso
from carolctl.outlook import Forecast
from carolctl.simulation import Expected, Outlook

_LEFT, _TOP, _ROW, _WIDTH = 220, 76, 20, 960
_HOUR_MS = 3_600_000

_STYLE = """
  svg { background: #ffffff; font: 12px system-ui, sans-serif }
  text { fill: #24292f } .head { font-size: 16px; font-weight: 600 } .axis { fill: #57606a }
  line { stroke: #d0d7de } .run { fill: #2171b5 } .wait { fill: #f0a03c } .skip { fill: #cf222e }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 } text { fill: #e6edf3 } .axis { fill: #9198a1 }
    line { stroke: #30363d } .run { fill: #79c0ff } .wait { fill: #b35900 } .skip { fill: #ff7b72 }
  }
"""


def write(path: str, found: Forecast) -> None:
    """Write the picture to `path`, whole or not at all; errors as of the heat map."""
    write_whole(path, svg(found))


def svg(found: Forecast) -> str:
    """The document."""
    outlook = found.outlook
    lines = list(simulation.by_job(outlook).items())
    width, height = _LEFT + _WIDTH + 24, _TOP + max(1, len(lines)) * _ROW + 48
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img" aria-labelledby="title desc">',
            '<title id="title">Runs that are expected, by job</title>',
            f'<desc id="desc">{_text(_subtitle(found))}</desc>',
            f"<style>{_STYLE}</style>",
            f'<text class="head" x="16" y="28">Expected runs under a cap of {outlook.cap}</text>',
            f'<text class="axis" x="16" y="48">{_text(_subtitle(found))}</text>',
            *_hours(outlook, height),
            *(text for place, line in enumerate(lines) for text in _line(outlook, place, *line)),
            *_legend(height),
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


def _hours(outlook: Outlook, height: int) -> Iterator[str]:
    step = max(1, -(-(outlook.until - outlook.begin) // (12 * _HOUR_MS))) * _HOUR_MS
    for at in range(-(-outlook.begin // step) * step, outlook.until + 1, step):
        x = _x(outlook, at)
        yield f'<line x1="{x}" y1="{_TOP - 4}" x2="{x}" y2="{height - 44}"/>'
        yield f'<text class="axis" x="{x}" y="{_TOP - 8}" text-anchor="middle">{(iso(at) or "")[11:16]}Z</text>'


def _line(outlook: Outlook, place: int, job_id: str, expected: Sequence[Expected]) -> Iterator[str]:
    y = _TOP + place * _ROW
    yield f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{_text(job_id[:32])}</text>'
    for one in expected:
        due = f"{job_id}: due {iso(one.scheduled_for) or 'by hand'}"
        if one.skip_reason is not None:
            yield _bar(outlook, "skip", one.queued_at, one.queued_at, y, f"{due}, skipped: {one.skip_reason}")
            continue
        begin = outlook.until if one.start is None else one.start
        if begin - one.queued_at >= 1000:
            yield _bar(outlook, "wait", one.queued_at, begin, y, f"{due}, waits until {iso(begin)}")
        if one.start is not None and one.end is not None and one.start < outlook.until:
            yield _bar(
                outlook, "run", one.start, one.end, y, f"{due}, runs {iso(one.start)} to {iso(one.end)}"
            )


def _bar(outlook: Outlook, kind: str, begin: int, end: int, y: int, told: str) -> str:
    x = _x(outlook, begin)
    width = max(2.0, round(_x(outlook, end) - x, 1))
    return (
        f'<rect class="{kind}" x="{x}" y="{y + 2}" width="{width}" height="{_ROW - 6}" rx="2">'
        f"<title>{_text(told)}</title></rect>"
    )


def _legend(height: int) -> Iterator[str]:
    for place, (kind, word) in enumerate(
        (("run", "runs"), ("wait", "waits for a slot"), ("skip", "skipped"))
    ):
        x = _LEFT + place * 150
        yield f'<rect class="{kind}" x="{x}" y="{height - 30}" width="16" height="14" rx="2"/>'
        yield f'<text x="{x + 22}" y="{height - 18}">{word}</text>'
