"""internal:admin: what it tells, what it does when asked to, and whom it refuses. The client is curl, or a bare
socket where curl would not do such a thing."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from certificates import Authority
from daemon import DEADLINE, PENSTOCKD, configuration, parse_address, preloaded, section, tunnel, wait_until
from peers import (CLIENT_STREAM, KIB, EchoTarget, FullTarget, Target, client_hello, connect, echoes, is_closed,
                   is_refused, tcp_states, transfer)
from programs import free_port
from proxy_header import version_1

pytestmark = pytest.mark.sanitize

SANITIZED = re.search("/[at]san/", PENSTOCKD)  # memory tells nothing then
CHANGE = ("-H", "Content-Type: application/json", "-H", "X-Penstock: 1")


class Admin:
    """Asks a daemon over its UNIX socket, or over TCP."""

    def __init__(self, daemon, path=None, address=None):
        self.daemon, self.path, self.address = daemon, path, address

    def curl(self, target, *arguments, user=None):
        way = ["--unix-socket", str(self.path)] if self.path else []
        host = "http://admin" if self.path else "http://{}:{}".format(*self.address)
        as_user = ["setpriv", "--reuid", str(user), "--clear-groups"] if user else []
        done = subprocess.run([*as_user, "curl", "-sS", "--max-time", str(DEADLINE), *way, *arguments,
                               "-w", "\n%{http_code} %{content_type}", host + target],
                              capture_output=True, text=True, check=True)
        body, _, last = done.stdout.rpartition("\n")
        status, _, content_type = last.partition(" ")
        return int(status), content_type, body

    def get(self, target, *arguments):
        status, _, body = self.curl(target, *arguments)
        assert status == 200, (status, body)
        return json.loads(body)

    def post(self, target, body=None, headers=CHANGE, user=None):
        status, _, answer = self.curl(target, "-X", "POST", *headers, "-d", json.dumps(body or {}), user=user)
        return status, json.loads(answer)

    def metrics(self):
        """name{labels} -> value"""
        status, _, body = self.curl("/metrics")
        assert status == 200
        samples = [line.rpartition(" ") for line in body.splitlines() if not line.startswith("#")]
        told = {name: float(value) for name, _, value in samples}
        assert len(told) == len(samples), "a series is told twice"
        return told

    def connections(self, **query):
        text = "&".join(f"{name}={value}" for name, value in query.items())
        return self.get(f"/v1/connections?{text}")["connections"]

    def raw(self):
        sock = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET)
        sock.settimeout(DEADLINE)
        sock.connect(str(self.path) if self.path else self.address)
        return sock


def admin_tunnel(directory, **rows):
    return tunnel("admin", "internal:admin", listen=[f"unix:{directory}/admin.sock", "127.0.0.1:0"], **rows)


@pytest.fixture
def admin(start, directory):
    """admin(*tunnels, …) starts a daemon with these and an admin tunnel."""
    def start_admin(*tunnels, workers=2, rows=None, extra="", **options):
        text = configuration(*tunnels, admin_tunnel(directory, **(rows or {})), workers=workers, **options) + extra
        return Admin(start(text), path=directory / "admin.sock")
    return start_admin


def over_tcp(admin):
    return Admin(admin.daemon, address=next(at for at in admin.daemon.addresses("admin") if isinstance(at, tuple)))


def receive(sock, count):
    """The bytes of so many whole answers that tell their length."""
    seen, answers = b"", 0
    while answers < count:
        head, split, rest = seen.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head, re.I)[1]) if split else None
        if split and len(rest) >= length:
            answers += 1
            yield head.decode(), rest[:length].decode()
            seen = rest[length:]
            continue
        more = sock.recv(65536)
        assert more, f"closed after {answers} answers and {seen!r}"
        seen += more


def receive_all(sock):
    seen = b""
    while more := sock.recv(65536):
        seen += more
    return seen


# --- what it tells


def test_health_and_readiness(admin):
    asked = admin()
    assert asked.curl("/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    assert asked.curl("/readyz") == (200, "text/plain; charset=utf-8", "ready\n")


def test_status(admin):
    asked = admin(tunnel("a", "internal:echo"))
    status = asked.get("/v1/status")
    assert status["pid"] == asked.daemon.pid and status["ready"] and not status["draining"]
    assert status["generation"] == 1 and status["tunnels"] == 2 and status["may_change"]
    assert status["file"] == str(asked.daemon.config)
    assert [worker["worker"] for worker in status["workers"]] == [0, 1]
    assert abs(status["now"] - time.time()) < 5 and status["reload"]["failed_at"] is None


def test_tunnels_tell_where_they_listen_and_what_passed(admin):
    asked = admin(tunnel("a", "internal:echo", max_connections=7), tunnel("b", "internal:a", listen="internal:b"),
                  tunnel("c", "internal:echo", listen="internal:a"))
    daemon = asked.daemon
    with connect(daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 100_000)
        told = {one["name"]: one for one in asked.get("/v1/tunnels")["tunnels"]}
        assert list(told) == ["a", "b", "c", "admin"]
        a = told["a"]
        assert a["listen"] == ["{}:{}".format(*daemon.address("a"))] and a["max_connections"] == 7
        assert a["open"] == 1 and a["states"]["open"] == 1 and a["admitted"] == 1
        assert set(a["bytes"].values()) == {100_000}
        assert told["b"]["listen"] == ["internal:b"]
    wait_until(lambda: asked.get("/v1/tunnels")["tunnels"][0]["ended"]["client"].get("ok") == 1, "the end")


def test_the_last_ends(admin):
    """Of both kinds a few, the latest first, from all workers; many that ended well push out none that did not."""
    asked = admin(tunnel("a", "internal:echo"), tunnel("dead", "127.0.0.1:9"))
    daemon = asked.daemon
    assert is_refused(daemon.address("dead"))
    for _ in range(30):
        assert echoes(daemon.address("a"))
    daemon.ended("a", count=30)
    ends = asked.get("/v1/ends")["ends"]
    bad = [one for one in ends if one["reason"] != "ok"]
    good = [one for one in ends if one["reason"] == "ok"]
    assert len(good) == 12 and len(bad) == 1
    assert [one["ago_s"] for one in ends] == sorted(one["ago_s"] for one in ends)
    line = daemon.ended("dead")
    assert (bad[0]["id"], bad[0]["client"], bad[0]["target"], bad[0]["by"], bad[0]["reason"], bad[0]["why"]) == (
        int(line["connection"]), line["client"], "127.0.0.1:9", line["ended_by"], line["reason"], line["why"])
    echo = next(one for one in good if one["tunnel"] == "a")
    line = daemon.ended("a", connection=echo["id"])
    assert echo["up"] == echo["down"] == 1000 and echo["by"] == "client" and echo["why"] == ""
    assert abs(1000 * echo["duration_s"] - int(line["duration_ms"])) <= 1


def test_tunnels_that_share_an_address(admin):
    """Their front counts for itself who has not been given to one of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*probe.getsockname())
    asked = admin(tunnel("far", "internal:echo", listen=address, max_connections=3).replace(
        "max_connections", 'match { source = { "10.0.0.0/8" } }\n        max_connections'),
        tunnel("near", "internal:echo", listen=address).replace(
        "connect ", 'match { source = { "172.16.0.0/12" } }\n        connect '))
    host, port = address.split(":")
    assert is_refused((host, int(port)))
    told = {one["name"]: one for one in asked.get("/v1/tunnels")["tunnels"]}
    front = next(one for one in told.values() if one["is_front"])
    assert front["refused"] == {"match": 1} and front["listen"] == told["far"]["listen"] == [address]
    assert sum(value for name, value in asked.metrics().items() if 'reason="match"' in name) == 1


def test_a_client_whose_tunnel_is_not_chosen_yet(admin):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*probe.getsockname())
    asked = admin(*(tunnel(name, "internal:echo", listen=address).replace(
        "connect ", f'match {{ sni = {{ "{name}.example" }} }}\n        connect ') for name in ("one", "two")))
    host, port = address.split(":")
    with socket.create_connection((host, int(port))):
        told = wait_until(lambda: asked.connections(state="choosing"), "one that says nothing")
        assert told[0]["target"] == "" and told[0]["up"]["waits_for"] == "choice"
        assert asked.get(f"/v1/connections/{told[0]['id']}")["state"] == "choosing"


def test_targets(admin):
    with EchoTarget() as target:
        asked = admin(tunnel("a", ["127.0.0.1:9", target.text]))
        with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
            transfer(client, client, 1)
            dead, alive = asked.get("/v1/targets")["targets"][:2]
            assert dead["target"] == "127.0.0.1:9" and dead["state"] == "failed" and dead["tried_last_for_s"] > 0
            assert alive["target"] == target.text and alive["state"] == "up" and alive["active"] == 1


def test_connections_and_one_of_them(admin):
    asked = admin(tunnel("front", "internal:back"), tunnel("back", "internal:echo", listen="internal:back"))
    with connect(asked.daemon.address("front"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 50_000)
        listed = {one["tunnel"]: one for one in asked.connections()}
        front, back = listed["front"], listed["back"]
        assert front["client"] == back["client"] == "{}:{}".format(*client.sock.getsockname())
        assert front["far_partner"] == back["id"] and back["near_partner"] == front["id"]
        assert front["near_partner"] is None and back["far_partner"] is None
        assert front["up"]["bytes"] == back["down"]["bytes"] == 50_000
        assert front["state"] == "open" and front["up"]["waits_for"] == "near readable"
        one = asked.get(f"/v1/connections/{front['id']}")
        assert one["id"] == front["id"] and one["near_tcp"]["rtt_s"] > 0 and one["far_tcp"] is None
        for flow in ("up", "down"):
            assert abs(sum(one[flow]["shares"].values()) - 1) < 0.001
        assert asked.curl("/v1/connections/999999")[0] == 404
        assert asked.curl("/v1/connections/x")[0] == 404


def test_connections_by_tunnel_source_state_and_order(admin):
    asked = admin(tunnel("a", "internal:echo"), tunnel("b", "internal:echo"))
    clients = []
    for size, name in enumerate("aaab", 1):
        clients.append(connect(asked.daemon.address(name), expects=CLIENT_STREAM))
        transfer(clients[-1], clients[-1], size * 1000)
    assert len(asked.connections(tunnel="a")) == 3
    assert len(asked.connections(source="127.0.0.1")) == 4
    assert len(asked.connections(source="127.0.0.2")) == 0
    assert len(asked.connections(source="127.0.0.0/8")) == 4 and len(asked.connections(source="unix")) == 1
    for own in (f"uid:{os.getuid()}", f"unix:uid={os.getuid()}"):
        assert [one["tunnel"] for one in asked.connections(source=own)] == ["admin"]
    assert asked.connections(source="uid:12345") == asked.connections(source="10.0.0.0/8") == asked.connections(source="[::1]") == []
    assert len(asked.connections(state="dialling")) == 0
    port = clients[1].sock.getsockname()[1]
    assert [one["up"]["bytes"] for one in asked.connections(source=f"127.0.0.1:{port}")] == [2000]
    assert [one["up"]["bytes"] for one in asked.connections(sort="bytes", limit=2)] == [4000, 3000]
    assert [one["up"]["bytes"] for one in asked.connections(sort="age", tunnel="a")] == [1000, 2000, 3000]
    ids = [one["id"] for one in asked.connections(sort="id", tunnel="a")]
    assert ids == sorted(ids)
    for wrong in ("sort=size", "limit=3", "sort=rate&limit=0", "sort=rate&limit=x", "source=127.0.0", "source=a:80"):
        assert asked.curl(f"/v1/connections?{wrong}")[0] == 400
    for client in clients:
        client.close()


def test_many_connections_are_listed_once_each_while_others_come_and_go(admin):
    asked = admin(tunnel("a", "internal:echo"))
    address = asked.daemon.address("a")
    staying = [socket.create_connection(address) for _ in range(1500)]
    wait_until(lambda: asked.metrics()['penstock_connections{tunnel="a",state="open"}'] == 1500, "all of them")
    known = {one["id"] for one in asked.connections(tunnel="a")}
    assert len(known) == 1500
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            with socket.create_connection(address):
                pass

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(10):
            ids = [one["id"] for one in asked.connections()]
            assert len(ids) == len(set(ids)) and known <= set(ids)
    finally:
        stop.set()
        other.join()
        for sock in staying:
            sock.close()


def test_metrics_please_promtool_and_count(admin):
    asked = admin(tunnel("a", "internal:echo", max_connections=1), tunnel("b", "127.0.0.1:9"))
    daemon = asked.daemon
    with connect(daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 12_345)
        assert is_refused(daemon.address("a"))
        assert is_refused(daemon.address("b"))
        seen = asked.metrics()
        assert seen['penstock_connections{tunnel="a",state="open"}'] == 1
        assert seen['penstock_connections_admitted_total{tunnel="a"}'] == 1
        assert seen['penstock_connections_refused_total{tunnel="a",reason="tunnel_max_connections"}'] == 1
        assert seen['penstock_connections_ended_total{tunnel="b",by="target",reason="refused"}'] == 1
        assert seen['penstock_bytes_total{tunnel="a",side="near",flow="up"}'] == 12_345
        assert seen['penstock_bytes_total{tunnel="a",side="far",flow="down"}'] == 12_345
        assert seen['penstock_target_up{tunnel="b",target="127.0.0.1:9"}'] == 0
        assert seen["penstock_generation"] == 1
    _, content_type, text = asked.curl("/metrics")
    assert content_type.startswith("text/plain; version=0.0.4")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_each_refusal_is_counted_by_its_reason(admin):
    """Of each tunnel, whichever rule it is that refuses."""
    rules = {"deny": {"deny": "127.0.0.0/8"}, "allow": {"allow": "10.0.0.0/8"}, "tunnel_max_connections": {"max_connections": 1},
             "max_per_source": {"max_per_source": 1}, "max_new_per_source": {"max_new_per_source": "1/min"}}
    asked = admin(*(tunnel(reason, "internal:echo", **rows) for reason, rows in rules.items()), tunnel("last", "internal:echo"),
                  workers=2, max_connections=4)
    address = asked.daemon.address
    with contextlib.ExitStack() as stack:
        for reason in rules:
            if reason not in ("deny", "allow"):
                client = stack.enter_context(connect(address(reason), CLIENT_STREAM))
                transfer(client, client, 1)
            for _ in range(3):
                assert is_refused(address(reason))
        client = stack.enter_context(connect(address("last"), CLIENT_STREAM))
        transfer(client, client, 1)
        for _ in range(2):
            assert is_refused(address("last"))
        counted = {name: value for name, value in asked.metrics().items() if name.startswith("penstock_connections_refused_total") and value}
    expected = {reason: (reason, 3) for reason in rules} | {"last": ("max_connections", 2)}
    assert counted == {f'penstock_connections_refused_total{{tunnel="{name}",reason="{reason}"}}': count
                       for name, (reason, count) in expected.items()}


def test_who_may_not_reload_may_not_compare(admin, directory):
    asked = admin(rows={"unix_mode": "0666"})
    directory.chmod(0o711)
    assert asked.curl("/v1/diff")[0] == 200
    assert asked.curl("/v1/status", user=65534)[0] == 200
    assert asked.curl("/v1/diff", user=65534)[0] == 403


def test_metrics_are_those_of_the_manual(admin):
    manual = (Path(__file__).parents[2] / "man/penstockd.8").read_text()
    manual = re.findall(r"^\.It Ic (penstock_\w+|process_\w+)$", manual, re.M)
    _, _, text = admin(extra=section("limit", "l")).curl("/metrics")
    assert sorted(re.findall(r"^# HELP (\S+)", text, re.M)) == sorted(manual)


def failed_handshakes(metrics):
    """(side, reason) -> how many, without those that are none"""
    found = {re.search(r'failures_total{side="(.*)",reason="(.*)"}', name): value for name, value in metrics.items()
             if name.startswith("penstock_tls_handshake_failures_total")}
    assert len(found) == 2 * 11
    return {match.groups(): value for match, value in found.items() if value}


def shake_hands(address, context):
    with socket.create_connection(address, DEADLINE) as sock, pytest.raises((ssl.SSLError, ConnectionResetError)):
        with context.wrap_socket(sock, server_hostname="server.example") as wrapped:
            wrapped.recv(1)  # TLS 1.3: what the server thinks of it


def test_failed_handshakes_by_reason(admin, directory):
    authority = Authority(directory)
    certificate, key = authority.issue("server", "server.example")
    (directory / "psk").write_text("site-a:" + "ab" * 32 + "\n")
    (directory / "psk").chmod(0o600)
    asked = admin(
        tunnel("a", "internal:echo", accept_filters=["tls:edge"]),
        tunnel("quick", "internal:echo", accept_filters=["tls:edge"], timeouts={"handshake": "100ms"}),
        tunnel("secret", "internal:echo", accept_filters=["tls:secret"]),
        tunnel("mutual", "internal:echo", accept_filters=["tls:mutual"]),
        tunnel("mute", "internal:mute", connect_filters=["tls:out"], timeouts={"handshake": "100ms"}),
        tunnel("given-up", "internal:mute", connect_filters=["tls:out"]),
        tunnel("silent", "internal:discard", listen="internal:mute"),
        extra=section("tls", "edge", certificate=certificate, key=key, min_version="1.3") +
        section("tls", "secret", psk=str(directory / "psk")) + section("tls", "out", verify="none") +
        section("tls", "mutual", certificate=certificate, key=key, client_ca=str(authority.certificate), verify="required"))
    expected = {}

    def one_more(side, reason):
        expected[side, reason] = expected.get((side, reason), 0) + 1
        wait_until(lambda: failed_handshakes(asked.metrics()) == expected, f"{expected}")

    def reach(name):
        return socket.create_connection(asked.daemon.address(name), DEADLINE)

    for said, reason in ((b"GET / HTTP/1.1\r\n\r\n", "not_tls"),
                         (client_hello(maximum_version=ssl.TLSVersion.TLSv1_2), "unsupported"),
                         (client_hello() + b"\x16\x03\x03\x00\x05nonse", "protocol")):
        with reach("a") as sock:
            sock.sendall(said)
            one_more("near", reason)
    with reach("a") as sock:
        sock.sendall(client_hello()[:50])
        sock.shutdown(socket.SHUT_WR)
        one_more("near", "ended")
    with reach("a") as sock:
        sock.sendall(client_hello()[:50])
        wait_until(lambda: asked.connections(tunnel="a"), "the connection")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    one_more("near", "reset")
    with reach("a"):
        number = wait_until(lambda: asked.connections(tunnel="a"), "the connection")[0]["id"]
        assert asked.post(f"/v1/connections/{number}/kill")[0] == 200
        one_more("near", "stopped")
    with reach("quick"):
        one_more("near", "timeout")
    shake_hands(asked.daemon.address("a"), ssl.create_default_context())
    one_more("near", "alert")
    context = ssl.create_default_context(cafile=authority.certificate)
    shake_hands(asked.daemon.address("mutual"), context)
    one_more("near", "certificate")
    subprocess.run(["openssl", "s_client", "-connect", "{}:{}".format(*asked.daemon.address("secret")), "-psk", "cd" * 32,
                    "-psk_identity", "site-a"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=DEADLINE)
    one_more("near", "secret")
    with reach("mute"):
        one_more("far", "timeout")
    with reach("given-up") as sock:
        wait_until(lambda: asked.connections(tunnel="given-up"), "the connection")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    one_more("far", "stopped")


def test_metrics_of_filters(admin, directory):
    certificate, key = Authority(directory).issue("server", "server.example")
    sections = (section("tls", "edge", certificate=certificate, key=key) +
                section("tls", "out", verify="none") + section("zlib", "line"))
    asked = admin(tunnel("client", "internal:server", connect_filters=["tls:out", "zlib:line"]),
                  tunnel("server", "internal:echo", listen="internal:server", accept_filters=["tls:edge", "zlib:line"]),
                  tunnel("plain", "internal:speechless", connect_filters=["tls:out"]),
                  tunnel("speechless", "internal:echo", listen="internal:speechless"), extra=sections)
    for _ in range(2):
        with connect(asked.daemon.address("client"), expects=CLIENT_STREAM) as client:
            transfer(client, client, 100_000)
            client.finish()
            client.expect_fin(client)
    assert is_refused(asked.daemon.address("plain"))
    seen = asked.metrics()

    def handshakes(side, result):
        return seen[f'penstock_tls_handshakes_total{{side="{side}",result="{result}"}}']
    for side in ("near", "far"):
        assert [handshakes(side, result) for result in ("full", "ticket", "cache", "psk")] == [1, 1, 0, 0]
    assert failed_handshakes(seen) == {("far", "not_tls"): 1}

    def moved(flow, form):
        return seen[f'penstock_compression_bytes_total{{filter="zlib",flow="{flow}",form="{form}"}}']
    assert moved("in", "plain") == moved("out", "plain") == 4 * 100_000
    assert moved("in", "packed") == moved("out", "packed") > 0


def test_loop_lag_is_measured(admin):
    asked = admin()
    count = 'penstock_worker_loop_lag_seconds_count{worker="1"}'
    first = asked.metrics()[count]
    wait_until(lambda: asked.metrics()[count] > first, "a beat")


def test_canaries_come_back_on_every_worker(admin):
    asked = admin()
    names = [f'penstock_worker_canary_age_seconds{{worker="{worker}"}}' for worker in (0, 1)]
    wait_until(lambda: all(name in asked.metrics() for name in names), "the canaries")
    assert all(asked.metrics()[name] < 5 for name in names)


# --- HTTP


def test_keep_alive_and_pipelining(admin):
    with admin().raw() as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n")
        (_, first), (_, second) = receive(sock, 2)
        assert first == "ok\n" and json.loads(second)["ready"]
        sock.sendall(b"HEAD /v1/status HTTP/1.1\r\nHost: a\r\n\r\n"
                     b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        rest = receive_all(sock)
        head, _, rest = rest.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and int(re.search(rb"Content-Length: (\d+)", head)[1]) > 100
        assert rest.startswith(b"HTTP/1.1 200") and rest.endswith(b"\r\n\r\nok\n") and b"Connection: close" in rest


def test_a_request_byte_by_byte_and_a_half_closed_client(admin):
    with admin().raw() as sock:
        for byte in b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n":
            sock.sendall(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock).endswith(b"ready\n")


def test_old_clients(admin):
    asked = admin(tunnel("a", "internal:echo"))
    assert json.loads(asked.curl("/v1/tunnels", "--http1.0")[2])["tunnels"][0]["name"] == "a"
    with asked.raw() as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert receive_all(sock).endswith(b"\r\n\r\nok\n")


@pytest.mark.parametrize("request_bytes, status", [
    (b"nonsense\r\n\r\n", 501),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
    (b"GET /" + b"x" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    (b"POST /v1/reload HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000, 413),
])
def test_what_is_no_request_is_answered_and_the_connection_closed(admin, request_bytes, status):
    with admin().raw() as sock:
        sock.sendall(request_bytes)
        assert receive_all(sock).startswith(b"HTTP/1.1 %d " % status)


def test_paths_and_methods(admin):
    asked = admin()
    assert asked.curl("/nothing")[0] == 404
    assert asked.curl("/v1/connections/")[0] == 404
    assert asked.curl("/healthz", "-X", "DELETE")[0] == 405
    assert asked.curl("/v1/reload")[0] == 405
    with asked.raw() as sock:
        sock.sendall(b"OPTIONS /v1/reload HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _ = next(receive(sock, 1))
        assert head.startswith("HTTP/1.1 405") and "Allow: POST" in head


def test_who_does_not_read_holds_up_nobody_and_costs_little(admin):
    asked = admin(tunnel("a", "internal:echo"), workers=1)
    crowd = [socket.create_connection(asked.daemon.address("a")) for _ in range(600)]
    wait_until(lambda: asked.metrics()['penstock_connections{tunnel="a",state="open"}'] == 600, "all of them")
    before = asked.daemon.resident_bytes()
    silent = [asked.raw() for _ in range(20)]
    for sock in silent:
        sock.sendall(b"GET /v1/connections HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    for _ in range(5):
        assert asked.get("/v1/status")["ready"]
    if not SANITIZED:
        assert asked.daemon.resident_bytes() - before < 40 * 1024 * 1024
    for sock in silent + crowd:
        sock.close()
    wait_until(lambda: asked.metrics()['penstock_connections{tunnel="admin",state="open"}'] == 1, "their ends")


# --- what it does


def test_reload(admin):
    asked = admin(tunnel("a", "internal:echo"))
    daemon = asked.daemon
    daemon.write(daemon.text + tunnel("b", "internal:echo"))
    assert asked.post("/v1/reload") == (200, {"ok": True})
    daemon.wait_log("listening", tunnel="b")  # the log is written by a thread of its own
    assert echoes(daemon.address("b"))
    status = asked.get("/v1/status")
    assert status["generation"] == 2 and status["reload"]["reloads"] == 1
    daemon.write(daemon.text + "nonsense = 1\n")
    code, answer = asked.post("/v1/reload")
    assert code == 409 and "unknown keyword 'nonsense'" in answer["error"]
    status = asked.get("/v1/status")
    assert status["generation"] == 2 and status["reload"]["failed"] == 1 and status["reload"]["failed_at"] > 0
    assert "nonsense" in status["reload"]["failure"]
    assert asked.metrics()['penstock_reloads_total{result="failed"}'] == 1


def test_who_connects_holds_nothing_of_its_limit(admin, directory):
    """What was granted could not be used before the target answers; it is not kept from others for so long."""
    authority = Authority(directory)
    certificate, key = authority.issue("server", "a.example")
    with FullTarget() as silent:
        asked = admin(tunnel("a", silent.text, accept_filters=["tls:edge"], limit="slow", timeouts={"connect": "30s"}),
                      extra=section("tls", "edge", certificate=certificate, key=key) +
                      section("limit", "slow", up="2kB/s"))

        def up():
            return asked.get("/v1/limits")["limits"][0]["up"]

        with socket.create_connection(asked.daemon.address("a"), timeout=DEADLINE) as client:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = ssl.create_default_context(cafile=authority.certificate).wrap_bio(incoming, outgoing,
                                                                                   server_hostname="a.example")
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
                client.sendall(outgoing.read())
                incoming.write(client.recv(64 * KIB))
            tls.write(bytes(20000))
            client.sendall(outgoing.read())
            silent.wait_dialled()
            before = up()
            assert before["waiting"] == 0 and before["total"] > 4000
            time.sleep(1.5)
            assert up()["total"] == before["total"]


def test_answers_are_json_whatever_they_quote(admin):
    asked = admin(tunnel("a", "internal:echo"))
    good = asked.daemon.text
    asked.daemon.config.write_bytes(good.encode() + b'max_memory = "\xe4\xff"\n')
    code, answer = asked.post("/v1/reload")
    assert code == 409 and "'??' does not begin with a digit" in answer["error"]
    assert "'??'" in asked.get("/v1/status")["reload"]["failure"]
    code, answer = asked.post("/v1/tunnels/%ff%e2%86%92/drain")
    assert code == 404 and '"?→"' in answer["error"]
    code, answer = asked.post("/v1/limits/" + 64 * "%22", {"rate": "1MB/s"})
    assert code == 404 and 64 * '"' in answer["error"]
    # Wherever the report is cut off.
    names = ["x" * length for length in range(3, 7)]
    for name in names:
        hops = [f"{name}{hop}" for hop in range(16)]
        asked.daemon.write(good + "".join(
            tunnel(hop, f"internal:{then}", f"internal:{hop}") for hop, then in zip(hops, hops[1:] + hops[:1])))
        code, answer = asked.post("/v1/reload")
        assert code == 409 and "form a cycle" in answer["error"]
        assert "form a cycle" in asked.get("/v1/status")["reload"]["failure"]


def test_many_reloads_at_once_all_get_an_answer(admin):
    asked = admin(tunnel("a", "internal:echo"))
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(asked.post("/v1/reload"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(200, {"ok": True})] * 12


def drained(asked, name="a"):
    told = next(one for one in asked.get("/v1/tunnels")["tunnels"] if one["name"] == name)
    assert asked.metrics()[f'penstock_tunnel_drained{{tunnel="{name}"}}'] == told["drained"]
    return told["drained"]


def test_a_drained_tunnel_is_closed_until_it_is_opened_again(admin, directory):
    """Nobody is accepted any more, who is there goes on, and who waited in the queue is let in."""
    port = free_port()
    asked = admin(tunnel("a", "internal:echo", listen=[f"127.0.0.1:{port}", f"unix:{directory}/a.sock"]))
    daemon, addresses = asked.daemon, [("127.0.0.1", port), f"{directory}/a.sock"]
    with connect(addresses[0], expects=CLIENT_STREAM) as client:
        transfer(client, client, 10)
        daemon.signal(signal.SIGSTOP)
        with asked.raw() as asking:
            asking.sendall(b"POST /v1/tunnels/a/drain HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-Penstock: 1\r\n"
                           b"Content-Length: 2\r\n\r\n{}")
            waiting = [connect(address, expects=CLIENT_STREAM) for address in addresses * 30]
            daemon.signal(signal.SIGCONT)
            assert [head.split()[1] for head, _ in receive(asking, 1)] == ["200"]
        assert all(is_closed(address) for address in addresses) and not Path(addresses[1]).exists()
        assert drained(asked)
        for peer in [client, *waiting]:
            transfer(peer, peer, 1000)
            peer.close()
        assert asked.get("/v1/tunnels")["tunnels"][0]["listen"] == []
        assert asked.post("/v1/tunnels/a/drain") == (200, {"ok": True})  # as it is
        assert asked.post("/v1/tunnels/a/undrain") == (200, {"ok": True})
        assert all(echoes(address) for address in addresses) and not drained(asked)
        assert asked.post("/v1/tunnels/a/undrain") == (200, {"ok": True})
    for act in ("drain", "undrain"):
        assert asked.post(f"/v1/tunnels/nobody/{act}") == (404, {"error": 'there is no tunnel "nobody"; penstockctl tunnels shows all'})
    assert daemon.wait_log('tunnel "a" drained until the next reload') and daemon.wait_log('tunnel "a" open again')
    assert 'tunnel "nobody"' not in daemon.log()  # only what was done


def test_who_asked_for_a_reload_is_told_before_what_came_of_it(admin):
    asked = admin(tunnel("a", "internal:echo"))
    assert asked.post("/v1/reload") == (200, {"ok": True})
    daemon = asked.daemon
    texts = [daemon.wait_log(text).text for text in ("reload asked for", "reloaded")]
    told = [line.text for line in daemon.lines()]
    assert told.index(texts[0]) < told.index(texts[1]), told


def test_a_drained_tunnel_leaves_its_port_to_others(admin):
    """While another listens there neither undrain nor a reload takes it: they say so, and all stays as it was."""
    port = free_port()
    asked = admin(tunnel("a", "internal:echo", listen=f"127.0.0.1:{port}"))
    assert asked.post("/v1/tunnels/a/drain")[0] == 200
    with socket.create_server(("127.0.0.1", port)) as other:
        for path in ("/v1/tunnels/a/undrain", "/v1/reload"):
            status, answer = asked.post(path)
            assert status == 409 and f"cannot listen on 127.0.0.1:{port}: Address already in use" in answer["error"]
            assert drained(asked)
        with connect(("127.0.0.1", port)):
            other.accept()[0].close()
    assert asked.post("/v1/reload")[0] == 200
    assert echoes(("127.0.0.1", port)) and not drained(asked)


def test_what_a_drained_tunnel_shares_stays_open(admin, directory):
    """An address that another tunnel has too, and an internal name: who would get to the drained one is reset."""
    port = free_port()
    rows = {"listen": f"127.0.0.1:{port}"}
    asked = admin(tunnel("a", "internal:echo", match={"source": ["127.0.0.2"]}, **rows), tunnel("rest", "internal:echo", **rows),
                  tunnel("inner", "internal:echo", listen="internal:inner"), tunnel("outer", "internal:inner"))
    for name in ("a", "inner"):
        assert asked.post(f"/v1/tunnels/{name}/drain")[0] == 200
        assert drained(asked, name)
    assert echoes(("127.0.0.1", port))
    with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", port), DEADLINE, ("127.0.0.2", 0)) as sock:
        sock.recv(1)
    assert is_refused(asked.daemon.address("outer"))
    assert asked.post("/v1/tunnels/rest/drain")[0] == 200
    assert is_closed(("127.0.0.1", port))
    assert asked.post("/v1/tunnels/a/undrain")[0] == 200
    with socket.create_connection(("127.0.0.1", port), DEADLINE, ("127.0.0.2", 0)) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    assert asked.post("/v1/tunnels/inner/undrain")[0] == 200
    assert echoes(asked.daemon.address("outer"))


def test_the_last_way_in_is_not_drained(admin, directory):
    asked = admin(tunnel("other", "internal:more", listen=f"unix:{directory}/other.sock"),
                  tunnel("more", "internal:admin", listen="internal:more"))
    assert asked.post("/v1/tunnels/other/drain")[0] == 200
    status, answer = asked.post("/v1/tunnels/admin/drain")
    assert status == 409 and answer["error"].startswith('tunnel "admin" is the last way to internal:admin')
    assert asked.post("/v1/tunnels/other/undrain")[0] == 200
    assert asked.post("/v1/tunnels/admin/drain")[0] == 200
    asked = Admin(asked.daemon, path=directory / "other.sock")
    assert asked.post("/v1/tunnels/more/drain")[0] == 409
    assert asked.post("/v1/tunnels/admin/undrain")[0] == 200


def test_the_last_way_in_is_not_drained_though_it_is_one_of_several(start, directory):
    """Behind a name that tunnels share by what they match."""
    daemon = start(configuration(
        tunnel("way", "internal:more", f"unix:{directory}/admin.sock"),
        tunnel("more", "internal:admin", "internal:more", match={"source": ["unix"]}), tunnel("rest", "internal:echo", "internal:more")))
    asked = Admin(daemon, path=directory / "admin.sock")
    for name in "way", "more":
        status, answer = asked.post(f"/v1/tunnels/{name}/drain")
        assert status == 409 and answer["error"].startswith(f'tunnel "{name}" is the last way to internal:admin')
    assert asked.post("/v1/tunnels/rest/drain")[0] == 200


def test_drains_and_reloads_at_once(admin):
    """Each gets its answer, and what came last is so in the end."""
    asked = admin(tunnel("a", "internal:echo"), tunnel("b", "internal:echo"))
    answers = []
    paths = [f"/v1/tunnels/{name}/{act}" for name in "ab" for act in ("drain", "undrain")] + ["/v1/reload"]
    threads = [threading.Thread(target=lambda path=path: answers.append(asked.post(path)[0])) for path in paths * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 20
    assert asked.post("/v1/tunnels/a/undrain")[0] == asked.post("/v1/tunnels/b/drain")[0] == 200
    a, b = (one["listen"] for one in asked.get("/v1/tunnels")["tunnels"][:2])
    assert echoes(parse_address(a[0])) and not b


def test_changes_before_the_last_worker_has_begun(start, directory):
    """The first one lets clients in as soon as it can."""
    path, text = directory / "admin.sock", json.dumps({"level": "info"})
    requests = "".join(f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-Penstock: 1\r\n"
                       f"Content-Length: {len(body)}\r\n\r\n{body}"
                       for target, body in (("/v1/tunnels/a/drain", "{}"), ("/v1/log-level", text)))
    asked = Admin(None, path=path)

    def is_asked():
        with contextlib.suppress(OSError):
            sock = asked.raw()
            sock.sendall(requests.encode())
            return sock
        return None

    for _ in range(6):
        daemon = start(configuration(tunnel("a", "internal:echo"), tunnel("admin", "internal:admin", f"unix:{path}"),
                                     workers=128), wait=False)
        with wait_until(is_asked, "the socket of admin") as sock:
            assert [head.split()[1] for head, _ in receive(sock, 2)] == ["200", "200"]
        daemon.stop()


def test_kill(admin):
    asked = admin(tunnel("a", "internal:echo"))
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 10)
        number = asked.connections(tunnel="a")[0]["id"]
        assert asked.post(f"/v1/connections/{number}/kill")[0] == 200
        client.expect_reset()
        line = asked.daemon.ended("a")
        assert line["reason"] == "stopped" and line["ended_by"] == "us"
        assert asked.post(f"/v1/connections/{number}/kill")[0] == 404


def test_log_level_until_the_next_reload(admin):
    asked = admin()
    assert asked.post("/v1/log-level", {"level": "debug"})[0] == 200
    assert asked.get("/v1/status")["log"]["level"] == "debug"
    assert asked.post("/v1/log-level", {"level": "loud"})[0] == 400
    assert asked.post("/v1/log-level")[0] == 400
    assert asked.post("/v1/reload")[0] == 200
    assert asked.get("/v1/status")["log"]["level"] == "info"


# --- whom it refuses


def test_only_root_and_the_daemon_itself_change_things(admin, directory):
    asked = admin(rows={"unix_mode": "0666"})
    assert json.loads(asked.curl("/v1/status", user=65534)[2])["may_change"] is False
    code, answer = asked.post("/v1/reload", user=65534)
    assert code == 403 and "admin { change }" in answer["error"]


def test_rights_by_uid(admin):
    asked = admin(rows={"unix_mode": "0666"}, extra='admin { change = { "uid:65534" } }\n')
    assert asked.post("/v1/reload", user=65534)[0] == 200
    assert asked.post("/v1/reload")[0] == 403
    assert asked.daemon.wait_log("reload asked for, by unix:uid=65534")


def test_over_tcp_nobody_is_known(admin):
    asked = over_tcp(admin())
    assert asked.get("/v1/status")["may_change"] is False
    assert asked.post("/v1/reload")[0] == 403


def test_hosts_over_tcp(admin):
    asked = over_tcp(admin(extra='admin { names = { "ops.example" } }\n'))
    for host, status in (("rebinding.example", 403), ("127.0.0.1.example", 403), ("ops.example:80", 200),
                         ("OPS.example", 200), ("localhost:7", 200), ("10.1.2.3", 200), ("[::1]:80", 200), ("[x]", 403)):
        assert asked.curl("/v1/status", "-H", f"Host: {host}")[0] == status, host


@pytest.mark.parametrize("headers, status", [
    (("-H", "Content-Type: text/plain"), 415),
    ((), 415),  # curl's own: a form
    (("-H", "Content-Type: application/json"), 403),
    (("-H", "X-Penstock: 1"), 415),
])
def test_what_a_foreign_page_can_send_changes_nothing(admin, headers, status):
    asked = admin()
    assert asked.post("/v1/reload", headers=headers)[0] == status
    assert asked.get("/v1/status")["generation"] == 1


def test_wrong_rights_are_found_by_the_check(start, directory):
    text = configuration(admin_tunnel(directory)) + 'admin { change = { "root" } }\n'
    daemon = start(text, wait=False)
    assert daemon.wait_exit() == 1
    assert "'root' is nobody; write uid:NUMBER or cn:NAME" in daemon.log()


def openssl(directory, *arguments):
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def pki(directory):
    """A CA, a server's certificate, and those of two people."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(directory, "req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "ops", "guest"):
        openssl(directory, "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-extfile", "names", "-out", f"{name}.pem")
    return directory


def test_rights_by_certificate(start, pki):
    """Over mutual TLS: who holds the name changes, others look, and without a certificate nobody comes in."""
    daemon = start(configuration(
        f'tls "admin" {{ certificate = "{pki}/server.pem" key = "{pki}/server.key" client_ca = "{pki}/ca.pem" verify = "required" }}\n',
        'admin { change = { "cn:ops" } }\n',
        tunnel("admin", "internal:admin", accept_filters=["tls:admin"]), tunnel("a", "internal:echo")))
    host, port = daemon.address("admin")

    def curl(who, *arguments):
        certificate = ["--cert", str(pki / f"{who}.pem"), "--key", str(pki / f"{who}.key")] if who else []
        return subprocess.run(["curl", "-s", "--cacert", str(pki / "ca.pem"), *certificate, "-o", "/dev/null", "-w", "%{http_code}",
                               f"https://{host}:{port}" + arguments[0], *arguments[1:]], capture_output=True, text=True, check=False).stdout

    change = ("-X", "POST", *CHANGE, "-d", "{}")
    assert curl("guest", "/v1/status") == "200" and curl("guest", "/v1/reload", *change) == "403"
    assert curl("ops", "/v1/reload", *change) == "200"
    assert daemon.wait_log("reload asked for, by 127.0.0.1:") and "cn=ops" in daemon.log()
    assert curl(None, "/v1/status") == "000"


def test_a_name_that_a_header_tells_gives_no_right(start, directory):
    """A PROXY header with a CN, and one that says the client came by a UNIX socket."""
    daemon = start(configuration(
        'proxy_protocol "lb" { trust = { "127.0.0.1" } }\nadmin { change = { "cn:ops", "uid:0", "uid:4294967294" } }\n',
        tunnel("admin", "internal:admin", accept_filters=["proxy_protocol:lb"])))
    inner = bytes([1, 0, 0, 0, 0]) + bytes([0x22, 0, 3]) + b"ops"  # SSL: client uses it, verified, CN
    tlv = bytes([0x20]) + len(inner).to_bytes(2, "big") + inner
    for family, block in ((0x11, socket.inet_aton("10.0.0.1") * 2 + bytes(4)), (0x31, bytes(216))):
        body = block + tlv
        with socket.create_connection(daemon.address("admin")) as sock:
            sock.settimeout(DEADLINE)
            sock.sendall(b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x21, family]) + len(body).to_bytes(2, "big") + body +
                         b"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         b"X-Penstock: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            assert receive_all(sock).startswith(b"HTTP/1.1 403 ")
    assert not daemon.find_log("reload")


# --- when others are at their limits


@pytest.mark.parametrize("way", ["straight", "match", "match behind a name"])
def test_it_answers_when_the_daemon_is_full(start, directory, way):
    matched = {"match": {"source": ["unix"]}}
    ways = {"straight": [admin_tunnel(directory)], "match": [admin_tunnel(directory, **matched)],
            "match behind a name": [tunnel("admin", "internal:more", f"unix:{directory}/admin.sock"),
                                    tunnel("more", "internal:admin", "internal:more", **matched)]}
    daemon = start(configuration(tunnel("a", "internal:echo"), *ways[way], workers=2, max_connections=3))
    asked = Admin(daemon, path=directory / "admin.sock")
    held = [connect(asked.daemon.address("a")) for _ in range(3)]
    wait_until(lambda: asked.get("/v1/status")["connections"]["open"] >= 4, "three and itself")
    assert is_refused(asked.daemon.address("a"))
    assert asked.get("/v1/tunnels")["tunnels"][0]["refused"] == {"max_connections": 1}
    for client in held:
        client.close()


def test_it_answers_when_descriptors_are_out(start, directory):
    text = configuration(tunnel("a", "internal:echo"), admin_tunnel(directory), workers=1, max_connections=1000)
    daemon = start(text, prefix=("prlimit", "--nofile=150:150"))
    asked = Admin(daemon, path=directory / "admin.sock")
    crowd = []
    for _ in range(150):
        crowd.append(socket.create_connection(daemon.address("a")))
    wait_until(lambda: asked.metrics()['penstock_connections_refused_total{tunnel="a",reason="descriptors"}'] > 0,
               "a refusal")
    assert asked.get("/v1/status")["ready"]
    for sock in crowd:
        sock.close()


def test_it_answers_when_pipes_take_descriptors(start, directory):
    """Bulk that nobody reads waits in pipes, and these keep off what is reserved for the operator, too."""
    with Target(receive_bytes=64 * KIB) as deaf, contextlib.ExitStack() as stack:
        text = configuration(tunnel("a", deaf.text), admin_tunnel(directory), workers=1, max_connections=1000)
        daemon = start(text, prefix=("prlimit", "--nofile=170:170"))
        asked = Admin(daemon, path=directory / "admin.sock")
        crowd = [stack.enter_context(connect(daemon.address("a"))) for _ in range(60)]
        wait_until(lambda: any(value for name, value in asked.metrics().items() if "descriptors" in name), "one too many")
        for client in crowd:
            with contextlib.suppress(ConnectionError):
                client.fill(quiet=0.02)
        for _ in range(10):
            stack.enter_context(connect(f"{directory}/admin.sock"))
        assert asked.get("/v1/status")["ready"]


MANY_ADDRESSES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		(int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
	if (!name || strcmp(name, "far.example"))
		return real(name, service, hints, found);
	*found = NULL;
	for (int i = 2; i < 18; i++) {
		struct addrinfo *one;
		char text[16];
		snprintf(text, sizeof(text), "127.0.0.%d", i);
		if (real(text, service, hints, &one))
			return EAI_FAIL;
		one->ai_next = *found;
		*found = one;
	}
	return 0;
}
"""


def test_it_answers_when_racing_takes_descriptors(start, directory):
    """All the addresses of a host are silent: the attempts keep off what is reserved for the operator, too."""
    with FullTarget(host="0.0.0.0") as silent, contextlib.ExitStack() as stack:
        text = configuration(tunnel("a", f"far.example:{silent.port}"), admin_tunnel(directory), workers=1, max_connections=1000)
        daemon = start(text, prefix=[*preloaded(directory, MANY_ADDRESSES), "prlimit", "--nofile=150:150"])
        asked = Admin(daemon, path=directory / "admin.sock")
        for _ in range(20):
            stack.enter_context(connect(daemon.address("a")))
        wait_until(lambda: tcp_states(silent.port).count("SYN_SENT") > 40, "two addresses to be tried for each")
        time.sleep(0.6)  # in which two more would be
        for _ in range(10):
            stack.enter_context(connect(f"{directory}/admin.sock"))
        assert asked.get("/v1/status")["ready"]


@pytest.mark.parametrize("limit", [None, "operators"])
def test_it_answers_when_every_limit_is_saturated(admin, limit):
    """Also under a limit of its own that gets its share of the same full uplink."""
    limits = (section("limit", "uplink", rate="1MB/s") + section("limit", "operators", parent="uplink") +
              section("limit", "customer", parent="uplink", rate="800kB/s") +
              section("limit", "client", parent="customer", per="source/32", rate="700kB/s") +
              section("limit", "each", parent="client", per="connection", rate="600kB/s"))
    asked = admin(tunnel("a", "internal:chargen", limit="each"), tunnel("b", "internal:chargen", limit="uplink"),
                  rows={"limit": limit} if limit else {}, extra=limits)
    crowd = [socket.create_connection(asked.daemon.address(name)) for name in "a" * 20 + "b" * 20]
    stop = threading.Event()

    def drink():
        while not stop.is_set():
            for sock in select.select(crowd, [], [], 0.05)[0]:
                sock.recv(1 << 20)

    other = threading.Thread(target=drink)
    other.start()
    try:
        wait_until(lambda: asked.metrics()['penstock_limit_waiting_flows{limit="uplink",direction="down"}'] >= 39,
                   "all of them to wait")
        took = []
        for _ in range(5):
            began = time.monotonic()
            assert asked.get("/v1/status")["connections"]["open"] == 41
            took.append(time.monotonic() - began)
            told = {one["name"]: one for one in asked.get("/v1/limits")["limits"] if one["down"]["waiting"]}
            assert {"uplink", "customer", "client", "each"} <= told.keys()
        assert min(took) < 1, took
        assert asked.post("/v1/limits/uplink", {"rate": "2MB/s"})[0] == 200
    finally:
        stop.set()
        other.join()
        for sock in crowd:
            sock.close()


# --- ends


def test_a_silent_client_does_not_hold_the_end_up(admin):
    asked = admin()
    with asked.raw() as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        next(receive(sock, 1))
        began = time.monotonic()
        asked.daemon.signal(15)
        assert sock.recv(1) == b""
        sock.close()
        assert asked.daemon.wait_exit() == 0
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("workers", [1, 2])
def test_who_holds_a_stop_up_is_seen_and_sent_away(admin, workers):
    """Everybody else's listeners are closed then."""
    asked = admin(tunnel("a", "internal:echo"), workers=workers)
    address = asked.daemon.address("a")
    clients = [connect(address, expects=CLIENT_STREAM) for _ in range(3)]
    for client in clients:
        transfer(client, client, 10)
    asked.daemon.signal(15)
    wait_until(lambda: is_closed(address), "the listener to be closed")
    assert asked.get("/v1/status")["draining"]
    held_up = [one for one in asked.get("/v1/connections")["connections"] if one["tunnel"] == "a"]
    assert len(held_up) == 3
    assert asked.post("/v1/reload")[0] == 409 and asked.daemon.is_running()
    for one in held_up:
        assert asked.post(f"/v1/connections/{one['id']}/kill")[0] == 200
    assert asked.daemon.wait_exit() == 0
    for client in clients:
        client.close()


def test_a_way_in_that_others_share_is_closed_by_a_stop(admin):
    """Or they would come, too, and hold it up for ever."""
    shared = f"127.0.0.1:{free_port()}"
    asked = admin(tunnel("a", "internal:echo", shared), tunnel("more", "internal:admin", shared, match={"source": ["127.0.0.2"]}))
    with connect(parse_address(shared), expects=CLIENT_STREAM) as client:
        transfer(client, client, 10)
        asked.daemon.signal(15)
        wait_until(lambda: is_closed(parse_address(shared)), "the listener to be closed")
        assert asked.get("/v1/status")["draining"]
        client.finish()
        client.expect_fin(client)
    assert asked.daemon.wait_exit() == 0


def test_stopped_while_many_ask(admin):
    """Whatever is under way between the threads is let go of, without a leak."""
    asked = admin(tunnel("a", "internal:echo"))
    crowd = [socket.create_connection(asked.daemon.address("a")) for _ in range(300)]
    asking = [asked.raw() for _ in range(30)]
    for sock in asking:
        sock.sendall(b"GET /v1/connections HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
    asked.daemon.signal(15)
    asked.daemon.wait_log("draining")
    asked.daemon.signal(15)
    assert asked.daemon.wait_exit() == 0
    for sock in asking + crowd:
        sock.close()


# --- limits


LIMITS = """
limit "all" { rate = "8MB/s" }
limit "each" { parent = "all"  per = "source/32"  rate = "1MB/s"  burst = "100kB" }
"""


def test_limits_are_listed_and_changed(admin):
    asked = admin(tunnel("a", "internal:echo", limit="each"), extra=LIMITS)
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 50_000)
        listed = {(one["name"], one["key"]): one for one in asked.get("/v1/limits")["limits"]}
        all_, each = listed["all", ""], listed["each", "127.0.0.1/32"]
        assert each["parent"] == all_["id"] and all_["parent"] is None
        assert each["up"]["total"] == all_["down"]["total"] == 50_000
        assert each["up"]["rate"] == 1_000_000 and each["up"]["burst"] == 100_000 and each["down"]["members"] == 1
        assert len(asked.get("/v1/limits?name=each")["limits"]) == 1
        assert len(asked.get("/v1/limits?sort=total&limit=1")["limits"]) == 1

        def node(name="each"):
            return asked.get(f"/v1/limits?name={name}")["limits"][0]

        assert asked.post("/v1/limits/all", {"down": "20MB/s"})[0] == 200
        assert node("all")["down"]["rate"] == 20_000_000 and node("all")["up"]["rate"] == 8_000_000
        assert asked.post("/v1/limits/each", {"rate": "2MB/s"})[0] == 200
        assert node()["up"]["rate"] == node()["down"]["rate"] == 2_000_000
        assert asked.post("/v1/limits/each", {"key": "127.0.0.1/32", "up": "3MB/s"})[0] == 200
        assert node()["up"]["rate"] == 3_000_000
        assert asked.post("/v1/limits/each", {"key": "127.0.0.1/32", "charge": "500MB", "direction": "up"})[0] == 200
        assert node()["up"]["level"] < -400_000_000 < 0 < node()["down"]["level"]
        assert asked.post("/v1/limits/each", {"key": "127.0.0.1/32", "credit": f"{2**64 - 1}B"})[0] == 200
        assert node()["up"]["level"] == 100_000
        assert asked.post("/v1/limits/each", {"key": "127.0.0.1/32", "reset": True})[0] == 200
        assert node()["up"]["total"] == 0
        assert asked.post("/v1/reload")[0] == 200
        assert node()["up"]["rate"] == 1_000_000 and node("all")["down"]["rate"] == 8_000_000
    assert asked.daemon.wait_log('limit "each" of 127.0.0.1/32 changed')


def test_a_burst_nobody_wrote_follows_the_rate(admin):
    asked = admin(tunnel("a", "internal:echo", limit="each"),
                  extra=section("limit", "all", rate="1MB/s") +
                  section("limit", "each", parent="all", per="source/32", rate="1MB/s"))

    def burst(name):
        return asked.get(f"/v1/limits?name={name}")["limits"][0]["up"]["burst"]

    assert burst("all") == 50_000
    for rate in (1000, 1, 0, 200):
        assert asked.post("/v1/limits/all", {"up": f"{rate}MB/s"}) == (200, {"ok": True})
        assert not rate or burst("all") == rate * 50_000
    assert asked.post("/v1/limits/all", {"up": "10MB/s", "burst": "3MB"})[0] == 200
    assert asked.post("/v1/limits/all", {"up": "20MB/s"})[0] == 200
    assert burst("all") == 3_000_000
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM):
        key = {"key": "127.0.0.1/32"}
        wait_until(lambda: asked.get("/v1/limits?name=each")["limits"], "its node")
        assert asked.post("/v1/limits/each", {**key, "up": "100MB/s"})[0] == 200
        assert burst("each") == 5_000_000
        assert asked.post("/v1/limits/each", {**key, "burst": "2MB"})[0] == 200
        assert asked.post("/v1/limits/each", {**key, "up": "200MB/s"})[0] == 200
        assert burst("each") == 2_000_000


def test_what_comes_before_the_tunnel_is_known_is_counted_once(admin):
    header = version_1(("10.0.0.1", 1000), ("10.0.0.9", 80))
    asked = admin(tunnel("a", "internal:echo", limit="all", accept_filters=["proxy_protocol:lb"]),
                  extra=LIMITS + section("proxy_protocol", "lb", trust=["127.0.0.0/8"]))
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
        client.sock.sendall(header)
        transfer(client, client, 50_000)
        told = asked.get("/v1/limits?name=all")["limits"][0]
        assert (told["up"]["total"], told["down"]["total"]) == (50_000 + len(header), 50_000)


@pytest.mark.sanitize
def test_flushing_connection_tells_of_no_limit_that_is_gone(admin):
    """It was the last one of a limit that the file does not have any more."""
    with Target() as target:
        asked = admin(tunnel("a", target.text))
        own = admin_tunnel(asked.path.parent)
        with connect(asked.daemon.address("a")) as client, target.accept() as peer:
            asked.daemon.reload(configuration(section("limit", "slow", up="100B/s"),
                                              tunnel("a", target.text, limit="slow"), own, workers=2))
            client.fill()
            peer.fill()
            asked.daemon.reload(configuration(own, workers=2))
            peer.reset()
            wait_until(lambda: "flushing" in [one["state"] for one in asked.connections()], "the target's end to be seen")


@pytest.mark.parametrize("name, body, status", [
    ("nobody", {"rate": "1MB/s"}, 404),
    ("each", {"key": "10.0.0.1/32", "rate": "1MB/s"}, 404),
    ("each", {"charge": "1MB"}, 400),
    ("all", {"rate": "fast"}, 400),
    ("all", {"rate": -1}, 400),
    ("all", {"burst": "1B"}, 400),
    ("all", {"burst": f"{2**64 - 1}B"}, 400),
    ("all", {"size": 1}, 400),
    ("all", {"charge": "1MB", "direction": "left"}, 400),
    ("all", {}, 400),
])
def test_wrong_changes_of_limits(admin, name, body, status):
    asked = admin(tunnel("a", "internal:echo", limit="each"), extra=LIMITS)
    before = asked.get("/v1/limits")
    assert asked.post(f"/v1/limits/{name}", body)[0] == status
    assert len(asked.get("/v1/limits")["limits"]) == len(before["limits"])


def test_limits_in_the_metrics(admin):
    asked = admin(tunnel("a", "internal:echo", limit="each"), extra=LIMITS)
    with connect(asked.daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 50_000)
        seen = asked.metrics()
        assert seen['penstock_limit_rate_bytes_per_second{limit="all",direction="up"}'] == 8_000_000
        assert seen['penstock_limit_bytes_total{limit="all",direction="up"}'] == 50_000
        assert seen['penstock_limit_nodes{limit="each"}'] == 1


def test_busiest_nodes_of_limits_in_the_metrics(admin):
    """Ten of each limit and no more, however many there are: those through which most bytes pass."""
    asked = admin(tunnel("a", "internal:echo", limit="each"), tunnel("b", "internal:echo", limit="line"),
                  extra=LIMITS + section("limit", "line", per="connection", parent="each", rate="5MB/s"))
    clients = []

    def come(tunnel, count):
        for i in range(count):
            sock = socket.socket()
            sock.settimeout(DEADLINE)
            sock.bind((f"127.0.{i // 100 + 1}.{i % 100 + 1}", 0))
            sock.connect(asked.daemon.address(tunnel))
            sock.sendall(bytes(i + 1))
            clients.append(sock)
        for i, sock in enumerate(clients[-count:]):
            assert len(sock.recv(i + 1, socket.MSG_WAITALL)) == i + 1

    def told(seen, limit, name="bytes_total", direction="up"):
        mark = f'penstock_limit_top_{name}{{limit="{limit}",'
        return {re.search(r'above="(.*?)",key="(.*?)"', sample).groups(): value for sample, value in seen.items()
                if sample.startswith(mark) and f'direction="{direction}"' in sample}
    come("a", 20)
    few = asked.metrics()
    come("a", 200)
    come("b", 5)
    many = asked.metrics()
    assert len(few) + 10 * 5 == len(many)  # b's, which are less than ten
    assert many['penstock_limit_nodes{limit="each"}'] == 200
    each = told(many, "each")
    busiest = {("", f"127.0.2.{i}/32"): i + 100 for i in range(91, 101)}
    assert each == busiest
    for name, value in (("rate_bytes_per_second", 1_000_000), ("waiting_flows", 0)):
        assert told(many, "each", name) == {key: value for key in busiest}
    assert told(many, "each", "level_bytes").keys() == busiest.keys()
    line = told(many, "line", direction="down")
    assert sorted((above, count) for (above, _), count in line.items()) == [
        (f"127.0.1.{i}/32", i) for i in range(1, 6)]
    assert all(re.fullmatch(r"#\d+", key) for _, key in line)

    def passes_now():
        clients[20].sendall(bytes(500))
        assert len(clients[20].recv(500, socket.MSG_WAITALL)) == 500
        speed = told(asked.metrics(), "each", "passing_bytes_per_second")
        return speed.get(("", "127.0.1.1/32"), 0) == max(speed.values()) > 0
    wait_until(passes_now, "one that had passed the least to pass the most")
    _, _, text = asked.curl("/metrics")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for sock in clients:
        sock.close()
