"""Templates of limits whose key comes with the TLS handshake: a connection moves to its own bucket then."""

import contextlib
import socket
import ssl

import pytest

from certificates import Authority
from daemon import DEADLINE, configuration, section, tunnel

BURST = 16 * 1024


@pytest.fixture
def authority(directory):
    return Authority(directory)


def open_tls(daemon, authority, name=None, certificate=None):
    context = ssl.create_default_context(cafile=authority.certificate)
    context.check_hostname = False
    if certificate:
        context.load_cert_chain(*certificate)
    sock = socket.create_connection(daemon.address("a"), timeout=DEADLINE)
    return context.wrap_socket(sock, server_hostname=name)


def exchange(client, count=12000):
    client.sendall(bytes(count))
    left = count
    while left:
        piece = client.recv(left)
        if not piece:
            raise ConnectionError("closed")
        left -= len(piece)


def waited(daemon, client, number):
    """Whether the connection with that number, which ends here, waited for a limit on the way up."""
    exchange(client)
    # unwrap() would wait for the answer; the daemon is content with a close_notify.
    with contextlib.suppress(OSError):
        client.unwrap()
    client.close()
    daemon.ended("a", number)
    return "limit" in daemon.find_log("connection ended")[-1]["up_wait"]


def limits(per):
    return (section("limit", "uplink", up="100MB/s") +
            section("limit", "own", parent="uplink", per=per, up="5kB/s", burst=f"{BURST}B"))


@pytest.mark.sanitize
def test_by_server_name(start, authority):
    """Each name has a bucket; no name is a name, too."""
    certificate, key = authority.issue("server", "a.example", "b.example")
    daemon = start(configuration(limits("sni"), section("tls", "edge", certificate=certificate, key=key),
                                 tunnel("a", "internal:echo", accept_filters=["tls:edge"], limit="own"), workers=2))
    order = [("a.example", False), ("b.example", False), (None, False), ("A.example", True), (None, True)]
    for number, (name, late) in enumerate(order, 1):
        assert waited(daemon, open_tls(daemon, authority, name), number) == late, (number, name)


@pytest.mark.sanitize
def test_by_certificate(start, authority):
    certificate, key = authority.issue("server", "a.example")
    daemon = start(configuration(limits("certificate"),
                                 section("tls", "edge", certificate=certificate, key=key,
                                         client_ca=authority.certificate, verify="optional"),
                                 tunnel("a", "internal:echo", accept_filters=["tls:edge"], limit="own"), workers=2))
    one, two = authority.issue("one"), authority.issue("two")
    order = [(one, False), (two, False), (None, False), (one, True), (None, True)]
    for number, (who, late) in enumerate(order, 1):
        assert waited(daemon, open_tls(daemon, authority, "a.example", who), number) == late, (number, who)


@pytest.mark.sanitize
def test_most_names_of_a_template(start, authority):
    """A name for which there is no place is refused, and does not go by the limits above."""
    certificate, key = authority.issue("server", "a.example", "b.example")
    own = section("limit", "own", per="sni", rate="5kB/s", burst=f"{BURST}B", max_nodes=1)
    daemon = start(configuration(own, section("tls", "edge", certificate=certificate, key=key),
                                 tunnel("a", "internal:echo", accept_filters=["tls:edge"], limit="own"), workers=2))
    with open_tls(daemon, authority, "a.example") as first, open_tls(daemon, authority, "a.example") as again:
        exchange(first, 1)
        exchange(again, 1)
        with open_tls(daemon, authority, "b.example") as other, pytest.raises(OSError):
            exchange(other, 1)
        assert "most of 1 nodes" in daemon.ended("a", reason="admission")["why"]
