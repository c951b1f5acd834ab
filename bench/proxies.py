"""The proxies that are compared: how each is configured and started, all in the same way."""

import itertools
import os
import pathlib
import re
import shutil
import string
import subprocess

from processes import BenchError, anonymous_kib, cpu_seconds, free_port, pin, settle, wait_listening

HERE = pathlib.Path(__file__).parent
PROXY_CPU, GENERATOR_CPU = "1", "0"
TARGETS = ("sink", "source", "echo", "answer")
TLS_TARGETS = ("intake", "source", "echo", "answer")


class Proxy:
    """One proxy program with one configuration; start() and stop() any number of times."""

    program = None
    template = None
    targets = TARGETS
    uids = itertools.count(64100)  # one each: the kernel gives pipes by the user

    def __init__(self, name, label, workers=1, cpus=PROXY_CPU, **values):
        self.name = name
        self.label = label
        self.cpus = cpus
        self.uid = next(self.uids)
        self.values = dict(values, workers=workers)
        self.bench = None
        self.roots = []
        self.ports = {}
        self.directory = None

    def find(self):
        path = shutil.which(self.program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if not path:
            raise BenchError(f"{self.program} is not installed")
        return path

    def version(self):
        return ""

    def command(self, configuration):
        raise NotImplementedError

    def start(self, bench):
        self.bench = bench
        self.ports = {target: free_port() for target in self.targets}
        self.directory = bench.make_directory(self.name)
        self.start_programs()
        try:
            for port in self.ports.values():
                wait_listening(port, lambda: all(root.poll() is None for root in self.roots))
            pin(self.pids(), self.cpus)
            self.settle()
        except BenchError as error:
            text = (self.directory / "output").read_text(errors="replace")[-2000:]
            self.stop()
            raise BenchError(f"{self.label}: {error}\n{text}") from None

    def start_programs(self):
        self.configure_and_launch(self.template)

    def configure_and_launch(self, name, **more):
        values = dict(self.values, directory=self.directory, **self.ports, **more)
        values.update({f"{target}_target": port for target, port in self.destinations().items()})
        text = string.Template((HERE / "conf" / self.template).read_text()).substitute(values)
        configuration = self.directory / name
        configuration.write_text(text)
        self.launch(self.command(configuration))

    def destinations(self):
        """The ports of its targets."""
        return self.bench.targets

    def launch(self, command):
        with open(self.directory / "output", "ab") as output:
            self.roots.append(self.bench.processes.start(
                command, self.cpus, uid=self.uid, cwd=self.directory,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output))

    def stop(self):
        for root in self.roots:
            self.bench.processes.stop(root)
        self.roots = []

    def settle(self):
        settle(self.pids())

    def reach(self, command, target):
        """The load generator's command as it gets to this target of the proxy's."""
        del target
        return command

    def pids(self):
        return [root.pid for root in self.roots]

    def cpu_seconds(self):
        return cpu_seconds(self.pids())

    def anonymous_kib(self):
        return anonymous_kib(self.pids())


def first_line(command, pattern):
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found.group(1) if found else "unknown version"


class Penstock(Proxy):
    program = str(HERE.parent / "build" / "penstockd")
    template = "penstock.conf"

    def version(self):
        return first_line([self.find(), "--version"], r"(\S*\d+\.\d+\S*)")

    def command(self, configuration):
        # A copy, since nobody may not be let into the tree.
        program = self.directory / "penstockd"
        if not program.exists():
            shutil.copy(self.find(), program)
            program.chmod(0o755)
        return [str(program), "-c", str(configuration)]


class PenstockPair(Penstock):
    """Two daemons with a filter between them: what is plain on both outsides is packed inside."""

    template = "penstock-pair.conf"
    targets = ("sink", "echo")

    def __init__(self, name, label, codec="", level=6):
        super().__init__(name, label)
        self.codec, self.level = codec, level

    def start_programs(self):
        between = {target: free_port() for target in self.targets}
        template = string.Template((HERE / "conf" / self.template).read_text())
        for name, ports, targets, side in (("back", between, self.bench.targets, "accept"),
                                           ("front", self.ports, between, "connect")):
            configuration = self.directory / f"{name}.conf"
            configuration.write_text(template.substitute(
                ports, section=f'{self.codec} "bench" {{ level = {self.level} }}' if self.codec else "",
                filters=f'{side}_filters = {{ "{self.codec}:bench" }}' if self.codec else "",
                **{f"{target}_target": targets[target] for target in self.targets}))
            self.launch(self.command(configuration))
            for port in ports.values():
                wait_listening(port, lambda: all(root.poll() is None for root in self.roots))


class Nginx(Proxy):
    program = "nginx"
    template = "nginx.conf"

    def version(self):
        return first_line([self.find(), "-v"], r"nginx/(\S+)")

    def command(self, configuration):
        return [self.find(), "-p", str(self.directory), "-c", str(configuration),
                "-e", str(self.directory / "error.log")]


class Haproxy(Proxy):
    program = "haproxy"
    template = "haproxy.cfg"

    def version(self):
        return first_line([self.find(), "-v"], r"version (\S+)")

    def command(self, configuration):
        return [self.find(), "-db", "-f", str(configuration)]


class Socat(Proxy):
    program = "socat"

    def version(self):
        return first_line([self.find(), "-V"], r"socat version (\S+)")

    def start_programs(self):
        for target, port in self.ports.items():
            self.launch([self.find(), "-b", "262144", "-t", "10",
                         f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=511,nodelay",
                         f"TCP4:127.0.0.1:{self.bench.targets[target]},nodelay"])


class Tls:
    """What terminates TLS: one certificate, made by the bench, for all of them."""

    targets = TLS_TARGETS

    def configure_and_launch(self, name, **more):
        super().configure_and_launch(name, **self.bench.make_certificate(), **more)


class PenstockTls(Tls, Penstock):
    template = "penstock-tls.conf"

    def configure_and_launch(self, name, **more):
        # A key of its own to read, since ours must not be readable to everybody.
        files = self.bench.make_certificate()
        key = self.directory / "key.pem"
        key.write_bytes(pathlib.Path(files["key"]).read_bytes())
        key.chmod(0o600)
        os.chown(key, self.uid, self.uid)
        Proxy.configure_and_launch(self, name, **dict(files, key=key), **more)


class NginxTls(Tls, Nginx):
    template = "nginx-tls.conf"


class HaproxyTls(Tls, Haproxy):
    template = "haproxy-tls.cfg"


class Both:
    """TLS on both sides of one hop. Who ends it behind is always the same, and runs with the generator."""

    def __init__(self, *arguments, **values):
        super().__init__(*arguments, **values)
        self.behind = PenstockTls("behind", f"behind {self.label}", cpus=GENERATOR_CPU)

    def start(self, bench):
        self.behind.start(bench)
        super().start(bench)

    def destinations(self):
        return self.behind.ports

    def stop(self):
        super().stop()
        self.behind.stop()


class PenstockBoth(Both, PenstockTls):
    template = "penstock-both.conf"


class HaproxyBoth(Both, HaproxyTls):
    template = "haproxy-both.cfg"


class Stunnel(Tls, Proxy):
    program = "stunnel4"
    template = "stunnel.conf"

    def version(self):
        return first_line([self.find(), "-version"], r"stunnel (\S+)")

    def command(self, configuration):
        return [self.find(), str(configuration)]


class Hitch(Tls, Proxy):
    """One process a target: it knows only one."""

    program = "hitch"
    template = "hitch.conf"

    def version(self):
        return first_line([self.find(), "--version"], r"hitch (\S+)")

    def start_programs(self):
        for target, port in self.ports.items():
            self.configure_and_launch(f"{target}-{self.template}", own=port,
                                      own_target=self.bench.targets[target])

    def command(self, configuration):
        return [self.find(), f"--config={configuration}"]


def tls_proxies():
    return [
        PenstockTls("penstock", "penstockd"),
        NginxTls("nginx16", "nginx, 16 KiB", buffer="16k"),
        NginxTls("nginx256", "nginx, 256 KiB", buffer="256k"),
        HaproxyTls("haproxy", "HAProxy"),
        Stunnel("stunnel", "stunnel"),
        Hitch("hitch", "hitch"),
    ]


def all_proxies():
    return [
        Penstock("penstock", "penstockd"),
        Nginx("nginx16", "nginx, 16 KiB", buffer="16k"),
        Nginx("nginx256", "nginx, 256 KiB", buffer="256k"),
        Haproxy("haproxy", "HAProxy", splice=""),
        Haproxy("haproxysplice", "HAProxy, splice-auto", splice="option splice-auto"),
        Socat("socat", "socat"),
    ]


def worker_variants():
    """One worker and two, both free to run on every CPU, of us and of the nearest peer."""
    every_cpu = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
    return [
        Penstock("penstock1", "penstockd, 1 worker", workers=1, cpus=every_cpu),
        Penstock("penstock2", "penstockd, 2 workers", workers=2, cpus=every_cpu),
        Nginx("nginx1", "nginx, 1 worker", workers=1, cpus=every_cpu, buffer="256k"),
        Nginx("nginx2", "nginx, 2 workers", workers=2, cpus=every_cpu, buffer="256k"),
    ]


def both_proxies():
    return [PenstockBoth("penstock", "penstockd"), HaproxyBoth("haproxy", "HAProxy")]


def pair_variants():
    """What compression costs, beside the same two daemons without it."""
    return [
        PenstockPair("pair", "two plain"),
        PenstockPair("pair-zlib1", "zlib, level 1", "zlib", 1),
        PenstockPair("pair-zlib6", "zlib, level 6", "zlib", 6),
        PenstockPair("pair-zstd3", "zstd, level 3", "zstd", 3),
    ]


def families(names, wanted):
    """What the cells are measured on: lists of proxies by the name of their family."""
    plain = [proxy for proxy in all_proxies() if proxy.name in names]
    found = {
        "plain": plain,
        "workers": [proxy for proxy in worker_variants()
                    if any(isinstance(proxy, type(other)) for other in plain)],
        "both": [proxy for proxy in both_proxies() if proxy.name in names],
        "pairs": pair_variants() if "penstock" in names else [],
        "tls": [proxy for proxy in tls_proxies() if proxy.name in names],
    }
    return {family: order for family, order in found.items() if family in wanted}
