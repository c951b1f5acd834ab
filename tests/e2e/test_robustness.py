"""What a stranger, a crash or a shortage may do to the daemon: it never exits, never spins, never grows without bound."""

import concurrent.futures
import contextlib
import os
import random
import re
import resource
import signal
import socket
import ssl
import subprocess
import time

import pytest

from certificates import Authority
from daemon import DEADLINE, PENSTOCKCTL, configuration, preloaded, section, tunnel, wait_until
from peers import (CLIENT_STREAM, KIB, MIB, ClosedPort, EchoTarget, Target, client_hello, connect, echo_at_random, echoes, is_refused,
                   size_text, transfer, wait_readable)
from programs import program

PLAIN = tunnel("plain", "{target}")
CHAINED = tunnel("plain", "internal:second") + tunnel("second", "{target}", "internal:second")
MANY = 9000


@contextlib.contextmanager
def many(address, count, **options):
    """That many clients, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(address, **options)) for _ in range(count)]


def spent_while(daemon, seconds):
    """CPU seconds the daemon uses in that time."""
    before = daemon.cpu_seconds()
    time.sleep(seconds)  # the time is what is measured
    return daemon.cpu_seconds() - before


# --- back-pressure

@pytest.mark.slow
@pytest.mark.parametrize("path", [PLAIN, CHAINED], ids=["plain", "chained"])
@pytest.mark.parametrize("slow_side", ["target", "client"])
def test_slow_reader_blocks_the_sender(start, path, slow_side, report):
    with Target(receive_bytes=64 * KIB) as target:
        daemon = start(configuration(path.replace("{target}", target.text)))
        with connect(daemon.address("plain"), receive_bytes=64 * KIB) as client, target.accept() as peer:
            sender, reader = (client, peer) if slow_side == "target" else (peer, client)
            transfer(sender, reader, 8 * MIB)
            before = daemon.resident_bytes()
            taken = sender.fill(quiet=2)  # nothing was taken for two seconds: the sender is blocked
            grown = daemon.resident_bytes() - before
            assert grown < 4 * MIB, f"grew by {size_text(grown)}"
            sender.finish()
            reader.expect_fin(sender)
            report(f"slow {slow_side}: the sender blocked after {size_text(taken)}, the daemon grew by {grown / KIB:.0f} KiB")


@pytest.mark.slow
@pytest.mark.sanitize
@pytest.mark.parametrize("workers", [1, 2])
def test_random_blocks_echoed(start, workers, report):
    with EchoTarget() as target, contextlib.ExitStack() as stack:
        daemon = start(configuration(tunnel("plain", target.text), tunnel("pair", "internal:echo"),
                                     tunnel("chained", "internal:plain"), tunnel("inner", target.text, "internal:plain"),
                                     workers=workers))
        clients = [stack.enter_context(connect(daemon.address(name), expects=CLIENT_STREAM))
                   for name in ("plain", "plain", "pair", "chained") * 16]
        end = time.monotonic() + (10 / workers if workers > 1 else 10)
        moved = echo_at_random(clients, lambda: time.monotonic() > end)
        for name, count in (("plain", 32), ("pair", 16), ("chained", 16), ("inner", 16)):
            assert all(line["reason"] == "ok" for line in daemon.ended(name, count))
        report(f"64 connections echoed {size_text(moved)} in blocks of random size, {workers} worker(s)")


# --- numbers

@pytest.mark.slow
def test_idle_connections(start, report):
    """They hold no buffer, neither those that have moved bytes nor those that have not yet."""
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("plain", target.text), workers=2, log={"connections": "false"}))
        assert echoes(daemon.address("plain"))
        before, sockets = daemon.resident_bytes(), daemon.descriptors("socket:")
        with many(daemon.address("plain"), MANY, expects=CLIENT_STREAM) as clients:
            wait_until(lambda: target.connections == MANY + 1, "all to arrive at the target", 4 * DEADLINE)
            each = lambda: (daemon.resident_bytes() - before) / MANY
            fresh = each()
            for client in clients:
                client.send(20 * KIB)
                client.read(20 * KIB)
            used = each()
            # What was done is remembered for ten seconds.
            rested = wait_until(lambda: (now := each()) < 2 * KIB and now, "them to rest", 2 * DEADLINE)
            report(f"{MANY} idle connections: {fresh / KIB:.2f} KiB resident each, {used / KIB:.2f} KiB after 20 KiB each way, "
                   f"{rested / KIB:.2f} KiB soon after")
            assert fresh < 2 * KIB and used < 4 * KIB
            for client in clients:
                client.reset()
        daemon.wait_sockets(sockets)
        assert echoes(daemon.address("plain"))


@contextlib.contextmanager
def calls_counted(daemon, file):
    """Gives a dictionary that has, afterwards, how often the daemon made each system call."""
    counted = {}
    with subprocess.Popen([program("strace"), "-f", "-c", "-U", "calls,name", "-o", file, "-p", str(daemon.pid)],
                          stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert "attached" in tracer.stderr.readline()
            yield counted
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(DEADLINE)
    counted.update((name, int(calls)) for calls, name in re.findall(r"^ *(\d+) (\w+)$", file.read_text(), re.M) if name != "total")


@pytest.mark.parametrize("filters", ["", "tls:edge"])
def test_system_calls_of_a_message(start, directory, filters, report):
    """One wait, one read and one write for each, and nothing else: no read that finds nothing, no second write."""
    count = 500
    certificate, key = Authority(directory).issue("server", "server.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with EchoTarget() as target:
        rows = {"accept_filters": filters} if filters else {}
        daemon = start(configuration(tunnel("a", target.text, **rows)) + section("tls", "edge", certificate=certificate, key=key))
        with socket.create_connection(daemon.address("a"), DEADLINE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = context.wrap_socket(sock) if filters else sock

            def ping():
                client.sendall(bytes(64))
                assert len(client.recv(64)) == 64
            for _ in range(20):
                ping()
            with calls_counted(daemon, directory / "calls") as calls:
                for _ in range(count):
                    ping()
    report(f"{filters or 'plain'}: system calls for {2 * count} messages: {calls}")
    few = 50  # what the daemon does for itself in that time
    assert sum(calls.values()) <= 3 * 2 * count + few
    assert calls["epoll_wait"] <= 2 * count + few


@pytest.mark.slow
def test_idle_daemon_uses_no_cpu(start, report):
    seconds = 60  # what is done once a minute is in it
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("plain", target.text), workers=2))
        with many(daemon.address("plain"), 1000, expects=CLIENT_STREAM):
            wait_until(lambda: target.connections == 1000, "all to arrive at the target")
            wait_until(lambda: spent_while(daemon, 0.2) < 0.01, "quiet")
            spent = spent_while(daemon, seconds)
    report(f"idle with 1000 connections: {spent:.3f} s of CPU in {seconds} s")
    assert spent < 0.01 * seconds


LATER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <time.h>

/* As many seconds later as that file has bytes. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
	int (*real)(clockid_t, struct timespec *) =
		(int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	struct stat passed;
	int result = real(clock, now);
	if ((clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE) && stat("%s", &passed) == 0)
		now->tv_sec += passed.st_size;
	return result;
}
"""


@pytest.mark.slow
def test_memory_is_kept_while_busy_and_goes_back_after_a_quiet_minute(start, directory, report):
    passed = directory / "passed"
    passed.touch()

    def faults():
        return int(daemon.proc("stat").rpartition(")")[2].split()[7])

    with Target(path=f"{directory}/target") as target, contextlib.ExitStack() as stack:
        daemon = start(configuration(tunnel("plain", target.text, f"unix:{directory}/sock"), log={"connections": "false"}),
                       prefix=preloaded(directory, LATER % passed))
        sockets, before = daemon.descriptors("socket:"), daemon.resident_bytes()
        pairs = [(stack.enter_context(connect(daemon.address("plain"))), stack.enter_context(target.accept())) for _ in range(150)]
        for _ in range(3):
            begun, moved = faults(), 0
            for client, _ in pairs:
                moved += client.fill(0.01)
            full = daemon.resident_bytes() - before
            for client, peer in pairs:
                peer.read(client.sent_bytes - peer.got_bytes)
            again = faults() - begun  # pages had anew, in the last of these rounds
        assert full > 20 * MIB, "there was nothing to keep"
        assert again < moved / 4096 / 20  # each page anew would be twenty times as many
        stack.close()
        daemon.wait_sockets(sockets)
        assert daemon.resident_bytes() - before > full / 2, "it went back at once"
        for _ in range(4):
            with open(passed, "ab") as file:
                file.write(bytes(31))
            time.sleep(1.2)  # for the daemon's timers to see it
        rest = daemon.resident_bytes() - before
        report(f"{size_text(full)} for what 150 targets did not read; {again} page faults for the next {size_text(moved)}; "
               f"{size_text(rest)} after a quiet minute")
        assert rest < 4 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("path, count, max_mib, own_mib", [
    (tunnel("flood", "internal:chargen"), MANY, 96, 0),  # of which 72 are for 9000 connections that carry nothing
    (tunnel("flood", "internal:second") + tunnel("second", "internal:chargen", "internal:second"), 2000, 96, 0),
    (tunnel("flood", "unix:{directory}/source"), 2000, 32, 8),  # what the daemon takes without a connection comes on top
], ids=["plain", "chained", "socket"])
def test_clients_that_never_read(start, directory, path, count, max_mib, own_mib, report):
    cap = (max_mib + own_mib) * MIB
    start(configuration(tunnel("source", "internal:chargen", f"unix:{directory}/source"), log={"connections": "false"}))
    daemon = start(configuration(path.replace("{directory}", str(directory)), tunnel("echo", "internal:echo"), workers=2,
                                 max_memory=f"{max_mib}MiB", log={"connections": "false"}))
    sockets = daemon.descriptors("socket:")
    address, most = daemon.address("flood"), 0

    def look():
        nonlocal most
        most = max(most, daemon.resident_bytes())

    with contextlib.ExitStack() as stack:
        for number in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # so the kernel holds little for each
            sock.settimeout(DEADLINE)
            sock.connect(address)
            if number % 50 == 0:
                look()

        def is_quiet():
            look()
            return spent_while(daemon, 0.5) < 0.02
        wait_until(lambda: daemon.descriptors("socket:") >= count, "all to be accepted", 4 * DEADLINE)
        wait_until(is_quiet, "an end of the work for clients that do not read", 4 * DEADLINE)
        look()
        report(f"{count} clients that never read: at most {size_text(most)} resident, max_memory is {max_mib} MiB")
        assert most < cap
        assert echoes(daemon.address("echo"))
    daemon.wait_sockets(sockets)


def shake_hands(address):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, DEADLINE) as sock, context.wrap_socket(sock):
        pass


@pytest.mark.parametrize("part, most", [(0, 16), (0.5, 48), (1, 48)], ids=["nothing", "half a hello", "a hello"])
def test_clients_that_do_not_finish_their_handshake(start, directory, report, part, most):
    """They hold no more than max_memory counts for them, with a connection's own 4 KiB."""
    count, said = 300, client_hello("server.example")
    said = said[:int(part * len(said))]
    certificate, key = Authority(directory).issue("server", "server.example")
    daemon = start(configuration(tunnel("t", "internal:echo", accept_filters=["tls:edge"], timeouts={"handshake": "60s"})) +
                   section("tls", "edge", certificate=certificate, key=key))
    shake_hands(daemon.address("t"))
    before = daemon.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(daemon.address("t"))).sendall(said)
        shake_hands(daemon.address("t"))  # behind all of them
        each = (daemon.resident_bytes() - before) / count
    report(f"{count} TLS clients that say {len(said)} bytes: {each / KIB:.1f} KiB resident each")
    assert each < (most + 4) * KIB


@pytest.mark.sanitize
def test_connects_to_a_dead_port(start, report):
    with ClosedPort() as dead:
        daemon = start(configuration(tunnel("dead", dead.text), workers=2))
        sockets = daemon.descriptors("socket:")
        began = time.monotonic()
        for _ in range(1000):
            assert is_refused(daemon.address("dead"))
        report(f"1000 connects to a dead port: {time.monotonic() - began:.2f} s")
        for line in daemon.ended("dead", 1000):
            assert line["reason"] == "refused"
        daemon.wait_sockets(sockets)


def test_refused_connects_cost_nothing(start):
    daemon = start(configuration(tunnel("a", "internal:echo", deny=["127.0.0.0/8"]), workers=2))
    before, sockets = daemon.resident_bytes(), daemon.descriptors("socket:")
    for _ in range(2000):
        assert is_refused(daemon.address("a"))
    daemon.wait_sockets(sockets)
    assert daemon.resident_bytes() - before < 4 << 20


# --- sudden ends

class Zeros:
    """A stream of zero bytes, as /dev/zero sends it."""

    PERIOD = 256 * KIB

    @staticmethod
    def at(_, count):
        return bytes(count)


@pytest.mark.sanitize
def test_client_killed_in_mid_stream(start):
    with Target() as target:
        daemon = start(configuration(tunnel("plain", target.text)))
        sockets = daemon.descriptors("socket:")
        port = daemon.address("plain")[1]
        with subprocess.Popen([program("socat"), "-u", "OPEN:/dev/zero", f"TCP:127.0.0.1:{port}"]) as client:
            with target.accept(expects=Zeros()) as peer:
                peer.read(20 * MIB)
                client.kill()
                peer.read_to_end()  # a prefix, then the end that the kernel made of it
        daemon.ended("plain", ended_by="client")
        daemon.wait_sockets(sockets)


@pytest.mark.sanitize
def test_target_killed_in_mid_stream(start, directory):
    path = directory / "target"
    # A target that stops reading, so that unread bytes are there when it is killed: the kernel resets.
    with subprocess.Popen([program("python3"), "-c", "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); "
                           f"open('{path}.new', 'w').write(str(s.getsockname()[1])); "
                           f"import os; os.rename('{path}.new', '{path}'); "
                           "c = s.accept()[0]; c.recv(1 << 20); time.sleep(1000)"]) as target:
        try:
            wait_until(path.exists, "the target")
            daemon = start(configuration(tunnel("plain", f"127.0.0.1:{path.read_text()}")))
            sockets = daemon.descriptors("socket:")
            with connect(daemon.address("plain")) as client:
                client.fill(0.5)
                target.kill()
                client.expect_reset()
            daemon.ended("plain", reason="reset", ended_by="target")
            daemon.wait_sockets(sockets)
        finally:
            target.kill()


@pytest.mark.slow
@pytest.mark.sanitize
@pytest.mark.parametrize("who", ["client", "target"])
def test_early_answers_while_the_other_floods(start, who):
    """The reset may come at any moment of any system call: it never turns into an orderly end."""
    targets = [Target() for _ in range(4)]
    daemon = start(configuration(*(tunnel(f"t{number}", target.text) for number, target in enumerate(targets)), workers=2))

    def answer_early(number):
        for _ in range(300):
            with connect(daemon.address(f"t{number}")) as client, targets[number].accept() as peer:
                early, other = (client, peer) if who == "client" else (peer, client)
                other.send_in_background(64 * MIB)
                wait_readable(early, 1)
                early.send(8 * KIB)
                early.wait_acknowledged()
                early.close()
                other.expect_reset()
                assert other.got_bytes == early.sent_bytes, f"{other.got_bytes} bytes of the answer"

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(answer_early, number) for number in range(4)]:
            result.result()
    for target in targets:
        target.close()


@pytest.mark.sanitize
@pytest.mark.parametrize("workers", [1, 2])
def test_churn(start, workers):
    """Many clients at once, each ending in a way of its own, at random moments."""
    def be_a_client(seed):
        choice, count = random.Random(seed), 0
        end = time.monotonic() + 4
        while time.monotonic() < end:
            name = choice.choice(("plain", "pair", "chained", "dead"))
            with contextlib.suppress(ConnectionError), connect(daemon.address(name), expects=CLIENT_STREAM) as client:
                count += 1
                client.send(choice.choice((1, 1000, 20_000)))
                if choice.random() < 0.5:
                    client.receive(choice.choice((1, 1000, 20_000)))  # at least a byte or an end must come
                if choice.random() < 0.3:
                    with contextlib.suppress(OSError):  # if it has been reset by now
                        client.finish()
                if choice.random() < 0.5:
                    client.reset()
        return count

    with EchoTarget() as target, ClosedPort() as dead:
        daemon = start(configuration(
            tunnel("plain", target.text), tunnel("pair", "internal:echo"), tunnel("dead", dead.text),
            tunnel("chained", "internal:plain"), tunnel("inner", target.text, "internal:plain"), workers=workers))
        sockets = daemon.descriptors("socket:")
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(be_a_client, seed) for seed in range(16)]
            while not all(client.done() for client in clients):
                daemon.reload()
            assert sum(client.result() for client in clients) > 100
        daemon.wait_sockets(sockets)
        assert echoes(daemon.address("chained"))


def test_reload_without_memory(start, directory):
    """What libconfuse needs must be there before: it would end the process."""
    good = configuration(tunnel("a", "internal:echo"), tunnel("admin", "internal:admin", f"unix:{directory}/admin"))
    daemon = start(good)
    daemon.reload()  # its thread has its stack
    (daemon.config.parent / "big.conf").write_text(
        tunnel("b", "internal:echo", deny=[f"10.{i >> 8}.{i & 255}.0/24" for i in range(3000)]))
    daemon.write(good + 'include("big.conf")\n')
    used = int(re.search(r"VmData:\s+(\d+) kB", daemon.proc("status"))[1]) * KIB
    reload = [PENSTOCKCTL, "--socket", directory / "admin", "reload"]
    for spare in range(0, 512 * KIB, 8 * KIB):
        resource.prlimit(daemon.pid, resource.RLIMIT_DATA, (used + spare, resource.RLIM_INFINITY))
        done = subprocess.run(reload, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert "no memory" in done.stderr, (spare, done.stderr, daemon.log())
    resource.prlimit(daemon.pid, resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    subprocess.run(reload, timeout=DEADLINE, check=True)
    assert echoes(daemon.address("a")) and echoes(daemon.address("b"))


# --- strangers

@pytest.mark.sanitize
def test_strange_clients(start):
    """Who says nothing, sends a byte now and then, or goes in the middle costs a descriptor and nothing else."""
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("plain", target.text), tunnel("pair", "internal:echo"), workers=2))
        sockets = daemon.descriptors("socket:")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(daemon.address(name), expects=CLIENT_STREAM))
                       for name in ("plain", "pair") for _ in range(50)]
            for _ in range(5):
                for client in clients[::5]:
                    client.send(1)
                    client.read(1)
            for client in clients[1::5]:
                client.send(10 * KIB)
                client.close()
            for client in clients[2::5]:
                client.send(10 * KIB)
                client.finish()
            for client in clients[3::5]:
                client.reset()
            for client in clients[2::5]:
                client.expect_fin(client)
            assert echoes(daemon.address("plain"))
            assert spent_while(daemon, 1) < 0.1
        daemon.wait_sockets(sockets)


@pytest.mark.sanitize
def test_strange_targets(start):
    """The same of targets."""
    with Target() as target, contextlib.ExitStack() as stack:
        daemon = start(configuration(tunnel("plain", target.text), tunnel("echo", "internal:echo"), workers=2))
        sockets = daemon.descriptors("socket:")
        pairs = []
        for _ in range(50):  # one by one, so that it is known who belongs to whom
            client = stack.enter_context(connect(daemon.address("plain")))
            pairs.append((client, stack.enter_context(target.accept())))
        for _ in range(5):
            for client, peer in pairs[::5]:
                peer.send(1)
                client.read(1)
        for client, peer in pairs[1::5]:
            peer.send(10 * KIB)
            peer.close()
        for client, peer in pairs[2::5]:
            client.send(10 * KIB)  # read by nobody
            peer.finish()
        for client, peer in pairs[3::5]:
            peer.reset()
        for client, peer in pairs[1::5] + pairs[2::5]:
            client.expect_fin(peer)
        for client, peer in pairs[3::5]:
            client.expect_reset()
        assert echoes(daemon.address("echo"))
        assert spent_while(daemon, 1) < 0.1
        stack.close()
        daemon.wait_sockets(sockets)


@pytest.mark.sanitize
def test_stopped_reader_of_stderr(start, directory):
    directory = directory / "stopped"
    directory.mkdir()
    with open(directory / "stderr", "wb") as log:
        reader = subprocess.Popen([program("cat")], stdin=subprocess.PIPE, stdout=log)
    try:
        daemon = start(configuration(tunnel("echo", "internal:echo"), tunnel("deny", "internal:echo", deny=["127.0.0.0/8"]),
                                     workers=2), name="stopped", stderr=reader.stdin)
        reader.stdin.close()
        reader.send_signal(signal.SIGSTOP)
        for number in range(12_000):  # each a log line, far more than pipe and queues hold
            assert is_refused(daemon.address("deny"))
            assert number % 10 or echoes(daemon.address("echo"), 10)
        reader.send_signal(signal.SIGCONT)

        def told():
            dropped = sum(int(line.text.split()[0]) for line in daemon.lines() if re.match(r"\d+ lines? dropped", line.text))
            return dropped, dropped + daemon.count_log("connection ended") + daemon.count_log("connection refused")
        wait_until(lambda: told()[1] == 13_200, f"all lines to be written or counted as dropped: {told()}")
        assert told()[0] > 0
        daemon.stop()
    finally:
        reader.kill()
        reader.wait()


@pytest.mark.sanitize
@pytest.mark.parametrize("where", ["TCP", "unix"])
@pytest.mark.parametrize("who", ["client", "target"])
def test_urgent_bytes(start, directory, who, where):
    """What is sent as urgent keeps its place in the stream, between bulk and between messages, and is nothing to spin on."""
    listen = "127.0.0.1:0" if where == "TCP" else f"unix:{directory}/socket"
    with Target(path=f"{directory}/target" if where == "unix" else None) as target:
        daemon = start(configuration(tunnel("plain", target.text, listen=listen)))
        with connect(daemon.address("plain")) as client, target.accept() as peer:
            sender, reader = (client, peer) if who == "client" else (peer, client)
            for _ in range(2):
                sender.send(10)
                sender.send_urgent()
                reader.read(10)
            blocked = sender.fill()  # behind it comes what is spliced
            sender.send_in_background(2 * MIB, then=lambda: [(sender.send_urgent(), sender.send(2 * MIB)) for _ in range(8)])
            reader.read(1 + blocked + 18 * MIB + 8)
            sender.join_sender()
            assert spent_while(daemon, 0.3) < 0.1
            sender.send_urgent()
            sender.send(10)
            sender.finish()
            reader.expect_fin(sender)


NO_LARGER_MEMORY = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

void *__libc_realloc(void *, size_t);

void *realloc(void *memory, size_t bytes)
{
	char thread[17] = "";
	prctl(PR_GET_NAME, thread);
	if (!strncmp(thread, "worker", 6) && !access("%s", F_OK))
		return NULL;
	return __libc_realloc(memory, bytes);
}
"""


def test_deadlines_hold_though_memory_was_short(start, directory):
    """A connection for whose timer there was no memory ends in time all the same."""
    short = directory / "short"
    daemon = start(configuration(tunnel("a", "internal:echo"), timeouts={"idle": "1s"}),
                   prefix=preloaded(directory, NO_LARGER_MEMORY % short))
    short.touch()
    with many(daemon.address("a"), 60) as clients:
        wait_until(lambda: daemon.descriptors("socket:") + daemon.count_log("connection ended") >= 60, "them to come in")
        short.unlink()
        for client in clients:
            client.expect_reset()


@pytest.mark.slow
@pytest.mark.sanitize
def test_out_of_descriptors(start, report):
    with EchoTarget() as target:
        daemon = start(configuration(tunnel("plain", target.text), workers=2, max_connections=5000),
                       prefix=[program("prlimit"), "--nofile=300:300"])
        address = daemon.address("plain")
        sockets = daemon.descriptors("socket:")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(address, expects=CLIENT_STREAM)) for _ in range(600)]
            # Who was admitted is served, who was not is refused, and nobody is left waiting.
            served = 0
            for client in clients:
                with contextlib.suppress(ConnectionError, AssertionError):
                    client.send(10)
                    client.read(10)
                    served += 1
                    continue
                assert client.was_reset or client.ending, "a client is left waiting"
            assert 60 <= served <= 150, f"{served} of 600 served"
            told, began, spent = daemon.count_log("out of descriptors"), time.monotonic(), daemon.cpu_seconds()
            assert told, "nobody is told"
            while time.monotonic() < began + 3:
                assert is_refused(address)
                time.sleep(0.02)
            seconds, spent = time.monotonic() - began, daemon.cpu_seconds() - spent
            told = daemon.count_log("out of descriptors") - told
            report(f"out of descriptors: {served} of 600 served, {spent:.2f} s of CPU in {seconds:.1f} s, {told} log lines")
            assert spent < 0.1 * seconds
            assert told <= seconds + 1  # none, where who comes in finds no descriptor for the target
        daemon.wait_sockets(sockets)
        wait_until(lambda: not is_refused_echo(address), "recovery")


def lowest_free_descriptor(daemon):
    taken = {int(number) for number in os.listdir(f"/proc/{daemon.pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)


@pytest.mark.slow
@pytest.mark.sanitize
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_not_one_descriptor_left(start, workers, report):
    """What is reserved is gone, too, so that accepting itself fails. Who knocks is refused and not left waiting, now
    and then and not all the time; the log tells it once a second at most, whatever the number of workers."""
    daemon = start(configuration(tunnel("a", "internal:echo"), workers=workers))
    address = daemon.address("a")
    with many(address, 10, expects=CLIENT_STREAM) as clients:
        for client in clients:
            transfer(client, client, 10)
        wait_until(lambda: spent_while(daemon, 0.2) < 0.02, "quiet")
        _, hard = before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(daemon), hard))
        began, refused, longest, spent = time.monotonic(), 0, 0, daemon.cpu_seconds()
        while time.monotonic() < began + 6:
            knocked = time.monotonic()
            assert is_refused(address)
            longest = max(longest, time.monotonic() - knocked)
            refused += 1
            time.sleep(0.005)
        seconds, spent = time.monotonic() - began, daemon.cpu_seconds() - spent
        complaints = daemon.count_log("out of descriptors")
        report(f"not one descriptor left: {refused} refused within {longest:.2f} s each, {spent:.2f} s of CPU in {seconds:.1f} s, "
               f"{complaints} log lines ({workers} worker{'s' * (workers > 1)})")
        assert longest < 3  # a pause lasts a second at most
        assert 4 <= refused <= 40 * workers, "there is no back-off"
        assert 1 <= complaints <= seconds + 1
        assert spent < 0.3
        for client in clients:
            transfer(client, client, 10)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
        wait_until(lambda: not is_refused_echo(address), "recovery")


def is_refused_echo(address):
    try:
        return not echoes(address)
    except (OSError, AssertionError):
        return True
