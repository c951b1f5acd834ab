"""Certificates that change are taken by themselves: whole pairs only, and never a half-edited configuration."""

import shutil
import socket
import ssl

import pytest

from certificates import Authority
from daemon import DEADLINE, configuration, section, tunnel, wait_until

pytestmark = pytest.mark.sanitize


@pytest.fixture
def pairs(directory):
    """Two certificates for one name, each with its key."""
    authority = Authority(directory)
    return [authority.issue(name, "server.example", file=name) for name in ("first", "second")]


@pytest.fixture
def live(pairs, directory):
    """Where the daemon reads its certificate and key; the first pair is there."""
    places = directory / "live.pem", directory / "live.key"
    for source, place in zip(pairs[0], places):
        replace(source, place)
    return places


def served(daemon):
    """The certificate that the tunnel shows now, as DER."""
    with socket.create_connection(daemon.address("t"), DEADLINE) as sock:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(sock) as client:
            return client.getpeercert(binary_form=True)


def der(certificate):
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def edge(certificate, key):
    return (configuration(tunnel("t", "internal:echo", accept_filters=["tls:edge"])) +
            section("tls", "edge", certificate=certificate, key=key))


def replace(source, target):
    """As renewals do: the new file beside the old one, then over it."""
    fresh = target.with_suffix(".fresh")
    shutil.copy(source, fresh)
    fresh.chmod(0o600)
    fresh.rename(target)


def test_half_a_pair_is_refused_and_the_whole_one_is_taken(start, pairs, live):
    (first, second), (certificate, key) = pairs, live
    daemon = start(edge(certificate, key))
    assert served(daemon) == der(first[0])

    replace(second[0], certificate)
    daemon.wait_log("not reloaded, nothing was changed: ")
    assert served(daemon) == der(first[0])

    replace(second[1], key)
    daemon.wait_log("reloaded")
    assert served(daemon) == der(second[0])
    changed = [line.text for line in daemon.lines() if line.text.endswith("has changed: reloading")]
    assert changed == [f"{certificate} has changed: reloading", f"{key} has changed: reloading"]


def test_a_link_swung_to_another_directory(start, pairs, directory):
    """The files named are links through a link that one rename swings, both at once."""
    live = directory / "live"
    live.mkdir()
    for number, pair in enumerate(pairs):
        (live / f"data{number}").mkdir()
        for source, name in zip(pair, ("cert.pem", "key.pem")):
            replace(source, live / f"data{number}" / name)
    (live / "data").symlink_to("data0")
    for name in ("cert.pem", "key.pem"):
        (live / name).symlink_to(f"data/{name}")
    daemon = start(edge(live / "cert.pem", live / "key.pem"))
    assert served(daemon) == der(pairs[0][0])

    (live / "fresh").symlink_to("data1")
    (live / "fresh").rename(live / "data")
    daemon.wait_log("reloaded")
    assert served(daemon) == der(pairs[1][0])


def test_a_changed_configuration_waits_for_its_operator(start, pairs, live):
    (first, second), (certificate, key) = pairs, live
    daemon = start(edge(certificate, key))
    daemon.write(daemon.text + tunnel("half-edited", "internal:echo"))
    replace(second[0], certificate)
    replace(second[1], key)
    daemon.wait_log(f"{certificate} has changed, and so has {daemon.config}: not taken by itself")
    assert served(daemon) == der(first[0]) and not daemon.find_log("reloaded")

    daemon.reload()
    assert served(daemon) == der(second[0])
    wait_until(lambda: daemon.addresses("half-edited"), "the edited configuration")
