"""What holds bytes back to a rate: penstockd, nginx, libevent's groups, and the kernel's token bucket."""

import os
import subprocess

from processes import CONGESTION, BenchError, congestion, wait_until
from proxies import HERE, Nginx, Penstock, PenstockTls, Proxy, first_line

RATES = {"at10": 10_000_000, "at100": 100_000_000, "at1000": 1_000_000_000}
CONNECTIONS = 10  # under each limit
COMPARED = ("at10", "at100")
CROWD_RATE, CROWD_QUANTUM = 100_000_000, 16 << 10


class PenstockLimits(Penstock):
    template = "penstock-limits.conf"
    targets = (*RATES, "high", "free", "crowd")


class PenstockLimitsTls(PenstockTls):
    template = "penstock-limits-tls.conf"
    targets = ("high", "free")


class NginxLimits(Nginx):
    template = "nginx-limits.conf"
    targets = COMPARED


class Groups(Proxy):
    """bench/groups/relay.c. Its groups tick for ever: it never comes to rest."""

    program = str(HERE.parent / "build" / "bench" / "groups")
    targets = COMPARED

    def version(self):
        return first_line(["pkg-config", "--modversion", "libevent_core"], r"(\S+)")

    def start_programs(self):
        doors = []
        for target in self.targets:
            doors += [str(RATES[target]), f"{self.ports[target]}:{self.bench.targets['source']}"]
        self.launch([self.find(), *doors])

    def settle(self):
        pass


class TokenBucket(Proxy):
    """No proxy: a target in a network namespace of its own, whose loopback has a queue of the kernel's. What
    it uses is the target's CPU, as that is where the queue is served."""

    program = "tc"
    targets = COMPARED
    SECONDS = 0.05  # of rate in its bucket

    def find(self):
        if os.getuid() != 0:
            raise BenchError("a network namespace and tc want root")
        return super().find()

    def version(self):
        return first_line([self.find(), "-V"], r"iproute2-([^,\s]+)")

    def start(self, bench):
        self.bench = bench
        load = bench.processes.start(
            ["unshare", "--net", "sh", "-c", 'ip link set lo up && echo "$1" >"$2" && exec "$0" serve', bench.load,
             congestion(), CONGESTION], self.cpus,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.roots.append(load)
        ports = wait_until(load.stdout.readline, 10, "a target in a namespace")
        source = int(ports.partition('"source": ')[2].partition(",")[0])
        self.ports = dict.fromkeys(self.targets, source)

    def reach(self, command, target):
        """From inside, with the queue as it is wanted."""
        rate = RATES[target]
        inside = ["nsenter", "--net", "--target", str(self.roots[0].pid)]
        subprocess.run(inside + ["tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", f"{rate * 8}bit",
                                 "burst", str(max(int(rate * self.SECONDS), 128 << 10)), "limit", str(rate)], check=True)
        return inside + command


class Turns(Proxy):
    """bench/turns/relay.c: what the kernel alone takes to carry so much over few connections, and many."""

    program = str(HERE.parent / "build" / "bench" / "turns")
    targets = ("crowd",)

    def start_programs(self):
        self.launch([self.find(), str(CROWD_RATE), str(CROWD_QUANTUM), f"{self.ports['crowd']}:{self.bench.targets['spout']}"])


def limiters():
    return [
        PenstockLimits("penstock", "penstockd"),
        NginxLimits("nginx256", "nginx, each connection a tenth", buffer="256k"),
        Groups("groups", "libevent's group"),
        TokenBucket("tbf", "tc tbf, no proxy"),
    ]


def one_and_two_workers():
    every_cpu = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
    return [PenstockLimits("penstock1", "penstockd, 1 worker", workers=1, cpus=every_cpu),
            PenstockLimits("penstock2", "penstockd, 2 workers", workers=2, cpus=every_cpu)]


def families(names, wanted):
    """As proxies.families."""
    found = {
        "limiters": [limiter for limiter in limiters() if limiter.name in names],
        "limits": [PenstockLimits("penstock", "penstockd"), Turns("turns", "recv and send, in turn")],
        "limits-tls": [PenstockLimitsTls("penstock", "penstockd, TLS")],
        "limits-workers": one_and_two_workers(),
    }
    return {family: order for family, order in found.items() if family in wanted}
