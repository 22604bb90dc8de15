"""A service whose processes live in network namespaces of their own, and the ways to cut them apart.

Each namespace is joined to one bridge by a virtual cable. Whoever is cut off from somebody has a neighbour
entry for it that leads nowhere, so what it sends is lost silently and in that direction alone, as when a
switch drops it. Nobody is told."""

import ctypes
import os
import subprocess

from roles import Roles
from service import BINARY, wait_for

NOWHERE = "02:00:00:00:ff:ff"
CLIENT = "client"


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


class Network:
    """Namespaces on one bridge, by the names of who lives in them."""

    def __init__(self, names):
        self.prefix = f"pliant-{os.getpid()}-"
        self.names = list(names)
        self.hub = self.prefix + "hub"
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)
        ip("netns", "add", self.hub)
        self.inside(self.hub, "link", "add", "bridge0", "type", "bridge")
        self.inside(self.hub, "link", "set", "bridge0", "up")
        for at, name in enumerate(self.names):
            self.join(at, self.prefix + name)
        for name in self.names:
            for other in self.names:
                if other != name:
                    self.neighbour(name, other, self.mac(other))

    def join(self, at, namespace):
        ip("netns", "add", namespace)
        cable = ("link", "add", f"port{at}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        self.inside(self.hub, *cable)
        self.inside(self.hub, "link", "set", f"port{at}", "master", "bridge0", "up")
        name = self.names[at]
        self.inside(namespace, "link", "set", "eth0", "address", self.mac(name))
        self.inside(namespace, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            self.inside(namespace, "link", "set", device, "up")

    def inside(self, namespace, *arguments):
        ip("-n", namespace, *arguments)

    def address(self, name):
        return f"10.77.0.{self.names.index(name) + 1}"

    def mac(self, name):
        return f"02:00:00:00:00:{self.names.index(name) + 1:02x}"

    def neighbour(self, name, other, mac):
        where = (self.address(other), "lladdr", mac, "dev", "eth0", "nud", "permanent")
        self.inside(self.prefix + name, "neighbour", "replace", *where)

    def cut(self, name, other):
        """What the one sends to the other is lost from now on."""
        self.neighbour(name, other, NOWHERE)

    def heal(self):
        for name in self.names:
            for other in self.names:
                if other != name:
                    self.neighbour(name, other, self.mac(other))

    def enter(self, namespace):
        """This thread, and what it starts, lives there from now on."""
        with open(f"/run/netns/{namespace}") as file:
            self.set(file.fileno())

    def set(self, descriptor):
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.setns(descriptor, 0) == 0, os.strerror(ctypes.get_errno())

    def destroy(self):
        self.set(self.home)
        for name in (*self.names, "hub"):
            subprocess.run(["ip", "netns", "delete", self.prefix + name], capture_output=True)


class Apart(Roles):
    """As `Roles`, each process in a namespace of its own; the test lives in one as well."""

    def __init__(self, names, *flags):
        self.network = Network([CLIENT, *names])
        self.network.enter(self.network.prefix + CLIENT)
        super().__init__(*flags, change=self.place)

    def place(self, name, text):
        """Everybody listens where it lives, and calls the manager where that lives."""
        lines = []
        for line in text.splitlines():
            of = "manager" if line.startswith("manager =") else name
            lines.append(line.replace("127.0.0.1", self.network.address(of)))
        return "\n".join(lines) + "\n"

    def start(self, limit=60):
        Roles.start(self, limit)
        return self

    def start_roles(self, limit=60):
        manager = self.network.address("manager")
        for name, value in self.env.items():
            self.env[name] = value.replace("127.0.0.1", manager)
        return super().start_roles(limit)

    def start_role(self, name):
        log = open(self.dir / "log" / f"{name}.log", "ab")
        config = self.dir / "config" / f"{name}.toml"
        command = ["ip", "netns", "exec", self.network.prefix + name, BINARY, name.split("-")[0]]
        self.roles[name] = subprocess.Popen([*command, "--config", config], stdout=log, stderr=log)

    def who(self, volume):
        """The processes by what they are to the volume."""
        replicas = {r["role"]: r["server"] for r in self.volume(volume)["replicas"]}
        return {"M": "manager", "N": "node-a", "P": replicas["primary"], "R": replicas["mirror"]}

    def cut(self, volume, shape):
        """`P-R` cuts primary and mirror apart, `P>R` loses what the primary sends to the mirror; `P-*` cuts
        the primary off from all."""
        who = self.who(volume)
        for pair in shape.split():
            one, way, other = pair
            others = [o for o in who.values() if o != who[one]] if other == "*" else [who[other]]
            for other in others:
                self.network.cut(who[one], other)
                if way == "-":
                    self.network.cut(other, who[one])

    def destroy(self):
        try:
            super().destroy()
        finally:
            self.network.destroy()


def healed(service, volume, limit=60):
    service.network.heal()
    service.all_up(limit)
    wait_for(lambda: service.volume(volume)["faults"] == [], limit, "no faults")
    service.in_sync(volume, limit)
