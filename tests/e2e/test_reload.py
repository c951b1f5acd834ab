"""Reload: all or nothing, and nobody is dropped."""

import random
import signal
import threading

import pytest

from daemon import configuration, preloaded, tunnel, wait_until
from peers import CLIENT_STREAM, KIB, MIB, EchoTarget, Target, connect, echoes, is_closed, transfer

pytestmark = pytest.mark.sanitize

REFUSED = "not reloaded"


def test_fifty_bad_reloads_then_a_good_one(start):
    good = configuration(tunnel("a", "internal:echo"))
    daemon = start(good)
    daemon.reload(good)  # what is opened once for all is open now
    pid, descriptors = daemon.pid, daemon.descriptors()
    included = daemon.config.parent / "broken.conf"

    def directory(_):
        daemon.config.unlink(missing_ok=True)
        daemon.config.mkdir()
        return f"{daemon.config}: is a directory"

    def missing(_):
        daemon.config.unlink(missing_ok=True)
        return f"{daemon.config}: cannot be opened"

    def huge(number):
        daemon.config.unlink(missing_ok=True)
        daemon.config.write_bytes(random.Random(number).randbytes(10 * MIB))
        return f"{daemon.config}: is larger than 1 MiB"

    def broken_include(number):
        included.write_text(f"bad{number} = 1\n" 'tunnel "b" { listen = ')
        daemon.write(good + 'include("broken.conf")\n')
        return f"{included}:1: unknown keyword 'bad{number}'"

    def garbage(number):
        daemon.write(f"bad{number} = 1\n\x01\x02 garbage {{ = }}}}}} \"")
        return f"{daemon.config}:1: unknown keyword 'bad{number}'"

    def open_comment(number):
        daemon.write(good + "\n" * number + "/* open\n")
        return f"{daemon.config}:{good.count(chr(10)) + number + 1}: the comment"

    with connect(daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 100)
        ways = [directory, missing, huge] + [broken_include, garbage, open_comment] * 2 + [broken_include]
        for number in range(50):
            daemon.reload(expect=ways[number % 10](number))
            if daemon.config.is_dir():
                daemon.config.rmdir()
        assert not daemon.find_log("reloaded")[1:]
        transfer(client, client, 100)
        daemon.reload(good + tunnel("b", "internal:echo"))
        transfer(client, client, 100)
        assert daemon.pid == pid and daemon.is_running()
        assert echoes(daemon.address("b"))
        client.finish()
        client.expect_fin(client)
    daemon.reload(good)
    wait_until(lambda: daemon.descriptors() == descriptors, f"{descriptors} descriptors, there are {daemon.descriptors()}")


def test_bad_reload_says_every_mistake(start):
    daemon = start(configuration(tunnel("a", "internal:echo")))
    daemon.reload(configuration(tunnel("a", "internal:echo", balance="none"), workers="x"), expect=REFUSED)
    for line in (1, 5):
        assert any(f"penstock.conf:{line}: " in entry.line for entry in daemon.lines()), daemon.log()
    assert echoes(daemon.address("a"))


def test_a_log_that_cannot_be_written_is_found_before_anything_changes(start, directory):
    good = configuration(tunnel("a", "internal:echo"))
    daemon = start(good)
    daemon.reload(configuration(tunnel("a", "internal:echo"), tunnel("b", "internal:echo"),
                                log={"target": f"file:{directory}/nowhere/log"}), expect=REFUSED)
    daemon.wait_log(f"{daemon.config}:3: target: cannot open the log file {directory}/nowhere/log: No such file")
    assert not daemon.addresses("b")
    (directory / "nowhere").mkdir()
    daemon.signal(signal.SIGHUP)
    log = directory / "nowhere" / "log"
    wait_until(lambda: log.exists() and "reloaded" in log.read_text(), "the new log file")


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_under_traffic(start, workers):
    """Connections live on, and no new one is refused while listeners stay."""
    with EchoTarget() as target:
        text = configuration(tunnel("a", target.text), tunnel("b", "internal:echo"), workers=workers)
        daemon = start(text)
        clients = [connect(daemon.address(name), expects=CLIENT_STREAM) for name in ("a", "b") * 4]
        stopping, errors = threading.Event(), []

        def keep_busy(client):
            try:
                while not stopping.is_set():
                    transfer(client, client, 32 * KIB)
                client.finish()
                client.expect_fin(client)
            except (AssertionError, OSError) as error:
                errors.append(error)

        threads = [threading.Thread(target=keep_busy, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for number in range(30):
            daemon.reload(text + tunnel(f"extra{number}", "internal:echo"))
            assert echoes(daemon.address("a")) and echoes(daemon.address(f"extra{number}"))
        stopping.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
        assert not errors


def test_files_of_a_directory(start, directory):
    """As many as there are, in the order of their names, and more or fewer at the next reload."""
    folder = directory / "tunnels"
    folder.mkdir()
    (folder / "b.conf").write_text(tunnel("b", "internal:echo"))
    (folder / "b.conf~").write_text("nonsense\n")
    text = configuration(f'include("{folder}/*.conf")\n')
    daemon = start(text)
    assert echoes(daemon.address("b"))
    (folder / "a.conf").write_text(tunnel("a", "internal:discard"))
    (folder / "c.conf").write_text(tunnel("c", "internal:echo"))
    daemon.reload()
    assert [line["tunnel"] for line in daemon.find_log("listening")] == ["b", "a", "c"]
    assert echoes(daemon.address("c"))
    (folder / "a.conf").write_text("nonsense = 1\n")
    daemon.reload(expect=REFUSED)
    assert daemon.find_log(f"{folder}/a.conf:1: unknown keyword 'nonsense'")
    for name in "abc":
        (folder / f"{name}.conf").unlink()
    daemon.reload(text + tunnel("d", "internal:echo"))
    assert any(f":2: no file is there for {folder}/*.conf" in line.text for line in daemon.find_log("")), daemon.log()
    assert echoes(daemon.address("d"))


def test_listeners_removed_and_added(start):
    a, b, c = (tunnel(name, "internal:echo") for name in "abc")
    daemon = start(configuration(a, b))
    address_a, address_b = daemon.address("a"), daemon.address("b")
    with connect(address_b, expects=CLIENT_STREAM) as client:
        transfer(client, client, 10)
        daemon.reload(configuration(a, c))
        wait_until(lambda: is_closed(address_b), "the removed listener to be closed")
        assert echoes(daemon.address("c"))
        assert echoes(address_a)
        transfer(client, client, 10)  # a removed tunnel's connection lives on
        client.finish()
        client.expect_fin(client)
    assert not daemon.find_log("listening", tunnel="a")[1:], "the kept listener was opened again"


def test_waiting_clients_of_a_removed_listener_are_served(start):
    """What is in the kernel's queue when a listener goes is accepted, not reset."""
    with EchoTarget() as target:
        a, b = tunnel("a", target.text), tunnel("b", target.text)
        daemon = start(configuration(a, b))
        address = daemon.address("b")
        daemon.write(configuration(a))
        daemon.signal(signal.SIGSTOP)
        clients = [connect(address, expects=CLIENT_STREAM) for _ in range(20)]
        daemon.signal(signal.SIGHUP)
        daemon.signal(signal.SIGCONT)
        for client in clients:
            transfer(client, client, 100)
            client.close()
        daemon.wait_log("reloaded")


ENDLESS_CLIENTS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
	int (*real)(int, struct sockaddr *, socklen_t *, int) =
		(int (*)(int, struct sockaddr *, socklen_t *, int))dlsym(RTLD_NEXT, "accept4");
	int ends[2], client = real(fd, address, length, flags);
	if (client >= 0 || errno != EAGAIN || access("%s", F_OK))
		return client;
	if (socketpair(AF_UNIX, SOCK_STREAM | flags, 0, ends))
		return -1;
	close(ends[1]);
	*length = sizeof(sa_family_t);
	address->sa_family = AF_UNIX;
	return ends[0];
}
"""


def test_a_storm_does_not_keep_a_removed_listener_open(start, directory):
    """Clients that come faster than they are accepted: who comes after the reload comes too late."""
    a, b = tunnel("a", "internal:echo"), tunnel("b", "internal:echo", backlog=100)
    daemon = start(configuration(a, b, log={"connections": "false"}), prefix=preloaded(directory, ENDLESS_CLIENTS % (directory / "go")))
    address = daemon.address("b")
    daemon.write(configuration(a, log={"connections": "false"}))
    (directory / "go").touch()
    daemon.reload()
    wait_until(lambda: is_closed(address), "the removed listener to be closed")
    (directory / "go").unlink()
    assert echoes(daemon.address("a"))


def test_new_targets_count_for_new_connections(start):
    with Target() as old, Target() as new:
        daemon = start(configuration(tunnel("a", old.text)))
        address = daemon.address("a")
        with connect(address) as before, old.accept() as before_peer:
            transfer(before, before_peer, 10)
            daemon.reload(configuration(tunnel("a", new.text)))
            with connect(address) as after, new.accept() as after_peer:
                transfer(after, after_peer, 10)
                transfer(before, before_peer, 10)
                old.expect_nobody()


def test_port_zero_keeps_its_port(start):
    """Every tunnel keeps the port the kernel chose for it, whatever the others are."""
    tunnels = [tunnel(name, "internal:echo", ["127.0.0.1:0", "127.0.0.1:0"]) for name in "abc"]
    daemon = start(configuration(*tunnels))
    ports = {name: [address[1] for address in daemon.addresses(name)] for name in "abc"}
    assert len(set(sum(ports.values(), []))) == 6, ports
    daemon.reload(configuration(*reversed(tunnels)))
    for name in "abc":
        for port in ports[name]:
            assert echoes(("127.0.0.1", port))
            daemon.ended(name, count=ports[name].index(port) + 1)


def test_bad_listener_changes_nothing(start):
    with Target() as taken:
        daemon = start(configuration(tunnel("a", "internal:echo")))
        descriptors = daemon.descriptors()
        daemon.reload(configuration(tunnel("a", "internal:discard"), tunnel("b", "internal:echo"),
                                    tunnel("c", "internal:echo", taken.text)), expect=REFUSED)
        assert not daemon.find_log("listening", tunnel="b")
        assert echoes(daemon.address("a"))
        assert daemon.descriptors() == descriptors


def test_reload_storm(start):
    """Many HUPs at once become few; the last file counts."""
    daemon = start(configuration(tunnel("a", "internal:echo")))
    for number in range(100):
        daemon.write(configuration(tunnel("a", "internal:echo"), tunnel(f"t{number}", "internal:echo")))
        daemon.signal(signal.SIGHUP)
    daemon.wait_log("listening", tunnel="t99")
    assert echoes(daemon.address("t99")) and echoes(daemon.address("a"))


def test_each_of_many_reloads_is_told(start):
    """As a line of its own or as one of those left out within a second, as lines of one kind are."""
    daemon = start(configuration(tunnel("a", "internal:echo")))
    for _ in range(60):
        daemon.reload()
    assert daemon.count_log("reloaded") == 60


def test_hup_while_draining_is_refused(start):
    daemon = start(configuration(tunnel("a", "internal:echo")))
    with connect(daemon.address("a"), expects=CLIENT_STREAM) as client:
        transfer(client, client, 10)
        daemon.signal(signal.SIGTERM)
        daemon.wait_log("draining")
        daemon.reload(expect=REFUSED)
        transfer(client, client, 10)
