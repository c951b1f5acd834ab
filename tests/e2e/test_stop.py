"""TERM and INT drain, then stop; a second one stops at once; USR1 reopens the log file."""

import re
import signal
import time
from pathlib import Path

import pytest

from certificates import Authority
from daemon import configuration, section, tunnel, wait_until
from peers import CLIENT_STREAM, KIB, EchoTarget, Target, connect, echoes, is_closed, transfer

pytestmark = pytest.mark.sanitize


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_at_once_when_nothing_is_open(start, number):
    daemon = start(configuration(tunnel("a", "internal:echo"), workers=2))
    assert echoes(daemon.address("a"))
    daemon.signal(number)
    assert daemon.wait_exit() == 0


@pytest.mark.parametrize("chained", [False, True])
def test_drains(start, chained):
    with EchoTarget() as target:
        tunnels = (tunnel("a", "internal:b") + tunnel("b", target.text, "internal:b")) if chained else tunnel("a", target.text)
        daemon = start(configuration(tunnels, workers=2))
        address = daemon.address("a")
        clients = [connect(address, expects=CLIENT_STREAM) for _ in range(4)]
        for client in clients:
            transfer(client, client, 10)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: is_closed(address), "the listeners to be closed")
        for client in clients:
            transfer(client, client, 100 * KIB)
            client.finish()
            client.expect_fin(client)
            assert daemon.is_running() or client is clients[-1]
            client.close()
        assert daemon.wait_exit() == 0


def test_drain_passes(start):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text), timeouts={"drain": "1s"}))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            transfer(client, peer, 10)
            daemon.signal(signal.SIGTERM)
            began = time.monotonic()
            client.expect_reset()
            peer.expect_reset()
            assert 0.9 < time.monotonic() - began < 4
            assert daemon.wait_exit() == 0
        assert daemon.ended("a")["reason"] == "stopped"


def test_drain_of_a_tunnel(start):
    """Each tunnel's own: shorter than the daemon's, longer, and without end."""
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("brief", target.text, timeouts={"drain": "500ms"}), tunnel("plain", target.text),
                                     tunnel("long", target.text, timeouts={"drain": "1h"}),
                                     tunnel("endless", target.text, timeouts={"drain": "0"}), timeouts={"drain": "5s"}, workers=2))
        names = ("brief", "plain", "long", "endless")
        clients = {name: connect(daemon.address(name), expects=CLIENT_STREAM) for name in names}
        for client in clients.values():
            transfer(client, client, 10)
        daemon.signal(signal.SIGTERM)
        began = time.monotonic()
        clients["brief"].expect_reset()
        assert 0.4 < time.monotonic() - began < 4.9
        transfer(clients["plain"], clients["plain"], 10)
        clients["plain"].expect_reset()
        assert 4.9 < time.monotonic() - began < 9
        for name in ("long", "endless"):
            transfer(clients[name], clients[name], 10)
            clients[name].finish()
            clients[name].expect_fin(clients[name])
            clients[name].close()
        assert daemon.wait_exit() == 0
        assert [daemon.ended(name)["reason"] for name in names] == ["stopped", "stopped", "ok", "ok"]


def test_drain_in_force_counts(start):
    """Of a connection from before a reload: what its tunnel says now, or if that is gone, what the daemon says."""
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("a", target.text), tunnel("b", target.text), timeouts={"drain": "1h"}))
        with connect(daemon.address("a"), expects=CLIENT_STREAM) as a, connect(daemon.address("b"), expects=CLIENT_STREAM) as b:
            transfer(a, a, 10)
            transfer(b, b, 10)
            daemon.reload(configuration(tunnel("a", target.text, timeouts={"drain": "500ms"}), timeouts={"drain": "1s"}))
            daemon.signal(signal.SIGTERM)
            a.expect_reset()
            b.expect_reset()
            assert daemon.wait_exit() == 0


def test_second_term_stops_at_once(start):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text)))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            transfer(client, peer, 10)
            daemon.signal(signal.SIGTERM)
            daemon.wait_log("draining")
            assert daemon.is_running()
            began = time.monotonic()
            daemon.signal(signal.SIGTERM)
            assert daemon.wait_exit() == 0
            assert time.monotonic() - began < 2
            client.expect_reset()
            peer.expect_reset()


def test_term_while_a_reload_takes_its_time(start, directory):
    """The thread that loads is left behind, in the middle of its certificates."""
    certificate = Authority(directory).certificate.read_bytes()
    good = configuration(tunnel("a", "internal:echo"))
    for _ in range(2):
        daemon = start(good)
        (daemon.config.parent / "many.pem").write_bytes(certificate * 400)
        daemon.write(good + "".join(section("tls", f"t{number}", ca="many.pem") for number in range(4000)))
        daemon.signal(signal.SIGHUP)
        tasks = Path(f"/proc/{daemon.pid}/task")
        wait_until(lambda: any("loader" in (task / "comm").read_text() for task in tasks.iterdir()), "the reload to begin")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0
        assert not daemon.find_log("reloaded") + daemon.find_log("not reloaded")


def test_many_terms(start):
    """However often and whenever it comes, TERM never does more than ask for the end."""
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text), tunnel("b", "internal:echo"), workers=2))
        with connect(daemon.address("a")) as client, target.accept() as peer, connect(daemon.address("b")):
            transfer(client, peer, 10)
            while daemon.is_running():
                daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0


def test_term_while_starting(start):
    """From the reading of the configuration on; before that no program can help it."""
    def holds_or_handles_term(daemon):
        masks = re.findall(r"Sig(?:Blk|Cgt):\s+([0-9a-f]+)", daemon.proc("status"))
        return any(int(mask, 16) & 1 << (signal.SIGTERM - 1) for mask in masks)

    for _ in range(8):
        daemon = start(configuration(tunnel("a", "internal:echo"), workers=2), wait=False)
        wait_until(lambda: holds_or_handles_term(daemon), "main to begin")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0


def test_waiting_clients_are_served_before_the_drain(start):
    """Who is in the kernel's queue when TERM comes is accepted, not reset."""
    daemon = start(configuration(tunnel("a", "internal:echo"), workers=2))
    daemon.signal(signal.SIGSTOP)
    clients = [connect(daemon.address("a"), expects=CLIENT_STREAM) for _ in range(20)]
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGCONT)
    for client in clients:
        transfer(client, client, 10)
        client.close()
    assert daemon.wait_exit() == 0


def test_no_worker_is_empty_while_another_hands_over(start, directory):
    """One worker accepts all that waits at a UNIX socket; what it hands over is drained, too."""
    daemon = start(configuration(tunnel("a", "internal:echo", f"unix:{directory}/sock"), workers=2))
    daemon.signal(signal.SIGSTOP)
    clients = [connect(f"{directory}/sock", expects=CLIENT_STREAM) for _ in range(20)]
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGCONT)
    daemon.wait_log("draining")
    clients = clients[::2] + clients[1::2]  # those of one worker, then those of the other
    for client in list(clients):
        for other in clients:
            transfer(other, other, 10)
        clients.remove(client)
        client.finish()
        client.expect_fin()
        client.close()
    assert daemon.wait_exit() == 0


def test_usr1_reopens_the_log_file(start, directory):
    daemon = start(configuration(tunnel("a", "internal:echo"), log={"target": "stderr"}))
    path, moved = directory / "log", directory / "log.1"
    daemon.write(configuration(tunnel("a", "internal:echo"), log={"target": f"file:{path}"}))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: path.exists() and "reloaded" in path.read_text(), "the log in its file")
    path.rename(moved)
    assert echoes(daemon.address("a"))
    wait_until(lambda: "connection ended" in moved.read_text(), "the line in the moved file")
    daemon.signal(signal.SIGUSR1)
    wait_until(path.exists, "a new file")
    assert echoes(daemon.address("a"))
    wait_until(lambda: "connection ended" in path.read_text(), "the line in the new file")
    assert moved.read_text().count("connection ended") == 1
