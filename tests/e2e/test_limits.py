"""Limits with real time: rates and windows at the receiver, shares, retuning, timeouts; two workers.

The machine may be busy with other things. A bound on what comes in a window allows for the longest pause
of the receiver itself; a bound from below holds only where the daemon says that it waited for the limit and
not for a processor; buckets hold a quarter of a second, so that a pause of the daemon loses nothing.
"""

import contextlib
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest

from daemon import DEADLINE, before_others, configuration, preloaded, tunnel, wait_until
from metered import Acceptor, Readers, StallMeter, Writers, dial, dial_many
from peers import KIB, Target, connect, transfer
from programs import free_port
from proxy_header import version_1

KB, MB = 1000, 1000 * 1000
ATTEMPTS = 5  # at what a busy machine may spoil
SEGMENT = 1448


def limit(name, **rows):
    values = "".join(f"        {key} = {value if isinstance(value, int) else chr(34) + value + chr(34)}\n"
                     for key, value in rows.items())
    return f'limit "{name}" {{\n{values}}}\n'


def bucket(rate, seconds=0.25):
    """Rows of a limit whose bucket holds that many seconds."""
    return {"rate": f"{rate}B/s", "burst": f"{burst_of(rate, seconds)}B"}


def burst_of(rate, seconds=0.25):
    return max(int(rate * seconds), 8192)


def chargen(name="a", **rows):
    return tunnel(name, "internal:chargen", **rows)


def quantum(rate):
    """The most that a connection is granted at a time."""
    return max(SEGMENT, min(rate / 40, max(64 * KIB, rate / 250)))


def share_of_waits(line, flow):
    """How much of its time the connection of that log line waited for a limit, in percent."""
    for part in line[flow].split(","):
        cause, _, percent = part.rpartition(" ")
        if cause == "limit":
            return float(percent.rstrip("%"))
    return 0.0


def was_limited(daemon, name, flow, count):
    """Whether the tunnel's connections, which end now, waited for limits and not only for processors."""
    lines = daemon.ended(name, count)
    return min(share_of_waits(line, flow) for line in (lines if count > 1 else [lines])) > 10


class Measure:
    """What `readers` get in some seconds after the burst; `late`: for how long bytes may have waited for the
    readers, or the readers for a processor."""

    def __init__(self, readers, rate, burst, seconds):
        began = time.monotonic()
        # A source that is not much faster than the rate may take long to spend the burst, or never do.
        readers.wait_total(burst)
        while readers.total < burst * 0.95 + rate * (time.monotonic() - began) and time.monotonic() - began < 2:
            time.sleep(0.01)
        self.readers, self.before, self.begin = readers, list(readers.got), time.monotonic()
        time.sleep(seconds)
        self.late = readers.late
        self.end = time.monotonic()
        self.shares = [now - then for now, then in zip(readers.got, self.before)]
        self.seconds = self.end - self.begin
        time.sleep(0.06)  # for the sample behind the end
        self.rate = readers.between(self.begin, self.end) / self.seconds

    def jain(self):
        squares = sum(share * share for share in self.shares)
        return sum(self.shares) ** 2 / len(self.shares) / squares if squares else 0.0


    def least(self, rate):
        """The least rate that is right."""
        slack = max(0.01 * rate, quantum(rate) / self.seconds) + rate * self.late / self.seconds
        return rate - slack - len(self.shares) * SEGMENT / self.seconds

    def is_fair(self):
        return min(self.shares) <= 10 * SEGMENT or self.jain() >= 0.98


def check_rate(report, what, measure, rate, burst, is_limited):
    """`is_limited`: it must not be less either. Else the daemon did not wait for the limit, but for a CPU."""
    worst, spent = measure.readers.worst_window(rate, measure.begin)
    late = rate * measure.late
    report(f"limit {what:>8}: asked {rate:>11,} B/s, got {measure.rate:>13,.0f} ({measure.rate / rate - 1:+.2%}), "
           f"worst window {worst - burst - quantum(rate):+,.0f} B over burst and quantum, Jain {measure.jain():.4f}, "
           f"wait p99 {measure.readers.wait_p99() * 1000:.0f} ms{'' if is_limited else ', short of CPU'}")
    assert worst <= burst + quantum(rate) + late, (worst, measure.late)
    left = max(0, burst - spent) + quantum(rate) + late
    assert measure.rate <= rate * 1.01 + left / measure.seconds
    if is_limited:
        assert measure.rate >= measure.least(rate)
        assert measure.is_fair(), measure.shares


# --- rates ----------------------------------------------------------------------------------------

@pytest.mark.alone
@pytest.mark.parametrize("rate", [100 * KB, MB, 10 * MB, 100 * MB, 500 * MB])
@pytest.mark.parametrize("way", ["down", "up"])
def test_rate(start, report, way, rate):
    """Four connections on two workers under one limit."""
    count, burst = 4, burst_of(rate)
    with Acceptor() as target, contextlib.ExitStack() as stack:
        daemon = start(configuration(limit("l", **bucket(rate)), chargen("down", limit="l"),
                                     tunnel("up", target.text, limit="l"), workers=2))
        if rate <= 10 * MB:
            before_others(daemon)
        clients = dial_many(daemon.address(way), count)
        if way == "up":
            readers = Readers(target.accept(count))
            stack.enter_context(Writers(clients))
        else:
            readers = Readers(clients)
        stack.enter_context(readers)
        # Other programs may take a CPU for longer than buckets hold. They do not always; no window may
        # ever have too much.
        for _ in range(ATTEMPTS):
            measure = Measure(readers, rate, burst, 2.5 if rate < MB else 1.5)
            if measure.rate >= measure.least(rate) and measure.is_fair():
                break
        readers.close()
        stack.close()
        is_limited = was_limited(daemon, way, f"{way}_wait", count)
    check_rate(report, f"{way}", measure, rate, burst, is_limited)


@pytest.mark.alone
def test_nesting(start, report):
    """Five levels; each bounds what is below it, and what one leaves is the others'."""
    text = (limit("uplink", **bucket(12 * MB)) + limit("wide", parent="uplink", **bucket(100 * MB)) +
            limit("client", parent="wide", per="source/32", **bucket(8 * MB)) + limit("group", parent="client") +
            limit("each", parent="group", per="connection", **bucket(3 * MB)))
    daemon = before_others(start(configuration(text, chargen(limit="each"), workers=2)))
    address = daemon.address("a")
    with Readers(dial_many(address, 4) + dial_many(address, 1, "127.0.0.2")) as readers:
        measure = Measure(readers, 11 * MB, 3 * MB, 2)
        worst, _ = readers.worst_window(12 * MB)
    crowded, alone = sum(measure.shares[:4]) / measure.seconds, measure.shares[4] / measure.seconds
    report(f"limit nesting: four in a client of 8 MB/s got {crowded:,.0f} B/s, one of 3 MB/s {alone:,.0f} B/s")
    slack = 12 * MB * measure.late / measure.seconds
    assert crowded <= 8 * MB * 1.01 + slack + 64 * KIB and alone <= 3 * MB * 1.01 + slack + 64 * KIB
    assert crowded >= 8 * MB * 0.98 - slack and alone >= 3 * MB * 0.98 - slack
    assert worst <= 12 * MB / 4 + quantum(12 * MB) + 12 * MB * measure.late


@pytest.mark.alone
@pytest.mark.sanitize
def test_weights(start, report):
    tunnels = "".join(limit(f"w{weight}", parent="uplink", weight=weight) + chargen(f"t{weight}", limit=f"w{weight}")
                      for weight in (1, 2, 4))
    daemon = before_others(start(configuration(limit("uplink", **bucket(7 * MB)), tunnels, workers=2)))
    # The heavy one has one connection, the light one four.
    clients = [client for weight, count in ((1, 4), (2, 2), (4, 1))
               for client in dial_many(daemon.address(f"t{weight}"), count)]
    with Readers(clients) as readers:
        for _ in range(ATTEMPTS):
            measure = Measure(readers, 7 * MB, 2 * MB, 1.5)
            shares = [sum(measure.shares[:4]), sum(measure.shares[4:6]), measure.shares[6]]
            unit = sum(shares) / 7
            wrong = [abs(share / unit / weight - 1) for share, weight in zip(shares, (1, 2, 4))]
            # At both ends of the time a grant may lie on either side.
            bounds = [0.02 + quantum(7 * MB) * weight / 7 / share for share, weight in zip(shares, (1, 2, 4))]
            if all(error <= bound for error, bound in zip(wrong, bounds)):
                break
    report("limit weights 1:2:4 came out as " + " : ".join(f"{share / unit:.3f}" for share in shares))
    assert all(error <= bound for error, bound in zip(wrong, bounds)), (wrong, bounds)


@pytest.mark.alone
def test_client_with_a_hundred_connections(start, report):
    text = limit("uplink", **bucket(20 * MB)) + limit("client", parent="uplink", per="source/32")
    daemon = before_others(start(configuration(text, chargen(limit="client"), workers=2)))
    address = daemon.address("a")
    with Readers(dial_many(address, 100) + dial_many(address, 1, "127.0.0.2")) as readers:
        for _ in range(ATTEMPTS):
            measure = Measure(readers, 20 * MB, 5 * MB, 1)
            many, one = sum(measure.shares[:100]), measure.shares[100]
            if 0.95 <= one / many <= 1.05:
                break
    report(f"limit fairness: client with 1 connection : client with 100 = {one / many:.3f}")
    assert 0.95 <= one / many <= 1.05


# --- chains ---------------------------------------------------------------------------------------

@pytest.fixture(name="tls")
def tls_sections(directory):
    """Sections of both ends of TLS."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", directory / "key.pem", "-out", directory / "cert.pem", "-days", "2", "-subj",
                    "/CN=limits.test", "-addext", "subjectAltName=DNS:limits.test"], check=True, capture_output=True)
    return (f'tls "edge" {{ certificate = "{directory}/cert.pem" key = "{directory}/key.pem" }}\n'
            f'tls "out" {{ ca = "{directory}/cert.pem" server_name = "limits.test" }}\n')


PROXY = 'proxy_protocol "lb" { trust = "127.0.0.0/8" }\n'
CHAINS = {  # rows of the metered tunnel, rows of the one that leads to it
    "plain": ({}, {}),
    "tls": ({"accept_filters": ["tls:edge"]}, {"connect_filters": ["tls:out"]}),
    "tls payload": ({"accept_filters": ["tls:edge"]}, {"connect_filters": ["tls:out"]}),
    "zlib": ({"accept_filters": ["zlib"]}, {"connect_filters": ["zlib"]}),
    "tls and zlib": ({"accept_filters": ["tls:edge", "zlib"]}, {"connect_filters": ["tls:out", "zlib"]}),
    "proxy": ({"accept_filters": ["proxy_protocol:lb"]}, {"connect_filters": ["proxy_protocol"]}),
}


@pytest.mark.parametrize("chain, target", [
    ("plain", "pair"), ("plain", "socket"), ("plain", "hop"), ("tls", "socket"), ("tls", "hop"),
    ("tls payload", "pair"), ("zlib", "pair"), ("tls and zlib", "hop"), ("proxy", "socket")])
@pytest.mark.alone
def test_chain(start, report, directory, tls, chain, target):
    """The same number on the wire whatever is in it; and counted once where two tunnels share a limit."""
    rate, seconds = 2 * MB, 0.8
    count = "payload" if "payload" in chain else "wire"
    metered, leading = CHAINS[chain]
    text = tls + (PROXY if chain == "proxy" else "") + limit("uplink", count=count, **bucket(rate, 0.05))
    text += limit("l", parent="uplink", per="source/32", count=count)
    inner = {"pair": "internal:chargen", "socket": f"unix:{directory}/free", "hop": "internal:hop"}[target]
    address = f"127.0.0.1:{free_port()}"
    text += tunnel("metered", inner, limit="l", listen=address, **metered)
    text += tunnel("leading", address, **leading)
    text += chargen("free", listen=f"unix:{directory}/free", unix_mode="0666")
    if target == "hop":
        text += chargen("hop", listen="internal:hop", limit="l", connect_limit="uplink")
    if "tls" not in chain:
        text = text.replace(tls, "")
    daemon = before_others(start(configuration(text, workers=2)))
    with Readers([dial(daemon.address("leading"))]) as readers:
        readers.wait_total(1)
        time.sleep(seconds)
        plain = readers.total
    line = daemon.ended("metered")
    took = int(line["duration_ms"]) / 1000
    passed = plain if count == "payload" else int(line["down"])
    bound = burst_of(rate, 0.05) + rate * took
    report(f"limit of {rate:,} B/s, {chain}, {target}: {passed / bound:.1%} of what it allows in {took * 1000:.0f} ms, "
           f"as {plain:,} bytes")
    assert passed <= bound + SEGMENT
    if share_of_waits(line, "down_wait") > 10:
        assert passed >= rate * seconds * 0.95


@pytest.mark.sanitize
def test_payload_of_the_far_side(start):
    """What compresses well is counted as what it is without filters, on the far side too."""
    rate, burst = 200 * KB, 20 * KB
    daemon = start(configuration(
        limit("l", rate=f"{rate}B/s", burst=f"{burst}B", count="payload"),
        tunnel("a", "internal:b", connect_filters=["zlib"], connect_limit="l"),
        chargen("b", listen="internal:b", accept_filters=["zlib"]), workers=2))
    with Readers([dial(daemon.address("a"))]) as readers:
        began = time.monotonic()
        readers.wait_total(burst)
        time.sleep(0.5)
        assert readers.total <= burst + SEGMENT + rate * (time.monotonic() - began + 0.1)
    assert share_of_waits(daemon.ended("a"), "down_wait") > 10


@pytest.mark.alone
@pytest.mark.parametrize("way", ["down", "up"])
def test_overhead(start, report, way):
    """Each segment of a kilobyte costs half as much again: two thirds of the rate are left for what is in them."""
    rate, segment = 2 * MB, 1000 - 12  # less a timestamp
    with Acceptor() as target, contextlib.ExitStack() as stack:
        daemon = before_others(start(configuration(
            limit("l", overhead=segment // 2, **bucket(rate)), chargen("down", limit="l"),
            tunnel("up", target.text, limit="l"), workers=2)))
        client = dial(daemon.address(way), segment_bytes=1000)
        if way == "up":
            readers = Readers(target.accept())
            stack.enter_context(Writers([client]))
        else:
            readers = Readers([client])
        stack.enter_context(readers)
        for _ in range(ATTEMPTS):
            measure = Measure(readers, rate * 2 // 3, burst_of(rate) * 2 // 3, 1)
            if measure.rate >= measure.least(rate * 2 / 3):
                break
        readers.close()
        stack.close()
        is_limited = was_limited(daemon, way, f"{way}_wait", 1)
    report(f"limit {way} with an overhead of half a segment: {measure.rate / rate:.3f} of the rate are payload")
    slack = (quantum(rate) + rate * measure.late) / measure.seconds
    assert measure.rate <= rate * 2 / 3 * 1.01 + slack
    if is_limited:
        assert measure.rate >= measure.least(rate * 2 / 3)


# --- small flows under a saturated parent ------------------------------------------------------------

def ask_once(client):
    client.sendall(bytes(1024))
    left = 1024
    while left:
        left -= len(client.recv(left))


UNVERIFIED = ssl.create_default_context()
UNVERIFIED.check_hostname, UNVERIFIED.verify_mode = False, ssl.CERT_NONE


def shake_hands(client):
    """And the first exchange."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with UNVERIFIED.wrap_socket(client) as secured:
        ask_once(secured)


SMALL = {"request": ask_once, "handshake": shake_hands}


@pytest.mark.parametrize("what, rate, clients, inside", [
    ("request", MB, 1, False), ("request", 10 * MB, 1, False), ("request", MB, 200, False),
    ("request", 10 * MB, 200, False), ("request", 10 * MB, 200, True), ("handshake", MB, 200, False),
    ("handshake", 10 * MB, 1, False)])
@pytest.mark.alone
def test_small_flow_under_saturation(start, report, tls, what, rate, clients, inside):
    """A kilobyte and its answer, beside 200 hungry connections of one client or of 200; or after a handshake of
    TLS; or inside one of the 200 clients: then within two of its rounds."""
    text = limit("uplink", **bucket(rate, 0.05)) + limit("client", parent="uplink", per="source/32")
    text += tls.splitlines(True)[0] if what == "handshake" else ""
    filters = {"accept_filters": ["tls:edge"]} if what == "handshake" else {}
    daemon = start(configuration(text, chargen("hungry", limit="client"),
                                 tunnel("small", "internal:echo", limit="client", **filters), workers=2))
    before_others(daemon)
    hungry = [dial(daemon.address("hungry"), f"127.0.1.{1 + number % clients}") for number in range(200)]
    took, late = [], []
    with Readers(hungry) as readers:
        readers.wait_total(200 * 8 * KIB)  # what newcomers may claim
        # The first of the hungry ones had much while they were alone, and are not to be served for a while.
        sources = [f"127.0.1.{180 + number}" if inside else f"127.0.2.{1 + number}" for number in range(20)]
        for source in sources:
            with dial(daemon.address("small"), source) as client, StallMeter() as stall:
                began = time.monotonic()
                SMALL[what](client)
                took.append(time.monotonic() - began)
            late.append(took[-1] - 2 * stall.worst)
    report(f"limit small {what} at {rate // MB} MB/s beside 200 hungry connections of {clients} clients"
           f"{', inside one of them' if inside else ''}: "
           f"median {sorted(took)[len(took) // 2] * 1000:.1f} ms, worst {max(took) * 1000:.1f} ms")
    a_round = clients * quantum(rate / clients) / rate
    assert max(late) <= (2 * a_round if inside else 0.25), (took, late)


@pytest.mark.alone
def test_ever_new_flows_gain_nothing(start, report):
    """One client opens connections, takes what newcomers are given at once, and leaves; another one reads."""
    rate, over, errors = 4 * MB, threading.Event(), []
    text = limit("uplink", **bucket(rate)) + limit("client", parent="uplink", per="source/32")
    daemon = before_others(start(configuration(text, chargen(limit="client"), workers=2)))
    address = daemon.address("a")

    def cheat():
        try:
            while not over.is_set():
                with dial(address, "127.0.0.2") as client:
                    got = 0
                    while got < 4 * KIB and not over.is_set():
                        got += len(client.recv(4 * KIB))
        except BaseException as error:  # told by the test's thread
            errors.append(error)

    threads = [threading.Thread(target=cheat) for _ in range(4)]
    with Readers(dial_many(address, 2, "127.0.0.3")) as readers:
        for thread in threads:
            thread.start()
        for _ in range(ATTEMPTS):
            measure = Measure(readers, rate // 2, burst_of(rate) // 2, 1)
            share = measure.rate / rate
            if share >= 0.48:
                break
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
    count = len(daemon.find_log("connection ended"))
    assert not errors, errors
    report(f"limit beside {count} connections that one client opened one after the other, another client had "
           f"{share:.1%} of the rate")
    assert count > 50  # each takes a quantum and some: half the rate is good for a hundred a second
    assert share >= 0.48


# --- live -----------------------------------------------------------------------------------------

class Steps:
    """A daemon whose limit is changed while a client reads."""

    def __init__(self, start, first):
        self.daemon = before_others(start(self.text(first)))
        self.readers = Readers(dial_many(self.daemon.address("a"), 2))

    @staticmethod
    def text(rate):
        rows = bucket(rate, 0.05) if rate else {"rate": 0}
        return configuration(limit("l", **rows), chargen(limit="l"), workers=2)

    def change(self, rate):
        began = time.monotonic()
        self.daemon.reload(self.text(rate))
        return began, time.monotonic()


@pytest.mark.alone
@pytest.mark.sanitize
def test_reload_retunes_open_connections(start, report):
    steps = Steps(start, 2 * MB)
    told = []
    with StallMeter() as stall, steps.readers as readers:
        readers.wait_total(MB)
        for rate in (20 * MB, MB, 0, 3 * MB, 300 * KB, 10 * MB):
            began, obeyed = steps.change(rate)
            time.sleep(0.1 + 0.4)
            slack = 0.1 + 2 * stall.worst  # seconds in which it need not have come yet
            if rate == 0:
                got = readers.between(obeyed + 0.1, obeyed + 0.4) / 0.3
                assert got > 20 * MB, got
            else:
                got = readers.between(obeyed + 0.1, obeyed + 0.5) / 0.4
                assert got >= rate * 0.97 * (1 - slack / 0.4 + 0.1 / 0.4) - quantum(rate) / 0.4, (rate, got)
                assert got <= rate * (1.03 + (slack - 0.1) / 0.4) + (quantum(rate) + burst_of(rate, 0.05)) / 0.4, (rate, got)
            told.append(f"{rate / MB:g}->{got / MB:.2f}" if rate else f"unlimited->{got / MB:.0f}")
            assert obeyed - began <= 0.1 + 4 * stall.worst + (DEADLINE > 15) * 2, (obeyed - began, stall.worst)
        pause = readers.longest_pause()
        assert pause <= 0.1 + 2 * stall.worst + (DEADLINE > 15) * 2, (pause, stall.worst)
        assert readers.ended == 0
    report("limit retuned by HUP, MB/s asked->got in the half second after 100 ms: " + " ".join(told) +
           f"; longest pause of a reader {pause * 1000:.0f} ms")


def test_hundred_reloads_under_load(start, report):
    """Not a byte is lost or changed, and no connection closed; limits come, go, move and change their kind."""
    trees = [
        limit("uplink", rate="60MB/s") + limit("l", parent="uplink", per="source/32", rate="50MB/s"),
        limit("l", per="source/24", rate="40MB/s") + limit("far", rate="80MB/s"),
        limit("wan", rate="90MB/s") + limit("uplink", parent="wan", rate="70MB/s") +
        limit("l", parent="uplink", rate="30MB/s", weight=2),
        "",
    ]

    def text(number):
        tree = trees[number % len(trees)]
        rows = {"limit": "l"} if 'limit "l"' in tree else {}
        if 'limit "far"' in tree:
            rows["connect_limit"] = "far"
        return configuration(tree, tunnel("outer", "internal:inner", **rows), tunnel("direct", target.text, **rows),
                             tunnel("inner", target.text, listen="internal:inner", **rows), workers=2)

    with Target() as target, contextlib.ExitStack() as stack:
        daemon = start(text(0))
        pairs = []
        for number in range(6):
            client = stack.enter_context(connect(daemon.address("direct" if number % 2 else "outer")))
            pairs.append((client, stack.enter_context(target.accept())))
        over, errors, moved = threading.Event(), [], [0]

        def keep_moving(sender, receiver):
            try:
                while not over.is_set():
                    transfer(sender, receiver, 256 * KIB)
                    moved[0] += 256 * KIB
            except BaseException as error:  # told by the test's thread
                errors.append(error)

        threads = [threading.Thread(target=keep_moving, args=pair)
                   for client, peer in pairs for pair in ((client, peer), (peer, client))]
        for thread in threads:
            thread.start()
        for number in range(100):
            paced = time.monotonic() + 1 / 15  # of one kind of line the log has 20 a second, and each is waited for
            daemon.reload(text(number + 1))
            assert not errors, errors
            time.sleep(max(0, paced - time.monotonic()))
        over.set()
        for thread in threads:
            thread.join(DEADLINE)
        assert not errors, errors
        assert not daemon.find_log("connection ended")
        for client, peer in pairs:
            client.finish()
            peer.expect_fin(client)
            peer.finish()
            client.expect_fin(peer)
        daemon.ended("direct", 3, reason="ok")
        daemon.ended("outer", 3, reason="ok")
    report(f"limit: 100 reloads over {moved[0] / MB:.0f} MB in 6 connections: no byte lost, none closed")


@pytest.mark.sanitize
def test_mistake_changes_nothing(start):
    daemon = start(configuration(limit("l", rate="1MB/s", burst="100kB"), chargen(limit="l"), workers=2))
    with Readers(dial_many(daemon.address("a"), 2)) as readers:
        readers.wait_total(200 * KB)
        daemon.reload(configuration(limit("l", rate="100MB/s", burst="100kB"), chargen(limit="l"), workers=2),
                      expect="not reloaded")
        assert any("the least for this rate" in line.text for line in daemon.lines())
        began, before = time.monotonic(), readers.total
        time.sleep(0.4)
        got, seconds = readers.total - before, time.monotonic() - began
        assert got <= seconds * 1.1 * MB + 100 * KB


@pytest.mark.sanitize
def test_removed_limit_lets_go_and_removed_tunnel_keeps(start):
    slow = limit("slow", rate="1kB/s")
    daemon = start(configuration(slow, chargen("a", limit="slow"), chargen("b", limit="slow"), workers=2))
    with Readers([dial(daemon.address("a"))]) as freed, Readers([dial(daemon.address("b"))]) as kept:
        freed.wait_total(1)
        kept.wait_total(1)
        daemon.reload(configuration(chargen("a"), workers=2))
        freed.wait_total(MB)
        before = kept.total
        time.sleep(0.5)
        assert kept.total - before <= 8192 + 2 * SEGMENT and kept.ended == 0


@pytest.mark.sanitize
def test_reload_moves_and_renames(start):
    """An open connection goes by another parent, another name, and buckets by key that begin empty."""
    slow, fast = 100 * KB, 2 * MB
    steps = [
        (slow, "l", limit("up", **bucket(slow)) + limit("l", parent="up")),
        (fast, "l", limit("up", **bucket(slow)) + limit("wan", **bucket(fast)) + limit("l", parent="wan")),
        (slow, "l", limit("wan", rate=f"{fast}B/s") + limit("up", parent="wan", **bucket(slow)) + limit("l", parent="up")),
        (fast, "m", limit("m", **bucket(fast))),
        (slow, "m", limit("m", per="source/32", **bucket(slow, 4))),
        (fast, "m", limit("m", per="source/24", **bucket(fast))),
        (slow, "m", limit("up", **bucket(slow)) + limit("m", parent="up", per="source/24", **bucket(fast))),
    ]
    texts = [configuration(tree, chargen(limit=name), workers=2) for _, name, tree in steps]
    daemon = start(texts[0])
    with Readers(dial_many(daemon.address("a"), 2)) as readers:
        readers.wait_total(burst_of(slow))
        for text, (rate, *_) in zip(texts, steps):
            daemon.reload(text)
            time.sleep(0.1)
            for _ in range(ATTEMPTS):
                before, began = readers.total, time.monotonic()
                time.sleep(0.3)
                got, seconds = readers.total - before, time.monotonic() - began
                assert got <= (rate * (seconds + readers.late) + burst_of(rate)) * 1.1 + quantum(rate), (text, got)
                if got >= rate * seconds * 0.7:
                    break
            else:
                raise AssertionError(f"{got} bytes in {seconds} s under\n{text}")
        assert readers.ended == 0


@pytest.mark.sanitize
def test_reload_while_a_handshake_is_under_way(start):
    """Who is joined to a tunnel, or chooses it, after the reload is metered by what that names now."""
    def text(**rows):
        return configuration(
            PROXY, limit("slow", rate="10kB/s") if rows else "",
            tunnel("outer", "internal:inner", accept_filters=["proxy_protocol:lb"]),
            chargen("inner", listen="internal:inner", **rows),
            chargen("chosen", listen=address, accept_filters=["proxy_protocol:lb"],
                    match={"source": ["10.0.0.0/8"]}, **rows), workers=2)

    address = f"127.0.0.1:{free_port()}"
    daemon = start(text())
    sockets = daemon.descriptors("socket:")
    with dial(daemon.address("outer")) as joined, dial(daemon.address("chosen")) as chosen:
        wait_until(lambda: daemon.descriptors("socket:") == sockets + 2, "both to be accepted")
        daemon.reload(text(limit="slow"))
        for client in (joined, chosen):
            client.sendall(version_1(("10.0.0.1", 1000), ("10.0.0.9", 80)))
        with Readers([joined, chosen]) as readers:
            readers.wait_total(2 * SEGMENT)
            time.sleep(0.5)
            assert readers.total < 100 * KB


# --- templates ------------------------------------------------------------------------------------

@pytest.mark.sanitize
def test_reconnecting_does_not_refill(start):
    text = limit("client", per="source/32", rate="100kB/s", burst="1MB")
    daemon = start(configuration(text, chargen(limit="client"), workers=2))
    with Readers([dial(daemon.address("a"))]) as readers:
        readers.wait_total(MB)
    daemon.ended("a")
    for _ in range(5):
        with dial(daemon.address("a")) as client, Readers([client]) as readers:
            began = time.monotonic()
            time.sleep(0.2)
            assert readers.total <= 100 * KB * (time.monotonic() - began + 0.1) + 8 * KIB


STEPPING_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/time.h>
#include <time.h>

/* Each fifth of a second the time of day is an hour later, or earlier again. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
	int (*real)(clockid_t, struct timespec *) =
		(int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	int result = real(clock, now);
	if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
		now->tv_sec += now->tv_nsec / 200000000 % 2 * 3600;
	return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
	struct timespec at;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &at);
	now->tv_sec = at.tv_sec;
	now->tv_usec = at.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *out)
{
	struct timespec at;
	clock_gettime(CLOCK_REALTIME, &at);
	if (out)
		*out = at.tv_sec;
	return at.tv_sec;
}
"""


@pytest.mark.alone
def test_steps_of_the_clock_change_nothing(start, directory, report):
    rate = MB
    text = configuration(limit("l", **bucket(rate)), chargen(limit="l"), workers=2)
    daemon = before_others(start(text, prefix=preloaded(directory, STEPPING_CLOCK)))
    with Readers(dial_many(daemon.address("a"), 2)) as readers:
        for _ in range(ATTEMPTS):
            measure = Measure(readers, rate, burst_of(rate), 1.5)
            if measure.rate >= measure.least(rate):
                break
    is_limited = was_limited(daemon, "a", "down_wait", 2)
    for _ in range(8):
        daemon.reload(text)
        time.sleep(0.11)
    hours = {line.fields.get("time", line.line[:13]) for line in daemon.lines() if line.is_ours}
    assert len(hours) > 1, "the daemon sees no steps"
    check_rate(report, "steps", measure, rate, burst_of(rate), is_limited)


@pytest.mark.sanitize
def test_most_nodes_of_a_template(start):
    text = limit("client", per="source/32", rate="100kB/s", burst="1MB", max_nodes=2)
    daemon = start(configuration(text, tunnel("a", "internal:echo", limit="client"), workers=2))

    def echoes(source):
        try:
            client = dial(daemon.address("a"), source)
            client.sendall(b"x")
            return client if client.recv(1) else None
        except (ConnectionResetError, BrokenPipeError):
            return None

    first, second = echoes("127.0.0.1"), echoes("127.0.0.2")
    assert first and second
    again = echoes("127.0.0.1")
    assert again, "a node that exists has room for more"
    assert echoes("127.0.0.3") is None
    assert "most of 2 nodes" in daemon.ended("a", reason="admission")["why"]
    second.close()
    daemon.ended("a", reason="ok")
    third = echoes("127.0.0.3")
    assert third, "the idle one goes"
    for client in (first, again, third):
        client.close()


def test_who_finds_no_place_after_a_reload(start):
    """An open connection is not cut for a cap that came later; but the log says that it keeps what it had."""
    few = limit("client", per="source/32", rate="100kB/s", burst="1MB", max_nodes=1)
    daemon = start(configuration(tunnel("a", "internal:echo")))
    with dial(daemon.address("a"), "127.0.0.1") as first, dial(daemon.address("a"), "127.0.0.2") as second:
        for client in (first, second):
            client.sendall(b"x")
            assert client.recv(1)
        daemon.reload(configuration(few, tunnel("a", "internal:echo", limit="client")))
        daemon.wait_log("connections that keep the limits they had: 1 of worker 0; the last one: ")
        for client in (first, second):
            client.sendall(b"x")
            assert client.recv(1)


# --- timeouts and peers that go -------------------------------------------------------------------

@pytest.mark.sanitize
@pytest.mark.parametrize("way", ["one tunnel", "before a pair", "behind a pair"])
def test_throttled_is_not_idle(start, way):
    """Segments three quarters of a second apart, with shorter timeouts all around."""
    timeouts = {name: "300ms" for name in ("idle", "half_open")}
    text = {
        "one tunnel": chargen("a", limit="slow", timeouts=timeouts),
        "before a pair": tunnel("a", "internal:b", limit="slow", timeouts=timeouts) +
                         chargen("b", listen="internal:b", timeouts=timeouts),
        "behind a pair": tunnel("a", "internal:b", timeouts=timeouts) +
                         chargen("b", listen="internal:b", limit="slow", timeouts=timeouts),
    }[way]
    daemon = start(configuration(limit("slow", rate="2kB/s"), text, workers=2))
    with Readers([dial(daemon.address("a"))]) as readers:
        readers.wait_total(8000 - SEGMENT)
        begin = readers.total
        time.sleep(1.8)
        assert readers.ended == 0
        assert begin < readers.total
        assert not daemon.find_log("connection ended")
    for name in "ab" if "pair" in way else "a":
        line = daemon.ended(name)
        assert share_of_waits(line, "down_wait") > 50, line


@pytest.mark.sanitize
def test_throttled_client_that_says_nothing_yet_is_not_late(start):
    """Its first byte is here; our own tokens are not."""
    with Acceptor() as target:
        daemon = start(configuration(limit("slow", rate="1kB/s"),
                                     tunnel("a", target.text, limit="slow", timeouts={"first_byte": "500ms"}),
                                     tunnel("b", target.text, limit="slow", timeouts={"first_byte": "30s"}), workers=2))
        with dial(daemon.address("b")) as drain, Readers(target.accept()) as drained:
            drain.sendall(bytes(20000))
            drained.wait_total(8000)
            with dial(daemon.address("a")) as client, Readers(target.accept()) as readers:
                client.sendall(b"x" * 100)
                readers.wait_total(100)


@pytest.mark.sanitize
@pytest.mark.parametrize("gone", ["client", "target"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_peer_that_goes_while_throttled(start, gone, way):
    with Acceptor() as target:
        daemon = start(configuration(limit("slow", rate="100B/s"), tunnel("a", target.text, limit="slow"), workers=2))
        with dial(daemon.address("a")) as client, target.accept()[0] as peer:
            sender = client if way == "up" else peer
            sender.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while True:
                    sender.sendall(bytes(64 * KIB))
            time.sleep(0.2)
            leaving, staying = (client, peer) if gone == "client" else (peer, client)
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaving.close()
            began = time.monotonic()
            line = daemon.ended("a")
            assert time.monotonic() - began < 5 + (DEADLINE > 15) * 5
            assert line["ended_by"] == gone and line["reason"] == "reset", line
            staying.settimeout(DEADLINE)
            with pytest.raises(ConnectionResetError):
                while staying.recv(64 * KIB):
                    pass


def test_receive_queue_stays_small(start, report):
    """Of a connection limited from its start: what waits in penstockd's own kernel buffer."""
    with Acceptor() as target:
        daemon = start(configuration(limit("l", rate="1MB/s"), tunnel("a", target.text, limit="l"), workers=2))
        with Writers([dial(daemon.address("a"))]), Readers(target.accept()) as readers:
            port, most = daemon.address("a")[1], 0
            for _ in range(4):
                readers.wait_total(readers.total + 100 * KB)
                most = max(most, receive_queue(port))
    report(f"limit at 1 MB/s: at most {most:,} bytes in penstockd's receive queue")
    assert 0 < most <= 256 * KIB


def receive_queue(port):
    """The bytes in the receive queue of the connected sockets at that local port."""
    most = 0
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "01":
                most = max(most, int(fields[4].rpartition(":")[2], 16))
    return most
