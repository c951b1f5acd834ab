"""The Debian packages under a real systemd: installed, used, upgraded, removed, purged. `make deb-check`."""

import shutil
import subprocess

import pytest

from daemon import ROOT, wait_until
from machine import Machine
from peers import echoes

BUILT = ROOT / "build/deb"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    built, = BUILT.glob("penstock_*.deb")
    shutil.copy(built, folder / "old.deb")
    # The next version: the same files, another number.
    subprocess.run(["dpkg-deb", "-R", built, folder / "next"], check=True)
    control = folder / "next/DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 9:"))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", folder / "next", folder / "new.deb"], check=True, capture_output=True)
    ctl, = BUILT.glob("penstock-ctl_*.deb")
    shutil.copy(ctl, folder / "ctl.deb")
    machine = Machine(install=lambda place: [shutil.copy(folder / name, place / name) for name in ("old.deb", "new.deb", "ctl.deb")])
    machine.run("rm", "-f", "/usr/sbin/policy-rc.d")
    yield machine
    machine.stop()


def dpkg(machine, *arguments):
    return machine.run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *arguments)


def hello(machine):
    """As root, who alone may, to the socket of the first configuration."""
    return echoes(f"{machine.root}/run/penstock/hello.sock", 100)


def test_install(machine):
    dpkg(machine, "-i", "/old.deb", "/ctl.deb")
    assert machine.run("penstockctl", "--help")
    wait_until(lambda: machine.show("ActiveState") == "active", "the service")
    assert machine.show("UnitFileState") == "enabled"
    assert machine.show("UnitFileState", "penstock.socket") == "disabled"
    assert machine.show("User") == "penstock" and machine.run("id", "-u", "penstock") != "0"
    assert hello(machine)
    assert machine.run("stat", "-c", "%U:%G %a", "/var/log/penstock") == "penstock:adm 2750"
    assert "command not found" not in machine.run("bash", "-c", ". /usr/share/bash-completion/completions/penstockd && complete -p penstockd")
    machine.run("logrotate", "--debug", "/etc/logrotate.d/penstock")
    for page in ("5/penstock.conf.5", "7/penstock.7", "8/penstockd.8"):
        assert (machine.root / f"usr/share/man/man{page}.gz").exists()
    machine.run("systemd-analyze", "verify", "penstock.service", "penstock.socket")


def test_rotation(machine):
    """Log lines go on in the new file."""
    config = '/etc/penstock/penstock.conf'
    text = (machine.root / config.lstrip("/")).read_text()
    machine.write(config, text + 'log { target = "file:/var/log/penstock/penstock.log" }\n')
    machine.systemctl("reload", "penstock")
    log = machine.root / "var/log/penstock/penstock.log"
    wait_until(lambda: log.exists() and "reloaded" in log.read_text(), "the log file")
    machine.run("logrotate", "--force", "/etc/logrotate.d/penstock")
    assert hello(machine)
    wait_until(lambda: "connection ended" in log.read_text(), "lines in the new file")
    assert "reloaded" in (machine.root / "var/log/penstock/penstock.log.1").read_text()
    for name in ("penstock.log", "penstock.log.1"):
        assert machine.run("stat", "-c", "%U:%G %a", f"/var/log/penstock/{name}") == "penstock:adm 640"


def test_upgrade(machine):
    """The daemon is another process, and the changed configuration stays."""
    pid = machine.show("MainPID")
    dpkg(machine, "-i", "--force-confold", "/new.deb")
    wait_until(lambda: machine.show("ActiveState") == "active", "the service")
    assert machine.show("MainPID") not in (pid, "0")
    assert hello(machine)
    assert "file:/var/log" in (machine.root / "etc/penstock/penstock.conf").read_text()


def test_remove(machine):
    dpkg(machine, "-r", "penstock")
    assert machine.show("ActiveState") in ("inactive", "failed")
    assert not (machine.root / "usr/sbin/penstockd").exists()
    assert (machine.root / "etc/penstock/penstock.conf").exists(), "configuration stays until the purge"
    assert (machine.root / "var/log/penstock/penstock.log").exists()


def test_purge(machine):
    dpkg(machine, "-P", "penstock", "penstock-ctl")
    for place in ("etc/penstock", "var/log/penstock", "etc/logrotate.d/penstock", "etc/apparmor.d/usr.sbin.penstockd"):
        assert not (machine.root / place).exists(), place
    assert "penstock" not in machine.run("systemctl", "list-unit-files", "--no-legend")
    assert machine.run("dpkg", "--audit") == ""
