"""Certificates that change are taken by themselves: whole pairs only, and never a half-edited configuration."""

import re
import shutil
import socket
import ssl

import pytest

from certificates import Authority
from daemon import DEADLINE, configuration, preloaded, section, tunnel, wait_until
from peers import CLIENT_STREAM, connect, transfer
from programs import run
from test_admin import Admin

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


def with_issuer(pair):
    """Key, certificate and its issuer's certificate as the bytes of one file."""
    certificate, key = pair
    issuer = certificate.with_name("test-CA.pem")
    return key.read_bytes() + certificate.read_bytes() + issuer.read_bytes()


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


def test_links_swung_one_by_one(start, pairs, directory):
    """As certbot does: new files in the archive, then each link is taken away and made anew."""
    archive, live = directory / "archive", directory / "live"
    archive.mkdir()
    live.mkdir()
    names = ("fullchain", "privkey")
    for number, pair in enumerate(pairs, 1):
        for source, name in zip(pair, names):
            replace(source, archive / f"{name}{number}.pem")
    for name in names:
        (live / f"{name}.pem").symlink_to(f"../archive/{name}1.pem")
    daemon = start(edge(*(live / f"{name}.pem" for name in names)))
    for name in names:
        (live / f"{name}.pem").unlink()
        (live / f"{name}.pem").symlink_to(f"../archive/{name}2.pem")
    daemon.wait_log("reloaded")
    assert served(daemon) == der(pairs[1][0])


def test_a_file_that_is_still_being_written_is_not_taken(start, pairs, live):
    """One that holds all, written in place: cut behind a certificate it is right as it stands."""
    (first, second), (place, _) = pairs, live
    place.write_bytes(with_issuer(first))
    daemon = start(edge(place, place))
    whole, cut = with_issuer(second), len(second[1].read_bytes() + second[0].read_bytes())
    with open(place, "wb", buffering=0) as file:
        file.write(whole[:cut])
        daemon.wait_log(f"{place} was written in place and is much shorter than before")
        assert served(daemon) == der(first[0])
        file.write(whole[cut:])
    daemon.wait_log("reloaded")
    assert served(daemon) == der(second[0])


# Stands for a minute: the day is a later one once the file is there.
LATER_DAY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

int
clock_gettime(clockid_t which, struct timespec *now)
{
	static int (*next)(clockid_t, struct timespec *);
	if (!next)
		next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	int result = next(which, now);
	if (which == CLOCK_REALTIME && access("%s", F_OK) == 0)
		now->tv_sec += 61;
	return result;
}
"""


@pytest.mark.parametrize("way", ["time", "reload"])
def test_a_file_that_stays_shorter_is_taken(start, pairs, live, directory, way):
    (first, second), (place, _), later = pairs, live, directory / "later"
    place.write_bytes(with_issuer(first))
    daemon = start(edge(place, place), prefix=preloaded(directory, LATER_DAY % later))
    place.write_bytes(second[1].read_bytes() + second[0].read_bytes())
    daemon.wait_log(f"{place} was written in place and is much shorter than before")
    assert served(daemon) == der(first[0])
    if way == "time":
        later.touch()
        daemon.wait_log("reloaded")
    else:
        daemon.reload()
    assert served(daemon) == der(second[0])
    assert len(daemon.find_log(f"{place} was written in place")) == 1


class Clients:
    """A tunnel that wants certificates of its clients."""

    def __init__(self, start, directory):
        self.authority = Authority(directory)
        self.server = self.authority.issue("server", "server.example")
        self.client_ca, self.crl = directory / "clients.pem", directory / "clients.crl"
        replace(self.authority.certificate, self.client_ca)
        replace(self.authority.revoke(file="none.pem"), self.crl)
        self.daemon = start(configuration(tunnel("t", "internal:echo", accept_filters=["tls:edge"])) + section(
            "tls", "edge", certificate=self.server[0], key=self.server[1], client_ca=self.client_ca, crl=self.crl))

    def comes_in(self, certificate, key):
        """Whether a byte comes back."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(certificate, key)
        with socket.create_connection(self.daemon.address("t"), DEADLINE) as sock:
            try:
                with context.wrap_socket(sock) as client:
                    client.sendall(b"x")
                    return client.recv(1) == b"x"
            except OSError:
                return False


def test_who_is_revoked_stays_outside(start, directory):
    clients = Clients(start, directory)
    one, other = (clients.authority.issue(name, file=name) for name in ("one", "other"))
    assert clients.comes_in(*one) and clients.comes_in(*other)
    replace(clients.authority.revoke(one[0]), clients.crl)
    clients.daemon.wait_log("reloaded")
    assert not clients.comes_in(*one) and clients.comes_in(*other)


def test_whom_a_removed_authority_vouches_for_stays_outside(start, directory):
    clients = Clients(start, directory)
    next_one = Authority(directory, "next CA")
    old, new = clients.authority.issue("old", file="old"), next_one.issue("new", file="new")
    assert clients.comes_in(*old) and not clients.comes_in(*new)
    replace(next_one.revoke(file="next.pem"), clients.crl)
    replace(next_one.certificate, clients.client_ca)
    clients.daemon.wait_log("reloaded")
    assert not clients.comes_in(*old) and clients.comes_in(*new)


def stapled_until(daemon):
    """When the answer that comes with the certificate ends."""
    host, port = daemon.address("t")
    told = run("openssl", "s_client", "-connect", f"{host}:{port}", "-status", data=b"").decode()
    return re.search(r"OCSP Response Status: successful.*Next Update: (.*?)\n", told, re.S)[1]


def test_a_fresh_answer_is_stapled(start, directory):
    authority = Authority(directory)
    certificate, key = authority.issue("server", "server.example")
    staple = directory / "live.ocsp"
    replace(authority.answer(certificate, "seven.ocsp"), staple)
    daemon = start(configuration(tunnel("t", "internal:echo", accept_filters=["tls:edge"])) +
                   section("tls", "edge", certificate=certificate, key=key, ocsp=staple))
    before = stapled_until(daemon)
    replace(authority.answer(certificate, "nine.ocsp", days=9), staple)
    daemon.wait_log("reloaded")
    assert stapled_until(daemon) != before


def test_what_an_operator_has_set_outlives_a_renewal(start, pairs, live, directory):
    """Drained tunnels, values of limits and the level of the log: the file that they differ from has not changed. When it
    is read for its own sake, it counts."""
    (first, second), (certificate, key) = pairs, live
    limits = ('limit "all" { rate = "8MB/s" }\nlimit "each" { parent = "all"  per = "source/32"  rate = "2MB/s" }\n')
    daemon = start(edge(certificate, key) + limits + tunnel("a", "internal:echo", limit="each") +
                   tunnel("b", "internal:echo") + tunnel("admin", "internal:admin", listen=f"unix:{directory}/admin.sock"))
    asked = Admin(daemon, path=directory / "admin.sock")

    def state():
        told = {(one["name"], one["key"]): one["down"]["rate"] for one in asked.get("/v1/limits")["limits"]}
        listening = {one["name"]: one["listen"] for one in asked.get("/v1/tunnels")["tunnels"]}
        return (told["all", ""], told["each", "127.0.0.1/32"], not listening["b"], not listening["a"],
                asked.get("/v1/status")["log"]["level"])

    with connect(daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 1000)
        for path, body in (("limits/all", {"rate": "7MB/s"}), ("limits/each", {"rate": "1MB/s", "key": "127.0.0.1/32"}),
                           ("log-level", {"level": "debug"}), ("tunnels/b/drain", {})):
            assert asked.post(f"/v1/{path}", body)[0] == 200
        set_by_hand = (7_000_000, 1_000_000, True, False, "debug")
        assert state() == set_by_hand
        replace(second[0], certificate)
        replace(second[1], key)
        daemon.wait_log("reloaded")
        assert served(daemon) == der(second[0]) and asked.get("/v1/status")["generation"] == 2
        assert state() == set_by_hand
        assert asked.post("/v1/tunnels/b/undrain")[0] == asked.post("/v1/tunnels/b/drain")[0] == 200
        assert state() == set_by_hand
        daemon.reload()
        assert state() == (8_000_000, 2_000_000, False, False, "info")
        transfer(client, client, 1000)


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
