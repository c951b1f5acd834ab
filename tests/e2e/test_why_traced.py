"""The shares of what a connection waited for, against what strace shows of its ends: two clocks that know nothing of
each other. Where its own ends cannot show it, others do: the name server, and the clients of all for whom the worker
works."""

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from certificates import Authority
from daemon import DEADLINE, configuration, section, tunnel, wait_until
from peers import Target, connect, tcp_states
from programs import program
from test_why import Feeder

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # the sanitizers would only be slower

NEAR = 0.05  # what the two may differ by
ATTEMPTS = 3

# An end of a connection: connects or accepts, does these steps one after the other, and closes.
END = """
import os, socket, ssl, sys, time
way, at, *steps = sys.argv[1:]

def listening(backlog):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(backlog)
    print(sock.getsockname()[1], flush=True)
    return sock

if way == "target":
    sock = listening(8).accept()[0]
elif way == "full":  # the kernel drops each SYN until we are told to go on
    listener = listening(0)
    filler = socket.create_connection(listener.getsockname())
    sys.stdin.readline()
    listener.accept()[0].close()
    sock = listener.accept()[0]
elif at.startswith("/"):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(at)
else:
    sock = socket.create_connection(("127.0.0.1", int(at)))

incoming, outgoing, tls = ssl.MemoryBIO(), ssl.MemoryBIO(), None

def shake():
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass

for step in steps:
    verb, _, amount = step.partition("=")
    if verb == "pause":
        time.sleep(float(amount))
    elif verb == "write":
        sock.sendall(bytes(int(amount)))
    elif verb == "read":
        left = int(amount)
        try:
            while left and (got := len(sock.recv(min(left, 1 << 20)))):
                left -= got
        except ConnectionResetError:
            pass
    elif verb == "drain":
        over = time.monotonic() + float(amount)
        while time.monotonic() < over and sock.recv(1 << 20):
            pass
    elif verb == "tls":  # of a client, or of a server with that certificate and key
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if amount else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if amount:
            context.load_cert_chain(*amount.split(","))
        tls = context.wrap_bio(incoming, outgoing, server_side=bool(amount))
        shake()
    elif verb == "take":  # what the other one says now
        incoming.write(sock.recv(1 << 20))
        shake()
    elif verb == "say":  # and our answer
        sock.sendall(outgoing.read())
sock.close()
"""


class Trace:
    """What strace wrote: calls as (when it began, name, how long it took)."""

    CALL = re.compile(r"^(?:\d+ +)?([\d.]+) (\w+)\((.*) = .* <([\d.]+)>$", re.M)

    def __init__(self, file):
        self.calls = [(float(at), name, float(took)) for at, name, _, took in self.CALL.findall(file.read_text())]

    def spent(self, *names):
        """In these calls, between the connection's begin and its end."""
        return sum(took for at, name, took in self.calls if name in names and self.began <= at <= self.ended)

    @property
    def began(self):
        """When the connection was there."""
        return max(at + took for at, name, took in self.calls if name in ("accept4", "connect"))

    @property
    def ended(self):
        return next(at for at, name, _ in reversed(self.calls) if name == "close" and at >= self.ends("recvfrom", "sendto")[-1])

    def ends(self, *names):
        """When such calls were over, since the connection was there."""
        return [at + took for at, name, took in self.calls if name in names and at + took >= self.began]

    def share(self, seconds):
        return seconds / (self.ended - self.began)


class TracedEnd:
    """That program under strace; `inside`: whose network and mounts it has."""

    def __init__(self, directory, way, *steps, at="", inside=()):
        self.file = directory / f"trace-{way}"
        self.process = subprocess.Popen(
            [*inside, program("strace"), "-ttt", "-T", "-e", "trace=accept4,connect,recvfrom,sendto,close", "-o", self.file,
             sys.executable, "-c", END, way, str(at), *steps], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = None
        if way in ("target", "full"):
            self.port = int(self.process.stdout.readline())
            self.text = f"127.0.0.1:{self.port}"

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def trace(self):
        assert self.process.wait(4 * DEADLINE) == 0
        self.process.stdin.close()
        self.process.stdout.close()
        return Trace(self.file)


def told_share(line, flow, wait):
    """What the closing line says of one wait."""
    match = re.search(rf"{wait} ([\d.]+)%", line[f"{flow}_wait"])
    return float(match[1]) / 100 if match else 0


class Differs(AssertionError):
    pass


def assert_near(shown, line, flow, wait):
    """The trace and the line tell the same, and something: neither nothing nor all."""
    told = told_share(line, flow, wait)
    if not (0.1 < shown < 0.99 and abs(shown - told) < NEAR):
        raise Differs(f"the trace shows {shown:.3f} of {wait}, and told is {told:.3f}: {line}")


def in_some_attempts(test):
    """A processor that is taken away between a call and its trace is in one of the two only; what is wrong is so each time."""
    @functools.wraps(test)
    def run(*arguments, **options):
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(Differs):
                return test(*arguments, **options)
        return test(*arguments, **options)
    return run


def client_of(daemon, directory, *steps):
    return TracedEnd(directory, "client", *steps, at=daemon.address("a")[1])


# --- who takes nothing


BY_FITS = ["pause=0.3", f"read={8 << 20}"] * 4


@in_some_attempts
def test_a_slow_client(start, directory):
    """While it does not read, the daemon waits to write to it: whatever the program's time went to."""
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text)))
        end = client_of(daemon, directory, *BY_FITS)
        with target.accept() as far:
            Feeder(far.sock)
            trace = end.trace()
            assert_near(1 - trace.share(trace.spent("recvfrom")), daemon.ended("a"), "down", "near writable")


@in_some_attempts
def test_a_slow_target(start, directory):
    end = TracedEnd(directory, "target", *BY_FITS)
    daemon = start(configuration(tunnel("a", end.text)))
    with socket.create_connection(daemon.address("a")) as client:
        Feeder(client)
        trace = end.trace()
        assert_near(1 - trace.share(trace.spent("recvfrom")), daemon.ended("a"), "up", "far writable")


# --- who says nothing, and a limit


LIMITED = 'limit "slow" { rate = "400kB/s" }\n'


@in_some_attempts
def test_a_client_that_sends_slowly_and_its_limit(start, directory):
    """What is not its silence is the time until it hears that its bytes have passed a limit."""
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text, limit="slow")) + LIMITED)
        end = client_of(daemon, directory, *["pause=0.4", "write=200000", "read=1"] * 2)
        with target.accept(expects=None) as far:
            for _ in range(2):
                far.read(200_000)
                far.send(1)
            trace = end.trace()
    line = daemon.ended("a")
    waited = trace.share(trace.spent("recvfrom", "sendto"))
    assert_near(1 - waited, line, "up", "near readable")
    assert_near(waited, line, "up", "limit")


@in_some_attempts
def test_a_target_that_sends_slowly_and_its_limit(start, directory):
    end = TracedEnd(directory, "target", *["read=1", "pause=0.4", "write=200000"] * 2, "read=1")
    daemon = start(configuration(tunnel("a", end.text, limit="slow")) + LIMITED)
    with connect(daemon.address("a"), expects=None) as client:
        for _ in range(2):
            client.send(1)
            client.read(200_000)
        client.send(1)
        trace = end.trace()
    line = daemon.ended("a")
    waited = trace.share(trace.spent("recvfrom", "sendto"))
    assert_near(1 - waited, line, "down", "far readable")
    assert_near(waited, line, "down", "limit")


@in_some_attempts
def test_a_client_throttled_by_a_limit(start, directory):
    """Half the time it asks for nothing, and then it waits for bytes that a limit keeps."""
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text, limit="slow")) + LIMITED)
        end = client_of(daemon, directory, *["pause=0.4", "write=1", "read=200000"] * 2)
        with target.accept(expects=None) as far:
            for _ in range(2):
                far.read(1)
                far.send(200_000)
            trace = end.trace()
        assert_near(trace.share(trace.spent("recvfrom")), daemon.ended("a"), "down", "limit")


# --- before the first byte


@in_some_attempts
def test_a_slow_connect(start, directory):
    """No SYN is answered until the target says so: then the kernel's next one is."""
    target = TracedEnd(directory, "full", "pause=1", "write=1")
    daemon = start(configuration(tunnel("a", target.text)))
    client = client_of(daemon, directory, "read=1")
    wait_until(lambda: "SYN_SENT" in tcp_states(target.port), "the daemon's SYN")
    target.go_on()
    far, near = target.trace(), client.trace()
    assert_near(near.share(far.began - near.began), daemon.ended("a"), "up", "connect")


@pytest.fixture
def pair(directory):
    return Authority(directory).issue("server.example")


@in_some_attempts
def test_a_slow_handshake_of_the_client(start, directory, pair):
    """It is over with the client's second message, its Finished."""
    daemon = start(configuration(tunnel("a", "internal:echo", accept_filters=["tls:edge"])) +
                   section("tls", "edge", certificate=pair[0], key=pair[1]))
    client = client_of(daemon, directory, "tls=", "pause=0.4", "say", "take", "pause=0.4", "say", "pause=0.8")
    trace = client.trace()
    assert_near(trace.share(trace.ends("sendto")[1] - trace.began), daemon.ended("a"), "up", "handshake")


@in_some_attempts
def test_a_slow_handshake_of_the_target(start, directory, pair):
    """It is over with the target's first message: in TLS 1.3 all is said then but for the client's Finished."""
    target = TracedEnd(directory, "target", "tls=" + ",".join(map(str, pair)), "take", "pause=0.8", "say", "take", "pause=0.8")
    daemon = start(configuration(tunnel("a", target.text, connect_filters=["tls:out"])) +
                   section("tls", "out", verify="none"))
    client = client_of(daemon, directory, "read=1")
    far, near = target.trace(), client.trace()
    assert_near(near.share(far.ends("sendto")[0] - near.began), daemon.ended("a"), "up", "handshake")


# --- what no end can show


# A name server that takes its time: every name is 127.0.0.1, and has no other address.
NAME_SERVER = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    asked = [sock.recvfrom(512)]
    time.sleep(float(sys.argv[1]))
    sock.settimeout(0.05)
    try:
        while True:
            asked.append(sock.recvfrom(512))
    except TimeoutError:
        sock.settimeout(None)
    for query, sender in asked:
        question = query[12:query.index(0, 12) + 5]
        is_ipv4 = question[-4:] == b"\\0\\1\\0\\1"
        head = query[:2] + b"\\x81\\x80\\0\\1" + (b"\\0\\1" if is_ipv4 else b"\\0\\0") + bytes(4)
        answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4\\x7f\\0\\0\\1" if is_ipv4 else b""
        sock.sendto(head + question + answer, sender)
"""


@pytest.fixture
def slow_names(directory):
    """What puts a program there where a slow name server answers; and its trace."""
    settings, file = directory / "resolv.conf", directory / "trace-names"
    settings.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:1\n")
    prepare = 'ip link set lo up && mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    server = subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", prepare, "sh", settings, program("strace"), "-ttt", "-T",
         "-e", "trace=recvfrom,sendto", "-o", file, sys.executable, "-c", NAME_SERVER, "0.6"],
        stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stdout.readline() == "ready\n"
    yield ["nsenter", "-t", str(server.pid), "--net", "--mount"], file
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(DEADLINE)
    server.stdout.close()


@pytest.mark.root
@in_some_attempts
def test_a_slow_resolver(start, directory, slow_names):
    """The name server's trace tells when it was asked and when it had answered all."""
    inside, file = slow_names
    target = TracedEnd(directory, "target", "pause=0.6", "write=1", inside=inside)
    path = directory / "a.sock"
    daemon = start(configuration(tunnel("a", f"far.example:{target.port}", listen=f"unix:{path}")), prefix=inside)
    client = TracedEnd(directory, "client", "read=1", at=path)
    near = client.trace()
    target.trace()
    names = Trace(file)
    asked = next(at + took for at, name, took in names.calls if name == "recvfrom" and at + took >= near.began)
    answered = max(at + took for at, name, took in names.calls if name == "sendto")
    assert_near(near.share(answered - asked), daemon.ended("a"), "up", "resolver")


def turns_of(one, others):
    """The seconds that a worker spent on the one of several ends for which alone it works: what arrives there was made
    since something had arrived at any."""
    arrivals = sorted([(at, True) for at in one.ends("recvfrom")] +
                      [(at, False) for other in others for at in other.ends("recvfrom")])
    steps = zip(arrivals, arrivals[1:])
    return sum(at - before for (before, _), (at, is_one) in steps if is_one and one.began <= before and at <= one.ended)


@in_some_attempts
def test_a_busy_worker(start, directory):
    """Three others have the same worker compress all the time. What comes to their clients tells for whom it works: the
    rest of the time the one waits for its turn, or for chargen to have it."""
    rows = {"accept_filters": ["zlib:small"]}
    daemon = start(configuration(section("zlib", "small", level=9), tunnel("a", "internal:chargen", **rows),
                                 tunnel("others", "internal:chargen", **rows)))
    before = daemon.descriptors("socket:")
    others = [TracedEnd(directory, f"other{i}", "drain=3", at=daemon.address("others")[1]) for i in range(3)]
    wait_until(lambda: daemon.descriptors("socket:") == before + 3, "the others")
    one = client_of(daemon, directory, "drain=1.5").trace()
    line = daemon.ended("a")
    working = one.share(turns_of(one, [other.trace() for other in others]))
    assert_near(1 - working - told_share(line, "down", "far readable"), line, "down", "turn")
    assert_near(working, line, "down", "moving")
