"""Says at the end how many inputs were tried, and how they ended."""

from tests.hardening.ends import SEEN


def pytest_terminal_summary(terminalreporter):
    for kind, seen in sorted(SEEN.items()):
        found = ", ".join(f"{count} {end}" for end, count in seen.most_common())
        terminalreporter.write_line(f"tried: {kind}: {seen.total()} ({found})")
