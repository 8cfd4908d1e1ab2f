"""Usage: count_tests.py REPORT.xml...: the counts of pytest runs together, as one plain line."""

import sys
from xml.etree import ElementTree

NAMES = ("tests", "failures", "errors", "skipped")

counts = dict.fromkeys(NAMES, 0)
for path in sys.argv[1:]:
    suite = ElementTree.parse(path).getroot().find("testsuite")
    assert suite is not None
    for name in NAMES:
        counts[name] += int(suite.get(name, 0))
total, failed, errors, skipped = (counts[name] for name in NAMES)
print(f"{total - failed - errors - skipped} passed, {failed + errors} failed, {skipped} skipped")
