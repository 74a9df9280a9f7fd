"""The table at the end of `make peers`: of each original the case that came nearest to its budget."""

from typing import Any

from parity_tests.peers.originals import version_of

HEADS = ("peer", "version", "dtype", "cases", "beyond", "worst deviation", "its budget", "share", "case")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found: dict[tuple[str, str], list[list[Any]]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            noted = dict(report.user_properties)
            if report.when == "call" and "worst" in noted:
                found.setdefault((str(noted["peer"]), str(noted["dtype"])), []).append(list(noted["worst"]))
    if not found:
        return
    rows: list[tuple[str, ...]] = [HEADS]
    for (peer, dtype), worsts in sorted(found.items()):
        share, relative, allowed, number = max(worsts)
        beyond = sum(worst[0] > 1.0 for worst in worsts)
        numbers = (len(worsts), beyond, f"{relative:.1e}", f"{allowed:.1e}", f"{share:.3f}", number)
        rows.append((peer, version_of(peer), dtype, *map(str, numbers)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    terminalreporter.section("originals and recipes, step for step")
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        terminalreporter.write_line("  ".join(cells).rstrip())
