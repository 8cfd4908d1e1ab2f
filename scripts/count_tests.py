"""Usage: count_tests.py REPORT.xml: the counts of a pytest run, as one plain line."""

import sys
from xml.etree import ElementTree

suite = ElementTree.parse(sys.argv[1]).getroot().find("testsuite")
assert suite is not None
total, failed, errors, skipped = (
    int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
)
print(f"{total - failed - errors - skipped} passed, {failed + errors} failed, {skipped} skipped")
