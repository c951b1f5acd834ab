"""Several tunnels on one address: who gets in where, by what the client says, and not a byte of it lost."""

import contextlib
import json
import os
import socket
import subprocess
import time

import pytest

from certificates import Authority
from daemon import DEADLINE, PENSTOCKCTL, configuration, section, tunnel, wait_until
from peers import MIB, EchoTarget, Target, client_hello as hello
from programs import Server, free_port, peer, program, run
from proxy_header import Header, version_1, version_2
from test_admin import Admin

pytestmark = pytest.mark.sanitize

RECORD_HEAD = 5


def in_records(said, size):
    """The same hello in records of so many bytes."""
    body = said[RECORD_HEAD:]
    return b"".join(b"\x16\3\1" + len(body[at:at + size]).to_bytes(2, "big") + body[at:at + size] for at in range(0, len(body), size))


@pytest.fixture
def address():
    return "127.0.0.1", free_port()


def text(address):
    return f"{address[0]}:{address[1]}"


def dial(address, source="127.0.0.1"):
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE)
        sock.connect(address)
        return sock
    return socket.create_connection(address, timeout=DEADLINE, source_address=(source, 0))


def ask(address, said, source="127.0.0.1", end=True):
    """What comes back; None for a reset."""
    data = b""
    try:
        with dial(address, source) as sock:
            with contextlib.suppress(BrokenPipeError):
                sock.sendall(said)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                data += piece
    except OSError as error:
        assert not isinstance(error, TimeoutError), f"no answer to {said[:40]}"
        return None
    return data


def lead(daemon, address, tunnels, said, **options):
    """The tunnel that these bytes lead to; the echo behind it must return them as they are."""
    before = {name: len(daemon.find_log("connection ended", tunnel=name)) for name in tunnels}
    answer = ask(address, said, **options)
    if answer is None:
        return None
    assert answer == said
    return wait_until(lambda: next((name for name in tunnels if len(daemon.find_log("connection ended", tunnel=name)) > before[name]),
                                   None), "a connection's end")


NAMES = ("exact", "below", "protocol", "rest")


def choosing(address, rest=True, **options):
    listen = text(address)
    return configuration(
        tunnel("rest" if rest else "elsewhere", "internal:echo", listen if rest else "127.0.0.1:0"),
        tunnel("exact", "internal:echo", listen, match={"sni": ["a.example", "www.a.example"]}),
        tunnel("below", "internal:echo", listen, match={"sni": ["*.a.example"]}),
        tunnel("protocol", "internal:echo", listen, match={"sni": ["*"], "alpn": ["h2", "imap"]}), **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_first_fit(start, address, workers):
    daemon = start(choosing(address, workers=workers))
    for said, expected in ((hello("a.example"), "exact"), (hello("WWW.A.example"), "exact"), (hello("b.a.example"), "below"),
                           (hello("c.b.a.example", ["h2"]), "below"), (hello("b.example", ["http/1.1", "imap"]), "protocol"),
                           (hello("b.example", ["http/1.1"]), "rest"), (hello("b.example"), "rest"), (hello(), "rest"),
                           (hello(protocols=["h2"]), "rest"), (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "rest"),
                           (b"\x16", "rest"), (hello("a.example")[:100], "rest"), (b"", "rest"), (b"SSH-2.0-x\r\n", "rest")):
        assert lead(daemon, address, NAMES, said) == expected, said
    assert all(line["reason"] == "ok" for line in daemon.find_log("connection ended"))


def test_hello_in_pieces(start_data, address):
    """Byte by byte, in records, with much behind it: the target gets it as it was said."""
    daemon = start_data(choosing(address))
    said = hello("a.example", ["h2"]) + os.urandom(2 * MIB)
    assert lead(daemon, address, NAMES, said) == "exact"
    for size in (1, 3, 100):
        assert lead(daemon, address, NAMES, in_records(hello("b.a.example"), size) + b"more") == "below"
    pieces = hello("a.example")
    with dial(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in pieces:
            sock.sendall(bytes([byte]))
        got = b""
        while len(got) < len(pieces):
            got += sock.recv(65536)
        assert got == pieces
    shares = daemon.ended("exact", 2)[-1]["up_wait"]
    assert "choice" in shares


def test_unsound_hello_is_refused(start, address):
    daemon = start(choosing(address))
    sound = hello("a.example")
    for bad in (sound[:9] + b"\2" + sound[10:], sound[:RECORD_HEAD + 1] + b"\1\0\0" + sound[RECORD_HEAD + 4:],
                in_records(sound, 400)[:405] + b"\x17\3\3\0\1x", in_records(sound, 10)[:15] + b"\x16\3\1\0\0"):
        assert ask(address, bad + bytes(100)) is None
        assert daemon.wait_log("connection ended", reason="protocol", tunnel="exact|below|protocol|rest")["why"].startswith("ClientHello")
    assert ask(address, b"\x16\3\1\x40\0\1\0\x3f\xfc" + bytes(20000)) is None


def test_nobody_fits(start, address, directory):
    """Refused, counted and logged."""
    path = directory / "admin.sock"
    daemon = start(choosing(address, rest=False) + tunnel("admin", "internal:admin", f"unix:{path}"))
    for number, said in enumerate((hello("b.example"), hello(), b"GET / HTTP/1.1\r\n\r\n", b""), 1):
        assert ask(address, said) is None
        line = daemon.ended("exact|below|protocol", number)
        line = line[-1] if number > 1 else line
        assert line["reason"] == "admission" and "no tunnel wants" in line["why"]
        assert line["why"].endswith(("asks for b.example", "asks for no name", "does not speak TLS", "does not speak TLS")[number - 1])
    assert lead(daemon, address, NAMES, hello("a.example")) == "exact"
    refused = {name: count for name, count in Admin(daemon, path=path).metrics().items()
               if name.startswith("penstock_connections_refused_total") and count}
    assert refused == {'penstock_connections_refused_total{tunnel="exact|below|protocol",reason="match"}': 4}, refused


def test_deadline_until_the_choice(start, address):
    """The global handshake timeout, whatever the tunnels' own are; what they wait for is the choice."""
    listen = text(address)
    daemon = start(configuration(tunnel("a", "internal:echo", listen, match={"sni": ["a"]}, timeouts={"handshake": "1h"}),
                                 tunnel("b", "internal:echo", listen, timeouts={"handshake": "1h"}), timeouts={"handshake": "400ms"}))
    for said in (b"", hello("a")[:-1]):
        began = time.monotonic()
        assert ask(address, said, end=False) is None
        assert 0.3 < time.monotonic() - began < DEADLINE / 2
    for line in daemon.ended("a|b", 2):
        assert line["reason"] == "timeout" and line["up_wait"].startswith("choice ")
        assert line["why"].endswith("had not said enough to choose its tunnel"), line


def test_source(start, address):
    """By source alone nobody is kept waiting for a hello: whoever is spoken to first gets his greeting."""
    listen = text(address)
    with Target() as greeter:
        daemon = start(configuration(
            tunnel("near", greeter.text, listen, match={"source": ["127.0.0.2", "127.0.0.16/28"]}),
            tunnel("named", "internal:echo", listen, match={"sni": ["a"], "source": ["127.0.0.3"]}),
            tunnel("rest", "internal:discard", listen)))
        for source in ("127.0.0.2", "127.0.0.17"):
            with dial(address, source) as client, greeter.accept() as server:
                server.sock.sendall(b"220 hello\r\n")
                assert client.recv(100) == b"220 hello\r\n"
        said = hello("a")
        assert ask(address, said, source="127.0.0.3") == said
        assert ask(address, b"x", source="127.0.0.3") == ask(address, said, source="127.0.0.4") == b""
        daemon.ended("near", 2)
        daemon.ended("rest", 2)
        assert len(daemon.find_log("connection ended", tunnel="named")) == 1


def test_told_source(start, address):
    """One header for all of the group, run once; then the choice is about the client that it tells, and so
    are the chosen tunnel's rules."""
    listen = text(address)
    trusting = section("proxy_protocol", "in", trust=["127.0.0.1"])
    sending = section("proxy_protocol", "out", version=2)
    filters = {"accept_filters": ["proxy_protocol:in"], "connect_filters": ["proxy_protocol:out"]}
    with Target() as target:
        daemon = start(configuration(
            trusting, sending,
            tunnel("inside", target.text, listen, match={"source": ["10.0.0.0/8"]}, deny=["10.6.6.6"], max_per_source=1, **filters),
            tunnel("named", target.text, listen, match={"sni": ["a.example"]}, **filters),
            tunnel("rest", target.text, listen, **filters)))
        server = ("203.0.113.1", 443)
        for name, source, said in (("inside", "10.1.2.3", b"hello"), ("named", "203.0.113.9", hello("a.example")),
                                   ("rest", "203.0.113.9", hello("b.example")), ("inside", "10.1.2.3", hello("a.example"))):
            for header in (version_1((source, 5), server), version_2((source, 5), server, checksum=True)):
                with dial(address) as client:
                    client.sendall(header + said)
                    with target.accept(expects=None) as far:
                        assert Header(far.sock).source == (source, 5)
                        client.shutdown(socket.SHUT_WR)
                        assert b"".join(iter(lambda: far.sock.recv(65536), b"")) == said
                daemon.ended(name)
        assert ask(address, version_1(("10.6.6.6", 5), server)) is None
        assert "deny" in daemon.ended("inside", reason="admission")["why"]
        with dial(address) as client:
            client.sendall(version_1(("10.1.2.3", 5), server))
            with target.accept():
                assert ask(address, version_1(("10.1.2.3", 6), server)) is None
        assert ask(address, hello("a.example")) is None  # no header
        assert ask(address, version_1(("10.1.2.3", 5), server), source="127.0.0.2") is None


def test_caps_of_the_chosen(start, address):
    listen = text(address)
    daemon = start(configuration(tunnel("a", "internal:echo", listen, match={"sni": ["a"]}, max_connections=1),
                                 tunnel("b", "internal:echo", listen, max_connections=2), max_connections=3))
    with contextlib.ExitStack() as stack:
        def hold(said):
            sock = stack.enter_context(dial(address))
            sock.sendall(said)
            assert sock.recv(1)
        hold(hello("a"))
        assert ask(address, hello("a")) is None
        assert "the tunnel has 1" in daemon.ended("a|b")["why"]
        hold(b"x")
        hold(b"x")
        assert ask(address, b"x") is None
        assert "the daemon has 3" in daemon.wait_log("connection refused", tunnel="a|b")["why"]
    said = hello("a")
    wait_until(lambda: ask(address, said) == said, "a free place")
    wait_until(lambda: ask(address, b"y") == b"y", "a free place")


@pytest.mark.parametrize("alone", [True, False])
def test_what_was_looked_at_is_charged(start, address, alone):
    """The chosen tunnel's limit counts the hello, too, before it lets anything on."""
    limit = section("limit", "slow", up="20kB/s", burst="8KiB")
    others = [] if alone else [tunnel("rest", "internal:echo", text(address))]
    daemon = start(configuration(limit, tunnel("a", "internal:echo", text(address), match={"sni": ["a"]}, limit="slow"), *others))
    said = hello("a", ["p" * 200 + str(number) for number in range(50)]) + bytes(10000)
    assert 20000 < len(said) < 22000
    began = time.monotonic()
    assert ask(address, said) == said
    assert time.monotonic() - began > (len(said) - 8192) / 20000 - 0.05
    assert "limit" in daemon.ended("a")["up_wait"]


def test_what_was_looked_at_is_counted_with_the_choice(start, address, directory):
    """By the tunnel that gets the client; what nobody wanted, by the tunnels that share the address."""
    sock = f"{directory}/admin.sock"
    daemon = start(choosing(address, rest=False) + tunnel("admin", "internal:admin", f"unix:{sock}"))
    said = hello("a.example") + bytes(1000)
    assert lead(daemon, address, NAMES, said) == "exact"
    assert ask(address, hello("b.example")) is None
    told = json.loads(run(PENSTOCKCTL, "--socket", sock, "--json", "tunnels"))["tunnels"]
    read = {one["name"]: one["bytes"]["near_up"] for one in told}
    assert read["exact"] == len(said) and read["exact|below|protocol"] == len(hello("b.example")), read


def test_limit_of_the_told_source(start, address):
    """A header's bytes count, and each client that it tells has a bucket of its own."""
    limit = section("limit", "slow", per="source/32", up="20kB/s", burst="8KiB")
    trusting = section("proxy_protocol", "in", trust=["127.0.0.1"])
    daemon = start(configuration(limit, trusting, tunnel("a", "internal:echo", text(address), accept_filters=["proxy_protocol:in"], limit="slow")))
    said = bytes(7000)
    for source, waits in (("10.0.0.1", False), ("10.0.0.2", False), ("10.0.0.1", True)):
        began = time.monotonic()
        assert ask(address, version_1((source, 1), ("10.9.9.9", 2)) + said) == said
        assert (time.monotonic() - began > 0.2) == waits
    assert daemon.ended("a", 3)[-1]["up_wait"].startswith("limit ")


@pytest.mark.parametrize("kind", ["internal", "unix"])
def test_other_addresses(start, directory, kind):
    """The same over a pair, and over a UNIX socket."""
    listen = "internal:x" if kind == "internal" else f"unix:{directory}/x"
    groups = [tunnel("a", "internal:echo", listen, match={"sni": ["a"]}), tunnel("b", "internal:echo", listen, match={"source": ["127.0.0.2", "uid:0"]}),
              tunnel("c", "internal:echo", listen)]
    outer = [tunnel("outer", listen)] if kind == "internal" else []
    daemon = start(configuration(*groups, *outer, workers=2))
    address = daemon.address("outer") if outer else f"{directory}/x"
    assert lead(daemon, address, "abc", hello("a")) == "a"
    assert lead(daemon, address, "abc", b"x") == ("b" if kind == "unix" and os.getuid() == 0 else "c")
    if outer:
        assert lead(daemon, address, "abc", b"x", source="127.0.0.2") == "b"
    assert lead(daemon, address, "abc", b"") in ("b", "c")


def test_reload(start, address):
    """Tunnels come to an address and leave it; the socket stays, and so do connections."""
    listen = text(address)
    alone = tunnel("a", "internal:echo", listen)
    by_name = tunnel("b", "internal:discard", listen, match={"sni": ["b.example"]})
    daemon = start(configuration(alone))
    with dial(address) as held:
        held.sendall(b"x")
        assert held.recv(1) == b"x"
        said = hello("b.example")
        assert ask(address, said) == said
        daemon.reload(configuration(alone, by_name))
        assert ask(address, said) == b""
        assert ask(address, b"x") == b"x"
        daemon.reload(configuration(by_name))
        assert ask(address, b"x") is None
        daemon.reload(configuration(alone))
        assert ask(address, b"x") == b"x"
        held.sendall(b"y")
        assert held.recv(1) == b"y"


def test_half_a_hello_costs_no_target(start, address):
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("a", target.text, text(address), match={"sni": ["a.example"]})))
        said = hello("a.example")
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(dial(address)).sendall(said[:200])
            assert ask(address, said) == said
        daemon.ended("a", 100, reason="admission")
        assert target.connections == 1


# --- real peers

@pytest.fixture
def authority(directory):
    return Authority(directory)


@contextlib.contextmanager
def s_server(directory, certificate, key):
    port = free_port()
    with Server(directory, "openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificate, "-key", key, "-www", "-alpn",
                "h2,http/1.1", port=port):
        yield port


def s_client(address, *arguments):
    """What it says of the server; it does not trust the certificate, and goes on."""
    done = subprocess.run([program("openssl"), "s_client", "-connect", text(address), *arguments], input=b"", capture_output=True,
                          timeout=DEADLINE, check=False)
    return done.stdout.decode()


def test_s_client_through_passthrough(start_data, address, authority):
    """TLS passed on untouched, by name and by protocol, in TLS 1.2 and 1.3; and ended here for a third name."""
    peer("openssl s_client", "openssl", "version", command="openssl s_client -connect 127.0.0.1:PORT -servername NAME -alpn …")
    peer("openssl s_server", "openssl", "version", command="openssl s_server -accept PORT -www, behind match { sni }")
    listen = text(address)
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(s_server(authority.directory, *authority.issue(name))) for name in ("one.example", "two.example", "rest")}
        certificate, key = authority.issue("here.example")
        start_data(configuration(
            section("tls", "here", certificate=str(certificate), key=str(key)),
            tunnel("one", f"127.0.0.1:{ports['one.example']}", listen, match={"sni": ["one.example"]}),
            tunnel("two", f"127.0.0.1:{ports['two.example']}", listen, match={"sni": ["*.example"], "alpn": ["h2"]}),
            tunnel("here", "internal:echo", listen, match={"sni": ["here.example"]}, accept_filters=["tls:here"]),
            tunnel("rest", f"127.0.0.1:{ports['rest']}", listen)))
        for arguments, expected in ((("-servername", "one.example"), "one.example"), (("-servername", "ONE.example"), "one.example"),
                                    (("-servername", "x.example", "-alpn", "h2"), "two.example"),
                                    (("-servername", "here.example"), "here.example"), (("-servername", "x.example"), "rest"),
                                    (("-noservername",), "rest")):
            for version in ("-tls1_2", "-tls1_3"):
                said = s_client(address, version, *arguments)
                assert f"subject=CN = {expected}" in said, said


def test_curl_through_passthrough(start_data, address, authority):
    """Whole transfers, with ends: behind each name another server answers."""
    peer("curl", "curl", "--version", command="curl --connect-to NAME:443:127.0.0.1:PORT https://NAME/")
    listen = text(address)
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(s_server(authority.directory, *authority.issue(name))) for name in ("one.example", "two.example")]
        daemon = start_data(configuration(tunnel("one", f"127.0.0.1:{ports[0]}", listen, match={"sni": ["one.example"]}),
                                     tunnel("two", f"127.0.0.1:{ports[1]}", listen)))
        for name in ("one.example", "two.example"):
            page = run("curl", "-sS", "--http1.1", "--cacert", authority.certificate, "--connect-to", f"{name}:443:{listen}", f"https://{name}/")
            assert b"s_server" in page
        assert daemon.ended("one")["reason"] == daemon.ended("two")["reason"] == "ok"
