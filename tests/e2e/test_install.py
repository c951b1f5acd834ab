"""`make install` as the README says it: somewhere else than in /usr, and it runs under systemd."""

import re
import subprocess

import pytest

from daemon import ROOT, wait_until
from machine import Machine
from peers import echoes

PREFIX = "/usr/local"


def make(*arguments):
    subprocess.run(["make", "--silent", "-C", ROOT, "install", "install-etc", *arguments], check=True,
                   stdout=subprocess.DEVNULL)


def test_a_configuration_that_is_there_stays(directory):
    make(f"DESTDIR={directory}")
    config = directory / "etc/penstock/penstock.conf"
    assert config.read_text() == (ROOT / "packaging/minimal.conf").read_text()
    config.write_text("mine")
    make(f"DESTDIR={directory}")
    assert config.read_text() == "mine"
    for path in directory.rglob("*"):
        assert path.is_dir() or b"/usr/sbin/penstockd" not in path.read_bytes(), path


@pytest.mark.root
def test_it_runs():
    """All that stands in the README's lines behind `make`."""
    lines = re.search(r"install-etc .*?\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.S)[1]
    machine = Machine(install=lambda place: make(f"DESTDIR={place}"))
    try:
        for line in lines.replace("sudo ", "").splitlines():
            machine.run("sh", "-c", line)
        assert machine.show("ActiveState") == "active" and f"{PREFIX}/sbin/penstockd" in machine.show("ExecStart")
        assert echoes(f"{machine.root}/run/penstock/hello.sock", 100)
        machine.run("penstockd", "--check")
        machine.systemctl("reload", "penstock")
        wait_until(lambda: machine.show("StatusText").startswith("generation 2"), "the reload")
    finally:
        machine.stop()
