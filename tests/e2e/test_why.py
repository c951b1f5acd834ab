"""Why is it slow? Each situation is built, and the sentence and the shares must tell it."""

import re
import socket
import subprocess
import threading
import time

import pytest

from daemon import DEADLINE, configuration, preloaded, section, tunnel, wait_until
from peers import FullTarget, Target, connect
from test_admin import Admin

pytestmark = [pytest.mark.sanitize, pytest.mark.slow]


@pytest.fixture
def asked(start, directory):
    def start_daemon(*tunnels, prefix=(), **options):
        text = configuration(*tunnels, tunnel("admin", "internal:admin", listen=f"unix:{directory}/admin.sock"), **options)
        return Admin(start(text, prefix=prefix), path=directory / "admin.sock")
    return start_daemon


def one(asked, name="a"):
    """Everything of the only connection of that tunnel."""
    number = asked.connections(tunnel=name)[0]["id"]
    return asked.get(f"/v1/connections/{number}")


def share(sentence):
    return int(re.search(r"(\d+) % of the last [\d.]+ s", sentence)[1])


def settle(asked, text, least=80, name="a"):
    """The first report whose sentence begins so, with at least that share."""
    def found():
        report = one(asked, name)
        return report["why"].startswith(text) and share(report["why"]) >= least and report
    try:
        return wait_until(found, text, DEADLINE)
    except AssertionError as late:
        raise AssertionError(f"{late}; it says: {one(asked, name)['why']}") from None


class Feeder:
    """Sends for ever, as fast as it is let."""

    def __init__(self, sock):
        self.sock, self.thread = sock, threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            while True:
                self.sock.sendall(bytes(65536))
        except OSError:
            pass


class Drain(Feeder):
    """Reads for ever."""

    def _run(self):
        try:
            while self.sock.recv(262144):
                pass
        except OSError:
            pass


def test_the_client_reads_slowly(asked):
    admin = asked(tunnel("a", "internal:chargen"))
    with socket.create_connection(admin.daemon.address("a")) as client:
        client.recv(1000)
        report = settle(admin, "the client reads slowly: ")
        assert report["down"]["waits_for"] == "near writable" and report["down"]["for_s"] > 0.05
        assert report["down"]["recent_shares"]["near writable"] > 0.75
        assert report["near_tcp"]["unsent_bytes"] > 0


def test_the_target_reads_slowly(asked):
    with Target() as target:
        admin = asked(tunnel("a", target.text))
        with socket.create_connection(admin.daemon.address("a")) as client:
            Feeder(client)
            with target.accept():
                report = settle(admin, "the target reads slowly: ")
                assert report["up"]["waits_for"] == "far writable"


def test_the_target_sends_slowly(asked):
    with Target() as target:
        admin = asked(tunnel("a", target.text))
        with connect(admin.daemon.address("a")) as client, target.accept() as far:
            for _ in range(8):
                far.send(1000)
                client.read(1000)
                time.sleep(0.05)
            settle(admin, "the target sends slowly: ")


def test_idle(asked):
    admin = asked(tunnel("a", "internal:echo"))
    with socket.create_connection(admin.daemon.address("a")):
        wait_until(lambda: one(admin)["why"].startswith("idle: no byte in either direction"), "the word idle")


@pytest.mark.parametrize("rows", [{}, {"accept_filters": ["zlib"]}, {"accept_filters": ["proxy_protocol:told"]}])
def test_slow_connect(asked, rows):
    with FullTarget() as target:
        admin = asked(tunnel("a", target.text, **rows), section("proxy_protocol", "told", trust=["127.0.0.0/8"]))
        with socket.create_connection(admin.daemon.address("a")) as client:
            client.sendall(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n")
            report = settle(admin, "the target is slow to answer: ")
            assert report["why"].endswith(f"connecting to {target.text}") and report["state"] == "dialling"


SLOW_RESOLVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		(int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
	if (!name || strcmp(name, "far.example"))
		return real(name, service, hints, found);
	while (access("%s", F_OK))
		usleep(10000);
	return real("127.0.0.1", service, hints, found);
}
"""


def test_slow_resolver(asked, directory):
    """A name that is answered for only when the test says so."""
    with Target() as target:
        admin = asked(tunnel("a", f"far.example:{target.port}"), prefix=preloaded(directory, SLOW_RESOLVER % (directory / "go")))
        with connect(admin.daemon.address("a")) as client:
            report = settle(admin, "the resolver is slow: ")
            assert report["why"].endswith(f"waiting for the address of far.example:{target.port}"), report["why"]
            assert report["state"] == "dialling" and report["up"]["waits_for"] == "resolver"
            (directory / "go").touch()
            with target.accept() as far:
                far.send(1000)
                client.read(1000)


@pytest.mark.alone
def test_a_busy_worker(asked):
    """Eight others have the one worker compress all the time; who comes between them is told so."""
    rows = {"accept_filters": ["zlib:small"]}
    admin = asked(section("zlib", "small", level=9), tunnel("a", "internal:chargen", **rows),
                  tunnel("others", "internal:chargen", **rows))
    clients = [socket.create_connection(admin.daemon.address(name)) for name in ["others"] * 8 + ["a"]]
    for client in clients:
        Drain(client)
    report = settle(admin, "worker 0 is busy: ", least=30)
    assert report["why"].endswith("waiting for its turn") and report["down"]["recent_shares"]["turn"] > 0.3
    for client in clients:
        client.close()


def test_slow_handshake(asked, directory):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x",
                    "-keyout", directory / "key", "-out", directory / "certificate"], check=True, capture_output=True)
    section = f'tls "edge" {{ certificate = "{directory}/certificate" key = "{directory}/key" }}\n'
    admin = asked(section, tunnel("a", "internal:echo", accept_filters=["tls:edge"]))
    with socket.create_connection(admin.daemon.address("a")):
        report = settle(admin, "the handshake with the client is slow: ")
        assert report["state"] == "opening" and report["up"]["waits_for"] == "handshake"


@pytest.mark.parametrize("limit, name, rate, raised", [
    ("all", "all", "400kB/s", (None, None)),
    ("group", "all", "400kB/s", (900_000_000, "group")),
    ("each", 'each" of 127.0.0.1/32', "300kB/s", (400_000, "all")),
    ("one", 'one" of ', "200kB/s", (300_000, "each")),
])
def test_each_level_of_a_limit(asked, limit, name, rate, raised):
    limits = ('limit "all" { rate = "400kB/s" }\n'
              'limit "group" { parent = "all" rate = "900MB/s" }\n'
              'limit "each" { parent = "group" per = "source/32" rate = "300kB/s" }\n'
              'limit "one" { parent = "each" per = "connection" rate = "200kB/s" }\n')
    admin = asked(tunnel("a", "internal:chargen", limit=limit), limits)
    with socket.create_connection(admin.daemon.address("a")) as client:
        Drain(client)
        report = settle(admin, "throttled ", least=70)
        why = wait_until(lambda: "limit" in (said := one(admin)["why"]) and "(" in said and said, "a limit's name")
        assert re.match(rf'throttled \d+ % of the last [\d.]+ s by limit "{re.escape(name)}.*\({rate}\)', why), why
        assert report["down"]["recent_shares"]["limit"] > 0.7
        # What it is good for to raise that one, as long as it is that one.
        flow = wait_until(lambda: (flow := one(admin)["down"])["limit_active"] and flow, "it to wait for the limit")
        assert flow["limit_rate"] == int(rate[:3]) * 1000 and flow["limit_active"] == 1
        assert (flow["raised_to_at_most"], flow["raised_then"]) == raised


def test_a_shared_limit_tells_how_many_share_it(asked):
    admin = asked(tunnel("a", "internal:chargen", limit="all"), 'limit "all" { rate = "600kB/s" }\n')
    clients = [socket.create_connection(admin.daemon.address("a")) for _ in range(3)]
    for client in clients:
        Drain(client)
    wait_until(lambda: "(600kB/s shared by 3 active connections)" in admin.connections(tunnel="a")[0]["why"],
               "the three of them")
    assert all("throttled" in told["why"] for told in admin.connections(sort="wait", tunnel="a"))
    for client in clients:
        client.close()


def test_a_limit_behind_a_pair(asked):
    admin = asked(tunnel("a", "internal:b"), tunnel("b", "internal:chargen", listen="internal:b", limit="all"),
                  'limit "all" { rate = "300kB/s" }\n')
    with socket.create_connection(admin.daemon.address("a")) as client:
        Drain(client)
        settle(admin, "throttled ", least=70, name="b")
        report = settle(admin, "throttled ", least=50)
        why = wait_until(lambda: "behind" in (said := one(admin)["why"]) and said, "whose limit it is")
        assert 'by limit "all" (300kB/s, behind the pair)' in why, why
        assert report["down"]["recent_shares"]["limit"] > 0.5


def test_the_last_ten_seconds_and_the_whole_life(asked):
    """First it is throttled, then idle: the window forgets, the life does not."""
    admin = asked(tunnel("a", "internal:echo"))
    with socket.create_connection(admin.daemon.address("a")) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        wait_until(lambda: one(admin)["recent_s"] >= 9.5, "ten seconds")
        report = one(admin)
        assert report["recent_s"] <= 12
        for flow, wait in (("up", "near readable"), ("down", "far readable")):
            assert report[flow]["recent_shares"][wait] > 0.99 and report[flow]["shares"][wait] > 0.95


def test_shares_are_what_was_done(asked):
    """A client that reads nothing for a known time, then all: the share of that time is known."""
    with Target() as target:
        admin = asked(tunnel("a", target.text))
        with connect(admin.daemon.address("a"), receive_bytes=65536) as client, target.accept() as far:
            began = time.monotonic()
            time.sleep(1)
            far.send_in_background(16 << 20)
            wait_until(lambda: one(admin)["down"]["waits_for"] == "near writable", "the client to be full")
            full = time.monotonic()
            time.sleep(3)
            before = one(admin)
            blocked = time.monotonic() - full
            life = time.monotonic() - began
            told = before["down"]["shares"]["near writable"]
            assert abs(told - blocked / life) < 0.05, (told, blocked / life)
            client.read(16 << 20)
            far.join_sender()
