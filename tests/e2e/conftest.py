"""Fixtures: a directory that leaves nothing behind, daemons that are always ended, rows for the summary."""

import os
import re
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from chains import has_doubles, stuttered
from daemon import PENSTOCKD, Daemon
from programs import PEERS, write_peers

DAEMONS = pytest.StashKey[list]()
ROWS = []
RAN = set()  # names of tests


def pytest_configure():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if not Path(PENSTOCKD).is_file():
        pytest.exit(f"{PENSTOCKD} does not exist: build it, or set PENSTOCKD", returncode=2)


@pytest.fixture
def directory():
    """A fresh directory with a short name (socket paths are limited), gone after the test."""
    path = Path(tempfile.mkdtemp(prefix="penstock-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def as_before():
    """Threads that a test starts are scheduled as it is (before_others); the next test begins as all do."""
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture
def start(request, directory):
    """start(text, …) gives a running Daemon; after the test all are stopped and must stop well."""
    daemons = request.node.stash.setdefault(DAEMONS, [])

    def start_daemon(text, name=None, **options):
        daemon = Daemon(directory / (name or f"daemon{len(daemons)}"), text, **options)
        daemons.append(daemon)
        return daemon

    yield start_daemon
    complaints = []
    for daemon in daemons:
        try:
            daemon.stop()
        except AssertionError as complaint:
            complaints.append(str(complaint))
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture(params=["as written", "stutter" if has_doubles() else "two workers"] if Path(PENSTOCKD).is_file() else [])
def start_data(request, start):
    """start(text, …) for cases whose matter is the bytes: these run once more with two workers, in a test build also
    with what cuts the bytes at random between all filters."""
    if request.param == "as written":
        return start

    def start_again(text, *arguments, **options):
        text, count = re.subn(r"(?m)^workers = \d+$", "workers = 2", text)
        assert count == 1
        return start(stuttered(text) if has_doubles() else text, *arguments, **options)
    return start_again


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for daemon in item.stash.get(DAEMONS, []):
            if daemon.log_file.exists():
                report.sections.append((f"penstockd {daemon.pid}: configuration", shortened(daemon.text)))
                report.sections.append((f"penstockd {daemon.pid}: log", shortened(daemon.log())))


def shortened(text, most=200):
    lines = text.splitlines()
    if len(lines) > most:
        lines[most // 2:-most // 2] = [f"… {len(lines) - most} lines …"]
    return "\n".join(lines)


def pytest_sessionfinish(session):
    """What each process noted goes to the one that began the run, if there are several (pytest-xdist)."""
    noted = {"rows": ROWS, "peers": list(PEERS.items()), "ran": [item.name.partition("[")[0] for item in getattr(session, "items", [])]}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["noted"] = noted
        return
    RAN.update(noted["ran"])
    if PEERS and not session.testsfailed:
        write_peers(RAN)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    noted = getattr(node, "workeroutput", {}).get("noted")
    if noted:
        ROWS.extend(noted["rows"])
        PEERS.update((tuple(of), version) for of, version in noted["peers"])
        RAN.update(noted["ran"])


@pytest.fixture
def report():
    """report(row) shows a row at the end of the run, also when all went well."""
    return ROWS.append


def pytest_terminal_summary(terminalreporter):
    if ROWS:
        terminalreporter.section("what was seen")
        for row in ROWS:
            terminalreporter.write_line(row)
