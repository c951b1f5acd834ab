"""Where a tunnel connects to: order, balance, names, failures."""

import socket
import time

import pytest

from daemon import DEADLINE, configuration, preloaded, tunnel, wait_until
from peers import CLIENT_STREAM, ClosedPort, EchoTarget, FullTarget, connect, echoes, is_refused, transfer

pytestmark = pytest.mark.sanitize


def test_refused_moves_on_at_once(start):
    with ClosedPort() as dead, EchoTarget() as target:
        daemon = start(configuration(tunnel("a", [dead.text, "255.255.255.255:9", target.text])))
        assert echoes(daemon.address("a"))
        line = daemon.ended("a")
        assert line["reason"] == "ok" and line["target"] == target.text
        assert int(line["duration_ms"]) < 900


def test_silent_target_moves_on_in_time(start):
    """Each attempt gets its share of the connect timeout, and one second at least."""
    with FullTarget() as silent, EchoTarget() as target:
        daemon = start(configuration(tunnel("a", [silent.text, target.text], timeouts={"connect": "3s"})))
        assert echoes(daemon.address("a"))
        assert 900 <= int(daemon.ended("a")["duration_ms"]) <= 2500


def test_a_failed_target_is_told_once(start):
    """Also where nobody notices, since the next one works and connections have no lines."""
    with ClosedPort() as main, EchoTarget() as other:
        daemon = start(configuration(tunnel("a", [main.text, other.text]), log={"connections": "false", "level": "notice"},
                                     workers=2))
        for _ in range(5):
            assert echoes(daemon.address("a"))
        line = daemon.wait_log("target failed", tunnel="a", target=main.text)
        assert line.level == "warning" and "refused" in line["why"]
        other.close()
        main.sock.listen()
        with connect(daemon.address("a")) as client:
            client.send(10)
            main.sock.accept()[0].close()
        assert daemon.wait_log("target works again", tunnel="a", target=main.text).level == "notice"
        assert daemon.count_log("target failed") <= 2  # the other, perhaps, by now


def test_failed_target_is_tried_last_for_a_while(start):
    with FullTarget() as silent, EchoTarget() as target:
        daemon = start(configuration(tunnel("a", [silent.text, target.text], timeouts={"connect": "2s"})))
        assert echoes(daemon.address("a"))
        assert echoes(daemon.address("a"))
        durations = [int(line["duration_ms"]) for line in daemon.ended("a", 2)]
        assert durations[0] >= 900 and durations[1] < 500, durations


def test_all_targets_fail(start):
    with ClosedPort() as one, ClosedPort() as two:
        daemon = start(configuration(tunnel("a", [one.text, two.text])))
        assert is_refused(daemon.address("a"))
        line = daemon.ended("a")
        assert line["reason"] == "refused" and two.text in line["why"]


def reach(daemon, targets, count):
    """Opens that many connections, one after the other; tells which target each one reached."""
    reached, clients = [], []
    before = [target.connections for target in targets]
    for _ in range(count):
        client = connect(daemon.address("a"), expects=CLIENT_STREAM)
        transfer(client, client, 1)
        clients.append(client)
        now = [target.connections for target in targets]
        reached.append([is_more > was for is_more, was in zip(now, before)].index(True))
        before = now
    return reached, clients


@pytest.mark.parametrize("balance, expected", [("order", [0] * 6), ("round_robin", [0, 1, 2] * 2), ("least", None)])
def test_balance(start, balance, expected):
    targets = [EchoTarget() for _ in range(3)]
    daemon = start(configuration(tunnel("a", [target.text for target in targets], balance=balance)))
    reached, clients = reach(daemon, targets, 6)
    if expected:
        first = reached[0]
        assert reached == ([(first + step) % 3 for step in range(6)] if balance == "round_robin" else expected)
    else:
        assert sorted(reached) == [0, 0, 1, 1, 2, 2], reached
        # Whoever loses its connections is the least loaded, and gets the next ones.
        for client, where in zip(clients, reached):
            if where == 1:
                client.close()
        daemon.ended("a", 2)
        again, more = reach(daemon, targets, 2)
        assert again == [1, 1]
        clients += more
    for client in clients:
        client.close()
    for target in targets:
        target.close()


def test_weights(start):
    targets = [EchoTarget() for _ in range(2)]
    text = tunnel("a", [target.text for target in targets], balance="least")
    daemon = start(configuration(text.replace("balance", "weights = { 1, 3 }  balance"), workers=2))
    _, clients = reach(daemon, targets, 16)
    assert [target.connections for target in targets] == [4, 12]
    for end in (*clients, *targets):
        end.close()


def test_source_keeps_a_client_at_its_target(start):
    """Whatever the client's port, and over a restart."""
    targets = [EchoTarget() for _ in range(3)]
    homes = []
    for _ in range(2):
        daemon = start(configuration(tunnel("a", [target.text for target in targets], balance="source"), workers=2))
        for host in range(1, 25):
            for _ in range(2):
                with socket.create_connection(daemon.address("a"), DEADLINE, (f"127.0.0.{host}", 0)) as client:
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
        homes.append({(line["client"].rpartition(":")[0], line["target"]) for line in daemon.ended("a", 48)})
    assert homes[0] == homes[1] and len(homes[0]) == 24
    assert {target for _, target in homes[0]} == {target.text for target in targets}
    for target in targets:
        target.close()


def test_full_target(start):
    """The next one is tried; who finds room nowhere is refused, and told why."""
    with EchoTarget() as one, EchoTarget() as two:
        daemon = start(configuration(tunnel("a", one.text, backup=[two.text], max_per_target=2)))
        reached, clients = reach(daemon, [one, two], 4)
        assert reached == [0, 0, 1, 1]
        assert is_refused(daemon.address("a"))
        line = daemon.ended("a")
        assert line["reason"] == "admission" and line["ended_by"] == "us" and "max_per_target" in line["why"], line
        clients[0].close()
        daemon.ended("a", reason="ok")
        again, more = reach(daemon, [one, two], 1)
        assert again == [0]
        for client in (*clients, *more):
            client.close()


def test_round_robin_shares_over_workers(start):
    targets = [EchoTarget() for _ in range(2)]
    daemon = start(configuration(tunnel("a", [target.text for target in targets], balance="round_robin"), workers=2))
    _, clients = reach(daemon, targets, 40)
    counts = [target.connections for target in targets]
    assert max(counts) - min(counts) <= 2, counts
    for end in (*clients, *targets):
        end.close()


def test_internal_target_at_its_cap_moves_on(start):
    daemon = start(configuration(
        tunnel("a", ["internal:small", "internal:echo"]),
        tunnel("b", "internal:discard", "internal:small", max_connections=1)))
    with connect(daemon.address("a"), expects=CLIENT_STREAM) as first:
        first.send(10)  # is swallowed
        wait_until(lambda: first.unacknowledged() == 0, "the first connection")
        assert echoes(daemon.address("a"))


def test_host_name(start):
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("a", f"localhost:{target.port}"), workers=2))
        for _ in range(10):  # ::1 refuses, 127.0.0.1 answers
            assert echoes(daemon.address("a"))
        assert all(line["reason"] == "ok" for line in daemon.ended("a", 10))


BOTH_FAMILIES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		(int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
	const struct addrinfo one = { .ai_socktype = SOCK_STREAM };
	if (!name || strcmp(name, "both.example"))
		return real(name, service, hints, found);
	for (int i = 0; i < 9; i++, found = &(*found)->ai_next)
		real(i < 8 ? "::1" : "127.0.0.1", service, &one, found);
	return 0;
}
"""


@pytest.mark.parametrize("ipv6, least_ms, most_ms, reached", [
    (EchoTarget, 0, 200, "IPv6"), (ClosedPort, 0, 200, "IPv4"), (FullTarget, 240, 700, "IPv4")])
def test_families_are_raced(start, directory, ipv6, least_ms, most_ms, reached):
    """RFC 8305: the first family first; the other a quarter of a second later, whatever else the first has, or at
    once where it refuses; and what loses is given up."""
    def at_one_port():
        while True:
            first = ipv6(host="::1")
            try:
                return first, EchoTarget(port=first.port)
            except OSError:  # another's
                first.close()

    v6, v4 = at_one_port()
    with v6, v4:
        daemon = start(configuration(tunnel("a", f"both.example:{v4.port}"), timeouts={"connect": "5s"}),
                       prefix=preloaded(directory, BOTH_FAMILIES))
        sockets = daemon.descriptors("socket:")
        with connect(daemon.address("a"), CLIENT_STREAM) as client:
            began = time.monotonic()
            transfer(client, client, 1000)
            took_ms = 1000 * (time.monotonic() - began)
            assert least_ms <= took_ms <= most_ms * DEADLINE / 15, took_ms
            assert v4.connections == (reached == "IPv4")
            daemon.wait_sockets(sockets + 2)


def test_name_without_an_address(start):
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("a", "nobody.invalid:80"), tunnel("b", ["nobody.invalid:80", target.text]),
                                     timeouts={"connect": "8s"}))
        assert is_refused(daemon.address("a"))
        assert daemon.ended("a")["reason"] in ("resolve", "timeout")
        assert echoes(daemon.address("b"))


def test_first_target_recovers(start):
    """A target that failed a while ago and works again is not forgotten."""
    with ClosedPort() as dead, EchoTarget() as other:
        daemon = start(configuration(tunnel("a", [dead.text, other.text])))
        assert echoes(daemon.address("a"))
        dead.sock.listen(5)
        other.close()  # now only the first one answers
        with connect(daemon.address("a")) as client:
            client.send(10)
            dead.sock.settimeout(5)
            peer = dead.sock.accept()[0]
            assert peer.recv(10)
            peer.close()
