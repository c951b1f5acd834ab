"""Health checks of targets: through the whole far side, without counting anywhere."""

import re
import socket
import subprocess
import time

import pytest

from daemon import DEADLINE, configuration, preloaded, tunnel, wait_until
from peers import ClosedPort, EchoTarget, FullTarget, Target, connect, echoes
from test_admin import Admin

pytestmark = pytest.mark.sanitize

CHECK = '        check {{ interval = "{interval}"  timeout = "{timeout}"  rise = {rise}  fall = {fall} }}\n'


def checked(text, interval="100ms", timeout="500ms", rise=2, fall=2):
    """A tunnel's text with a check in it."""
    return text.removesuffix("}\n") + CHECK.format(**locals()) + "}\n"


@pytest.fixture
def asked(start, directory):
    def start_daemon(*sections, **options):
        text = configuration(*sections, tunnel("admin", "internal:admin", listen=f"unix:{directory}/admin.sock"), **options)
        return Admin(start(text), path=directory / "admin.sock")
    return start_daemon


def states(admin, name="a"):
    return [one["state"] for one in admin.get("/v1/targets")["targets"] if one["tunnel"] == name]


def test_a_target_fails_and_comes_back(asked):
    with EchoTarget() as good:
        probe = Target()
        address = probe.text
        admin = asked(checked(tunnel("a", [address, good.text])), workers=2)
        wait_until(lambda: [one["checked"] for one in admin.get("/v1/targets")["targets"]][:2] == [True] * 2, "checks")
        assert states(admin) == ["up", "up"]
        probe.close()
        admin.daemon.wait_log("target fails its checks", tunnel="a", target=address)
        assert states(admin) == ["down", "up"]
        assert admin.metrics()[f'penstock_target_up{{tunnel="a",target="{address}"}}'] == 0
        assert echoes(admin.daemon.address("a"))
        line = admin.daemon.ended("a")
        assert line["target"] == good.text and int(line["duration_ms"]) < 500
        host, port = address.split(":")
        with socket.create_server((host, int(port))) as again:
            again.listen()
            admin.daemon.wait_log("target passes its checks", count=1, tunnel="a", target=address)
            wait_until(lambda: admin.daemon.find_log("target passes its checks", target=address)[-1:] and
                       states(admin)[0] != "down", "it to come back")


def test_a_backup_has_clients_while_the_others_fail(asked):
    with ClosedPort() as main, EchoTarget() as spare:
        admin = asked(checked(tunnel("a", main.text, backup=[spare.text], max_per_target=1)))
        admin.daemon.wait_log("target fails its checks", target=main.text)
        assert echoes(admin.daemon.address("a"))
        assert admin.daemon.ended("a")["target"] == spare.text
        assert [one["backup"] for one in admin.get("/v1/targets")["targets"]][:2] == [False, True]
        main.sock.listen()
        admin.daemon.wait_log("target passes its checks", target=main.text)
        with connect(admin.daemon.address("a")) as client:
            client.send(10)
            main.sock.settimeout(DEADLINE)
            seen = b""
            while not seen:  # checks say nothing
                peer = main.sock.accept()[0]
                seen = peer.recv(10)
            # However many checks there are, its one client is all that counts.
            assert [one["active"] for one in admin.get("/v1/targets")["targets"]][:2] == [1, 0]
            peer.close()


def test_checks_count_nowhere(asked):
    with EchoTarget() as target:
        admin = asked(checked(tunnel("a", target.text, limit="slow", max_connections=1)),
                      'limit "slow" { rate = "10kB/s" burst = "10kB" }\n', log={"level": "debug"})
        wait_until(lambda: target.connections >= 5, "some checks")
        seen = admin.metrics()
        assert seen['penstock_connections_admitted_total{tunnel="a"}'] == 0
        assert not [name for name, value in seen.items() if value and "_ended_total" in name and '"a"' in name]
        assert seen['penstock_limit_bytes_total{limit="slow",direction="up"}'] == 0
        assert admin.connections(tunnel="a") == []
        assert admin.daemon.wait_log("connection ended", tunnel="a").level == "debug"
        assert echoes(admin.daemon.address("a"))


def test_a_silent_target_and_a_closed_one(asked):
    with FullTarget() as silent, ClosedPort() as closed:
        admin = asked(checked(tunnel("a", [silent.text, closed.text])))
        lines = [admin.daemon.wait_log("target fails its checks", target=target.text) for target in (silent, closed)]
        assert "check has passed" in lines[0]["why"] or "in time" in lines[0]["why"], lines[0]
        assert "refused" in lines[1]["why"]


def test_through_the_filters_of_the_far_side(asked, directory):
    """A target that takes connections but does no handshake is not up."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", directory / "key",
                    "-out", directory / "certificate"], check=True, capture_output=True)
    sections = (f'tls "server" {{ certificate = "{directory}/certificate"  key = "{directory}/key" }}\n'
                f'tls "client" {{ ca = "{directory}/certificate"  server_name = "localhost" }}\n')
    with EchoTarget() as plain:
        admin = asked(sections, tunnel("inner", "internal:echo", listen="internal:inner", accept_filters=["tls:server"]),
                      checked(tunnel("good", "internal:inner", connect_filters=["tls:client", "zlib"])),
                      checked(tunnel("bad", plain.text, connect_filters=["tls:client"])))
        admin.daemon.wait_log("target fails its checks", tunnel="bad")
        wait_until(lambda: states(admin, "good") == ["up"], "the good one")
        assert admin.daemon.wait_log("target passes its checks", tunnel="good")
        seen = admin.metrics()
        assert seen['penstock_connections_admitted_total{tunnel="inner"}'] == 0
        # Neither those of the check nor, at the inner tunnel, those that it meets.
        assert not {name: value for name, value in seen.items() if value and re.match("penstock_(tls|compression)_", name)}
        assert echoes(admin.daemon.address("good"))
        seen = admin.metrics()
        assert all(sum(seen[f'penstock_tls_handshakes_total{{side="{side}",result="{result}"}}'] for result in ("full", "ticket"))
                   == 1 for side in ("near", "far"))
        assert seen['penstock_compression_bytes_total{filter="zlib",flow="out",form="plain"}'] == 1000


def test_reload_and_stop_with_checks_under_way(asked):
    with FullTarget() as silent, EchoTarget() as target:
        admin = asked(checked(tunnel("a", [silent.text, target.text]), timeout="20s"), workers=2)
        wait_until(lambda: target.connections >= 1, "a check")
        for _ in range(5):
            admin.daemon.reload()
        admin.daemon.reload(configuration(tunnel("a", [silent.text, target.text]),
                                          tunnel("admin", "internal:admin", listen=f"unix:{admin.path}"), workers=2))
        assert not any(one["checked"] for one in admin.get("/v1/targets")["targets"])
        admin.daemon.signal(15)
        assert admin.daemon.wait_exit() == 0


SLOW_WORKER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

int epoll_wait(int epoll, struct epoll_event *events, int most, int timeout)
{
	int (*real)(int, struct epoll_event *, int, int) = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
	int count = real(epoll, events, most, timeout);
	char name[16];
	if (pthread_getname_np(pthread_self(), name, sizeof(name)) == 0 && !strcmp(name, "worker-1"))
		usleep(50000);
	return count;
}
"""


def test_what_a_check_has_said_does_not_outlive_it(start, directory):
    """One worker does not check the target any more, another's last check of it ends a moment later."""
    with ClosedPort() as dead:
        plain = tunnel("a", [f"127.{i}.0.1:{dead.port}" for i in range(1, 9)])
        admin = tunnel("admin", "internal:admin", listen=f"unix:{directory}/admin.sock")
        asked = Admin(start(configuration(checked(plain), admin, workers=2), prefix=preloaded(directory, SLOW_WORKER)),
                      path=directory / "admin.sock")
        for phase in range(0, 160, 10):
            wait_until(lambda: states(asked) == ["down"] * 8, "checks")
            time.sleep(phase / 1000)
            asked.daemon.reload(configuration(tunnel("first", "internal:echo"), plain, admin, workers=2))
            assert not [one["target"] for one in asked.get("/v1/targets")["targets"] if one["checked"]]
            asked.daemon.reload(configuration(checked(plain), admin, workers=2))


def test_a_check_under_way_takes_no_limit_after_a_reload(asked):
    with Target() as mute:
        text = checked(tunnel("a", mute.text, connect_filters=["tls:client"], connect_limit="slow"), timeout="20s")
        admin = asked(text, 'limit "slow" { rate = "10kB/s" }\ntls "client" { ca = "system"  server_name = "a.example" }\n')
        with mute.accept(expects=None) as check:
            admin.daemon.reload()
            limits = admin.get("/v1/limits")["limits"]
            assert [(one["name"], one["up"]["members"], one["down"]["members"]) for one in limits] == [("slow", 0, 0)]


def test_checks_do_not_hold_a_drain(asked):
    with FullTarget() as silent:
        admin = asked(checked(tunnel("a", silent.text), timeout="20s"))
        admin.daemon.signal(15)
        assert admin.daemon.wait_exit(5) == 0
