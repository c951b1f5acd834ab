"""The AppArmor profile against what the daemon really does: it is traced under a real systemd, and whatever it opens,
makes, removes or connects to must have a rule. No kernel with AppArmor is needed; the rules are those that
apparmor_parser finds in the profile and all it includes."""

import re
import subprocess

import pytest

from daemon import ROOT, configuration, section, tunnel, wait_until
from machine import Machine
from peers import CLIENT_STREAM, MIB, connect, echoes

CONFIG = "/etc/penstock/penstock.conf"
PROFILE = ROOT / "packaging/apparmor.profile"
TRACE = "/var/lib/penstock/trace"
pytestmark = pytest.mark.root


class Rules:
    """The rules for files and sockets of one profile."""

    FILE = re.compile(r"(?:owner )?(/\S*|@\{\S+) (?:=\S+ )?([rwamixklPCUpcu]+),")
    VARIABLE = re.compile(r"(@\{\w+\})\s*\+?=\s*(.*)")

    def __init__(self, text):
        self.variables, self.files, self.networks = {}, [], []
        for line in text.splitlines():
            line = " ".join(line.partition("#")[0].split())
            if match := self.VARIABLE.fullmatch(line):
                self.variables.setdefault(match[1], []).extend(match[2].replace('"', "").split())
            elif match := self.FILE.fullmatch(line):
                self.files.append((match[1], match[2]))
            elif match := re.fullmatch(r"network (\w+)(?: (\w+))?,", line):
                self.networks.append((match[1], match[2]))
            elif line == "unix,":
                self.networks.append(("unix", None))
        self.files = [(re.compile(self._pattern(self._expand(glob))), rights) for glob, rights in self.files]

    def _expand(self, glob):
        while match := re.search(r"@\{\w+\}", glob):
            if match[0] == "@{profile_name}":
                values = ["penstockd"]
            else:
                values = self.variables[match[0]]
            if glob[match.end():].startswith("/"):
                values = [value.rstrip("/") for value in values]
            glob = glob[:match.start()] + "{" + ",".join(values) + "}" + glob[match.end():]
        return glob

    @staticmethod
    def _pattern(glob):
        """apparmor.d(5), "Globbing"."""
        special = {"**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
        parts = re.findall(r"\*\*|\[[^]]*\]|\\.|.", glob)
        return "".join(special.get(part) or (part if part[0] in "[\\" else re.escape(part)) for part in parts)

    def allow_file(self, path, rights):
        given = "".join(rights for pattern, rights in self.files if pattern.fullmatch(path))
        return all(right in given or (right == "a" and "w" in given) for right in rights)

    def allow_socket(self, family, kind):
        return any(family == known and one in (None, kind) for known, one in self.networks)


def rules(*local):
    """Those of the profile, with these lines as the machine's own."""
    done = subprocess.run(["apparmor_parser", "--preprocess", PROFILE], capture_output=True, text=True, check=True)
    return Rules(done.stdout + "\n".join(local))


def test_the_matcher():
    known = rules("/one/*.pem r,", "/two/{a,b}/** rw,", "/three/[0-9]? a,", "owner /four w,")
    for path, rights in (("/one/x.pem", "r"), ("/two/a/b/c", "rw"), ("/two/b/c", "w"), ("/three/7x", "a"), ("/four", "a"),
                         ("/etc/penstock/", "r"), ("/etc/hosts", "r"), ("/proc/17/status", "r"),
                         ("/usr/lib/x86_64-linux-gnu/libssl.so.3", "rm"), ("/dev/null", "rw")):
        assert known.allow_file(path, rights), path
    for path, rights in (("/one/x.key", "r"), ("/one/two/x.pem", "r"), ("/one/x.pem", "w"), ("/two/c/d", "r"),
                         ("/three/xx", "a"), ("/etc/shadow", "r"), ("/etc/penstock/penstock.conf", "w"), ("/root/x", "r")):
        assert not known.allow_file(path, rights), path
    assert known.allow_socket("inet6", "stream") and not known.allow_socket("packet", "raw")


# What is mediated, and by which right (security/apparmor/lsm.c). Looking (stat, access, readlink) is not.
CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>)?(?: (E\w+) .*)?")
STRINGS = re.compile(r'"((?:[^"\\]|\\.)*)"')
CHANGING = {"unlink", "unlinkat", "rename", "renameat", "renameat2", "chmod", "fchmodat", "chown", "lchown", "fchownat", "mkdir",
            "mkdirat", "rmdir", "symlink", "link", "mknod", "truncate"}


def whole_lines(text):
    """The trace with calls that another thread interrupted put together."""
    begun = {}
    for line in text.splitlines():
        thread = line.split(None, 1)[0]
        if line.endswith(" <unfinished ...>"):
            begun[thread] = line.removesuffix(" <unfinished ...>")
        elif match := re.match(r"\d+ +<\.\.\. \w+ resumed>(.*)", line):
            yield begun.pop(thread, "") + match[1]
        else:
            yield line


def opened(flags, found):
    """Path and rights of open(2) and its like; None for what no right is asked of."""
    if "O_PATH" in flags or found is None:
        return None
    rights = "r" if "O_RDONLY" in flags else "rw" if "O_RDWR" in flags else "w"
    if "O_APPEND" in flags:
        rights = rights.replace("w", "a")
    if re.search(r"\.so(\.|$)", found):
        rights += "m"  # a library, to be mapped
    return found + ("/" if "O_DIRECTORY" in flags and found != "/" else ""), rights


def needs(trace):
    """Yields (what was done, path, rights) and (what was done, family, type)."""
    for line in whole_lines(trace):
        match = CALL.match(line)
        if not match:
            continue
        call, arguments, _, found, error = match.groups()
        strings = STRINGS.findall(arguments)
        if call in ("open", "openat", "openat2", "creat"):
            if error:  # where it is missing, it may be there elsewhere
                found = strings[0] if error == "ENOENT" and strings[0].startswith("/") else None
            if what := opened(arguments, found):
                yield line, *what
        elif call in CHANGING and not error:
            for path in strings:
                yield line, path, "w"
        elif call in ("bind", "connect", "sendto", "sendmsg") and (path := re.search(r'sun_path="(.*?)"', arguments)):
            yield line, path[1], "w" if call.startswith("send") else "rw"
        elif call == "socket":
            family, kind = re.match(r"AF_(\w+), SOCK_(\w+)", arguments).groups()
            yield line, family.lower(), kind.lower()


def test_what_the_daemon_does_has_a_rule(machine_traced):
    machine = machine_traced
    example = re.search(r"for instance: (/.* r,)", PROFILE.read_text())[1]
    known = rules(example)
    trace = (machine.root / TRACE.lstrip("/")).read_text()
    seen, missing = set(), {}
    for line, what, rights in needs(trace):
        if what.startswith("/"):
            seen.add(what)
            if not known.allow_file(what, rights):
                missing.setdefault((what, rights), line)
        elif not known.allow_socket(what, rights):
            missing.setdefault((what, rights), line)
    assert not missing, "\n".join(f"{what} {rights}: {line}" for (what, rights), line in missing.items())
    # It was traced as a whole, from its first library to its end.
    for path in EXPECTED:
        assert any(re.fullmatch(path, one) for one in seen), f"nothing did {path}: {sorted(seen)}"


EXPECTED = ["/etc/ld.so.cache", CONFIG, "/etc/penstock/more.conf", "/etc/letsencrypt/archive/w/fullchain1.pem",
            "/run/credentials/penstock.service/w.key", "/etc/hosts", "/etc/nsswitch.conf", "/etc/passwd", "/usr/lib/ssl/.*|/etc/ssl/.*",
            "/run/penstock/x.sock", "/run/systemd/notify", "/run/systemd/journal/socket", "/var/log/penstock/log",
            "/proc/sys/net/ipv4/ip_local_port_range", r"/proc/\d+/statm", "/dev/null"]


@pytest.fixture(scope="module")
def machine_traced():
    """A machine on which a traced daemon went through its life."""
    machine = Machine()
    try:
        live(machine)
        yield machine
    finally:
        machine.stop()


def live(machine):
    live_directory, archive = "/etc/letsencrypt/live/w", "/etc/letsencrypt/archive/w"
    machine.run("mkdir", "-p", live_directory, archive, "/etc/penstock/private")
    machine.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-subj", "/CN=localhost", "-keyout", "/etc/penstock/private/w.key", "-out", f"{archive}/fullchain1.pem")
    machine.run("ln", "-s", "../../archive/w/fullchain1.pem", f"{live_directory}/fullchain.pem")
    machine.write("/etc/penstock/more.conf", section("tls", "out", ca="system"))
    text = configuration(
        tunnel("tls", "internal:echo", "127.0.0.1:7001", accept_filters=["tls:edge"]),
        tunnel("plain", "127.0.0.1:7003", "127.0.0.1:7002"), tunnel("echo", "internal:echo", "127.0.0.1:7003"),
        tunnel("named", "localhost:7001", "127.0.0.1:7004", connect_filters=["tls:out"]),
        tunnel("unix", "internal:echo", "unix:/run/penstock/x.sock", unix_owner="penstock:penstock"),
        tunnel("unix-far", "unix:/run/penstock/x.sock", "127.0.0.1:7005", bind=""),
        tunnel("bound", "127.0.0.1:7003", "127.0.0.1:7006", bind="127.0.0.9"),
        tunnel("admin", "internal:admin", "unix:/run/penstock/admin.sock"),
        section("tls", "edge", certificate=f"{live_directory}/fullchain.pem", key="credential:w.key"),
        'include("more.conf")\n', workers=2)
    machine.write(CONFIG, text)
    machine.drop_in("[Service]\nLoadCredential=w.key:/etc/penstock/private/w.key\n"
                    "ExecStart=\n"
                    f"ExecStart=/usr/bin/strace -D -f -y -s 4096 -A -o {TRACE} -e trace=%%file,%%network "
                    f"/usr/sbin/penstockd -c {CONFIG}\n"
                    # For the tracer, and for what a daemon sees that is not run so tightly.
                    "SystemCallFilter=\nProcSubset=all\n")
    machine.systemctl("start", "penstock")
    machine.systemctl("restart", "penstock")  # sockets go to systemd and come back
    for port in (7002, 7005, 7006):
        assert machine.within(echoes, ("127.0.0.1", port), MIB)
    # Who answers there is nobody that the system's authorities know.
    with machine.within(connect, ("127.0.0.1", 7004), CLIENT_STREAM):
        machine.wait_message("connection ended", since=None)
    machine.run("penstockctl", "status")
    machine.run("curl", "--silent", "--fail", "--unix-socket", "/run/penstock/admin.sock", "http://penstock/metrics")
    machine.write(CONFIG, text + 'log { target = "file:/var/log/penstock/log" }\n')
    machine.systemctl("reload", "penstock")
    log = machine.root / "var/log/penstock/log"
    wait_until(lambda: log.exists() and "reloaded" in log.read_text(), "the log file")
    log.rename(log.with_suffix(".1"))
    machine.systemctl("kill", "--kill-who=main", "-s", "USR1", "penstock")
    wait_until(log.exists, "the log file again")
    machine.write(CONFIG, text.replace("more.conf", "nowhere.conf"))
    machine.systemctl("kill", "--kill-who=main", "-s", "HUP", "penstock")
    wait_until(lambda: "; the reload at " in machine.show("StatusText"), "a verdict")
    machine.write(CONFIG, text)
    machine.systemctl("stop", "penstock")
