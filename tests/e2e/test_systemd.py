"""The daemon under a real systemd: see machine.py."""

import os
import socket
import ssl
import threading
import time

import pytest

from daemon import DEADLINE, configuration, tunnel, wait_until
from machine import Machine, StoppedThread
from peers import CLIENT_STREAM, connect, echoes, is_closed, is_refused, transfer

CONFIG = "/etc/penstock/penstock.conf"
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def booted():
    machine = Machine()
    yield machine
    machine.stop()


@pytest.fixture
def machine(booted):
    booted.reset()
    return booted


def test_start(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"), workers=2))
    machine.systemctl("start", "penstock")
    assert machine.show("ActiveState") == "active"
    assert machine.show("StatusText") == "generation 1, 1 tunnel, 0 connections open"
    assert machine.within(echoes, ("127.0.0.1", 7001))


def test_ready_means_listening(machine):
    """`systemctl start` returns when every listener is open, and fails when one cannot be."""
    machine.write(CONFIG, configuration(*(tunnel(f"t{i}", "internal:echo", f"127.0.0.1:{7100 + i}") for i in range(50))))
    machine.systemctl("start", "penstock")
    for i in range(50):
        machine.within(connect, ("127.0.0.1", 7100 + i)).close()
    machine.systemctl("stop", "penstock")
    with machine.within(socket.create_server, ("127.0.0.1", 7149)):
        mark = machine.cursor()
        machine.systemctl("start", "penstock", check=False)
        assert machine.status != 0 and machine.show("Result") == "exit-code"
        assert any("cannot listen on 127.0.0.1:7149" in line for line in machine.messages(since=mark))


def test_wrong_file(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"), wrokers=2))
    machine.systemctl("start", "penstock", check=False)
    assert machine.status != 0 and machine.show("Result") == "exit-code"
    assert machine.show("ExecMainStatus") == "1" and machine.show("NRestarts") == "0"
    assert f"{CONFIG}:2: unknown keyword 'wrokers'" in machine.systemctl("status", "penstock", check=False)


def test_reload(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001")))
    machine.systemctl("start", "penstock")
    pid = machine.show("MainPID")
    with machine.within(connect, ("127.0.0.1", 7001), CLIENT_STREAM) as client:
        transfer(client, client, 1000)
        machine.write(CONFIG, configuration(tunnel("b", "internal:echo", "127.0.0.1:7002")))
        machine.systemctl("reload", "penstock")
        wait_until(lambda: machine.show("StatusText") == "generation 2, 1 tunnel, 1 connection open", "generation 2")
        assert machine.show("ActiveState") == "active" and machine.show("MainPID") == pid
        assert machine.within(echoes, ("127.0.0.1", 7002))
        refused(machine, 7001)
        transfer(client, client, 1000)
    wait_until(lambda: machine.show("StatusText") == "generation 2, 1 tunnel, 0 connections open", "a status that keeps up")


def test_bad_reload(machine):
    """`systemctl reload` fails and shows the line; a HUP past it shows it in the status."""
    good = configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"))
    machine.write(CONFIG, good)
    machine.systemctl("start", "penstock")
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001", balance="none")))
    machine.systemctl("reload", "penstock", check=False)
    assert machine.status != 0
    wrong = f"{CONFIG}:5: balance: 'none' is unknown here"
    assert wrong in machine.systemctl("status", "penstock", check=False)
    assert any(wrong in entry["MESSAGE"] and entry["PRIORITY"] == "3" for entry in machine.journal())
    assert machine.show("ActiveState") == "active"
    assert machine.show("StatusText") == "generation 1, 1 tunnel, 0 connections open"
    machine.systemctl("kill", "--kill-who=main", "-s", "HUP", "penstock")
    status = wait_until(lambda: "; the reload at " in machine.show("StatusText") and machine.show("StatusText"), "a verdict")
    assert status.startswith("generation 1, 1 tunnel, 0 connections open; the reload at ") and wrong in status
    assert machine.show("ActiveState") == "active"
    assert machine.within(echoes, ("127.0.0.1", 7001))
    machine.write(CONFIG, good)
    machine.systemctl("reload", "penstock")
    wait_until(lambda: machine.show("StatusText") == "generation 2, 1 tunnel, 0 connections open", "a good verdict")


def test_port_taken_fails_the_reload(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001")))
    machine.systemctl("start", "penstock")
    machine.write(CONFIG, configuration(tunnel("b", "internal:echo", "127.0.0.1:7002")))
    with machine.within(socket.create_server, ("127.0.0.1", 7002)):
        machine.systemctl("reload", "penstock")  # the check opens no listener
        wait_until(lambda: "cannot listen on 127.0.0.1:7002" in machine.show("StatusText"), "the verdict")
    assert machine.within(echoes, ("127.0.0.1", 7001))


def test_long_load_does_not_trip_the_watchdog(machine):
    """A configuration that takes longer to load than the watchdog is patient."""
    small = configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"))
    machine.write(CONFIG, small)
    machine.drop_in("[Service]\nWatchdogSec=2s\n")
    machine.systemctl("start", "penstock")
    inside, process = machine.pid()
    machine.write(CONFIG, small + "".join(
        f'tunnel "t{i}" {{ listen = "internal:n{i}" connect = "internal:{f"n{i + 1}" if i % 50 < 49 else "echo"}" }}\n'
        for i in range(5000)))
    machine.systemctl("kill", "--kill-who=main", "-s", "HUP", "penstock")
    loader = StoppedThread(process, "loader")
    assert machine.within(echoes, ("127.0.0.1", 7001))
    time.sleep(4.5)
    assert machine.within(echoes, ("127.0.0.1", 7001))
    loader.go_on()
    wait_until(lambda: machine.show("StatusText").startswith("generation 2, 5001 tunnels, "), "the reload", 4 * DEADLINE)
    assert machine.show("MainPID") == str(inside) and machine.show("NRestarts") == "0"


@pytest.mark.slow
def test_two_thousand_certificates_do_not_trip_the_watchdog(machine):
    small = configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"))
    machine.write(CONFIG, small)
    machine.drop_in("[Service]\nWatchdogSec=2s\n")
    machine.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-subj", "/CN=localhost", "-keyout", "/etc/penstock/edge.key", "-out", "/etc/penstock/edge.pem")
    key, certificate = ((machine.root / f"etc/penstock/edge.{end}").read_text() for end in ("key", "pem"))
    for i in range(2000):
        machine.write(f"/etc/penstock/many/{i}.pem", certificate + key, mode=0o600)
    machine.run("chown", "-R", "penstock:", "/etc/penstock/many")
    machine.systemctl("start", "penstock")
    pid = machine.show("MainPID")
    machine.write(CONFIG, small + "".join(
        f'tls "s{i}" {{ certificate = "many/{i}.pem" }}\n'
        f'tunnel "t{i}" {{ listen = "internal:n{i}" accept_filters = "tls:s{i}" connect = "internal:echo" }}\n' for i in range(2000)))
    machine.systemctl("kill", "--kill-who=main", "-s", "HUP", "penstock")
    wait_until(lambda: machine.show("StatusText").startswith("generation 2, 2001 tunnels, "), "the reload", 8 * DEADLINE)
    assert machine.within(echoes, ("127.0.0.1", 7001))
    assert machine.show("MainPID") == pid and machine.show("NRestarts") == "0"


@pytest.mark.alone
def test_watchdog_ends_a_stuck_worker(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"), workers=2))
    machine.drop_in("[Service]\nWatchdogSec=2s\n")
    machine.systemctl("start", "penstock")
    mark = machine.cursor()
    StoppedThread(machine.pid()[1], "worker-1").wait_end()
    wait_until(lambda: machine.show("NRestarts") == "1" and machine.show("ActiveState") == "active", "the restart")
    said = machine.messages(since=mark)
    assert any("Watchdog timeout" in line for line in said)
    assert any("worker-1 does not answer" in line for line in said)
    assert machine.within(echoes, ("127.0.0.1", 7001))


class Load:
    """Clients inside that connect, exchange a few bytes and end, one after the other, until told to stop."""

    def __init__(self, machine, address, clients=4):
        self.done, self.lost, self._stop = 0, [], threading.Event()
        self._lock = threading.Lock()
        self._clients = [machine.begin_within(self._run, address) for _ in range(clients)]

    def _run(self, address):
        while not self._stop.is_set():
            try:
                assert echoes(address, 3000)
            except (OSError, AssertionError) as error:
                self.lost.append(repr(error))
            with self._lock:
                self.done += 1

    def wait(self, more):
        enough = self.done + more
        wait_until(lambda: self.done >= enough, f"{more} more connections")

    def stop(self):
        self._stop.set()
        for client in self._clients:
            client.result()
        assert not self.lost, f"{len(self.lost)} of {self.done} connections were lost: {self.lost[:5]}"


@pytest.mark.parametrize("listen, address", [
    ("127.0.0.1:7001", ("127.0.0.1", 7001)), ("[::1]:7001", ("::1", 7001)), ("unix:/run/penstock/sock", "/run/penstock/sock")])
def test_restart_refuses_nobody(machine, listen, address):
    """Sockets that the daemon opened itself are in systemd's store meanwhile."""
    text = lambda workers: configuration(tunnel("a", "internal:echo", listen, unix_mode="0666"), workers=workers)
    machine.write(CONFIG, text(2))
    machine.systemctl("start", "penstock")
    if isinstance(address, str):
        address = f"/proc/{machine.init}/root{address}"
    load = Load(machine, address)
    for workers in (2, 3, 1):
        load.wait(50)
        pid = machine.show("MainPID")
        machine.write(CONFIG, text(workers))
        machine.systemctl("restart", "penstock")
        assert machine.show("MainPID") != pid
    load.wait(50)
    load.stop()


def test_kill_and_restart(machine):
    """After kill -9 what was open is gone, but nobody is refused."""
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"), workers=2))
    machine.systemctl("start", "penstock")
    for restarts in ("1", "2"):
        machine.systemctl("kill", "-s", "KILL", "penstock")
        assert machine.within(echoes, ("127.0.0.1", 7001))  # waits in the queue
        wait_until(lambda: machine.show("NRestarts") == restarts, "the restart")


def refused(machine, port):
    with pytest.raises(ConnectionRefusedError):
        machine.within(connect, ("127.0.0.1", port))


def test_store_holds_what_is_configured(machine):
    """What a reload removes is refused at once; what the file lacks after a restart, too; and a stop ends all."""
    a = lambda *listen: tunnel("a", "internal:echo", listen)
    machine.write(CONFIG, configuration(a("127.0.0.1:7001", "127.0.0.1:7003"), tunnel("b", "internal:echo", "127.0.0.1:7002"), workers=2))
    machine.systemctl("start", "penstock")
    wait_until(lambda: machine.show("NFileDescriptorStore") == "6", "two sockets for each address")
    machine.write(CONFIG, configuration(a("127.0.0.1:7001", "127.0.0.1:7003"), workers=2))
    machine.systemctl("reload", "penstock")
    wait_until(lambda: machine.show("StatusText").startswith("generation 2"), "the reload")
    assert machine.show("NFileDescriptorStore") == "4"
    refused(machine, 7002)
    machine.write(CONFIG, configuration(a("127.0.0.1:7001"), workers=2))
    machine.systemctl("restart", "penstock")
    assert machine.within(echoes, ("127.0.0.1", 7001))
    wait_until(lambda: machine.show("NFileDescriptorStore") == "2", "the rest to be given up")
    refused(machine, 7003)
    machine.systemctl("stop", "penstock")
    refused(machine, 7001)


def test_store_can_be_switched_off(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", ["127.0.0.1:7001", "unix:/run/penstock/sock"])))
    machine.drop_in("[Service]\nEnvironment=FDSTORE=0\nFileDescriptorStoreMax=0\n")
    machine.systemctl("start", "penstock")
    assert machine.show("NFileDescriptorStore") == "0"
    machine.systemctl("restart", "penstock")
    assert machine.within(echoes, ("127.0.0.1", 7001))


SOCKET = """[Socket]
ListenStream=
FileDescriptorName=web
ListenStream=127.0.0.1:7001
ListenStream=[::1]:7001
ListenStream=/run/penstock-web.sock
SocketMode=0666
"""


@pytest.mark.parametrize("by", ["name", "address"])
def test_socket_activation(machine, by):
    """Several sockets, IPv6 and UNIX among them; the first client starts the daemon."""
    addresses = ["127.0.0.1:7001", "[::1]:7001", "unix:/run/penstock-web.sock"]
    machine.write(CONFIG, configuration(
        tunnel("a", "internal:echo", "systemd:web" if by == "name" else addresses), workers=2))
    machine.drop_in(SOCKET, unit="penstock.socket")
    machine.systemctl("start", "penstock.socket")
    assert machine.show("ActiveState") == "inactive"
    path = f"/proc/{machine.init}/root/run/penstock-web.sock"
    for address in (("127.0.0.1", 7001), ("::1", 7001), path):
        assert machine.within(echoes, address)
    assert machine.show("NFileDescriptorStore") == "0"
    machine.systemctl("restart", "penstock")
    machine.systemctl("reload", "penstock")
    for address in (("127.0.0.1", 7001), ("::1", 7001), path):
        assert machine.within(echoes, address)
    machine.systemctl("stop", "penstock.service")
    assert os.path.exists(path), "systemd's socket file was removed"
    assert machine.within(echoes, path)  # and starts it again


def test_a_drained_tunnel(machine):
    """Its own sockets are given up by the store as well, so that the kernel refuses; a socket unit's stay, and who comes
    by them is reset. A restart knows nothing of it."""
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", ["systemd:web", "127.0.0.1:7003"]),
                                        tunnel("admin", "internal:admin", "unix:/run/penstock/admin.sock"), workers=2))
    machine.drop_in(SOCKET, unit="penstock.socket")
    machine.systemctl("start", "penstock.socket", "penstock.service")
    for act in ("undrain", "restart"):
        wait_until(lambda: machine.show("NFileDescriptorStore") == "3", "two sockets, and one of the admin tunnel")
        machine.run("penstockctl", "drain", "a")
        wait_until(lambda: machine.show("NFileDescriptorStore") == "1", "the two to be given up")
        refused(machine, 7003)
        assert machine.within(is_refused, ("127.0.0.1", 7001)) and not machine.within(is_closed, ("127.0.0.1", 7001))
        if act == "undrain":
            machine.run("penstockctl", "undrain", "a")
        else:
            machine.systemctl("restart", "penstock.service")
        for port in (7001, 7003):
            assert machine.within(echoes, ("127.0.0.1", port))


def test_restart_under_load_with_socket_activation(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "systemd:web"), workers=2))
    machine.drop_in(SOCKET, unit="penstock.socket")
    machine.systemctl("start", "penstock.socket")
    load = Load(machine, ("127.0.0.1", 7001))
    for _ in range(3):
        load.wait(50)
        machine.systemctl("restart", "penstock.service")
    load.wait(50)
    load.stop()


def test_unused_socket_is_told(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7002")))
    machine.drop_in(SOCKET, unit="penstock.socket")
    mark = machine.cursor()
    machine.systemctl("start", "penstock.socket", "penstock.service")
    told = [line for line in machine.messages(since=mark) if line.startswith('systemd passed the socket "web"')]
    assert len(told) == 3


def test_missing_socket_fails_the_start(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "systemd:web")))
    mark = machine.cursor()
    machine.systemctl("start", "penstock.service", check=False)
    assert machine.status != 0
    assert any('systemd passed no socket named "web"' in line for line in machine.messages(since=mark))


@pytest.mark.parametrize("drain", ["60s", "0s"])
def test_stop_lets_transfers_end(machine, drain):
    """100 connections in the middle of a transfer; the unit's own patience would be too short."""
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"), workers=2, timeouts={"drain": drain}))
    machine.drop_in("[Service]\nTimeoutStopSec=1s\nEnvironment=FDSTORE=0\n")
    machine.systemctl("start", "penstock")
    clients = machine.within(lambda: [connect(("127.0.0.1", 7001), CLIENT_STREAM) for _ in range(100)])
    for client in clients:
        transfer(client, client, 100_000)
    machine.systemctl("stop", "--no-block", "penstock")
    wait_until(lambda: machine.show("StatusText").startswith("draining"), "the stop")
    refused(machine, 7001)
    time.sleep(1.5)
    for client in clients:
        transfer(client, client, 100_000)
        client.finish()
        client.expect_fin()
        client.close()
    wait_until(lambda: machine.show("ActiveState") == "inactive", "the end")
    assert machine.show("Result") == "success"


def test_credentials(machine):
    """A key that only root can read, handed over by LoadCredential; and that it is really used."""
    machine.run("mkdir", "-p", "/etc/penstock/private")
    machine.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-subj", "/CN=localhost", "-keyout", "/etc/penstock/private/edge.key", "-out", "/etc/penstock/edge.pem")
    machine.run("chmod", "0600", "/etc/penstock/private/edge.key")
    text = """tls "edge" {{ certificate = "edge.pem" key = "{key}" }}
tunnel "a" {{ listen = "127.0.0.1:7001" accept_filters = "tls:edge" connect = "internal:echo" }}
"""
    machine.write(CONFIG, text.format(key="private/edge.key"))
    machine.systemctl("start", "penstock", check=False)
    assert machine.status != 0, "the service can read what only root may read"
    machine.write(CONFIG, text.format(key="credential:edge.key"))
    machine.drop_in("[Service]\nLoadCredential=edge.key:/etc/penstock/private/edge.key\n")
    machine.systemctl("start", "penstock")
    machine.systemctl("reload", "penstock")

    def handshake():
        context = ssl.create_default_context(cafile=machine.root / "etc/penstock/edge.pem")
        context.check_hostname = False
        with context.wrap_socket(socket.create_connection(("127.0.0.1", 7001), DEADLINE)) as client:
            client.sendall(b"hello")
            return client.recv(5)
    assert machine.within(handshake) == b"hello"


def test_low_port_without_root(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:443")))
    machine.systemctl("start", "penstock")
    assert machine.within(echoes, ("127.0.0.1", 443))
    with open(f"/proc/{machine.pid()[1]}/status") as lines:
        status = dict(line.split(":", 1) for line in lines)
    user = machine.run("id", "-u", "penstock")
    assert user != "0" and status["Uid"].split() == [user] * 4
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 1 << 10  # NET_BIND_SERVICE
    assert status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2"


def test_dynamic_user(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", ["127.0.0.1:443", "unix:/run/penstock/sock"])))
    machine.drop_in("[Service]\nDynamicUser=yes\nUser=penstock-dynamic\nGroup=\n")
    machine.systemctl("start", "penstock")
    assert machine.within(echoes, ("127.0.0.1", 443))
    assert 61184 <= os.stat(f"/proc/{machine.pid()[1]}").st_uid <= 65519


def test_sandbox(machine):
    """By effect: what the unit forbids does not work, what the daemon needs does."""
    good = configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"))
    machine.write("/root/secret.conf", "max_connections = 7\n")
    machine.write("/etc/penstock/open.conf", "max_connections = 7\n")

    def outcome(text):
        machine.write(CONFIG, text)
        machine.systemctl("reload", "penstock", check=False)
        return machine.status == 0

    machine.write(CONFIG, good)
    machine.systemctl("start", "penstock")
    mark = machine.cursor()
    assert outcome(good + 'include("open.conf")\n')
    assert not outcome(good + 'include("/root/secret.conf")\n')
    machine.wait_message("/root/secret.conf cannot be opened", since=mark)
    for target, is_allowed in (("/var/log/penstock/log", True), ("/etc/penstock/log", False), ("/usr/log", False),
                               ("/home/log", False), ("/proc/sys/kernel/hostname", False)):
        mark = machine.cursor()
        machine.write(CONFIG, good + f'log {{ target = "file:{target}" }}\n')
        machine.systemctl("kill", "--kill-who=main", "-s", "HUP", "penstock")
        if is_allowed:
            wait_until(lambda: (machine.root / target.lstrip("/")).exists(), "the log file")
        else:
            wait_until(lambda: f"cannot open the log file {target}" in machine.show("StatusText"), f"{target} to be refused")
    machine.write("/var/open.conf", "max_connections = 7\n")  # by the rights of files everybody may read it
    machine.write(CONFIG, good + 'include("/var/open.conf")\n')
    machine.systemctl("reload", "penstock")
    wait_until(lambda: "/var/open.conf lies outside of what the running daemon may read" in machine.show("StatusText"), "Landlock")
    inside = machine.pid()[0]
    machine.run("nsenter", "-t", inside, "-m", "test", "-e", "/root/secret.conf", check=False)
    assert machine.status == 1


def test_journal_fields(machine):
    machine.write(CONFIG, configuration(tunnel("a", "internal:echo", "127.0.0.1:7001"), tunnel("b", "127.0.0.1:1", "127.0.0.1:7002")))
    machine.systemctl("start", "penstock")
    mark = machine.cursor()
    assert machine.within(echoes, ("127.0.0.1", 7001))
    with machine.within(connect, ("127.0.0.1", 7002)) as client:
        client.expect_reset()
    for reason, name in (("ok", "a"), ("refused", "b")):
        find = lambda: [entry for entry in machine.journal(since=mark) if entry.get("REASON") == reason]
        entry, = wait_until(find, f"the line of tunnel {name}")
        assert entry["TUNNEL"] == name and entry["CLIENT"].startswith("127.0.0.1:") and entry["PRIORITY"] == "6"
        assert entry["_SYSTEMD_UNIT"] == "penstock.service" and int(entry["CONNECTION"]) > 0
        assert entry["MESSAGE"].startswith("connection ended")
