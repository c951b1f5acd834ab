"""Where a tunnel can listen, and what connects to it."""

import contextlib
import os
import random
import re
import signal
import socket
import stat
import statistics
import time

import pytest

from daemon import configuration, run_penstockd, tunnel, wait_until
from peers import CLIENT_STREAM, EchoTarget, Target, connect, echoes, transfer

pytestmark = pytest.mark.sanitize


def refused_start(directory, text):
    path = directory / "second.conf"
    path.write_text(text)
    done = run_penstockd("-c", path)
    assert done.returncode == 1, done.stderr
    assert " ready " not in done.stderr
    return done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_second_daemon_on_the_same_port_is_refused(start, directory, workers):
    first = start(configuration(tunnel("a", "internal:echo"), workers=workers))
    host, port = first.address("a")
    for address in (f"{host}:{port}", f"0.0.0.0:{port}"):
        said = refused_start(directory, configuration(tunnel("a", "internal:echo", address), workers=workers))
        assert str(port) in said and "in use" in said and "ss -ltnp" in said, said
        assert re.search(r': \S+:2: tunnel "a": cannot listen', said), said
    for _ in range(20):
        assert echoes((host, port))
    first.ended("a", 20)


def test_an_address_of_nobody_is_said_to_be_one(directory):
    said = refused_start(directory, configuration(tunnel("a", "internal:echo", "192.0.2.77:8080")))
    assert "no interface of this machine has that address" in said, said


def test_several_addresses(start, directory):
    path = directory / "sock"
    name = f"@penstock-{os.getpid()}"
    daemon = start(configuration(
        tunnel("a", "internal:echo", ["127.0.0.1:0", "127.0.0.2:0", "[::1]:0", f"unix:{path}", f"unix:{name}"]), workers=2))
    addresses = daemon.addresses("a")
    assert [len(address) for address in addresses[:2]] == [2, 2]
    assert addresses[2][0] == "::1"
    assert addresses[3:] == [str(path), "\0" + name[1:]]
    for address in addresses:
        assert echoes(address, 100_000)
    daemon.stop()
    assert not path.exists(), "the socket's file is left behind"


def test_unix_peers_are_logged_by_user(start, directory):
    daemon = start(configuration(tunnel("a", "internal:echo", f"unix:{directory}/sock")))
    assert echoes(daemon.address("a"))
    assert f"uid={os.getuid()}" in daemon.ended("a")["client"]


def test_stale_socket_file_is_replaced(start, directory):
    path = directory / "sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # its file stays when it is closed
    daemon = start(configuration(tunnel("a", "internal:echo", f"unix:{path}")))
    assert echoes(daemon.address("a"))


@pytest.mark.root
def test_socket_file_of_another_user_is_not_said_to_be_served(directory):
    os.chmod(directory, 0o777)
    path = directory / "sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    path.chmod(0o600)
    said = refused_start(directory, configuration(tunnel("a", "internal:echo", f"unix:{path}"), user="nobody"))
    assert f"{path} is there, and whether somebody listens cannot be told: Permission denied" in said


def test_live_socket_file_is_not_replaced(directory):
    path = directory / "sock"
    with Target(path=str(path)) as living:
        said = refused_start(directory, configuration(tunnel("a", "internal:echo", f"unix:{path}")))
        assert str(path) in said and "ss -lxp" in said
        living.accept().close()  # the daemon's knock
        with connect(str(path)) as client, living.accept() as peer:
            transfer(client, peer, 10)


def test_a_path_without_its_directory_and_a_taken_name(directory):
    said = refused_start(directory, configuration(tunnel("a", "internal:echo", f"unix:{directory}/run/sock")))
    assert "its directory is not there" in said
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"\0penstock-{os.getpid()}")
        said = refused_start(directory, configuration(tunnel("a", "internal:echo", f"unix:@penstock-{os.getpid()}")))
    assert "Address already in use; another program listens there, `ss -lxp`" in said


def test_socket_file_of_one_who_is_too_busy_is_not_replaced(directory):
    """Whose queue is full has not been killed."""
    path = directory / "sock"
    with Target(path=str(path), backlog=0) as living, connect(str(path)) as first:
        said = refused_start(directory, configuration(tunnel("a", "internal:echo", f"unix:{path}")))
        assert f"cannot listen on unix:{path}: another program does" in said
        with living.accept() as peer:
            transfer(first, peer, 10)
        with connect(str(path)) as second, living.accept() as peer:
            transfer(second, peer, 10)


def test_file_that_is_no_socket_is_not_replaced(directory):
    path = directory / "sock"
    path.write_text("precious")
    said = refused_start(directory, configuration(tunnel("a", "internal:echo", f"unix:{path}")))
    assert str(path) in said
    assert path.read_text() == "precious"


def test_socket_file_survives_reload(start, directory):
    path = directory / "sock"
    text = configuration(tunnel("a", "internal:echo", f"unix:{path}"))
    daemon = start(text)
    inode = path.stat().st_ino
    daemon.reload(text + tunnel("b", "internal:echo"))
    assert path.stat().st_ino == inode
    assert echoes(str(path))


def test_lost_socket_file_is_made_anew_by_a_reload(start, directory):
    path, taken = directory / "sock", directory / "taken"
    daemon = start(configuration(tunnel("a", "internal:echo", f"unix:{path}"), workers=2))
    with connect(str(path), expects=CLIENT_STREAM) as client:
        transfer(client, client, 10)
        path.unlink()
        taken.write_text("somebody else's")
        path.symlink_to(taken)
        mode = taken.stat().st_mode
        daemon.reload(expect=f'not reloaded, nothing was changed: {daemon.config}:2: tunnel "a": {path} is there and is no socket')
        assert taken.stat().st_mode == mode
        path.unlink()
        daemon.reload()
        assert echoes(str(path))
        transfer(client, client, 10)
        client.finish()
        client.expect_fin(client)
    inode = path.stat().st_ino
    daemon.reload()
    assert echoes(str(path)) and path.stat().st_ino == inode
    daemon.stop()
    assert not path.is_socket() and taken.exists()


def test_mode_of_the_socket_file(start, directory):
    daemon = start(configuration(tunnel("a", "internal:echo", f"unix:{directory}/a"),
                                 tunnel("b", "internal:echo", f"unix:{directory}/b", unix_mode="0660", unix_owner=":nogroup"),
                                 *([tunnel("c", "internal:echo", f"unix:{directory}/c", unix_owner="nobody")] if os.getuid() == 0 else [])))
    assert daemon.is_running()
    assert stat.S_IMODE((directory / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((directory / "b").stat().st_mode) == 0o660
    if os.getuid() == 0:
        import grp
        import pwd
        assert (directory / "b").stat().st_gid == grp.getgrnam("nogroup").gr_gid
        owner = (directory / "c").stat()
        assert (owner.st_uid, owner.st_gid) == (pwd.getpwnam("nobody").pw_uid, os.getgid())


def test_backlog(start):
    """The kernel lets one more wait than is asked for; the others' SYNs are dropped, and come again."""
    text = configuration(tunnel("a", "internal:echo", backlog=4))
    daemon = start(text)
    for backlog in (4, 16):
        daemon.reload(text.replace("backlog = 4", f"backlog = {backlog}"))
        daemon.signal(signal.SIGSTOP)
        wait_until(lambda: daemon.proc("stat").rpartition(")")[2].split()[0] == "T", "the daemon to stand still")
        with contextlib.ExitStack() as stack:
            queued = [stack.enter_context(connect(daemon.address("a"), CLIENT_STREAM)) for _ in range(backlog + 1)]
            late = stack.enter_context(socket.socket())
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.connect(daemon.address("a"))
            daemon.signal(signal.SIGCONT)
            for client in queued:
                transfer(client, client, 10)


def free_port(*addresses):
    """A port that is free at all of these; not of those that the kernel gives to who asks for none."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                sock = stack.enter_context(socket.socket(family))
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
            return port


@pytest.mark.parametrize("wildcard, host, other", [("0.0.0.0", "127.0.0.1", "::1"), ("[::]", "::1", "127.0.0.1")])
def test_wildcards(start, wildcard, host, other):
    """IPv6 listeners are V6ONLY: nobody listens at the port of the other family."""
    port = free_port("0.0.0.0", "::")
    start(configuration(tunnel("a", "internal:echo", f"{wildcard}:{port}")))
    assert echoes((host, port))
    with pytest.raises(ConnectionRefusedError):
        connect((other, port))


@pytest.mark.parametrize("wildcard, host", [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")])
@pytest.mark.parametrize("exact_first", [False, True])
def test_exact_address_beside_the_wildcard(start, directory, wildcard, host, exact_first):
    """Each may be there alone, be joined by the other, and take its place; the exact one wins."""
    port = free_port("0.0.0.0", "::")
    every = tunnel("every", "internal:echo", f"{wildcard}:{port}")
    exact = tunnel("exact", "internal:echo", f"{host}:{port}")
    both = configuration(*((exact, every) if exact_first else (every, exact)), workers=2)
    daemon = start(both)
    for number, text in enumerate((both, configuration(every), both, configuration(exact), configuration(every),
                                   configuration(exact), both)):
        if number:
            daemon.reload(text)
        assert echoes((host.strip("[]"), port))
        wait_until(lambda: len(daemon.find_log("connection ended")) == number + 1, "the connection's end")
        assert daemon.find_log("connection ended")[-1]["tunnel"] == ("exact" if exact in text else "every")
    said = refused_start(directory, configuration(exact))
    assert "in use" in said, said


def test_unix_and_ipv6_targets(start, directory):
    with EchoTarget(path=str(directory / "target")) as unix, EchoTarget(host="::1") as v6:
        daemon = start(configuration(tunnel("unix", unix.text), tunnel("v6", v6.text), workers=2))
        for name in ("unix", "v6"):
            assert echoes(daemon.address(name), 3_000_000)
            assert daemon.ended(name)["reason"] == "ok"


def test_abstract_target(start):
    name = f"penstock-target-{os.getpid()}"
    with Target(path="\0" + name) as target:
        daemon = start(configuration(tunnel("a", f"unix:@{name}")))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            transfer(client, peer, 1000)


def test_bind_chooses_the_source_address(start):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text, bind="127.0.0.77")))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            transfer(client, peer, 10)
            assert peer.sock.getpeername()[0] == "127.0.0.77"


def test_keepalive_is_set_on_both_sides(start):
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text, keepalive="600s")))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            transfer(client, peer, 10)
            port = daemon.address("a")[1]
            timers = keepalive_timers()
            for pair in ((port, client.sock.getsockname()[1]), (peer.sock.getpeername()[1], target.port)):
                assert timers.get(pair) == 2, f"no keepalive on {pair}"


@pytest.mark.parametrize("towards", ["client", "target"])
def test_a_second_small_write_waits_for_no_acknowledgement(start, towards):
    """TCP_NODELAY on both sides: without it the kernel would hold the second write back until the first one is
    acknowledged, which takes a reader who has nothing to say some 40 ms."""
    with Target() as target:
        daemon = start(configuration(tunnel("a", target.text)))
        with connect(daemon.address("a")) as client, target.accept() as peer:
            sender, reader = (peer, client) if towards == "client" else (client, peer)
            sender.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seconds = []
            for _ in range(30):
                transfer(reader, sender, 1)  # in conversations the kernel delays what it acknowledges
                transfer(sender, reader, 1)
                began = time.monotonic()
                sender.send(1)
                time.sleep(0.001)  # for two segments
                sender.send(1)
                reader.read(2)
                seconds.append(time.monotonic() - began)
            assert statistics.median(seconds) < 0.02, seconds


def keepalive_timers():
    """The kind of timer (2 = keepalive) that runs on each TCP connection, by its two ports."""
    with open("/proc/net/tcp") as table:
        rows = [row.split() for row in table][1:]
    port = lambda text: int(text.rpartition(":")[2], 16)
    return {(port(row[1]), port(row[2])): int(row[5].partition(":")[0], 16) for row in rows}
