"""Reloads by the hundred: under load, with every kind of mistake in between, and what they leave in memory. FULL=1
takes the whole time."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from certificates import Authority
from daemon import DEADLINE, configuration, section, tunnel, wait_until
from peers import KIB, EchoTarget, Target, echoes, size_text
from test_admin import Admin

pytestmark = pytest.mark.slow
FULL = bool(os.environ.get("FULL"))


class Configurations:
    """One after the other, each of which changes something of everything: tunnels, listeners, limits, filters,
    certificates."""

    def __init__(self, directory, target):
        self.directory, self.target = directory, target
        self.authority = Authority(directory)
        self.pairs = [self.authority.issue(f"server{number}", "server.example") for number in range(2)]
        self.authority.revoke()

    def text(self, number, *more, certificate=None, key=None):
        pair = self.pairs[number % 2]
        return configuration(
            tunnel("plain", self.target, backlog=1000 + number % 3, limit="client"),
            tunnel("limited", "internal:echo", limit="each"),
            tunnel("tls", "internal:tls", connect_filters="tls:out"),
            tunnel("tls-in", "internal:echo", listen="internal:tls", accept_filters="tls:edge", limit="client"),
            tunnel("zlib", "internal:zlib", connect_filters="zlib:fast", limit="each"),
            tunnel("zlib-in", "internal:echo", listen="internal:zlib", accept_filters="zlib:fast"),
            tunnel(f"extra{number % 5}", "internal:echo"),
            tunnel("admin", "internal:admin", listen=f"unix:{self.directory}/admin.sock"), *more, workers=2,
            timeouts={"idle": f"{100 + number}s"}, log={"connections": "false"},
        ) + "".join([
            section("tls", "edge", certificate=certificate or pair[0], key=key or pair[1]),
            section("tls", "out", ca=self.authority.certificate, server_name="server.example", crl=self.directory / "crl.pem"),
            section("zlib", "fast", level=1 + number % 3),
            section("limit", "all", rate=f"{40 + number % 7}MB/s"),
            section("limit", "client", parent="all", per="source/32", rate=f"{30 + number % 7}MB/s"),
            section("limit", "each", parent="client", per="connection", rate="10MB/s")])


@pytest.fixture
def configurations(directory):
    with EchoTarget() as target:
        yield Configurations(directory, target.text)


def mistakes(configurations, directory, taken):
    """Names of what goes wrong, each with (text of that number, what the daemon says)."""
    broken, gone = directory / "broken.pem", directory / "gone.key"
    broken.write_text(configurations.pairs[0][0].read_text().replace("M", "N", 40))
    return {
        "a broken certificate": lambda number: (configurations.text(number, certificate=broken), f"{broken}"),
        "the other's key": lambda number: (configurations.text(number, key=configurations.pairs[1 - number % 2][1]), "key"),
        "a file that is not there": lambda number: (configurations.text(number, key=gone), f"{gone}"),
        "a port that is taken": lambda number: (
            configurations.text(number, tunnel("taken", "internal:echo", taken.text)), f"cannot listen on {taken.text}"),
    }


class Elsewhere:
    """A process of its own, so that it does not compete with the test for Python's lock. The code calls is_over(),
    and its result is a number."""

    START = "import itertools, sys, threading\nfrom peers import *\nover = threading.Event()\n" \
            "threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()\nis_over = over.is_set\n"

    def __init__(self, code):
        self._process = subprocess.Popen([sys.executable, "-c", self.START + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def stop(self):
        number, complaint = self._process.communicate(timeout=4 * DEADLINE)
        assert self._process.returncode == 0, complaint
        return int(number)


PUMPING = """
clients = [connect(address, expects=CLIENT_STREAM) for address in {0} * 16]
print(echo_at_random(clients, is_over))
assert all(client.got_bytes for client in clients)
"""
COMING = """
for count, address in enumerate(itertools.cycle({0})):
    if is_over():
        break
    echoes(address, 3000)
print(count)
"""


def test_reloads_under_load(start, configurations, directory, report):
    """64 connections exchange checked bytes, others come and go; nobody sees a reload, whether good or bad."""
    reloads, seconds = (200, 60) if FULL else (24, 7)
    daemon = start(configurations.text(0))
    asked = Admin(daemon, path=directory / "admin.sock")
    names = ("plain", "limited", "tls", "zlib")
    addresses = [daemon.address(name) for name in names]
    refused = 0
    with Target() as taken, Elsewhere(PUMPING.format(addresses)) as pumping, Elsewhere(COMING.format(addresses)) as coming:
        ways = list(mistakes(configurations, directory, taken).values())
        wait_until(lambda: asked.get("/v1/status")["connections"]["open"] >= 64, "the load")
        began = time.monotonic()
        for number in range(1, reloads + 1):
            time.sleep(max(0, began + number * seconds / reloads - time.monotonic()))  # the pace is the task
            if number % 4 == 0:
                text, said = ways[number // 4 % len(ways)](number)
                daemon.write(text)
                status, answer = asked.post("/v1/reload")
                assert status == 409 and said in answer["error"], answer
                refused += 1
            else:
                daemon.write(configurations.text(number))
                assert asked.post("/v1/reload") == (200, {"ok": True})
        took = time.monotonic() - began
        come, moved = coming.stop(), pumping.stop()
    wait_until(lambda: asked.metrics()["penstock_generations"] == 1, "one configuration to be left")
    status = asked.get("/v1/status")
    assert status["generation"] == 1 + reloads - refused and status["reload"]["failed"] == refused
    report(f"{reloads} reloads in {took:.0f} s, {refused} of them refused: 64 connections echoed {size_text(moved)}, "
           f"{come} new ones were served")


def anonymous_bytes(daemon):
    return int(re.search(r"RssAnon:\s+(\d+) kB", daemon.proc("status"))[1]) * KIB


def test_reloads_leave_nothing_in_memory(start, configurations, directory, report):
    """With TLS, limits and connections under each configuration. Less than a MiB in 900 reloads, whole; the short
    run is as strict about what a page for each reload would be."""
    first, last, most = (100, 1000, 1024) if FULL else (50, 200, 512)
    daemon = start(configurations.text(0))
    asked = Admin(daemon, path=directory / "admin.sock")
    before = 0
    for number in range(1, last + 1):
        daemon.write(configurations.text(number))
        assert asked.post("/v1/reload") == (200, {"ok": True})
        if number % 5 == 0:
            assert echoes(daemon.address("tls")) and echoes(daemon.address("limited"))
        if number in (first, last):
            wait_until(lambda: asked.metrics()["penstock_generations"] == 1, "one configuration to be left")
            grown = anonymous_bytes(daemon) - before
            before = anonymous_bytes(daemon)
    report(f"{last - first} reloads: the daemon's own memory grew by {grown / KIB:.0f} KiB")
    assert grown < most * KIB
