"""Each sample of conf/ does what it is for, with a real program at the other end. Its addresses are exchanged for
ones of the test, and nothing else."""

import re
import shutil
import socket
import time
from pathlib import Path

import pytest

from certificates import files_for_examples
from daemon import DEADLINE, PENSTOCKD, wait_until
from peers import KIB
from programs import Server, free_port, peer, run

CONF = Path(__file__).parents[2] / "conf"
ANY_PORT = "127.0.0.1:0"
PAGE = bytes(range(256)) * (3 * KIB)


def sample(name, addresses):
    """The sample with these addresses in place of its own."""
    text = (CONF / f"{name}.conf").read_text()
    for old, new in addresses.items():
        assert f'"{old}"' in text
        text = text.replace(f'"{old}"', f'"{new}"')
    return text


@pytest.fixture
def files(directory):
    """What the samples name, where the daemon's file will be."""
    place = directory / "daemon0"
    place.mkdir()
    files_for_examples(place)
    return place


@pytest.fixture
def web(directory):
    """The address of a web server with one page."""
    root = directory / "root"
    root.mkdir()
    (root / "page").write_bytes(PAGE)
    port = free_port()
    with Server(directory, "python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", root, port, port=port):
        yield f"127.0.0.1:{port}"


def fetch(daemon, name, path="/page", host="cache.example", *arguments, scheme="http"):
    port = daemon.address(name)[1]
    return run("curl", "-sS", "--fail", "--max-time", str(DEADLINE), "--resolve", f"{host}:{port}:127.0.0.1", *arguments,
               f"{scheme}://{host}:{port}{path}")


def test_tls_in_front(start, files, web):
    daemon = start(sample("tls-in-front", {"0.0.0.0:443": ANY_PORT, "127.0.0.1:80": web}))
    assert fetch(daemon, "web", "/page", "cache.example", "--cacert", files / "ca.pem", scheme="https") == PAGE
    peer("curl", "curl", "--version", command="curl https:// through conf/tls-in-front.conf")


def test_tls_towards(start, files, directory):
    port = free_port()
    with Server(directory, "openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", files / "edge.pem", "-key",
                files / "edge.key", "-rev", "-quiet", port=port):
        daemon = start(sample("tls-towards", {"127.0.0.1:6379": ANY_PORT, "cache.example:6380": f"127.0.0.1:{port}"}))
        with socket.create_connection(daemon.address("cache"), DEADLINE) as plain, plain.makefile("rb") as lines:
            plain.sendall(b"olleh\n")
            assert lines.readline() == b"hello\n"
    peer("openssl s_server", "openssl", "version", command="openssl s_server -rev behind conf/tls-towards.conf")


def test_two_sites(start, files, web):
    """Each site is a daemon of its own, with its one of the two tunnels."""
    line = f"127.0.0.1:{free_port()}"
    text = sample("two-sites", {"127.0.0.1:8080": ANY_PORT, "site-a.example:7000": line, "0.0.0.0:7000": line,
                                "127.0.0.1:80": web})
    shutil.copytree(files, files.with_name("daemon1"))
    site_a, site_b = (start(re.sub(rf'(?ms)^tunnel "{other}" \{{.*?^\}}$', "", text)) for other in ("site-b", "site-a"))
    assert fetch(site_b, "site-b") == PAGE
    assert int(site_b.ended("site-b")["down"]) > len(PAGE)
    assert int(site_a.ended("site-a")["down"]) < len(PAGE) / 2, "the line carries it packed"


def test_per_client(start, web):
    """What is more than the burst comes at the rate."""
    daemon = start(sample("per-client", {"0.0.0.0:8080": ANY_PORT, "127.0.0.1:80": web}))
    began = time.monotonic()
    assert fetch(daemon, "downloads") == PAGE
    assert time.monotonic() - began > (len(PAGE) - 256 * KIB) / 1e6 * 0.98


def test_admin_tls(start, files):
    daemon = start(sample("admin-tls", {"0.0.0.0:6443": ANY_PORT}))
    ours = ("--cacert", files / "ca.pem", "--cert", files / "edge.pem", "--key", files / "edge.key")
    assert b'"may_change":true' in fetch(daemon, "admin", "/v1/status", "cache.example", *ours, scheme="https").replace(b" ", b"")
    with pytest.raises(AssertionError):
        fetch(daemon, "admin", "/v1/status", "cache.example", *ours[:2], scheme="https")
    daemon.wait_log("connection ended", tunnel="admin", why="no certificate was sent")


def test_socket_activated(directory, web):
    text = sample("socket-activated", {"127.0.0.1:80": web})
    (directory / "penstock.conf").write_text(text)
    port = free_port()
    with Server(directory, "systemd-socket-activate", "--listen", f"127.0.0.1:{port}", "--fdname", "web", PENSTOCKD, "-c",
                directory / "penstock.conf", port=port):
        got = []

        def is_there():
            got[:] = [run("curl", "-sS", "--max-time", str(DEADLINE), f"http://127.0.0.1:{port}/page")]
            return got == [PAGE]
        wait_until(is_there, "the page")
