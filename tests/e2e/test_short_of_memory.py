"""Memory ends at one place after the other: what is in the making is refused or reset, and the reason is told; all
else goes on. FULL=1 goes through many more places and takes ten minutes; SEED chooses others."""

import contextlib
import functools
import json
import os
import random
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest

from certificates import Authority
from daemon import DEADLINE, PENSTOCKCTL, configuration, section, tunnel, wait_until
from peers import KIB, MIB, EchoTarget, client_hello
from programs import free_port
from proxy_header import version_1, version_2
from short_of_memory import Shortage

FULL = bool(os.environ.get("FULL"))
SEED = int(os.environ.get("SEED", "1"))
MOST = 2000 if FULL else 24  # places of a scene
SECONDS = 120 if FULL else 6

SAID = random.Random(1).randbytes(150 * KIB)


class Wrong(Exception):
    """Neither a whole answer nor a refusal."""


# --- what clients do: return when all was well; OSError = refused or reset ----------------------------------------

def dial(address):
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(DEADLINE)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def read(sock, count):
    got = b""
    while len(got) < count:
        piece = sock.recv(count - len(got))
        if not piece:
            raise Wrong(f"a clean end after {len(got)} of {count} bytes")
        got += piece
    return got


def talk(sock, end=None):
    """A message, then more, then the end, through an echo."""
    for piece in (SAID[:100], SAID[100:]):
        sock.sendall(piece)
        if read(sock, len(piece)) != piece:
            raise Wrong("other bytes than were said")
    (end or (lambda: sock.shutdown(socket.SHUT_WR)))()
    if sock.recv(1):
        raise Wrong("more than was said")


def plain(address, before=b""):
    with dial(address) as sock:
        sock.sendall(before)
        talk(sock)


def plain_or_ended(path):
    """Over a UNIX socket a reset is seen as one only where bytes are unread."""
    try:
        plain(path)
    except Wrong as wrong:
        raise ConnectionResetError(str(wrong)) if "a clean end" in str(wrong) else wrong


def all_at_once(address, said=SAID):
    """All is said and ended before the first byte is read."""
    with dial(address) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while piece := sock.recv(65536):
            got += piece
        if got != said:
            raise Wrong(f"a clean end after {len(got)} of {len(said)} bytes")


def bulk(address):
    """Long enough to be spliced."""
    with dial(address) as sock:
        said, resets = SAID * 40, []
        sender = threading.Thread(target=send_until_reset, args=(sock, said, resets))
        sender.start()
        try:
            if read(sock, len(said)) != said:
                raise Wrong("other bytes than were said")
        finally:
            sender.join()
            if resets:
                raise resets[0]  # the kernel tells it once, to the one or the other


def send_until_reset(sock, said, resets):
    try:
        sock.sendall(said)
    except OSError as error:
        resets.append(error)


class TlsClients:
    def __init__(self, authority):
        self.authority = authority
        self.remembered = {}

    def context(self, version, protocols):
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.minimum_version = context.maximum_version = version
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    def talk(self, address, version=ssl.TLSVersion.TLSv1_3, name="server.example", protocols=(), resumes=False):
        kept = self.remembered.get((address, version)) if resumes else None
        context, session = kept or (self.context(version, protocols), None)
        with dial(address) as sock, context.wrap_socket(sock, server_hostname=name, session=session,
                                                        suppress_ragged_eofs=False) as tls:
            talk(tls, tls.unwrap)
            if resumes and not kept:
                self.remembered[address, version] = context, tls.session


def ask(path, request, shape):
    """HTTP by hand: what its head promised must have come."""
    with dial(path) as sock:
        sock.sendall(f"GET {request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while piece := sock.recv(65536):
            got += piece
    head, gap, body = got.partition(b"\r\n\r\n")
    if not gap:
        raise ConnectionResetError("cut off")
    if not head.startswith(b"HTTP/1.1 "):
        raise Wrong(f"this is no head: {head[:200]}")
    status = int(head.split(b" ")[1])
    if b"Transfer-Encoding: chunked" in head:
        body = unchunked(body)
    else:
        length = re.search(rb"Content-Length: (\d+)", head)
        if not length:
            raise Wrong(f"no length in {head}")
        if int(length[1]) > len(body):
            raise ConnectionResetError("cut off")
    if status in (500, 503):
        raise ConnectionRefusedError(body)
    try:
        shape(body.decode())
    except (ValueError, AssertionError) as error:
        raise Wrong(f"{request}: {error}: {body[:300]}") from None


def unchunked(body):
    whole = b""
    while True:
        size, gap, rest = body.partition(b"\r\n")
        if not gap:
            raise ConnectionResetError("cut off")
        if not re.fullmatch(b"[0-9a-f]+", size):
            raise Wrong(f"no size of a chunk: {size[:100]}")
        size = int(size, 16)
        if not size:
            return whole
        whole, body = whole + rest[:size], rest[size + 2:]


def names_in(value):
    """Those of its members and of what is inside of these; of a list's elements those of the first."""
    if isinstance(value, list):
        return names_in(value[0]) if value else {}
    if isinstance(value, dict):
        return {name: {} if name in ("refused", "ended") else names_in(inner) for name, inner in value.items()}
    return {}


NAMES = {}  # in each kind of answer, as long as there was memory


def is_json(text):
    value = json.loads(text)
    if len(value) == 1:
        (kind, value), = value.items()
        assert not NAMES.get(kind) or value, f"{kind}: none is left"
    else:
        kind = "status"
    names = names_in(value)
    assert NAMES.setdefault(kind, names) == names, f"{names} instead of {NAMES[kind]}"


def is_page(text):
    assert text.rstrip().endswith("</html>")


def is_metrics(text):
    assert text.endswith("\n")
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) .+|\w+(\{(\w+="[^"]*",?)+\})? [-+\w.]+', line), line
    for name in ("penstock_build_info", "process_resident_memory_bytes", "penstock_connections"):
        assert re.search(rf"(?m)^{name}\b", text), f"{name} is missing"


# --- the daemon ---------------------------------------------------------------------------------------------------

class World:
    """One daemon with a tunnel for each thing that takes memory, and who talks through them."""

    def __init__(self, start, directory, target, workers):
        authority = Authority(directory)
        server = authority.issue("server", "server.example", "a.example", "b.example")
        self.directory = directory
        self.shortage = Shortage(directory)
        self.clients = TlsClients(authority)
        self.target = target
        self.edited = 0
        self.start = start
        self.text = self._text(authority, server, workers)
        self.begin()

    def path(self, name):
        return f"{self.directory}/{name}.sock"

    def begin(self):
        self.daemon = self.start(self.text, prefix=self.shortage.prefix)
        self.address = functools.cache(self.daemon.address)  # the log becomes long
        self.standing = [dial(self.address("limited")), dial(self.address("chain"))]
        self.check_standing()

    def close(self):
        for sock in self.standing:
            sock.close()

    def wait_quiet(self):
        def is_quiet():
            spent = self.daemon.cpu_seconds()
            time.sleep(0.05)
            return self.daemon.cpu_seconds() - spent < 0.01
        wait_until(is_quiet, "the daemon to be at rest")

    def descriptors(self):
        """But those of the pipes that it keeps to splice through."""
        return self.daemon.descriptors() - self.daemon.descriptors("pipe:")

    def anonymous_bytes(self):
        return int(re.search(r"RssAnon:\s+(\d+) kB", self.daemon.proc("status"))[1]) * KIB

    def check_standing(self):
        """Who was there before and is idle goes on as if nothing had happened."""
        for sock in self.standing:
            sock.sendall(b"still here")
            assert read(sock, 10) == b"still here"

    def _text(self, authority, server, workers):
        on = lambda name: "unix:" + self.path(name)
        # Over a UNIX socket a reset and an end look the same where nothing is unread.
        proxy, self.chosen = (("127.0.0.1", free_port()) for _ in range(2))
        chosen = lambda name, to, **match: tunnel(name, to, "{}:{}".format(*self.chosen), match=match)
        echo = self.target.text
        return configuration(
            section("tls", "edge", certificate=server[0], key=server[1]),
            section("tls", "out", ca=authority.certificate, server_name="server.example"),
            section("tls", "forgetful", certificate=server[0], key=server[1], tickets="false", session_cache=0),
            section("zlib", "z", level=1), section("zstd", "s", level=1),
            section("proxy_protocol", "in", trust=["unix", "127.0.0.1"]),
            section("proxy_protocol", "out1", version=1), section("proxy_protocol", "out2", version=2, tlvs="all"),
            section("limit", "all", rate="1GB/s"),
            section("limit", "source", parent="all", per="source/32", rate="500MB/s"),
            section("limit", "each", parent="source", per="connection", rate="400MB/s"),
            section("limit", "sni", parent="all", per="sni", rate="500MB/s"),
            tunnel("plain", echo),
            tunnel("unix", echo, on("unix")),
            tunnel("tls", echo, [on("tls"), "127.0.0.1:0"], accept_filters=["tls:edge"]),
            tunnel("to_tls", on("tls"), connect_filters=["tls:out"]),
            tunnel("forgetful", echo, on("forgetful"), accept_filters=["tls:forgetful"]),
            tunnel("to_forgetful", on("forgetful"), connect_filters=["tls:out"]),
            tunnel("zlib", echo, on("zlib"), accept_filters=["zlib:z"]),
            tunnel("to_zlib", on("zlib"), connect_filters=["zlib:z"]),
            tunnel("zstd", echo, on("zstd"), accept_filters=["zstd:s"]),
            tunnel("to_zstd", on("zstd"), connect_filters=["zstd:s"]),
            tunnel("proxy", echo, "{}:{}".format(*proxy), accept_filters=["proxy_protocol:in"]),
            tunnel("to_proxy1", "{}:{}".format(*proxy), connect_filters=["proxy_protocol:out1"]),
            tunnel("to_proxy2", "{}:{}".format(*proxy), connect_filters=["proxy_protocol:out2"]),
            chosen("named", "internal:choice_tls", sni=["a.example"]),
            chosen("agreed", "internal:choice_tls", sni=["*"], alpn=["h2"]),
            chosen("rest", echo),
            tunnel("choice_tls", echo, "internal:choice_tls", accept_filters=["tls:edge"]),
            tunnel("chain", "internal:middle", connect_filters=["tls:out", "zlib:z"]),
            tunnel("middle", "internal:last", "internal:middle", accept_filters=["tls:edge", "zlib:z"],
                   connect_filters=["proxy_protocol:out2"]),
            tunnel("last", "internal:echo", "internal:last", accept_filters=["proxy_protocol:in"], limit="each"),
            tunnel("limited", echo, limit="each", connect_limit="all", max_per_source=1000, max_new_per_source="100000/s"),
            tunnel("limited_sni", echo, accept_filters=["tls:edge"], limit="sni"),
            section("limit", "source_payload", per="source/32", rate="16MB/s", burst="100kB", count="payload"),
            tunnel("to_metered", "internal:metered_in", connect_filters=["zstd:s"]),
            tunnel("metered_in", echo, "internal:metered_in", accept_filters=["zstd:s"], limit="source_payload"),
            tunnel("named_target", f"localhost:{self.target.port}"),
            tunnel("admin", "internal:admin", on("admin")),
            workers=workers, timeouts={"handshake": "3s", "connect": "3s"})

    # --- scenes

    def ctl(self, *arguments):
        done = subprocess.run([PENSTOCKCTL, *arguments], env={**os.environ, "PENSTOCK_SOCKET": self.path("admin")},
                              capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
        if done.returncode:
            raise ConnectionRefusedError(done.stderr)
        return done.stdout

    def reload(self):
        """Of a file that has one limit more, or one less."""
        self.edited += 1
        more = section("limit", f"more{self.edited}", rate="1MB/s") if self.edited % 2 else ""
        self.daemon.write(self.text + more)
        self.ctl("reload")

    def scenes(self):
        """What takes memory; each returns, or raises OSError where that was refused."""
        at, path, tls = self.address, self.path, self.clients.talk
        tls12, tls13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
        source, destination = ("192.0.2.1", 1000), ("192.0.2.2", 2000)
        return {
            "sockets": {
                "plain": lambda: plain(at("plain")),
                "half-close": lambda: all_at_once(at("plain")),
                "bulk": lambda: bulk(at("plain")),
                "unix": lambda: plain_or_ended(path("unix")),
                "resolver": lambda: plain(at("named_target")),
                "limits": lambda: plain(at("limited")),
            },
            "TLS": {
                "TLS 1.3": lambda: tls(at("tls"), tls13),
                "TLS 1.2": lambda: tls(at("tls"), tls12),
                "TLS 1.3 resumed": lambda: tls(at("tls"), tls13, resumes=True),
                "TLS 1.2 resumed": lambda: tls(at("tls"), tls12, resumes=True),
                "TLS to the target": lambda: plain(at("to_tls")),
                "limits by SNI": lambda: tls(at("limited_sni"), name="b.example"),
            },
            "filters": {
                "zlib": lambda: plain(at("to_zlib")),
                "zlib, all at once": lambda: all_at_once(at("to_zlib")),
                "zstd": lambda: plain(at("to_zstd")),
                "PROXY 1 in": lambda: plain(at("proxy"), version_1(source, destination)),
                "PROXY 2 in": lambda: plain(at("proxy"), version_2(source, destination, checksum=True)),
                "PROXY 1 out": lambda: plain(at("to_proxy1")),
                "PROXY 2 out": lambda: plain(at("to_proxy2")),
                "limits of payload": lambda: plain(at("to_metered")),
            },
            "choices and chains": {
                "by SNI": lambda: tls(self.chosen, name="a.example"),
                "by ALPN": lambda: tls(self.chosen, name="b.example", protocols=["h2"]),
                "the rest": lambda: all_at_once(self.chosen, client_hello("c.example") + SAID),
                "chain": lambda: plain(at("chain")),
            },
            "admin": {
                **{what: lambda what=what: ask(path("admin"), f"/v1/{what}", is_json)
                   for what in ("status", "connections", "tunnels", "targets", "limits", "ends", "diff")},
                "metrics": lambda: ask(path("admin"), "/metrics", is_metrics),
                "page": lambda: ask(path("admin"), "/", is_page),
                "penstockctl": lambda: self.ctl("status"),
                "why": lambda: self.ctl("why"),
            },
            "reload": {"reload": self.reload},
        }


# --- one place after the other ------------------------------------------------------------------------------------

class Campaign:
    """One scene, again and again, each time with memory missing at another place."""

    def __init__(self, world, group, name):
        self.world, self.group, self.name = world, group, name
        self.faults = []
        self.points = self.refused = 0

    def fault(self, place, what):
        stacks = "\n".join("    " + " < ".join(stack[:12]) for stack in self.world.shortage.places()[:3])
        self.faults.append(f"{self.name}, {place}: {what}\n{stacks}")

    def attempt(self):
        """What came of it; None when all was well."""
        try:
            self.world.scenes()[self.group][self.name]()
        except (TimeoutError, subprocess.TimeoutExpired) as late:
            return Wrong(f"hangs: {late!r}")
        except (Wrong, OSError) as outcome:
            return outcome
        return None

    def count(self):
        """How many allocations it makes when all is well."""
        for _ in range(3):
            assert self.attempt() is None
        spent = self.world.daemon.cpu_seconds()
        self.world.shortage.count()
        assert self.attempt() is None
        self.world.shortage.end()
        self.spent = self.world.daemon.cpu_seconds() - spent
        return self.world.shortage.seen()

    def is_told(self, outcome, since):
        told = lambda: any("memory" in line.line for line in self.world.daemon.lines()[since:])
        with contextlib.suppress(AssertionError):
            return "memory" in str(outcome) or wait_until(told, "the reason", 5)  # repeated lines come a second later
        return False

    def point(self, place, run=0):
        """The allocation with that number fails, and as many behind it as `run` says."""
        shortage, daemon = self.world.shortage, self.world.daemon
        since, spent = len(daemon.lines()), daemon.cpu_seconds()
        shortage.fail(place, run)
        outcome = self.attempt()
        if not shortage.end():
            return
        self.points += 1
        self.refused += outcome is not None
        again = self.attempt() if daemon.is_running() else None
        if not daemon.is_running():
            self.fault(place, f"the daemon ended with {daemon.process.returncode}")
            self.world.begin()
            self.count()
        elif isinstance(outcome, Wrong):
            self.fault(place, outcome)
        elif outcome and not self.is_told(outcome, since):
            lines = "\n".join(line.line for line in daemon.lines()[since:])
            self.fault(place, f"{outcome!r}, for which no lack of memory is told:\n{lines}")
        elif again:
            self.fault(place, f"{again!r} when there was memory again")
        elif daemon.cpu_seconds() - spent > 2 * self.spent + 0.5:
            self.fault(place, f"{daemon.cpu_seconds() - spent:.1f} s of CPU")

    def run(self, most):
        count = self.count()
        self.world.wait_quiet()
        descriptors, held = self.world.descriptors(), self.world.shortage.held()
        places = range(1, count + 3)
        if len(places) > most:
            places = sorted(random.Random(SEED).sample(places, most))
        for place in places:
            self.point(place)
        for place in places[::4]:
            self.point(place, run=3)
        assert self.points, f"{self.name}: none of {count} allocations failed"
        self.world.check_standing()
        wait_until(lambda: self.world.descriptors() <= descriptors, f"{descriptors} descriptors")
        self.world.wait_quiet()
        grown = self.world.shortage.held() - held
        if grown > 150:  # what is kept on purpose is less: buffers, and sessions
            self.fault("in all", f"{grown} blocks more are in use")
        return f"{self.name}: {count} allocations; {self.points} times they failed, {self.refused} times the client was told"


@pytest.fixture
def world(request, start, directory):
    workers = getattr(request, "param", 1)
    with EchoTarget() as target, contextlib.closing(World(start, directory, target, workers)) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("group", ["sockets", "TLS", "filters", "choices and chains", "admin", "reload"])
def test_one_allocation_fails(world, report, group):
    faults = []
    for name in world.scenes()[group]:
        campaign = Campaign(world, group, name)
        report(campaign.run(MOST) + f" (seed {SEED})")
        faults += campaign.faults
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


@pytest.mark.slow
def test_the_first_handshake_behind_a_reload(world, report):
    """What OpenSSL works out once and keeps must not be something else for ever because memory was short then."""
    def shake_hands():
        plain(world.address("to_forgetful"))

    world.reload()
    world.shortage.count()
    shake_hands()
    world.shortage.end()
    count, failed, lasting = world.shortage.seen(), 0, []
    for place in range(1, count + 1, 1 if FULL else 5):
        world.reload()
        world.shortage.fail(place)
        with contextlib.suppress(OSError):
            shake_hands()
        failed += world.shortage.end()
        try:
            shake_hands()
        except OSError:
            lasting.append(place)
    assert failed
    assert not lasting, f"{len(lasting)} of {count} places: {lasting[:50]}"
    report(f"the first handshake behind a reload: {count} allocations; {failed} times they failed")


# --- under load ---------------------------------------------------------------------------------------------------

class Client(threading.Thread):
    """Goes through all scenes in an order of its own."""

    def __init__(self, world, number, is_over):
        super().__init__()
        self.world, self.is_over = world, is_over
        self.random = random.Random(f"{SEED} {number}")
        self.wrong, self.whole, self.refused = [], 0, 0
        self.start()

    def run(self):
        scenes = [(name, scene) for group, scenes in self.world.scenes().items() if group != "reload"
                  for name, scene in scenes.items()]
        while not self.is_over():
            name, scene = self.random.choice(scenes)
            try:
                scene()
                self.whole += 1
            except (Wrong, TimeoutError, subprocess.TimeoutExpired) as wrong:
                self.wrong.append(f"{name}: {wrong!r}")
            except OSError:
                self.refused += 1


@pytest.mark.slow
@pytest.mark.parametrize("world", [2], indirect=True, ids=["2 workers"])
@pytest.mark.parametrize("one_in", [200, 1000])
def test_allocations_fail_by_chance(world, report, one_in):
    for group, scenes in world.scenes().items():
        for _ in range(3):
            for scene in scenes.values():
                scene()
    world.wait_quiet()
    daemon, descriptors = world.daemon, world.descriptors()
    kept, held = [], []
    for turn in range(3):
        over = time.monotonic() + SECONDS / 3
        world.shortage.fail_by_chance(one_in, SEED + turn)
        clients = [Client(world, number, lambda: time.monotonic() > over) for number in range(6)]
        for client in clients:
            client.join()
        failed = world.shortage.end()
        wrong = [words for client in clients for words in client.wrong]
        assert daemon.is_running(), f"ended with {daemon.process.returncode}: {world.shortage.places()[-1]}"
        assert failed
        assert not wrong, f"{len(wrong)} of 1/{one_in} with seed {SEED + turn}: {wrong[:10]}"
        world.wait_quiet()
        kept.append(world.anonymous_bytes())
        held.append(world.shortage.held())
        report(f"1 of {one_in} allocations (seed {SEED + turn}): {failed} failed, {sum(client.whole for client in clients)} "
               f"whole, {sum(client.refused for client in clients)} refused; {held[-1]} blocks, {kept[-1] / MIB:.1f} MiB are in use")
    wait_until(lambda: world.descriptors() <= descriptors, f"{descriptors} descriptors")
    for scenes in world.scenes().values():
        for scene in scenes.values():
            scene()
    # A buffer or a session that is kept on purpose comes once; what leaks grows with each turn.
    assert min(after - before for before, after in zip(held, held[1:])) < 50, f"{held} blocks in use"
    assert kept[-1] - kept[0] < 32 * MIB, f"{kept} bytes in use"
