"""Pytest plugin: a real Apache Kafka cluster: three nodes, each broker and controller (KRaft), on loopback.

Its jars come from Maven by `tests/kafka/pom.xml`, once, into `.cache/` at the repository's root. Everything
else is in a temporary folder and ends with the fixture. Without Java or Maven the tests that need it are
skipped and say so; in CI they fail.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from cryptostream_dagster.local.ports import LOOPBACK, is_free
from ingest_services.errors import UserError
from ingest_services.kafka import connect_admin

POM = Path(__file__).parent / "kafka" / "pom.xml"
CACHE = Path(__file__).parents[1] / ".cache"
NODES = (1, 2, 3)
LEAST_JAVA = 17
JVM = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
PROPERTIES = """
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
default.replication.factor=3
min.insync.replicas=2
auto.create.topics.enable=false
unclean.leader.election.enable=false
num.partitions=1
offsets.topic.replication.factor=3
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.state.log.num.partitions=3
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
# A broker that was killed is noticed after this time; the default is 9 s.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
controlled.shutdown.enable=true
"""


def require_jars() -> Path:
    """Return the folder with Kafka's jars; fetched by Maven if this is the first time.

    Skips the test, or fails it in CI, where Java or Maven is missing.
    """
    _require_java()
    folder = CACHE / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    if shutil.which("mvn") is None:
        _do_without("no Maven on this machine: mvn is not on the PATH (Debian: apt install maven)")
    # Fetched beside its place: a download that was interrupted is not taken for a whole one.
    coming = CACHE / f"{folder.name}-{uuid.uuid4().hex[:8]}"
    fetched = subprocess.run(
        ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={coming}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if fetched.returncode != 0:
        shutil.rmtree(coming, ignore_errors=True)
        pytest.fail(f"Maven could not fetch Kafka: {fetched.stdout[-2000:]}{fetched.stderr[-2000:]}")
    try:
        coming.rename(folder)
    except OSError:
        shutil.rmtree(coming)  # somebody else was first
    return folder


def _require_java() -> None:
    if shutil.which("java") is None:
        _do_without(
            f"no Java on this machine: Kafka needs {LEAST_JAVA} or newer "
            "(Debian: apt install default-jre-headless)"
        )
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < LEAST_JAVA:
        _do_without(f"the Java of this machine is too old: Kafka needs {LEAST_JAVA} or newer, found {told!r}")


def _do_without(missing: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def free_ports(count: int) -> list[int]:
    """Return free loopback ports that no client gets by chance while a node is down.

    They lie below the range of ephemeral ports: within it, a client that knocks at a closed port of this
    machine can even connect to itself, and take the port away.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(15_000, 32_000)
        if port not in ports and is_free(port):
            ports.append(port)
    return ports


@dataclass
class Node:
    """One node: broker and controller.

    Attributes:
        number: Its id.
        port: Where clients find it.
        folder: Its configuration, data and log.
        process: The running Java, or None.
    """

    number: int
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        """Return the end of what it wrote."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""


@dataclass
class Cluster:
    """A cluster, and the ways to mistreat it."""

    jars: Path
    nodes: dict[int, Node] = field(default_factory=dict)

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes.values())

    def prepare(self, folder: Path, configuration: str = PROPERTIES) -> None:
        """Write the configuration of every node and format its storage.

        Args:
            folder: For all that the nodes write.
            configuration: What `PROPERTIES` is, with the same fields.
        """
        ports = free_ports(2 * len(NODES))
        voters = ",".join(f"{n}@{LOOPBACK}:{ports[2 * i + 1]}" for i, n in enumerate(NODES))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        formatting = []
        for index, number in enumerate(NODES):
            node = Node(number, ports[2 * index], folder / f"node-{number}")
            node.folder.mkdir()
            properties = configuration.format(
                node=number,
                voters=voters,
                host=LOOPBACK,
                port=node.port,
                controller_port=ports[2 * index + 1],
                data=node.folder / "data",
            )
            (node.folder / "server.properties").write_text(properties)
            self.nodes[number] = node
            formatting.append(
                (node, self._java(node, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c"))
            )
        for node, process in formatting:
            assert process.wait(60) == 0, node.log()

    def start(self, number: int) -> None:
        """Start a node and return at once."""
        node = self.nodes[number]
        assert node.process is None
        node.process = self._java(node, "kafka.Kafka")

    def kill(self, number: int) -> None:
        """kill -9."""
        self._end(number, signal.SIGKILL)

    def terminate(self, number: int) -> None:
        """Let a node end in order, as for a restart with another configuration."""
        self._end(number, signal.SIGTERM)

    def stop(self) -> None:
        """End everything; what it held does not matter any more."""
        for node in self.nodes.values():
            if node.process is not None:
                node.process.kill()
        for node in self.nodes.values():
            if node.process is not None:
                node.process.wait()
                node.process = None

    def wait_whole(self, seconds: float = 90) -> None:
        """Wait until every node serves and every replica is in sync."""
        self._wait(self._is_whole, "every node to serve and every replica to be in sync", seconds)

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the node that leads a partition."""
        return int(self._partitions(topic)[partition]["leader_id"])

    def wait_leader(self, topic: str, other_than: int, seconds: float = 60) -> None:
        """Wait until every partition of a topic is led by a node other than this one."""

        def led() -> bool:
            leaders = {p["leader_id"] for p in self._partitions(topic)}
            return not leaders & {other_than, -1}

        self._wait(led, f"leaders of {topic} other than {other_than}", seconds)

    def topic(
        self,
        partitions: int = 1,
        configs: Mapping[str, str] | None = None,
        assignments: Mapping[int, Sequence[int]] | None = None,
    ) -> str:
        """Create a topic of a name that no other test has.

        Args:
            partitions: How many, unless `assignments` says it.
            configs: Of the topic.
            assignments: The nodes of each partition, its leader first.
        """
        name = f"orderbook-{uuid.uuid4().hex[:8]}"
        shape: dict[str, Any] = {"num_partitions": partitions}
        if assignments is not None:
            shape = {"assignments": {number: list(nodes) for number, nodes in assignments.items()}}
        with self.admin() as admin:
            admin.create_topics({name: {**shape, "configs": dict(configs or {})}})
            admin.wait_for_topics([name])
        self._wait(lambda: self._replicated(self._partitions(name)), f"{name} to be replicated", 30)
        return name

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        client = connect_admin(self.bootstrap)
        try:
            yield client
        finally:
            client.close()

    def _partitions(self, topic: str) -> list[dict[str, Any]]:
        with self.admin() as admin:
            (found,) = admin.describe_topics([topic])
        return sorted(found["partitions"], key=lambda p: int(p["partition_index"]))

    def _replicated(self, partitions: list[dict[str, Any]]) -> bool:
        return all(
            p["error_code"] == 0 and p["leader_id"] > 0 and len(p["isr_nodes"]) == len(NODES)
            for p in partitions
        )

    def _is_whole(self) -> bool:
        with self.admin() as admin:
            serving = {broker["broker_id"] for broker in admin.describe_cluster()["brokers"]}
            topics = admin.describe_topics()
        return serving == set(NODES) and all(self._replicated(t["partitions"]) for t in topics)

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        last: object = "not yet"
        while True:
            try:
                if condition():
                    return
            except (KafkaError, UserError) as error:
                last = error
            for node in self.nodes.values():
                ended = node.process is not None and node.process.poll() is not None
                assert not ended, f"node {node.number} ended: {node.log()}"
            logs = "\n".join(f"--- node {n.number}\n{n.log()}" for n in self.nodes.values())
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}; {last}\n{logs}"
            time.sleep(0.2)

    def _end(self, number: int, how: signal.Signals) -> None:
        node = self.nodes[number]
        assert node.process is not None
        node.process.send_signal(how)
        try:
            node.process.wait(60)
        finally:
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()
            node.process = None

    def _java(self, node: Node, *arguments: str) -> subprocess.Popen[bytes]:
        # A test run that is killed takes its brokers with it, where the system can do that.
        bound = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
        with (node.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*bound, "java", *JVM, "-cp", f"{self.jars}/*", *arguments, "server.properties"],
                cwd=node.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={n: v for n, v in os.environ.items() if not n.startswith(("KAFKA_", "JAVA_TOOL"))},
            )


@contextmanager
def running_cluster(
    folder: Path, configuration: str = PROPERTIES, nodes: Sequence[int] = NODES
) -> Iterator[Cluster]:
    """Run a cluster for the length of a `with` block; `configuration` as for `Cluster.prepare`.

    Not whole, and not waited for, if `nodes` are some of its nodes only.
    """
    cluster = Cluster(require_jars())
    try:
        cluster.prepare(folder, configuration)
        for number in nodes:
            cluster.start(number)
        if tuple(nodes) == NODES:
            cluster.wait_whole()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for a module: give each test a topic of its own (`cluster.topic()`)."""
    folder = tmp_path_factory.mktemp("kafka")
    with running_cluster(folder) as running:
        yield running
    # The logs stay as long as pytest keeps the folder; the records could be gigabytes.
    for node in running.nodes.values():
        shutil.rmtree(node.folder / "data")
