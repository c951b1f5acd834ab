"""The PROXY header, received and sent: with HAProxy, nginx and curl at the other end, and with whoever
should not be believed."""

import contextlib
import os
import socket
import ssl
import struct

import pytest

from certificates import Authority
from daemon import DEADLINE, configuration, section, tunnel, wait_until
from peers import EchoTarget, Target, connect, transfer
from programs import Server, free_port, haproxy_server, peer, run
from proxy_header import (ALPN, AUTHORITY, CRC32C, NOOP, SSL, SSL_CIPHER, SSL_CN, SSL_VERSION, UNIQUE_ID, Header, tlv,
                          version_1, version_2)

pytestmark = pytest.mark.sanitize

CLIENT, SERVER = ("203.0.113.9", 1234), ("203.0.113.1", 443)
TELLING = version_1(CLIENT, SERVER)
TRUSTING = section("proxy_protocol", "in", trust=["127.0.0.1"])
SENDING = {version: section("proxy_protocol", f"out{version}", version=version) for version in (1, 2)}


def receiving(name="a", connect_to="internal:echo", **rows):
    return tunnel(name, connect_to, accept_filters=["proxy_protocol:in"], **rows)


def dial(address, source="127.0.0.1"):
    sock = socket.create_connection(address, timeout=DEADLINE, source_address=(source, 0))
    sock.settimeout(DEADLINE)
    return sock


def read_all(sock):
    """What comes until the end, and whether that is a reset."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        return data, True
    return data, False


def answers(address, said, source="127.0.0.1"):
    """What is answered to that, with an end behind it; None for a reset."""
    try:
        sock = dial(address, source)
    except ConnectionResetError:  # accepted, and reset before we looked
        return None
    with sock:
        try:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
        except ConnectionResetError:  # it is told only once
            return None
        except OSError:
            pass
        data, was_reset = read_all(sock)
        return None if was_reset else data


# --- received

def test_header_is_taken_exactly(start_data):
    daemon = start_data(configuration(TRUSTING, receiving()))
    headers = [TELLING, version_1(("2001:db8::9", 1), ("2001:db8::1", 2)), b"PROXY UNKNOWN\r\n", version_2(CLIENT, SERVER),
               version_2(CLIENT, SERVER, tlv(NOOP, bytes(100)), checksum=True), version_2(), version_2(command=0),
               version_2(CLIENT, SERVER, tlvs=tlv(NOOP, bytes(4096 - 16 - 12 - 3)))]
    for header in headers:
        assert answers(daemon.address("a"), header + header + b"payload") == header + b"payload"
        assert answers(daemon.address("a"), header) == b""
        with dial(daemon.address("a")) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in (header if len(header) < 300 else [header]) + b"x" if len(header) < 300 else []:
                sock.sendall(bytes([byte]))
            if len(header) < 300:
                assert sock.recv(1) == b"x"
    clients = {line["client"].rpartition(":")[0] for line in daemon.ended("a", 2 * len(headers))}
    assert clients == {"203.0.113.9", "[2001:db8::9]", "127.0.0.1"}


def test_no_sound_header_is_refused(start):
    with EchoTarget() as target:
        daemon = start(configuration(TRUSTING, receiving(connect_to=target.text)))
        address = daemon.address("a")
        for bad in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\2\0\1\0\1\xfc\3\3", TELLING[:-2] + b"\n",
                    TELLING.replace(b"TCP4", b"TCP6"), b"PROXY " + bytes(200), version_2(CLIENT, SERVER, b"\2\0\5abc"),
                    version_2(CLIENT, SERVER, tlv(CRC32C, b"\1\2\3\4")), version_2(CLIENT, SERVER, command=2),
                    version_2(CLIENT, SERVER, tlvs=tlv(NOOP, bytes(4096 - 16 - 12 - 2)))):
            assert answers(address, bad + b"payload") is None, bad
            assert daemon.wait_log("connection ended", tunnel="a", reason="protocol")
        for cut in (b"", TELLING[:1], TELLING[:-1], version_2(CLIENT, SERVER)[:20]):
            assert answers(address, cut) is None, cut
        daemon.ended("a", 4, reason="truncated")
        assert target.connections == 0
        assert answers(address, TELLING + b"still here") == b"still here"


def test_header_has_a_deadline(start):
    daemon = start(configuration(TRUSTING, receiving(timeouts={"handshake": "300ms"})))
    with dial(daemon.address("a")) as sock:
        sock.sendall(TELLING[:-1])
        assert read_all(sock) == (b"", True)
    assert "handshake" in daemon.ended("a", reason="timeout")["why"]


def test_trust_is_the_sockets_peer(start):
    """A spoofed header: refused, or bytes like any others; never believed."""
    plain = section("proxy_protocol", "plain", trust=["127.0.0.1"], untrusted="plain")
    daemon = start(configuration(TRUSTING, plain, receiving(),
                                 tunnel("b", "internal:echo", accept_filters=["proxy_protocol:plain"])))
    assert answers(daemon.address("a"), TELLING + b"x", source="127.0.0.2") is None
    line = daemon.ended("a")
    assert (line["reason"], line["client"].rpartition(":")[0]) == ("admission", "127.0.0.2")
    assert answers(daemon.address("b"), TELLING + b"x", source="127.0.0.2") == TELLING + b"x"
    assert daemon.ended("b")["client"].startswith("127.0.0.2:")
    assert answers(daemon.address("b"), b"no header\r\n") is None
    assert answers(daemon.address("b"), TELLING + b"x") == b"x"


def hold_without_header(stack, address):
    """Whether another connection that keeps its header to itself is let in; it lives as long as the stack."""
    sock = dial(address)
    try:
        sock.sendall(b"PROXY ")
        sock.settimeout(0.1)
        sock.recv(1)
    except TimeoutError:
        stack.enter_context(sock)
        return True
    except OSError:
        pass
    sock.close()
    return False


def test_told_source_is_judged(start):
    """allow, deny and the caps are about the address that the header tells; until it is there only
    max_connections hold."""
    daemon = start(configuration(TRUSTING, receiving(allow=["203.0.113.0/24"], deny=["203.0.113.66"], max_per_source=2,
                                                     max_connections=4)))
    address = daemon.address("a")
    assert answers(address, version_1(("203.0.113.66", 1), SERVER)) is None
    assert answers(address, version_1(("198.51.100.1", 1), SERVER)) is None
    assert answers(address, b"PROXY UNKNOWN\r\n") is None  # 127.0.0.1 itself, which is not allowed
    assert answers(address, version_1(("203.0.113.7", 1), SERVER) + b"x") == b"x"
    daemon.ended("a", 4)
    with contextlib.ExitStack() as stack:
        def hold(header):
            sock = stack.enter_context(dial(address))
            sock.sendall(header + b"x")
            return sock
        assert hold(TELLING).recv(1) == hold(TELLING).recv(1) == b"x"
        assert answers(address, TELLING + b"x") is None
        assert "max_per_source" in daemon.ended("a", 5)[-1]["why"]
        assert answers(address, version_1(("203.0.113.8", 1), SERVER) + b"x") == b"x"
        daemon.ended("a", 6)
        wait_until(lambda: hold_without_header(stack, address), "the place of one that has ended")
        wait_until(lambda: hold_without_header(stack, address), "the place of one that has ended")
        assert answers(address, TELLING) is None
        assert "max_connections" in daemon.wait_log("connection refused", tunnel="a")["why"]
    wait_until(lambda: answers(address, TELLING + b"x") == b"x", "all places to be given back")
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            wait_until(lambda: hold_without_header(stack, address), "the place of one that has ended")


def test_unix_peers(start, directory):
    trusting = section("proxy_protocol", "unix", trust=["unix"])
    by_user = section("proxy_protocol", "user", trust=["uid:4711"])
    listen = [f"unix:{directory}/a", f"unix:{directory}/b"]
    daemon = start(configuration(trusting, by_user, tunnel("a", "internal:echo", listen[0], accept_filters=["proxy_protocol:unix"]),
                                 tunnel("b", "internal:echo", listen[1], accept_filters=["proxy_protocol:user"])))
    for path, expected in (("a", b"x"), ("b", None)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(directory / path))
            with contextlib.suppress(OSError):
                sock.sendall(TELLING + b"x")
                sock.shutdown(socket.SHUT_WR)
            data, was_reset = read_all(sock)
            assert data == b"x" if expected else was_reset or not data
    assert daemon.ended("a")["client"] == "203.0.113.9:1234"
    assert daemon.ended("b")["reason"] == "admission"


def test_bulk_behind_a_header(start_data):
    """Once both headers are through nothing stands between the sockets, and they are spliced: all the bytes,
    both ways, and the ends."""
    with Target() as target:
        daemon = start_data(configuration(TRUSTING, SENDING[2], receiving(connect_to=target.text, connect_filters=["proxy_protocol:out2"])))
        with connect(daemon.address("a")) as client:
            client.sock.sendall(TELLING)
            with target.accept() as server:
                assert Header(server.sock).source == CLIENT
                pipes = daemon.descriptors("pipe:")
                transfer(client, server, 30 << 20)
                transfer(server, client, 30 << 20)
                assert daemon.descriptors("pipe:") > pipes or "stutter" in daemon.text
                client.sock.shutdown(socket.SHUT_WR)
                server.expect_fin(client)
                server.sock.shutdown(socket.SHUT_WR)
                client.expect_fin(server)
    assert daemon.ended("a")["reason"] == "ok"


# --- sent

@pytest.mark.parametrize("version", [1, 2])
def test_header_is_sent(start_data, version, directory):
    path = f"{directory}/in"
    with Target() as target:
        filters = {"connect_filters": [f"proxy_protocol:out{version}"]}
        daemon = start_data(configuration(SENDING[version], tunnel("a", target.text, ["127.0.0.1:0", "[::1]:0", f"unix:{path}"], **filters)))
        four, six = daemon.addresses("a")[:2]
        for address in (four, six):
            with connect(address) as client, target.accept() as server:
                header = Header(server.sock)  # before the client has said anything
                assert header.version == version
                assert header.source == client.sock.getsockname()[:2]
                assert header.destination == client.sock.getpeername()[:2]
                transfer(client, server, 100)
                transfer(server, client, 100)
                assert version == 1 or set(header.tlvs) == {CRC32C}
        with connect(path) as client, target.accept() as server:
            header = Header(server.sock)
            assert header.family == ("UNKNOWN" if version == 1 else 0x31)
            transfer(client, server, 100)


@pytest.mark.parametrize("version", [1, 2])
def test_what_was_told_is_told_on(start_data, version):
    """Over two hops and an internal name, mixed families and all."""
    tls = struct.pack(">BI", 7, 0) + tlv(SSL_VERSION, b"TLSv1.3") + tlv(SSL_CN, b"alice") + tlv(SSL_CIPHER, b"X")
    told = tlv(ALPN, b"h2") + tlv(AUTHORITY, b"example.org") + tlv(UNIQUE_ID, b"\0\xff id") + tlv(SSL, tls) + tlv(0xea, b"custom")
    with Target() as target:
        daemon = start_data(configuration(
            TRUSTING, SENDING[version], receiving(connect_to="internal:x", connect_filters=[f"proxy_protocol:out{version}"]),
            tunnel("b", target.text, "internal:x", accept_filters=["proxy_protocol:in"], connect_filters=[f"proxy_protocol:out{version}"])))
        with connect(daemon.address("a")) as client:
            client.sock.sendall(version_2(("2001:db8::9", 5), ("::ffff:203.0.113.1", 443), told, checksum=True))
            with target.accept() as server:
                header = Header(server.sock)
                assert header.source == ("2001:db8::9", 5)
                assert header.destination[1] == 443
                assert socket.inet_pton(socket.AF_INET6, header.destination[0])[-6:] == b"\xff\xff" + socket.inet_aton("203.0.113.1")
                if version == 2:
                    assert header.tlvs[ALPN] == b"h2" and header.tlvs[AUTHORITY] == b"example.org"
                    assert header.tlvs[UNIQUE_ID] == b"\0\xff id"
                    assert (header.ssl_client, header.ssl_verify) == (7, 0)
                    assert header.ssl == {SSL_VERSION: b"TLSv1.3", SSL_CN: b"alice", SSL_CIPHER: b"X"}
                transfer(client, server, 1000)
                transfer(server, client, 1000)


def test_tlvs_can_be_left_out(start_data):
    sending = [section("proxy_protocol", name, tlvs=name) for name in ("none", "checksum", "all")]
    told = version_2(CLIENT, SERVER, tlv(AUTHORITY, b"example.org"))
    with Target() as target:
        daemon = start_data(configuration(TRUSTING, *sending, *(receiving(name, target.text, connect_filters=[f"proxy_protocol:{name}"])
                                                            for name in ("none", "checksum", "all"))))
        for name, expected in (("none", set()), ("checksum", {CRC32C}), ("all", {CRC32C, AUTHORITY})):
            with connect(daemon.address(name)) as client:
                client.sock.sendall(told)
                with target.accept() as server:
                    assert set(Header(server.sock).tlvs) == expected


def test_trust_behind_an_internal_name(start):
    """What a first tunnel's header told does not make a second one believe its client."""
    inner = section("proxy_protocol", "inner", trust=["203.0.113.0/24"])
    daemon = start(configuration(TRUSTING, inner, receiving(connect_to="internal:x"),
                                 tunnel("b", "internal:echo", "internal:x", accept_filters=["proxy_protocol:inner"])))
    assert answers(daemon.address("a"), TELLING + TELLING + b"x") is None
    assert daemon.ended("b")["reason"] == "admission"


# --- with TLS

@pytest.fixture
def authority(directory):
    return Authority(directory)


def tls_section(authority, name="edge", **rows):
    certificate, key = authority.issue("edge.example")
    return section("tls", name, certificate=str(certificate), key=str(key), **rows)


def client_context(authority, **options):
    context = ssl.create_default_context(cafile=authority.certificate)
    for name, value in options.items():
        getattr(context, name)(*value)
    return context


def test_header_before_tls(start_data, authority):
    """curl says the header, then speaks TLS; the target learns both."""
    peer("curl", "curl", "--version", command="curl --haproxy-protocol https://edge.example:PORT/")
    with Target() as target:
        daemon = start_data(configuration(TRUSTING, SENDING[2], tls_section(authority, alpn=["http/1.1"]),
                                     tunnel("a", target.text, accept_filters=["proxy_protocol:in", "tls:edge"],
                                            connect_filters=["proxy_protocol:out2"])))
        port = daemon.address("a")[1]
        with Server(authority.directory, "curl", "-sS", "--haproxy-protocol", "--cacert", authority.certificate, "--http1.1",
                    "--connect-to", f"edge.example:443:127.0.0.1:{port}", "https://edge.example/"):
            with target.accept(expects=None) as server:
                header = Header(server.sock)
                assert header.source[0] == header.destination[0] == "127.0.0.1"
                assert header.tlvs[AUTHORITY] == b"edge.example" and header.tlvs[ALPN] == b"http/1.1"
                assert header.ssl[SSL_VERSION].startswith(b"TLSv1.") and header.ssl_client == 1 and header.ssl_verify
                assert server.sock.recv(100).startswith(b"GET / HTTP/1.1\r\n")


def test_header_inside_of_tls(start_data, authority):
    """Told in private by a relay that has shown its certificate: its TLS is not the client's."""
    relay, key = authority.issue("relay.example")
    with Target() as target:
        daemon = start_data(configuration(TRUSTING, SENDING[2], tls_section(authority, client_ca=str(authority.certificate)),
                                     tunnel("a", target.text, accept_filters=["tls:edge", "proxy_protocol:in"], deny=["127.0.0.1"],
                                            max_per_source=1, connect_filters=["proxy_protocol:out2"])))
        context = client_context(authority, load_cert_chain=(relay, key))

        def dial_tls():
            return context.wrap_socket(dial(daemon.address("a")), server_hostname="edge.example")
        with dial_tls() as client:
            client.sendall(TELLING + b"hello")
            with target.accept(expects=None) as server:
                header = Header(server.sock)
                assert header.source == CLIENT and set(header.tlvs) == {CRC32C}
                assert server.sock.recv(5) == b"hello"
            with dial_tls() as second:
                second.sendall(TELLING)
                second.settimeout(None)
                with pytest.raises(ConnectionResetError):  # beside ssl, which calls this an end
                    while os.read(second.fileno(), 65536):
                        pass
            assert "max_per_source" in daemon.wait_log("connection ended", tunnel="a", reason="admission")["why"]


def test_certificate_is_told(start_data, authority):
    certificate, key = authority.issue("alice")
    with Target() as target:
        daemon = start_data(configuration(SENDING[2], tls_section(authority, client_ca=str(authority.certificate)),
                                     tunnel("a", target.text, accept_filters=["tls:edge"], connect_filters=["proxy_protocol:out2"])))
        context = client_context(authority, load_cert_chain=(certificate, key))
        with context.wrap_socket(dial(daemon.address("a")), server_hostname="edge.example") as client:
            with target.accept(expects=None) as server:
                header = Header(server.sock)
                assert (header.ssl_client, header.ssl_verify, header.ssl[SSL_CN]) == (7, 0, b"alice")
                assert header.ssl[SSL_VERSION].decode() == client.version()
                assert header.ssl[SSL_CIPHER].decode() == client.cipher()[0]


# --- real peers

@contextlib.contextmanager
def accept_for(client, target):
    """The connection at the target whose header tells of that client, and the header. Whoever waited for
    a peer to listen has come through, too."""
    while True:
        with target.accept(expects=None) as server:
            header = Header(server.sock)
            if header.source == client.getsockname():
                assert header.destination == client.getpeername()
                yield server.sock, header
                return


def haproxy(directory, port, text):
    peer("haproxy", "haproxy", "-v", command="haproxy -f haproxy.cfg: accept-proxy; send-proxy, send-proxy-v2 with TLVs")
    return haproxy_server(directory, port, text)


@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_accepts(start_data, directory, version):
    port = free_port()
    told = tlv(AUTHORITY, b"example.org") + tlv(UNIQUE_ID, b"id-4711")
    with haproxy(directory, port, f"""
        frontend f
            mode http
            bind 127.0.0.1:{port} accept-proxy
            http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]"
        """):
        daemon = start_data(configuration(TRUSTING, SENDING[version], receiving(connect_to=f"127.0.0.1:{port}",
                                                                           connect_filters=[f"proxy_protocol:out{version}"])))
        request = b"GET / HTTP/1.0\r\n\r\n"
        answer = answers(daemon.address("a"), version_2(CLIENT, SERVER, told) + request)
        extra = b"example.org id-4711" if version == 2 else b" "
        assert answer.rpartition(b"\r\n\r\n")[2] == b"203.0.113.9:1234 203.0.113.1:443 " + extra
        answer = answers(daemon.address("a"), version_2(("2001:db8::9", 5), ("::ffff:203.0.113.1", 443)) + request)
        assert answer.rpartition(b"\r\n\r\n")[2].startswith(b"2001:db8::9:5 ")
        answer = answers(daemon.address("a"), version_2(command=0) + request)
        assert answer.rpartition(b"\r\n\r\n")[2].startswith(b"127.0.0.1:")


@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_sends(start_data, directory, authority, version):
    """HAProxy ends TLS and tells who came; the target behind us hears it as HAProxy said it."""
    port = free_port()
    bundle = authority.bundle("edge.example")
    certificate, key = authority.issue("alice")
    sending = "send-proxy" if version == 1 else ("send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,crc32c,authority,unique-id")
    with Target() as target:
        daemon = start_data(configuration(TRUSTING, SENDING[2], receiving(connect_to=target.text, connect_filters=["proxy_protocol:out2"])))
        with haproxy(directory, port, f"""
            frontend f
                mode tcp
                unique-id-format made-by-haproxy
                bind 127.0.0.1:{port} ssl crt {bundle} ca-file {authority.certificate} verify optional alpn h2,http/1.1
                default_backend b
            backend b
                mode tcp
                server s 127.0.0.1:{daemon.address("a")[1]} {sending}
            """):
            context = client_context(authority, load_cert_chain=(certificate, key), set_alpn_protocols=(["h2"],))
            with context.wrap_socket(dial(("127.0.0.1", port)), server_hostname="edge.example") as client:
                client.sendall(b"hello")
                with accept_for(client, target) as (server, header):
                    if version == 2:
                        assert header.tlvs[AUTHORITY] == b"edge.example" and header.tlvs[ALPN] == b"h2"
                        assert header.tlvs[UNIQUE_ID] == b"made-by-haproxy"
                        assert header.ssl_client & 1 and header.ssl_verify == 0 and header.ssl[SSL_CN] == b"alice"
                        assert header.ssl[SSL_VERSION].decode() == client.version()
                        assert header.ssl[SSL_CIPHER].decode() == client.cipher()[0]
                    assert server.recv(5) == b"hello"


def nginx(directory, port, text):
    peer("nginx", "nginx", "-v", command="nginx -c nginx.conf: proxy_protocol on either side")
    module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;" if "stream {" in text else ""
    (directory / "nginx.conf").write_text(f"""
        {module}
        daemon off; master_process off; pid nginx.pid; error_log stderr error;
        events {{ worker_connections 100; }}
        {text}""")
    return Server(directory, "nginx", "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf", port=port)


@pytest.mark.parametrize("version", [1, 2])
def test_nginx_accepts_what_curl_says(start_data, directory, version):
    """curl → us → nginx: the address that nginx sees is curl's own."""
    peer("curl", "curl", "--version", command="curl --haproxy-protocol http://127.0.0.1:PORT/")
    port = free_port()
    with nginx(directory, port, f"""
        http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
                uwsgi_temp_path uwsgi; scgi_temp_path scgi;
                server {{ listen 127.0.0.1:{port} proxy_protocol; location / {{
                          return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port"; }} }} }}"""):
        daemon = start_data(configuration(TRUSTING, SENDING[version], receiving(connect_to=f"127.0.0.1:{port}",
                                                                           connect_filters=[f"proxy_protocol:out{version}"])))
        ours = daemon.address("a")[1]
        output = run("curl", "-sS", "--haproxy-protocol", f"http://127.0.0.1:{ours}/", "-w", " %{local_port}").decode()
        host, seen, server, server_port, local = output.split()
        assert (host, server, int(server_port)) == ("127.0.0.1", "127.0.0.1", ours)
        assert seen == local
        answer = answers(daemon.address("a"), version_1(("2001:db8::9", 5), ("2001:db8::1", 443)) + b"GET / HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"2001:db8::9 5 2001:db8::1 443")


def test_nginx_sends(start_data, directory):
    port = free_port()
    with Target() as target:
        daemon = start_data(configuration(TRUSTING, SENDING[1], receiving(connect_to=target.text, connect_filters=["proxy_protocol:out1"])))
        with nginx(directory, port, f"""
            stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{daemon.address("a")[1]}; proxy_protocol on; }} }}"""):
            with dial(("127.0.0.1", port)) as client, accept_for(client, target) as (server, _):
                client.sendall(b"hello")
                assert server.recv(5) == b"hello"
    assert daemon.ended("a")["client"].startswith("127.0.0.1:")
