"""Who may connect, and how many: refused at once, counted, logged."""

import contextlib
import re
import socket

import pytest

from daemon import configuration, tunnel, wait_until
from peers import CLIENT_STREAM, EchoTarget, Peer, echoes, is_refused, transfer

pytestmark = pytest.mark.sanitize


def connect_from(source, address):
    sock = socket.create_connection(address, timeout=10, source_address=(source, 0))
    return Peer(sock, CLIENT_STREAM, CLIENT_STREAM)


def is_refused_from(source, address):
    try:
        with connect_from(source, address) as client:
            return client.read_to_end() == "RST"
    except OSError:
        return True


def hold(stack, address, count=1, source="127.0.0.1"):
    """Connections that are through, kept until the stack is closed."""
    for _ in range(count):
        client = stack.enter_context(connect_from(source, address))
        transfer(client, client, 1)


def test_allow_and_deny(start):
    daemon = start(configuration(tunnel("a", "internal:echo", allow=["127.0.0.0/24"], deny=["127.0.0.64/26", "127.0.0.5"])))
    address = daemon.address("a")
    for source, fits in (("127.0.0.1", True), ("127.0.0.4", True), ("127.0.0.5", False), ("127.0.0.64", False),
                         ("127.0.0.127", False), ("127.0.0.128", True), ("127.0.1.1", False)):
        if fits:
            with connect_from(source, address) as client:
                transfer(client, client, 10)
        else:
            assert is_refused_from(source, address), source
    refused = daemon.wait_log("connection refused", 4, tunnel="a")
    assert {line["client"].rpartition(":")[0] for line in refused} == {"127.0.0.5", "127.0.0.64", "127.0.0.127", "127.0.1.1"}
    assert all(line["reason"] == "admission" for line in refused)


def test_deny_ipv6(start):
    daemon = start(configuration(tunnel("a", "internal:echo", "[::1]:0", deny=["::/0"]), tunnel("b", "internal:echo", "[::1]:0", allow=["::1"])))
    assert is_refused(daemon.address("a"))
    assert echoes(daemon.address("b"))


def test_refusals_of_many_clients_are_capped_and_counted(start):
    """The log of one tunnel's refusals does not grow with those who knock; nor does it hide another's."""
    daemon = start(configuration(*(tunnel(name, "internal:echo", deny=["127.0.0.0/8"]) for name in "ab")))
    for number in range(200):
        assert is_refused_from(f"127.0.1.{number + 1}", daemon.address("a"))
    assert is_refused_from("127.0.1.1", daemon.address("b"))
    wait_until(lambda: daemon.count_log("connection refused") == 201, "all to be told")
    assert len(daemon.find_log("connection refused", tunnel="a")) < 200
    assert daemon.find_log("left out", tunnel="a") and not daemon.find_log("left out", tunnel="b")
    assert daemon.find_log("connection refused", tunnel="b")


@pytest.mark.parametrize("workers", [1, 2])
def test_max_connections_of_a_tunnel(start, workers):
    daemon = start(configuration(tunnel("a", "internal:echo", max_connections=5), tunnel("b", "internal:echo"), workers=workers))
    for _ in range(3):
        ended = len(daemon.find_log("connection ended", tunnel="a"))
        with contextlib.ExitStack() as stack:
            hold(stack, daemon.address("a"), 5)
            for _ in range(3):
                assert is_refused(daemon.address("a"))
            assert echoes(daemon.address("b"))
        daemon.ended("a", ended + 5)
    wait_until(lambda: daemon.count_log("connection refused") == 9, "nine refusals")
    assert all(line["reason"] == "admission" for line in daemon.find_log("connection refused", tunnel="a"))


@pytest.mark.parametrize("workers", [1, 2])
def test_max_connections_of_all(start, workers):
    daemon = start(configuration(tunnel("a", "internal:echo"), tunnel("b", "internal:echo"), workers=workers, max_connections=4))
    with contextlib.ExitStack() as stack:
        hold(stack, daemon.address("a"), 2)
        hold(stack, daemon.address("b"), 2)
        assert is_refused(daemon.address("a")) and is_refused(daemon.address("b"))
    daemon.ended("b", 2)
    daemon.ended("a", 2)
    assert echoes(daemon.address("a"))


def test_as_many_as_there_are_descriptors_for(start):
    """The limit of descriptors is taken up to its hard end; all who are let in find one for their target, too."""
    with EchoTarget() as target, contextlib.ExitStack() as stack:
        daemon = start(configuration(tunnel("a", target.text), workers=2), prefix=["prlimit", "--nofile=200:400"])
        assert re.search(r"^Max open files +400 +400 ", daemon.proc("limits"), re.M)
        served = 0
        with pytest.raises((ConnectionError, AssertionError)):
            while served < 400:
                hold(stack, daemon.address("a"))
                served += 1
        refused = daemon.wait_log("connection refused", tunnel="a")
        assert refused["why"].startswith("max_connections: the daemon has "), refused
        assert (400 - 64) / 2 - 40 < served < (400 - 64) / 2
        assert not daemon.count_log("out of descriptors")


@pytest.mark.parametrize("workers", [1, 2])
def test_max_per_source(start, workers):
    daemon = start(configuration(tunnel("a", "internal:echo", max_per_source=2), workers=workers))
    address = daemon.address("a")
    with contextlib.ExitStack() as stack:
        hold(stack, address, 2)
        assert is_refused_from("127.0.0.1", address)
        hold(stack, address, 2, "127.0.0.2")
        assert is_refused_from("127.0.0.2", address)
    daemon.ended("a", 4)
    assert echoes(address)


def test_max_new_per_source(start):
    daemon = start(configuration(tunnel("a", "internal:echo", max_new_per_source="5/min")))
    address = daemon.address("a")
    for _ in range(5):
        assert echoes(address)
    for _ in range(3):
        assert is_refused(address)
    with connect_from("127.0.0.2", address) as other:
        transfer(other, other, 10)


def test_new_connections_are_let_in_again(start):
    daemon = start(configuration(tunnel("a", "internal:echo", max_new_per_source="2/s")))
    address = daemon.address("a")
    assert echoes(address) and echoes(address) and is_refused(address)
    wait_until(lambda: not is_refused_echo(address), "the next second")


def is_refused_echo(address):
    try:
        return not echoes(address)
    except (OSError, AssertionError):
        return True


def test_caps_change_by_reload(start):
    daemon = start(configuration(tunnel("a", "internal:echo", max_connections=1)))
    with contextlib.ExitStack() as stack:
        hold(stack, daemon.address("a"))
        assert is_refused(daemon.address("a"))
        daemon.reload(configuration(tunnel("a", "internal:echo", max_connections=2)))
        hold(stack, daemon.address("a"))
        assert is_refused(daemon.address("a"))  # who was there before is counted on


@pytest.mark.parametrize("before, left", [({"max_per_source": 100}, 4), ({"max_new_per_source": "10/s"}, 3), ({"max_new_per_source": "8/d"}, 2)])
def test_a_rate_that_changes_by_reload(start, before, left):
    """What a source had of the old one it has of the new one, in proportion; where there was none it has all."""
    daemon = start(configuration(tunnel("a", "internal:echo", **before)))
    address = daemon.address("a")
    for _ in range(3 if "8/d" in before.values() else 1):
        assert echoes(address)
    daemon.reload(configuration(tunnel("a", "internal:echo", max_new_per_source="4/h")))
    for _ in range(left):
        assert echoes(address)
    assert is_refused(address)
