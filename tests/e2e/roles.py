"""A service whose processes are each started with a configuration that a test may change."""

import shutil
import subprocess

from service import BINARY, Service, wait_for


class Roles(Service):
    """Like `Service`, from the files that `pliant up` makes; `change(name, text)` returns what to
    put into the file of process `name`. Nobody starts a process again that dies; those in `later`
    are started by the test."""

    def __init__(self, *flags, change, later=()):
        super().__init__(*flags)
        self.change = change
        self.later = later
        self.roles = {}

    def start(self, limit=60):
        super().start(limit)
        super().stop()
        for made in ("drives", "manager", "nodes"):
            shutil.rmtree(self.dir / made)
        for folder in ("manager", *(f"drives/{s}" for s in self.servers()), *(f"nodes/{n}" for n in self.named("node"))):
            (self.dir / folder).mkdir(parents=True, mode=0o700)
        for path in (self.dir / "config").iterdir():
            path.write_text(self.change(path.stem, path.read_text()))
        return self.start_roles(limit)

    def start_roles(self, limit=60):
        for name in ("manager", *self.servers(), *self.named("node")):
            if name not in self.later:
                self.start_role(name)
        wait_for(lambda: self.pliant("zone", "list", check=False) is not None, limit, "the manager")
        self.all_up(limit)
        return self

    def named(self, role):
        return sorted(path.stem for path in (self.dir / "config").glob(f"{role}-*.toml"))

    def servers(self):
        return self.named("server")

    def start_role(self, name):
        log = open(self.dir / "log" / f"{name}.log", "ab")
        config = self.dir / "config" / f"{name}.toml"
        self.roles[name] = subprocess.Popen([BINARY, name.split("-")[0], "--config", config], stdout=log, stderr=log)

    def all_up(self, limit=30):
        wanted = len(self.roles) - 1

        def up():
            health = self.pliant("server", "list")["servers"] + self.pliant("node", "list")["nodes"]
            return len(health) == wanted and all(one["up"] for one in health)

        wait_for(up, limit, "every server and node manager up")

    def pid(self, name):
        return self.roles[name].pid

    def stop(self):
        super().stop()
        for name in reversed(self.roles):
            self.roles[name].terminate()
        for process in self.roles.values():
            process.wait(timeout=60)
        self.roles = {}
