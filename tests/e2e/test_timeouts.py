"""Every deadline: it ends what is silent, and leaves alone what moves."""

import contextlib
import time

import pytest

from certificates import Authority
from daemon import configuration, section, tunnel
from peers import CLIENT_STREAM, KIB, FullTarget, Target, connect, transfer

pytestmark = pytest.mark.sanitize


def expect_timeout(daemon, client, least_ms, most_ms, name="a"):
    """The client is reset, and the log says when and why."""
    client.expect_reset()
    line = daemon.ended(name)
    assert line["reason"] == "timeout" and line["ended_by"] == "us", line
    assert least_ms <= int(line["duration_ms"]) <= most_ms, line
    return line


def test_connect(start):
    with FullTarget() as silent:
        daemon = start(configuration(tunnel("a", silent.text), timeouts={"connect": "1s"}))
        with connect(daemon.address("a")) as client:
            client.expect_reset()
        line = daemon.ended("a")
        assert line["reason"] == "timeout" and 900 <= int(line["duration_ms"]) <= 2500, line


def test_handshake_says_whose_and_which(start, directory):
    """And a client that never came through its own has had no target."""
    certificate, key = Authority(directory).issue("server")
    with Target() as target:
        daemon = start(configuration(tunnel("header", target.text, accept_filters=["proxy_protocol:lb"]),
                                     tunnel("near", target.text, accept_filters=["tls:x"]),
                                     tunnel("far", target.text, connect_filters=["tls:x"]), timeouts={"handshake": "300ms"}) +
                       section("proxy_protocol", "lb", trust=["127.0.0.1"]) +
                       section("tls", "x", certificate=certificate, key=key, verify="none"))
        for name, said in (("header", "the client was not through proxy_protocol"), ("near", "the client was not through tls"),
                           ("far", "the target was not through tls")):
            with connect(daemon.address(name)) as client:
                client.expect_reset()
            line = daemon.ended(name)
            assert line["why"] == f"timeouts: handshake has passed, and {said}", line
            assert line["target"] == (target.text if name == "far" else ""), line


def test_lifetime_ends_a_late_connect(start):
    """The time before the connect counts, too."""
    with FullTarget() as silent:
        daemon = start(configuration(section("proxy_protocol", "told", trust=["127.0.0.0/8"]),
                                     tunnel("a", silent.text, accept_filters=["proxy_protocol:told"]), timeouts={"lifetime": "2100ms"}))
        with connect(daemon.address("a")) as client:
            time.sleep(2.05)  # little of it is left
            client.sock.sendall(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n")
            expect_timeout(daemon, client, 2050, 3500)


def test_first_byte(start):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text), timeouts={"first_byte": "500ms"}))
        with connect(daemon.address("a")) as speaking, target.accept() as peer:
            speaking.send(1)
            with connect(daemon.address("a")) as silent:
                expect_timeout(daemon, silent, 450, 2000)
            transfer(speaking, peer, 1)
            transfer(peer, speaking, 1)


@pytest.mark.parametrize("target_is", ["socket", "pair"])
def test_idle(start, target_is):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text if target_is == "socket" else "internal:echo"),
                                     timeouts={"idle": "1s"}))
        with connect(daemon.address("a"), expects=None) as client:
            for _ in range(4):  # a byte now and then is not idle
                client.send(1)
                time.sleep(0.4)
            expect_timeout(daemon, client, 2100, 4500)


def test_idle_resets_the_target_too(start):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text), timeouts={"idle": "500ms"}))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            transfer(client, peer, 10)
            expect_timeout(daemon, client, 450, 2500)
            peer.expect_reset()


@pytest.mark.parametrize("first_is", ["client", "target"])
def test_half_open(start, first_is):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text), timeouts={"half_open": "1s"}))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            first, other = (client, peer) if first_is == "client" else (peer, client)
            first.send(10)
            first.finish()
            other.expect_fin(first)
            for _ in range(4):  # it counts silence, not age
                other.send(1)
                first.read(1)
                time.sleep(0.4)
            first.expect_reset()
            line = daemon.ended("a")
            assert line["reason"] == "timeout" and 2100 <= int(line["duration_ms"]) <= 4500, line


def test_lifetime(start):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text), timeouts={"lifetime": "1s"}))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            began = time.monotonic()
            while time.monotonic() - began < 0.8:  # busy, yet it ends
                transfer(client, peer, 1000)
                time.sleep(0.05)
            expect_timeout(daemon, client, 1000, 1900)


def test_lifetimes_that_began_together_do_not_end_together(start):
    """Up to a tenth is added to each, another part for another connection."""
    with contextlib.ExitStack() as stack:
        daemon = start(configuration(tunnel("a", "internal:echo"), timeouts={"lifetime": "2s"}, workers=2))
        for _ in range(32):
            stack.enter_context(connect(daemon.address("a")))
        lives = sorted(int(line["duration_ms"]) for line in daemon.ended("a", 32, reason="timeout"))
        assert lives[0] >= 2000 and lives[-1] <= 3500, lives
        assert lives[-1] - lives[0] >= 150 and lives[24] - lives[8] >= 60, lives


def test_a_tunnel_overrides(start):
    daemon = start(configuration(tunnel("a", "internal:echo", timeouts={"idle": "300ms"}), tunnel("b", "internal:echo"),
                                 timeouts={"idle": "10s"}))
    with connect(daemon.address("a")) as short, connect(daemon.address("b"), expects=CLIENT_STREAM) as long:
        expect_timeout(daemon, short, 250, 2000)
        transfer(long, long, 10)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["plain", "chained"])
def test_blocked_but_moving_is_not_idle(start, path):
    """A reader so slow that the sender is blocked most of the time still makes progress."""
    with Target(receive_bytes=16 * KIB) as target:
        tunnels = (tunnel("a", target.text) if path == "plain" else
                   tunnel("a", "internal:b") + tunnel("b", target.text, "internal:b"))
        daemon = start(configuration(tunnels, timeouts={"idle": "2s", "half_open": "2s"}))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            client.fill(0.2)
            began = time.monotonic()
            while time.monotonic() - began < 5:
                peer.read(16 * KIB)
                time.sleep(0.1)
            client.finish()
            began = time.monotonic()
            while time.monotonic() - began < 4:  # half-open now, and still moving
                peer.read(16 * KIB)
                time.sleep(0.1)
            peer.expect_fin(client)


@pytest.mark.parametrize("path", ["plain", "chained"])
def test_blocked_for_good_is_idle(start, path):
    with Target() as target:
        tunnels = (tunnel("a", target.text) if path == "plain" else
                   tunnel("a", "internal:b") + tunnel("b", target.text, "internal:b"))
        daemon = start(configuration(tunnels, timeouts={"idle": "1s"}))
        with connect(daemon.address("a")) as client, target.accept():
            client.fill(0.2)
            client.expect_reset()
            assert daemon.ended("a")["reason"] in ("timeout", "reset")


def test_reset_of_a_side_that_is_not_read(start):
    """The client goes while the target blocks: seen although nobody reads from the client."""
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text)))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            client.fill()
            client.reset()
            peer.expect_reset()
            assert peer.got_bytes <= client.sent_bytes
        daemon.ended("a", reason="reset", ended_by="client")
