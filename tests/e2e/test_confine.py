"""What the daemon gives up at its start: rights of root, new privileges, reading elsewhere."""

import os
import pwd
import re
import ssl
import socket
import subprocess

import pytest

from daemon import DEADLINE, PENSTOCKD, configuration, run_penstockd, tunnel
from peers import connect, echoes

LOW_PORT = 1 << 10  # CAP_NET_BIND_SERVICE


def status(daemon):
    return dict(line.split(":\t", 1) for line in daemon.proc("status").splitlines() if ":\t" in line)


def config_a(**rows):
    return configuration(tunnel("a", "internal:echo"), **rows)


@pytest.mark.root
def test_user(start, directory):
    os.chmod(directory, 0o755)
    daemon = start(config_a(user="nobody"))
    nobody = pwd.getpwnam("nobody")
    seen = status(daemon)
    assert seen["Uid"].split() == [str(nobody.pw_uid)] * 4 and seen["Gid"].split() == [str(nobody.pw_gid)] * 4
    assert seen["Groups"].split() == [str(nobody.pw_gid)]
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(seen[kind], 16) == LOW_PORT, kind
    assert seen["NoNewPrivs"] == "1"
    for task in os.listdir(f"/proc/{daemon.pid}/task"):
        with open(f"/proc/{daemon.pid}/task/{task}/status") as lines:
            assert f"CapEff:\t{LOW_PORT:016x}\n" in lines.read()
    assert echoes(daemon.address("a"))
    daemon.reload(config_a(user="nobody") + tunnel("low", "internal:echo", "127.0.0.99:999"))
    assert echoes(("127.0.0.99", 999))


@pytest.mark.root
def test_user_and_group_by_number(start):
    seen = status(start(config_a(user="12345:54321")))
    assert seen["Uid"].split() == ["12345"] * 4 and seen["Gid"].split() == ["54321"] * 4


@pytest.mark.root
def test_only_root_becomes_another(start, directory):
    path = directory / "penstock.conf"
    path.write_text(config_a(user="daemon"))
    done = subprocess.run(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", PENSTOCKD, "-c", path],
                          capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 1 and "only root can become another user" in done.stderr


@pytest.mark.root
def test_a_log_that_the_user_cannot_write(directory):
    path, log = directory / "penstock.conf", directory / "log"
    path.write_text(config_a(user="nobody", log={"target": f"file:{log}"}))
    for way in (), ("--check",):
        done = run_penstockd("-c", path, *way)
        assert done.returncode == 1 and f"cannot open the log file {log}: Permission denied" in done.stderr, done
    assert re.match(f"{path}:\\d+: target: ", done.stderr)
    log.touch()
    os.chown(log, pwd.getpwnam("nobody").pw_uid, -1)
    done = run_penstockd("-c", path, "--check")
    assert done.returncode == 0 and not done.stderr, done


@pytest.mark.root
def test_what_the_user_cannot_read_is_told(start, directory):
    text = config_a(user="nobody") + 'include("private.conf")\n'
    (directory / "daemon0").mkdir()
    private = directory / "daemon0/private.conf"
    private.write_text("max_connections = 7\n")
    private.chmod(0o600)
    daemon = start(text)
    done = run_penstockd("-c", daemon.config, "--check")
    assert done.returncode == 0 and f"{private}: warning: the user that the daemon becomes cannot read it" in done.stderr
    daemon.wait_log(f"{private} cannot be read any more by the daemon's user")
    daemon.reload(expect="not reloaded")
    assert echoes(daemon.address("a"))


def test_switches(start):
    assert status(start(config_a()))["NoNewPrivs"] == "1"
    assert status(start(config_a(no_new_privs="false", landlock="false")))["NoNewPrivs"] == "0"


def test_a_changed_switch_counts_after_a_restart(start):
    daemon = start(config_a())
    daemon.reload(config_a(no_new_privs="false", workers=1))
    daemon.wait_log("no_new_privs: false counts only after a restart; true goes on")
    daemon.reload(config_a(workers=1))  # as it is in force, whatever the last file said
    daemon.reload(config_a(workers=1, user="nobody"))
    daemon.wait_log(f'user: {pwd.getpwnam("nobody").pw_uid} counts only after a restart; "" goes on')
    assert daemon.count_log("no_new_privs: ") == 1


# --- Landlock

@pytest.mark.sanitize
def test_reading_outside(start, directory):
    """A reload that names a file elsewhere fails with a sentence; --diff says that beforehand."""
    outside = directory / "outside"
    outside.mkdir()
    (outside / "more.conf").write_text("max_connections = 7\n")
    daemon = start(config_a())
    old = directory / "old.conf"
    old.write_text(daemon.config.read_text())
    (daemon.config.parent / "near.conf").write_text("max_connections = 7\n")
    daemon.reload(config_a() + 'include("near.conf")\n')
    sentence = f"{outside}/more.conf lies outside of what the running daemon may read; restart it"
    daemon.reload(config_a() + f'include("{outside}/more.conf")\n', expect=f"{daemon.config}:6: {sentence}")
    done = run_penstockd("-c", daemon.config, "--diff", old)
    assert "needs a restart" not in done.stdout  # old.conf's own directory holds both
    old = daemon.config.parent / "old.conf"
    old.write_text(config_a())
    done = run_penstockd("-c", daemon.config, "--diff", old)
    assert f"{outside}/more.conf: lies outside of what the running daemon may read (needs a restart)\n" in done.stdout
    daemon.stop()
    assert echoes(start(daemon.config.read_text()).address("a"))


@pytest.mark.sanitize
def test_what_is_not_there_lies_nowhere(start, directory):
    """Not outside either, whatever links lead to where it would be."""
    (directory / "real").mkdir()
    (directory / "daemon0").symlink_to("real")
    daemon = start(config_a())
    for name in "none.conf", directory / "elsewhere/none.conf":
        daemon.reload(config_a() + f'include("{name}")\n', expect=f"{daemon.config}:6: the file ")
        assert "No such file or directory" in daemon.find_log(f"{daemon.config}:6: the file ")[-1].text
    daemon.reload(config_a())


@pytest.mark.root
def test_ports_of_clients_are_known_inside(start, directory):
    """The only port that the kernel has for a source is the target's: a connection would be one to itself."""
    net = 'ip link set lo up && echo 7777 7777 >/proc/sys/net/ipv4/ip_local_port_range && exec "$0" "$@"'
    daemon = start(configuration(tunnel("a", "127.0.0.1:7777", f"unix:{directory}/sock")),
                   prefix=["unshare", "--net", "sh", "-c", net])
    with connect(daemon.address("a"), expects=None):
        assert daemon.ended("a")["reason"] == "refused"


def test_landlock_can_be_switched_off(start, directory):
    outside = directory / "outside"
    outside.mkdir()
    (outside / "more.conf").write_text("max_connections = 7\n")
    daemon = start(config_a(landlock="false"))
    daemon.reload(config_a(landlock="false") + f'include("{outside}/more.conf")\n')


def make_certificate(path, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", f"/CN={name}", "-keyout", f"{path}.key", "-out", f"{path}.pem"], check=True, capture_output=True)


def shown_certificate(address):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, DEADLINE) as plain, context.wrap_socket(plain) as client:
        return client.getpeercert(binary_form=True)


@pytest.mark.parametrize("linked", [False, True])
def test_renewal_by_rename(start, directory, linked):
    """A renewed certificate is another file of the same name, or what a link then leads to."""
    store = directory / ("archive" if linked else "live")
    live = directory / "live"
    store.mkdir()
    live.mkdir(exist_ok=True)
    make_certificate(store / "edge", "first")
    if linked:
        for suffix in ("pem", "key"):
            (live / f"edge.{suffix}").symlink_to(store / f"edge.{suffix}")
    daemon = start(f'tls "t" {{ certificate = "{live}/edge.pem" key = "{live}/edge.key" }}\n' +
                   configuration(tunnel("a", "internal:echo", accept_filters=["tls:t"])))
    first = shown_certificate(daemon.address("a"))
    make_certificate(store / "edge2", "second")
    for suffix in ("key", "pem"):
        if linked:
            (live / "fresh").symlink_to(store / f"edge2.{suffix}")
            (live / "fresh").rename(live / f"edge.{suffix}")
        else:
            (store / f"edge2.{suffix}").rename(live / f"edge.{suffix}")
    daemon.reload()
    assert shown_certificate(daemon.address("a")) != first
