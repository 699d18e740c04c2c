"""A cluster of three Valkey processes on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from headrace.ops.child import Child
from headrace.ops.ports import free_port
from headrace.ops.valkey import LOOPBACK, server_command
from tests.conftest import wait_until

SLOTS = 16_384


class Cluster:
    """Its nodes, as clients of each one alone."""

    def __init__(self, nodes: list[redis.Redis], ports: list[int]) -> None:
        self.nodes = nodes
        self._ports = ports
        self.url = f"redis://{LOOPBACK}:{ports[0]}"

    def owner(self, slot: int) -> int:
        """Which node has a slot."""
        ids = [node.cluster("MYID").decode() for node in self.nodes]
        shares = self.nodes[0].execute_command("CLUSTER SLOTS")
        (holder,) = [share[2][2].decode() for share in shares if share[0] <= slot <= share[1]]
        return ids.index(holder)

    def move(self, slot: int, to: int) -> None:
        """Move a slot and what lies in it, as an administrator does."""
        source, target = self.nodes[self.owner(slot)], self.nodes[to]
        source_id, target_id = (node.cluster("MYID").decode() for node in (source, target))
        target.cluster("SETSLOT", slot, "IMPORTING", source_id)
        source.cluster("SETSLOT", slot, "MIGRATING", target_id)
        keys = source.execute_command("CLUSTER GETKEYSINSLOT", slot, 10_000)
        if keys:
            source.execute_command("MIGRATE", LOOPBACK, self._ports[to], "", 0, 5_000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            node.cluster("SETSLOT", slot, "NODE", target_id)


@contextmanager
def valkey_cluster(directory: Path, size: int = 3) -> Iterator[Cluster]:
    """Starts the nodes, gives each its share of the slots, and waits until all of them agree."""
    ports, buses = [free_port() for _ in range(size)], [free_port() for _ in range(size)]
    children = []
    for number, (port, bus) in enumerate(zip(ports, buses, strict=True)):
        home = directory / f"node-{number}"
        home.mkdir(parents=True)
        options = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "30000"]
        children.append(Child("valkey", [*server_command(home, port), *options], {}, directory / f"{number}.log"))
    try:
        for child in children:
            child.start()
        nodes = [redis.Redis(host=LOOPBACK, port=port, socket_timeout=5.0) for port in ports]
        for node in nodes:
            wait_until(lambda node=node: _answers(node))
        for number, node in enumerate(nodes):
            node.cluster("ADDSLOTSRANGE", SLOTS * number // size, SLOTS * (number + 1) // size - 1)
        for port, bus in zip(ports[1:], buses[1:], strict=True):
            nodes[0].cluster("MEET", LOOPBACK, port, bus)
        wait_until(lambda: all(_agrees(node, size) for node in nodes), timeout_s=60.0)
        yield Cluster(nodes, ports)
        for node in nodes:
            node.close()
    finally:
        for child in children:
            child.kill()


def _answers(node: redis.Redis) -> bool:
    try:
        return bool(node.ping())
    except redis.ConnectionError:
        return False


def _agrees(node: redis.Redis, size: int) -> bool:
    info = node.cluster("INFO")
    return (info["cluster_state"], info["cluster_slots_assigned"], info["cluster_size"]) == (
        "ok", str(SLOTS), str(size),
    )  # fmt: skip
