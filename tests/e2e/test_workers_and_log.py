"""What the log tells, and how connections are shared by workers."""

import os
import re
import socket

import pytest

from daemon import DEADLINE, configuration, expect_shares, json_lines, section, shares, tunnel, wait_until
from peers import CLIENT_STREAM, KIB, MIB, ClosedPort, EchoTarget, Target, connect, echoes, is_refused, transfer

pytestmark = pytest.mark.sanitize

@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{directory}/sock"])
def test_eight_long_connections_on_two_workers(start, directory, listen):
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("a", target.text, listen.replace("{directory}", str(directory))), workers=2))
        clients = []
        for _ in range(8):
            client = connect(daemon.address("a"), expects=CLIENT_STREAM)
            transfer(client, client, 100)
            clients.append(client)
        for client in clients:
            client.finish()
            client.expect_fin(client)
        workers = [line["worker"] for line in daemon.ended("a", 8)]
        assert sorted(workers) == ["0"] * 4 + ["1"] * 4


def test_both_ends_of_a_pair_on_one_worker(start):
    daemon = start(configuration(tunnel("a", "internal:b"), tunnel("b", "internal:echo", "internal:b"), workers=2))
    for _ in range(10):
        assert echoes(daemon.address("a"))
    lines = {name: {line["client"]: line["worker"] for line in daemon.ended(name, 10)} for name in "ab"}
    assert lines["a"] == lines["b"], "another worker, or another client address"
    assert len(lines["a"]) == 10


@pytest.mark.parametrize("path", ["plain", "bulk", "chained", "slow reader", "dead"])
def test_wait_shares_add_up(start, path):
    with Target(receive_bytes=64 * KIB) as target:
        tunnels = tunnel("a", target.text)
        if path == "chained":
            tunnels = tunnel("a", "internal:b") + tunnel("b", target.text, "internal:b")
        if path == "dead":
            tunnels = tunnel("a", "255.255.255.255:9")
        daemon = start(configuration(tunnels))
        if path == "dead":
            assert is_refused(daemon.address("a"))
        else:
            with connect(daemon.address("a")) as client, target.accept() as peer:
                transfer(client, peer, 20 * MIB if path == "bulk" else 1000)
                if path == "slow reader":
                    client.fill(1)
                client.finish()
                peer.expect_fin(client)
                peer.finish()
                client.expect_fin(peer)
        line = daemon.ended("a")
        expect_shares(line)
        if path == "slow reader":
            assert shares(line["up_wait"])["far writable"] > 50, line["up_wait"]


def test_waits_show_through_internal_names(start):
    """The first tunnel of a chain names what the last one waits for."""
    with Target(receive_bytes=64 * KIB) as target:
        daemon = start(configuration(tunnel("a", "internal:b"), tunnel("b", target.text, "internal:b")))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            client.fill(1)
            client.finish()
            peer.expect_fin(client)
        for name in "ab":
            assert shares(daemon.ended(name)["up_wait"]).get("far writable", 0) > 50, daemon.ended(name)["up_wait"]


def test_closing_line(start):
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("a", target.text), tunnel("b", target.text)))
        for number, name in enumerate("aab", 1):
            assert echoes(daemon.address(name), 1234)
            line = daemon.ended(name, connection=number)
            assert (line["up"], line["down"], line["reason"], line["target"]) == ("1234", "1234", "ok", target.text)
            assert line.level == "info" and re.fullmatch(r"127\.0\.0\.1:\d+", line["client"])
            assert 0 <= int(line["duration_ms"]) < 5000


def test_each_connection_has_its_line(start):
    """However many end in a second, and however alike they are."""
    daemon = start(configuration(tunnel("a", "internal:echo"), workers=2))
    for _ in range(100):
        assert echoes(daemon.address("a"), 1)
    lines = daemon.ended("a", count=100)
    assert sorted(int(line["connection"]) for line in lines) == list(range(1, 101))
    assert all(line.text == "connection ended" for line in lines)


def test_every_line_has_the_shape(start):
    daemon = start(configuration(tunnel("a", "internal:echo"), tunnel("b", "255.255.255.255:9"), log={"level": "debug"}))
    assert echoes(daemon.address("a")) and is_refused(daemon.address("b"))
    daemon.ended("b")
    daemon.reload("nonsense = 1", expect="not reloaded")
    daemon.stop()
    for line in daemon.lines():
        assert line.is_ours, line


def test_json(start, directory):
    path = directory / "log"
    start(configuration(tunnel("a", "internal:echo"), tunnel("b", "unix:/no \\\"way\\\""),
                        log={"format": "json", "target": f"file:{path}"}), wait=False)
    lines = lambda: json_lines(path.read_text()) if path.exists() else []
    wait_until(lambda: [line for line in lines() if "ready" in line.values()], "ready")
    ports = {line["tunnel"]: int(line["address"].rpartition(":")[2]) for line in lines() if "address" in line}
    assert set(ports) == {"a", "b"}
    assert echoes(("127.0.0.1", ports["a"]))
    assert is_refused(("127.0.0.1", ports["b"]))
    ended = wait_until(lambda: [line for line in lines() if "connection ended" in line.values()][1:], "closing lines") and {
        line["tunnel"]: line for line in lines() if "up" in line}
    assert ended["a"]["up"] == 1000 and ended["a"]["reason"] == "ok"  # numbers are numbers
    assert ended["b"]["reason"] == "refused" and ended["b"]["target"] == 'unix:/no "way"'


def test_started_without_standard_streams(start, directory):
    """None of what it opens takes their places, so no line is written into a connection."""
    path = directory / "log"
    daemon = start(configuration(tunnel("a", "internal:echo"), log={"target": f"file:{path}"}), wait=False,
                   prefix=["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-'])
    wait_until(lambda: path.exists() and " ready " in path.read_text(), "ready")
    assert [os.readlink(f"/proc/{daemon.pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3


def test_quiet_and_level(start):
    daemon = start(configuration(tunnel("a", "internal:echo"), log={"connections": "false"}))
    assert echoes(daemon.address("a"))
    daemon.reload(configuration(tunnel("a", "internal:echo"), log={"level": "info"}))
    assert echoes(daemon.address("a"))
    daemon.ended("a")
    assert len(daemon.find_log("connection ended")) == 1


def test_a_tunnel_says_which_of_its_connections_are_lines(start, directory):
    """Also for those that its front, which knows no tunnel yet, refuses or gives up."""
    with ClosedPort() as closed:
        rows = {level: {"log_connections": level, "deny": "127.0.0.9"} for level in ("all", "failed", "none")}
        daemon = start(configuration(*(tunnel(f"{level}-{kind}", "internal:echo" if kind == "good" else closed.text, **row)
                                       for level, row in rows.items() for kind in ("good", "bad")),
                                     *(tunnel(f"{level}-front", "internal:echo", accept_filters=["proxy_protocol:x"], **row)
                                       for level, row in rows.items()),
                                     section("proxy_protocol", "x", trust=["127.0.0.1"])))
        for level in rows:
            assert echoes(daemon.address(f"{level}-good"))
            assert is_hung_up_on(daemon.address(f"{level}-good"), "127.0.0.9", b"")
            assert is_refused(daemon.address(f"{level}-bad"))
            assert is_hung_up_on(daemon.address(f"{level}-front"), "127.0.0.1", b"no header")
        daemon.signal(15)
        daemon.wait_exit()
        told = [(line["tunnel"], line.get("reason")) for line in daemon.find_log("connection ")]
        assert sorted(told) == sorted([("all-good", "ok"), ("all-good", "admission"), ("failed-good", "admission"),
                                       ("all-bad", "refused"), ("failed-bad", "refused"),
                                       ("all-front", "protocol"), ("failed-front", "protocol")]), told


def is_hung_up_on(address, source, said):
    try:
        with socket.create_connection(address, DEADLINE, (source, 0)) as client:
            client.sendall(said)
            return not client.recv(1)
    except ConnectionError:
        return True
