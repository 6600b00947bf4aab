"""What Docker puts around a service, as far as a kernel does it by itself: namespaces, mounts, a user, rights.

All of it is read from docker/compose.yaml and docker/Dockerfile. Programs are this machine's, seen read-only; limits of
memory and processes, and seccomp, are left out.
"""

import contextlib
import os
import pwd
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
DOCKERFILE = (PROJECT / "docker" / "Dockerfile").read_text()
PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", sys.base_prefix, sys.prefix)
PROGRAMS += ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl")
DOCKERS_OWN = "nosuid,nodev,noexec,mode=1777"  # options of a tmpfs, unless a service gives others


def may_be_built() -> bool:
    """Whether this process may make namespaces: root's right, where nobody took it away."""
    tried = ["unshare", "--mount", "--net", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


def environment_of(target: str) -> dict[str, str]:
    """Variables of an image of docker/Dockerfile, the search path apart."""
    base, stage = re.search(
        rf"^FROM (\S+) AS {target}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE
    ).groups()
    given = environment_of(base) if f" AS {base}\n" in DOCKERFILE else {}
    for block in re.findall(r"^ENV ((?:.*\\\n)*.*)$", stage, re.MULTILINE):
        given |= dict(word.split("=", 1) for word in shlex.split(block.replace("\\\n", "")))
    given.pop("PATH", None)
    return given


def user(name: str) -> tuple[int, int]:
    """Numbers of a service's user and group: the images' own, or the one that PostgreSQL's package made here."""
    if name == "postgres":
        found = pwd.getpwnam(name)
        return found.pw_uid, found.pw_gid
    made = int(re.search(rf"useradd --uid (\d+) .* {name}\b", DOCKERFILE)[1])
    return made, made


class Walls:
    """Those of a set of services: each has a root, an address and a name of its own.

    Parameters
    ----------
    services
        As compose.yaml has them; one that runs twice is there twice.
    volumes, secrets
        Folders that hold each volume's content, and each secret, by name.
    """

    def __init__(self, services: dict[str, dict[str, Any]], folder: Path, volumes: Path, secrets: Path) -> None:
        self.services, self.folder, self.volumes, self.secrets = services, folder, volumes, secrets
        self.networks = sorted({network for service in services.values() for network in service["networks"]})
        self.prefix = f"10.{random.randrange(64, 128)}"
        self.first = random.randrange(250 - len(self.networks))
        self.tag = f"s{os.getpid()}"
        for number, network in enumerate(self.networks):
            bridge = f"{self.tag}b{number}"
            _ip("link", "add", bridge, "type", "bridge")
            _ip("address", "add", f"{self._address(network, 1)}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
        for name, service in services.items():
            number = self._number(name)
            space = self._space(name)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            for network in service["networks"]:
                order = self.networks.index(network)
                outside, inside = f"{self.tag}v{number}n{order}", f"eth{order}"
                _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
                _ip("link", "set", outside, "master", f"{self.tag}b{order}", "up")
                _ip("-n", space, "address", "add", f"{self._address(network, number)}/24", "dev", inside)
                _ip("-n", space, "link", "set", inside, "up")
            if "pages" in service["networks"]:  # the one that is not internal
                _ip("-n", space, "route", "add", "default", "via", self._address("pages", 1))
        uid, gid = user("scale")
        files = {
            "passwd": f"root:x:0:0::/:/bin/sh\nscale:x:{uid}:{gid}::/:/bin/sh\n",
            "group": f"root:x:0:\nscale:x:{gid}:\n",
            "nsswitch.conf": "hosts: files\n",
            "resolv.conf": "",
        }
        with contextlib.suppress(KeyError):
            uid, gid = user("postgres")
            files["passwd"] += f"postgres:x:{uid}:{gid}::/:/bin/sh\n"
            files["group"] += f"postgres:x:{gid}:\n"
        for file, text in files.items():
            (folder / file).write_text(text)
        for name in services:
            (folder / f"hosts of {name}").write_text(self._hosts(name))

    def _number(self, name: str) -> int:
        return 2 + sorted(self.services).index(name)

    def _space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def _address(self, network: str, number: int) -> str:
        return f"{self.prefix}.{self.first + self.networks.index(network)}.{number}"

    def address(self, name: str) -> str:
        """Where this process finds a service."""
        return self._address(max(self.services[name]["networks"], key=self.networks.index), self._number(name))

    def _hosts(self, name: str) -> str:
        """Names that a service knows: its own, and of those with which it shares a network."""
        known = {"localhost": "127.0.0.1"}
        for network in self.services[name]["networks"]:
            for other, service in self.services.items():
                if network in service["networks"]:
                    known.setdefault(other, self._address(network, self._number(other)))
        return "".join(f"{address}\t{host}\n" for host, address in known.items())

    def mounts(self, name: str) -> dict[str, tuple[str, str]]:
        """By place: what is mounted there, and how (`rw`, `ro`, or options of a tmpfs)."""
        service = self.services[name]
        found = {place: (place, "ro") for place in PROGRAMS if Path(place).exists()}
        for file in ("passwd", "group", "nsswitch.conf", "resolv.conf", "hosts"):
            found[f"/etc/{file}"] = (str(self.folder / (f"hosts of {name}" if file == "hosts" else file)), "ro")
        found |= {place: (place, "rw") for place in ("/proc", "/dev")}
        found["/dev/shm"] = ("tmpfs", f"{DOCKERS_OWN},size={service.get('shm_size', 64 << 20)}")
        for kept in re.findall(r"^!(.*)", (PROJECT / ".dockerignore").read_text(), re.MULTILINE):
            found[f"/app/{kept}"] = (str(PROJECT / kept), "ro")
        for mount in service["tmpfs"]:
            place, _, options = mount.partition(":")
            given = options.split(",") if options else []
            found[place] = ("tmpfs", ",".join([DOCKERS_OWN, *given]))
        for mount in service.get("volumes", []):
            source = str(self.volumes / mount["source"]) if mount["type"] == "volume" else mount["source"]
            found[mount["target"]] = (source, "ro" if mount.get("read_only") else "rw")
        for secret in service.get("secrets", []):
            found[secret["target"]] = (str(self.secrets / secret["source"]), "ro")
        return dict(sorted(found.items()))

    def starting(self, name: str, command: Sequence[str]) -> list[str]:
        """The command behind its walls, as process 1 there; what starts this waits for it, and ends as it does."""
        root, lines = self.folder / "root", ["set -eu"]
        root.mkdir(exist_ok=True)

        def add(*words: object) -> None:
            lines.append(shlex.join(map(str, words)))

        add("hostname", name)
        add("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
        for place, (source, how) in self.mounts(name).items():
            there = f"{root}{place}"
            if source == "tmpfs":
                add("mkdir", "-p", there)
                add("mount", "-t", "tmpfs", "-o", how, "tmpfs", there)
                continue
            if Path(source).is_dir():
                add("mkdir", "-p", there)
            else:
                add("mkdir", "-p", Path(there).parent)
                lines.append(f"[ -e {shlex.quote(there)} ] || : > {shlex.quote(there)}")
            add("mount", "--rbind", source, there)
            if how == "ro":
                add("mount", "-o", "remount,bind,ro", there)
        if self.services[name].get("read_only"):
            add("mount", "-o", "remount,bind,ro", root)
        lines.append(f'exec chroot {shlex.quote(str(root))} "$@"')
        shell = ["sh", "-c", "\n".join(lines), name]
        space = f"--net=/run/netns/{self._space(name)}"
        apart = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return ["nsenter", space, *apart, *shell, *self._demoted(name), *command]

    def _demoted(self, name: str) -> list[str]:
        service = self.services[name]
        uid, gid = user(service["user"])
        bounds = ",".join(f"-{right.lower()}" for right in service.get("cap_drop", []))
        rights = [f"--bounding-set={bounds}", f"--inh-caps={bounds}"] if bounds else []
        if "no-new-privileges:true" in service.get("security_opt", []):
            rights.append("--no-new-privs")
        place = "/" if name == "postgres" else "/app"
        return ["env", f"--chdir={place}", "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *rights]

    def entering(self, name: str, started: int, command: Sequence[str]) -> list[str]:
        """A command beside a service's, as `docker compose exec` runs it."""
        rooms = ["--mount", "--net", "--uts", "--ipc", "--pid", "--root"]
        return ["nsenter", f"--target={self.process_one(started)}", *rooms, *self._demoted(name), *command]

    @staticmethod
    def process_one(started: int) -> int:
        """Process 1 of a service, by its number here; FileNotFoundError or IndexError where it has ended."""
        children = Path(f"/proc/{started}/task/{started}/children")
        return int(children.read_text().split()[0])

    def processes(self, name: str) -> list[int]:
        """All of a service."""
        found = subprocess.run(["ip", "netns", "pids", self._space(name)], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def remove(self) -> None:
        for name in self.services:
            _ip("netns", "delete", self._space(name))
        for number in range(len(self.networks)):
            _ip("link", "delete", f"{self.tag}b{number}")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
