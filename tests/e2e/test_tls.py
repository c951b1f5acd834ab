"""TLS on either side, with openssl, stunnel, curl, nginx and Python's ssl at the other end."""

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading

import pytest

from certificates import Authority
from daemon import DEADLINE, PENSTOCKD, check, configuration, section, tunnel, wait_until
from peers import MIB, EchoTarget, Target, echoes, is_refused
from programs import Server, free_port, haproxy_server, peer, program, run
from test_admin import Admin

pytestmark = pytest.mark.sanitize

SECRET = "000102030405060708090a0b0c0d0e0f"


class Speaker:
    """Python's ssl over a socket, each direction by itself, which ssl.SSLSocket cannot."""

    def __init__(self, sock, context, is_server=False, name="server.example", session=None):
        self.sock = sock
        self.sock.settimeout(DEADLINE)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, is_server, None if is_server else name, session)
        self._do(self.tls.do_handshake)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def _do(self, operation, *arguments):
        while True:
            try:
                return operation(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                bytes_ = self.sock.recv(65536)
                if not bytes_:
                    self._incoming.write_eof()
                self._incoming.write(bytes_)
            finally:
                self._flush()

    def _flush(self):
        if said := self._outgoing.read():
            self.sock.sendall(said)

    def send(self, data):
        self._do(self.tls.write, data)

    def read(self, count):
        data = b""
        while len(data) < count:
            piece = self._do(self.tls.read, count - len(data))
            if not piece:
                break
            data += piece
        return data

    def read_to_end(self):
        """Up to close_notify; anything else is an exception."""
        data = b""
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while piece := self._do(self.tls.read, 65536):
                data += piece
        return data

    def finish(self):
        """close_notify, and no more than that."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._flush()


def client_context(authority, certificate=None, version=None):
    context = ssl.create_default_context(cafile=authority.certificate)
    if certificate:
        context.load_cert_chain(*certificate)
    if version:
        context.minimum_version = context.maximum_version = version
    return context


def server_context(certificate, version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if version:
        context.minimum_version = context.maximum_version = version
    return context


@pytest.fixture
def authority(directory):
    return Authority(directory)


@pytest.fixture
def server(authority):
    """Certificate and key of server.example."""
    return authority.issue("server", "server.example", "IP:127.0.0.1")


def near(server, name="edge", **rows):
    return section("tls", name, certificate=server[0], key=server[1], **rows)


def far(authority, name="out", **rows):
    return section("tls", name, ca=authority.certificate, **{"server_name": "server.example", **rows})


VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


# --- both directions, all sides -----------------------------------------------------------------

@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sides", ["near", "far", "both"])
def test_bytes_and_ends(start_data, authority, server, sides, version):
    """All bytes both ways; each direction ends by itself and the other goes on."""
    filters = {}
    if sides != "far":
        filters["accept_filters"] = ["tls:edge"]
    if sides != "near":
        filters["connect_filters"] = ["tls:out"]
    limits = {"min_version": version, "max_version": version}
    up, down = os.urandom(3 * MIB), os.urandom(2 * MIB)
    with Target() as target:
        daemon = start_data(configuration(tunnel("t", target.text, **filters), workers=2) +
                       near(server, **limits) + far(authority, **limits))
        sock = socket.create_connection(daemon.address("t"))
        client = Speaker(sock, client_context(authority)) if sides != "far" else Plain(sock)
        accepted, _ = target.sock.accept()
        far_end = Speaker(accepted, server_context(server), is_server=True) if sides != "near" else Plain(accepted)
        with client, far_end:
            if sides != "far":
                assert client.tls.version() == f"TLSv{version}"
            with sending(client, up):
                assert far_end.read(len(up)) == up
            client.finish()
            assert far_end.read_to_end() == b""
            with sending(far_end, down):
                assert client.read(len(down)) == down
            far_end.finish()
            assert client.read_to_end() == b""
        daemon.ended("t", reason="ok")
    peer("Python's ssl", sys.executable, "-c", "import ssl; print(ssl.OPENSSL_VERSION)", command="ssl.MemoryBIO over a socket, both roles")


class Plain:
    """A socket that looks like a Speaker."""

    def __init__(self, sock):
        self.sock = sock
        sock.settimeout(DEADLINE)
        self.send, self.finish = sock.sendall, lambda: sock.shutdown(socket.SHUT_WR)

    __enter__, __exit__ = Speaker.__enter__, Speaker.__exit__

    def read(self, count):
        data = b""
        while len(data) < count and (piece := self.sock.recv(count - len(data))):
            data += piece
        return data

    def read_to_end(self):
        return self.read(1 << 30)


@contextlib.contextmanager
def sending(end, data):
    """Sends in another thread: what is sent and what is read here must not wait for one another."""
    thread = threading.Thread(target=end.send, args=(data,), daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_over_an_internal_name(start_data, authority, server):
    """TLS over a pair inside the process."""
    with EchoTarget() as target:
        daemon = start_data(configuration(
            tunnel("outside", "internal:inside", connect_filters=["tls:out"]),
            tunnel("inside", target.text, listen="internal:inside", accept_filters=["tls:edge"]), workers=2) +
            near(server) + far(authority))
        with Plain(socket.create_connection(daemon.address("outside"))) as client:
            data = os.urandom(MIB)
            with sending(client, data):
                assert client.read(len(data)) == data
            client.finish()
            assert client.read_to_end() == b""
        daemon.ended("outside", reason="ok")
        daemon.ended("inside", reason="ok")


@pytest.mark.parametrize("version", VERSIONS)
def test_client_that_only_writes(start_data, authority, server, version):
    """2.4 MB and a close without a single read, while much is still under way: all of it arrives, as no ticket made the
    client answer with a reset."""
    data = os.urandom(2_400_000)
    with Target() as target:
        daemon = start_data(configuration(tunnel("t", target.text, accept_filters=["tls:edge"])) + near(server))
        client = Speaker(socket.create_connection(daemon.address("t")), client_context(authority, version=VERSIONS[version]))

        def write_and_close():
            client.send(data)
            client.finish()
            client.sock.close()
        thread = threading.Thread(target=write_and_close, daemon=True)
        thread.start()
        accepted, _ = target.sock.accept()
        with Plain(accepted) as far_end, client:
            assert far_end.read(100_000) + far_end.read_to_end() == data
        thread.join(DEADLINE)


@pytest.mark.parametrize("truncation", ["reset", "eof"])
def test_truncation(start_data, authority, server, truncation):
    with Target() as target:
        daemon = start_data(configuration(tunnel("t", target.text, accept_filters=["tls:edge"])) +
                       near(server, truncation=truncation))
        client = Speaker(socket.create_connection(daemon.address("t")), client_context(authority))
        accepted, _ = target.sock.accept()
        with Plain(accepted) as far_end:
            client.send(b"and then")
            assert far_end.read(8) == b"and then"
            client.sock.close()
            if truncation == "eof":
                assert far_end.read_to_end() == b""
            else:
                with pytest.raises(ConnectionResetError):
                    far_end.read_to_end()
        if truncation == "reset":
            assert daemon.ended("t", reason="truncated")["why"].startswith("the peer ended without TLS's close_notify; truncation = ")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_close_notify_is_awaited_until_a_deadline(start, authority, server, version):
    """Ours is sent; who keeps back its own does not hold the connection for ever."""
    with Target() as target:
        daemon = start(configuration(tunnel("t", target.text, accept_filters=["tls:edge"], timeouts={"half_open": "500ms"})) + near(server))
        client = Speaker(socket.create_connection(daemon.address("t")), client_context(authority, version=VERSIONS[version]))
        accepted, _ = target.sock.accept()
        with Plain(accepted) as far_end, client:
            client.send(b"ping")
            assert far_end.read(4) == b"ping"
            far_end.send(b"bye")
            far_end.finish()
            assert client.read_to_end() == b"bye"
            line = daemon.ended("t")
            assert line["reason"] == "timeout" and int(line["duration_ms"]) >= 450, line
            with pytest.raises(ConnectionResetError):
                far_end.read(1)


# --- who may come in, in words ------------------------------------------------------------------

def refusal(daemon, name):
    return daemon.ended(name)["why"]


def test_refusals_in_words(start, authority, server, directory):
    stranger = Authority(directory, "other CA").issue("stranger")
    late = authority.issue("late", days=-3)
    me = authority.issue("me", unit="branch")
    tls = {"client_ca": authority.certificate}
    with EchoTarget() as target:
        daemon = start(configuration(*(tunnel(name, target.text, accept_filters=[f"tls:{name}"]) for name in ("any", "listed"))) +
                       near(server, "any", **tls) + near(server, "listed", allow=["cn:somebody", "ou:branch"], **tls))
        expired = run("openssl", "x509", "-in", late[0], "-noout", "-enddate", "-dateopt", "iso_8601").decode().split("=")[1][:10]
        cases = [
            ("any", None, "no certificate was sent"),
            ("any", stranger, "unknown CA 'other CA' of the certificate 'stranger'"),
            ("any", late, f"certificate expired {expired}: 'late'"),
            ("any", me, None),
            ("listed", authority.issue("me too"), "nothing in allow fits the certificate 'me too'"),
            ("listed", me, None),
        ]
        for number, (name, certificate, words) in enumerate(cases):
            with socket.create_connection(daemon.address(name)) as sock:
                try:
                    with Speaker(sock, client_context(authority, certificate)) as client:
                        client.send(b"ping")
                        answer = client.read(4)
                except (ssl.SSLError, ConnectionError) as error:
                    answer = error
            line = daemon.ended(name, count=len([case for case in cases[:number + 1] if case[0] == name]))
            line = line[-1] if isinstance(line, list) else line
            if words:
                assert isinstance(answer, Exception)
                assert line["why"] == words
            else:
                assert answer == b"ping"
        assert target.connections == 2  # one for each who was let in


@pytest.mark.parametrize("said, words", [
    (b"GET / HTTP/1.1\r\n\r\n", " but HTTP"),
    (b"\0\0\0\x08\x04\xd2\x16\x2f", " but PostgreSQL, which asks for TLS in its own way; sslnegotiation=direct makes libpq 17 "
                                      "begin with TLS"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", " but begins with a PROXY header; write proxy_protocol before tls"),
    (b"\r\n\r\n\0\r\nQUIT\n", " but begins with a PROXY header; write proxy_protocol before tls"),
    (b"SSH-2.0-x\r\n", " but SSH"), (b"*1\r\n$4\r\nPING\r\n", " but the protocol of Redis"), (b"something", "")],
    ids=["HTTP", "PostgreSQL", "PROXY 1", "PROXY 2", "SSH", "Redis", "something"])
def test_what_is_no_tls(start, server, said, words):
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("t", target.text, accept_filters=["tls:edge"])) + near(server))
        with socket.create_connection(daemon.address("t")) as sock:
            sock.sendall(said)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1000):
                    pass
        assert refusal(daemon, "t") == f"the peer does not speak TLS{words}"


@pytest.mark.parametrize("greeting, words", [(b"220 mail.example ESMTP\r\n", "TLS begins by STARTTLS"),
                                             (b"J\0\0\0\x0a8.0.1\0", "the protocol of MySQL")], ids=["SMTP", "MySQL"])
def test_target_that_greets_without_tls(start, authority, greeting, words):
    with Target() as target:
        daemon = start(configuration(tunnel("t", target.text, connect_filters=["tls:out"])) + far(authority))
        with socket.create_connection(daemon.address("t")) as sock:
            with target.sock.accept()[0] as accepted:
                accepted.sendall(greeting)
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        assert words in refusal(daemon, "t")


def test_target_that_is_another(start, authority, server):
    with Target() as target:
        daemon = start(configuration(tunnel("t", target.text, connect_filters=["tls:out"])) +
                       far(authority, server_name="other.example"))
        with socket.create_connection(daemon.address("t")) as sock:
            accepted, _ = target.sock.accept()
            with pytest.raises(ssl.SSLError):
                Speaker(accepted, server_context(server), is_server=True).read(1)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert refusal(daemon, "t") == "certificate is for 'server.example' and 1 more, not for other.example"


def test_mistakes_are_found_by_check(directory, authority, server):
    file = directory / "penstock.conf"
    other = authority.issue("other")
    server[1].chmod(0o644)
    file.write_text(configuration(tunnel("t", "127.0.0.1:1", accept_filters=["tls:edge", "tls:two"])) +
                    near(server) + section("tls", "two", certificate=other[0], key=other[1], client_ca="none.pem"))
    done = check(file)
    assert done.returncode == 1
    assert re.search(rf":\d+: tls \"edge\": {server[1]} holds a secret and everybody may read it; chmod 640 it", done.stderr)
    assert re.search(r":\d+: tls \"two\": .*none.pem: No such file or directory", done.stderr)


def test_keys_and_chains_are_looked_at_by_check(directory, authority, server):
    """All of them in one go, each with the line of its section and its file."""
    other, late = authority.issue("other"), authority.issue("late", days=-3)
    chain, unreadable, public = (directory / name for name in ("chain.pem", "unreadable.key", "public.key"))
    chain.write_text(server[0].read_text() + other[0].read_text())
    for copy, mode in ((unreadable, 0o000), (public, 0o604)):
        copy.write_text(server[1].read_text())
        copy.chmod(mode)
    for own in (server, other, late):
        own[1].chmod(0o640)
    expected = {
        (server[0], unreadable): f"{unreadable}: Permission denied; let the user that penstockd runs as read it",
        (server[0], other[1]): f"the key in {other[1]} is not that of the certificate in {server[0]}",
        (chain, server[1]): f"{chain}: certificate 2 did not issue certificate 1",
        late: f"{late[0]} expired 20",
        (server[0], public): f"{public} holds a secret and everybody may read it; chmod 640 it",
    }
    names = [f"x{number}" for number in range(len(expected))]
    file = directory / "penstock.conf"
    file.write_text("".join(f'tls "{name}" {{ certificate = "{certificate}"  key = "{key}" }}\n'
                            for name, (certificate, key) in zip(names, expected)) +
                    "".join(tunnel(name, "127.0.0.1:1", accept_filters=[f"tls:{name}"]) for name in names))
    prefix = [] if os.getuid() else ["setpriv", "--bounding-set=-all"]  # root may read everything
    done = subprocess.run([*prefix, PENSTOCKD, "--check", "-c", file], capture_output=True, text=True, check=False, timeout=DEADLINE)
    *told, last = done.stderr.splitlines()
    assert done.returncode == 1 and len(told) == len(expected) and "5 mistakes" in last, done.stderr
    for number, (line, words) in enumerate(zip(told, expected.values()), 1):
        assert line.startswith(f'{file}:{number}: tls "x{number - 1}": ') and words in line, line


def test_words_that_say_nothing_are_found_by_check(directory, authority, server):
    """Above all what an operator takes for a lock and is none."""
    file = directory / "penstock.conf"

    def told(rows, target="127.0.0.1:1", **chains):
        file.write_text(section("tls", "x", **rows) + tunnel("t", target, **chains))
        done = check(file)
        return done.returncode, done.stderr

    certificate, key = server
    ours = {"certificate": certificate, "key": key}
    on_near, on_far = {"accept_filters": ["tls:x"]}, {"connect_filters": ["tls:x"]}
    cases = [
        (1, {**ours, "ca": authority.certificate}, on_near, "write client_ca to let in only clients with"),
        (0, {**ours, "ca": authority.certificate, "client_ca": authority.certificate}, on_near, "ca is about servers"),
        (0, {**ours, "server_name": "a.example"}, on_near, "server_name is about servers"),
        (0, {"client_ca": authority.certificate}, on_far, "write ca for the authority of servers"),
        (0, {"ca": authority.certificate, "verify": "none"}, on_far, "ca has no effect with verify"),
        (0, {**ours, "ca": authority.certificate}, {**on_near, **on_far}, ""),
        # One wrong value, one mistake: what follows from it is none of the operator's.
        (1, {**ours, "verify": "peer"}, on_near, "'peer' is unknown"),
        (1, {"verify": "false"}, on_far, "'false' is unknown"),
    ]
    for status, rows, chains, words in cases:
        code, text = told(rows, **chains)
        assert code == status and words in text and len(text.splitlines()) == bool(words) + status, text
    for rows, status in (({"ca": authority.certificate}, 1), ({"ca": authority.certificate, "server_name": "a.example"}, 0),
                         ({"verify": "none"}, 0)):
        code, text = told(rows, target=["127.0.0.1:1", "unix:/x"], **on_far)
        assert code == status and ("the target unix:/x has no name" in text) == bool(status), text
    code, text = told(ours, accept_filters=["zlib", "tls:x"])
    assert code == 0 and re.search(r":8: warning: zlib stands outside of tls, .* write tls before it", text), text
    assert told(ours, accept_filters=["tls:x", "zlib"]) == (0, "")


def test_a_certificate_that_expires_soon_is_a_warning(directory, authority):
    file = directory / "penstock.conf"
    soon, server = authority.issue("server.example", days=8, age=82), authority.issue("other.example", days=10, age=80)
    file.write_text(configuration(tunnel("t", "127.0.0.1:1", accept_filters=["tls:edge"])) +
                    section("tls", "edge", certificate=[server[0], soon[0]], key=[server[1], soon[1]]))
    done = check(file)
    assert done.returncode == 0
    told, = done.stderr.splitlines()
    assert re.match(rf"{file}:\d+: warning: tls \"edge\": {soon[0]} expires 20\d\d-\d\d-\d\d; renew it before", told)


# --- openssl ------------------------------------------------------------------------------------

def s_client(daemon, name, authority, *options, data=b"ping\n", wait=b"ping"):
    """Says `data`, waits for an answer that holds `wait` (or for the end), ends well. All that s_client told."""
    host, port = daemon.address(name)
    process = subprocess.Popen([program("openssl"), "s_client", "-connect", f"{host}:{port}", "-CAfile", authority.certificate,
                                "-verify_return_error", *map(str, options)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.set_blocking(process.stdout.fileno(), False)
    told = b""

    def is_over():
        nonlocal told
        told += process.stdout.read() or b""
        return process.poll() is not None or re.search(rb"(?m)^" + re.escape(wait), told)

    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(data)
            process.stdin.flush()
        wait_until(is_over, f"s_client's answer: {told}")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        os.set_blocking(process.stdout.fileno(), True)
        told += process.stdout.read() or b""
        process.wait(DEADLINE)
    finally:
        process.kill()
        process.wait()
    return told.decode(errors="replace")


CLOSE_NOTIFY = r".*Alert.*\n.*01 00"  # behind the mark of who said it: what `-msg` shows


@pytest.mark.parametrize("version", VERSIONS)
def test_s_client(start_data, authority, server, version):
    """Its close_notify is the end of its direction, and the target's end is a close_notify for it."""
    option = f"-tls{version.replace('.', '_')}"
    with EchoTarget() as echo, Target() as target:
        daemon = start_data(configuration(tunnel("t", echo.text, accept_filters=["tls:edge"]),
                                          tunnel("first", target.text, accept_filters=["tls:edge"])) + near(server))
        told = s_client(daemon, "t", authority, option)
        assert "Verify return code: 0 (ok)" in told or "Verification: OK" in told
        assert f"TLSv{version}" in told
        assert re.search(r"(?m)^ping", told)
        daemon.ended("t", reason="ok")

        def answer_and_end():
            with target.accept() as peer:
                assert Plain(peer.sock).read(5) == b"ping\n"
                peer.sock.sendall(b"pong\n")
                peer.finish()
                assert peer.sock.recv(1) == b""
        thread = threading.Thread(target=answer_and_end, daemon=True)
        thread.start()
        told = s_client(daemon, "first", authority, option, "-msg", wait=b"closed")
        for mark in ("<<< ", ">>> "):  # ours, and its own, which ends the connection well
            assert re.search(mark + CLOSE_NOTIFY, told), told
        thread.join(DEADLINE)
        daemon.ended("first", reason="ok")
    peer("openssl s_client", "openssl", "version", command=f"openssl s_client {option} -msg")


@pytest.mark.parametrize("version", VERSIONS)
def test_s_server(start_data, directory, authority, server, version):
    option, port = f"-tls{version.replace('.', '_')}", free_port()
    with Server(directory, "openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", server[0], "-key", server[1],
                "-Verify", "1", "-CAfile", authority.certificate, "-verify_return_error", option, "-rev", "-msg", port=port) as peer_server:
        me = authority.issue("me")
        daemon = start_data(configuration(tunnel("t", f"127.0.0.1:{port}", connect_filters=["tls:out"])) +
                       far(authority, certificate=me[0], key=me[1]))
        for _ in range(3):
            with Plain(socket.create_connection(daemon.address("t"))) as client:
                client.send(b"abc\n")
                client.finish()  # what is answered behind our close_notify still comes
                assert client.read_to_end() == b"cba\n"
        daemon.ended("t", count=3, reason="ok")
        told = peer_server.log.read_text()
        assert len(re.findall("<<< " + CLOSE_NOTIFY, told)) == 3, told
        assert len(re.findall(r">>> .*, Certificate\n", told)) == 1, told  # the others took up the session of the first
    peer("openssl s_server", "openssl", "version", command=f"openssl s_server {option} -Verify 1 -rev -msg")


@pytest.mark.parametrize("tickets", ["true", "false"], ids=["tickets", "cache"])
@pytest.mark.parametrize("version", VERSIONS)
def test_resumption_and_its_end(start, directory, authority, server, version, tickets):
    """A session is taken up again, also after a reload; not once its certificate may not come in any more."""
    option, session = f"-tls{version.replace('.', '_')}", directory / "session"
    other, me = Authority(directory, "other CA"), authority.issue("me")
    who = ["-cert", me[0], "-key", me[1]]
    none, revoked = authority.revoke(file="none.pem"), authority.revoke(me[0], file="revoked.pem")
    with EchoTarget() as target:
        def text(**rows):
            return (configuration(tunnel("t", target.text, accept_filters=["tls:edge"]),
                                  tunnel("admin", "internal:admin", f"unix:{directory}/admin.sock")) +
                    near(server, **{"client_ca": authority.certificate, "crl": none, "tickets": tickets, **rows}))

        daemon = start(text())
        assert "New, TLSv" in s_client(daemon, "t", authority, option, *who, "-sess_out", session)
        assert "Reused, TLSv" in s_client(daemon, "t", authority, option, *who, "-sess_in", session)
        seen = Admin(daemon, path=directory / "admin.sock").metrics()
        assert [seen[f'penstock_tls_handshakes_total{{side="near",result="{result}"}}'] for result in ("full", "ticket", "cache")] == \
            [1, tickets == "true", tickets == "false"]
        daemon.reload(text())
        assert "Reused, TLSv" in s_client(daemon, "t", authority, option, *who, "-sess_in", session)
        for rows, words in (({"client_ca": other.certificate, "crl": other.revoke(file="other-crl.pem")}, "unknown CA"),
                            ({"crl": revoked}, "certificate revoked: 'me'"),
                            ({"allow": ["cn:somebody"]}, "nothing in allow fits")):
            daemon.reload(text(**rows))
            before = len(daemon.find_log("connection ended"))
            told = s_client(daemon, "t", authority, option, *who, "-sess_in", session)
            assert "Reused, TLSv" not in told or "alert" in told
            assert not re.search(r"(?m)^ping", told)
            assert words in daemon.wait_log("connection ended", since=0, count=before + 1)[-1]["why"]
    peer("openssl s_client", "openssl", "version", command=f"openssl s_client {option} -sess_out FILE, then -sess_in FILE")


def test_names(start, directory, authority, server):
    star = authority.issue("star", "*.wild.example")
    rsa = authority.issue("rsa", "server.example", key="rsa")
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("t", target.text, accept_filters=["tls:edge"])) +
                       section("tls", "edge", certificate=[server[0], star[0], rsa[0]], key=[server[1], star[1], rsa[1]]))
        for options, subject in ((("-servername", "a.wild.example"), "CN = star"), (("-servername", "server.example"), "CN = server"),
                                 (("-noservername",), "CN = server"),
                                 (("-servername", "server.example", "-sigalgs", "RSA-PSS+SHA256"), "CN = rsa")):
            assert f"subject={subject}" in s_client(daemon, "t", authority, *options)


# --- shared secrets -----------------------------------------------------------------------------

@pytest.fixture
def secrets(directory):
    file = directory / "secrets"
    file.write_text(f"site-a:{SECRET}\n")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("other", [f"site-a:{SECRET[::-1]}", f"site-b:{SECRET}"], ids=["another secret", "another identity"])
def test_secrets_that_differ_are_told_at_both_ends(start, directory, secrets, other):
    """Who looks at one end only has to learn it there."""
    (directory / "other").write_text(other + "\n")
    (directory / "other").chmod(0o600)
    far_end = start(configuration(tunnel("in", "internal:echo", accept_filters=["tls:line"])) + section("tls", "line", psk=secrets))
    host, port = far_end.address("in")
    near_end = start(configuration(tunnel("out", f"{host}:{port}", connect_filters=["tls:line"])) +
                     section("tls", "line", psk=directory / "other"))
    assert is_refused(near_end.address("out"))
    assert near_end.ended("out")["why"].endswith("; does it know this secret by this identity?")
    assert far_end.ended("in")["why"] == ("the peer's shared secret is another" if other.startswith("site-a") else
                                          "the peer's PSK identity is unknown")


@pytest.mark.parametrize("version", VERSIONS)
def test_psk_with_openssl(start_data, directory, authority, secrets, version):
    option, port = f"-tls{version.replace('.', '_')}", free_port()
    with EchoTarget() as target, Server(
            directory, "openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-nocert", "-psk_identity", "site-a", "-psk", SECRET,
            option, "-rev", port=port):
        daemon = start_data(configuration(tunnel("in", target.text, accept_filters=["tls:line"]),
                                          tunnel("out", f"127.0.0.1:{port}", connect_filters=["tls:line"])) +
                            section("tls", "line", psk=secrets))
        # Of the suites for secrets only that of TLS 1.2 with forward secrecy and AEAD is spoken.
        suites = ["-cipher", "PSK"]
        told = s_client(daemon, "in", authority, option, *suites, "-psk_identity", "site-a", "-psk", SECRET)
        assert re.search(r"(?m)^ping", told)
        assert re.search("Cipher is " + ("ECDHE-PSK-CHACHA20-POLY1305" if version == "1.2" else r"TLS_\w+_SHA256"), told), told
        told = s_client(daemon, "in", authority, option, *suites, "-psk_identity", "site-b", "-psk", SECRET)
        assert not re.search(r"(?m)^ping", told)
        assert daemon.ended("in", count=2)[-1]["why"] == "the peer's PSK identity is unknown"
        with socket.create_connection(daemon.address("out")) as sock:
            sock.settimeout(DEADLINE)
            sock.sendall(b"abc\n")
            assert sock.recv(100) == b"cba\n"
    peer("openssl s_client", "openssl", "version", command=f"openssl s_client {option} -psk_identity site-a -psk HEX")
    peer("openssl s_server", "openssl", "version", command=f"openssl s_server {option} -nocert -psk HEX -rev")


def stunnel(directory, name, port, text):
    file = directory / f"{name}.conf"
    file.write_text(f"foreground = yes\npid =\nsocket = l:TCP_NODELAY=1\n[{name}]\naccept = 127.0.0.1:{port}\n{text}")
    return Server(directory, "stunnel", file, port=port)


def echo_through(port, data):
    with Plain(socket.create_connection(("127.0.0.1", port))) as client:
        with sending(client, data):
            assert client.read(len(data)) == data
        client.finish()
        assert client.read_to_end() == b""


def test_psk_with_stunnel(start_data, directory, secrets):
    """stunnel before and behind us, with nothing but a secret."""
    with EchoTarget() as target:
        server_port, client_port = free_port(), free_port()
        host, port = target.sock.getsockname()[:2]
        with stunnel(directory, "server", server_port, f"connect = {host}:{port}\nPSKsecrets = {secrets}\nciphers = PSK\n"):
            daemon = start_data(configuration(tunnel("in", target.text, accept_filters=["tls:line"]),
                                         tunnel("out", f"127.0.0.1:{server_port}", connect_filters=["tls:line"])) +
                           section("tls", "line", psk=secrets))
            echo_through(daemon.address("out")[1], os.urandom(MIB))
            with stunnel(directory, "client", client_port, f"client = yes\nconnect = 127.0.0.1:{daemon.address('in')[1]}\n"
                         f"PSKsecrets = {secrets}\nciphers = PSK\n"):
                echo_through(client_port, os.urandom(MIB))
    peer("stunnel, PSK", "stunnel", "-version", command="stunnel with PSKsecrets, both roles")


def test_stunnel(start_data, directory, authority, server):
    me = authority.issue("me")
    with EchoTarget() as target:
        server_port, client_port = free_port(), free_port()
        host, port = target.sock.getsockname()[:2]
        trust = f"CAfile = {authority.certificate}\nverifyChain = yes\n"
        with stunnel(directory, "server", server_port,
                     f"connect = {host}:{port}\ncert = {server[0]}\nkey = {server[1]}\n{trust}"):
            daemon = start_data(configuration(tunnel("in", target.text, accept_filters=["tls:edge"]),
                                         tunnel("out", f"127.0.0.1:{server_port}", connect_filters=["tls:out"])) +
                           near(server, client_ca=authority.certificate) + far(authority, certificate=me[0], key=me[1]))
            echo_through(daemon.address("out")[1], os.urandom(MIB))
            with stunnel(directory, "client", client_port, f"client = yes\nconnect = 127.0.0.1:{daemon.address('in')[1]}\n"
                         f"cert = {me[0]}\nkey = {me[1]}\ncheckHost = server.example\n{trust}"):
                echo_through(client_port, os.urandom(MIB))
    peer("stunnel", "stunnel", "-version", command="stunnel with certificates, both roles")


def test_haproxy(start_data, directory, authority, server):
    """HAProxy behind and before us, each with a certificate that the other asks for."""
    bundles = authority.bundle("server", "server.example", file="haproxy-server"), authority.bundle("me")
    server_port, client_port = free_port(), free_port()
    with EchoTarget() as target:
        daemon = start_data(configuration(tunnel("in", target.text, accept_filters=["tls:edge"]),
                                     tunnel("out", f"127.0.0.1:{server_port}", connect_filters=["tls:out"])) +
                       near(server, client_ca=authority.certificate) + far(authority, certificate=bundles[1], key=bundles[1]))
        with haproxy_server(directory, client_port, f"""
            listen server
                mode tcp
                bind 127.0.0.1:{server_port} ssl crt {bundles[0]} ca-file {authority.certificate} verify required
                server s {target.text}
            listen client
                mode tcp
                bind 127.0.0.1:{client_port}
                server s 127.0.0.1:{daemon.address("in")[1]} ssl crt {bundles[1]} ca-file {authority.certificate} verify required sni str(server.example)
            """):
            for port in (daemon.address("out")[1], client_port):
                for _ in range(2):  # the second takes up the session of the first
                    echo_through(port, os.urandom(MIB))
        for name in ("in", "out"):
            daemon.ended(name, count=2, reason="ok")
    peer("haproxy, TLS", "haproxy", "-v", command="haproxy with bind … ssl verify required, server … ssl verify required")


# --- curl and nginx -----------------------------------------------------------------------------

NGINX = """
daemon off; pid {0}/nginx.pid; error_log stderr; worker_processes 1;
events {{ }}
http {{
        access_log off; client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};
        server {{ listen 127.0.0.1:{1}; root {0}/www; }}
        server {{ listen 127.0.0.1:{2} ssl; root {0}/www; ssl_certificate {3}; ssl_certificate_key {4}; }}
}}
"""


def test_curl_and_nginx(start_data, directory, authority, server):
    plain, secure = free_port(), free_port()
    (directory / "www").mkdir()
    data = os.urandom(5 * MIB)
    (directory / "www" / "file").write_bytes(data)
    for path in (directory, directory / "www", directory / "www" / "file", server[1]):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (directory / "nginx.conf").write_text(NGINX.format(directory, plain, secure, *server))
    with Server(directory, "nginx", "-c", directory / "nginx.conf", port=secure):
        server[1].chmod(0o600)
        daemon = start_data(configuration(tunnel("in", f"127.0.0.1:{plain}", accept_filters=["tls:edge"]),
                                     tunnel("out", f"127.0.0.1:{secure}", connect_filters=["tls:out"]), workers=2) +
                       near(server, alpn=["http/1.1"]) + far(authority))
        port = daemon.address("in")[1]
        secure_url = ["--cacert", authority.certificate, "--resolve", f"server.example:{port}:127.0.0.1", f"https://server.example:{port}/file"]
        assert run("curl", "-sSf", *secure_url) == data
        assert run("curl", "-sSf", "--tls-max", "1.2", *secure_url) == data
        assert run("curl", "-sSf", f"http://127.0.0.1:{daemon.address('out')[1]}/file") == data
    peer("curl, TLS", "curl", "--version", command="curl --cacert CA https://server.example:PORT/file, also --tls-max 1.2")
    peer("nginx, TLS", "nginx", "-v", command="nginx with listen … ssl")


def test_the_system_s_authorities_are_read_anew(start, directory):
    """All sections share what was read of them until it changes."""
    first, second = (Authority(directory, name) for name in ("first", "second"))
    certificate, key = second.issue("server", "server.example")
    system = directory / "system.pem"
    first.certificate.rename(system)
    text = configuration(
        tunnel("a", "internal:b", connect_filters="tls:out"), tunnel("b", "internal:echo", "internal:b", accept_filters="tls:edge"),
    ) + section("tls", "out", server_name="server.example") + section("tls", "edge", certificate=certificate, key=key)
    daemon = start(text, prefix=["env", f"SSL_CERT_FILE={system}", f"SSL_CERT_DIR={directory}/none"])
    for _ in range(2):
        assert is_refused(daemon.address("a"))
        daemon.reload()
    daemon.wait_log("connection ended", tunnel="a", count=2)
    assert "unknown CA" in daemon.find_log("connection ended", tunnel="a")[0]["why"]
    second.certificate.rename(system)
    daemon.reload()
    assert echoes(daemon.address("a"))
