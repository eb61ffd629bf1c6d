"""The brokers that are compared: how each is prepared, started, watched and stopped.

Every broker gets the settings of a Kafka KRaft quick start and a fresh data directory. What differs is in `sides()`.
"""
import atexit
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field

# What bin/kafka-server-start.sh and bin/kafka-run-class.sh of Apache Kafka 4 set, without their log files.
KAFKA_JVM = ["-Xmx1G", "-Xms1G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
             "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true"]
CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"


@dataclass(frozen=True)
class Side:
    """One broker in one durability mode."""
    name: str            # "letterbox" or "kafka"
    durability: str      # "durable" or "page-cache"
    settings: tuple      # lines added to the quick start's settings
    program: tuple       # what is executed, before the path of the settings
    prepare: tuple = ()  # run once on a new data directory, before the path of the settings; not measured
    warm_topic: str = None  # a setting of the topics that warm-up uses, so that waiting for the disk does not keep it from warming up


def sides(letterbox, jars):
    """The four that take turns, in that order."""
    java = (shutil.which("java"), *KAFKA_JVM, "-cp", f"{jars}/*", "kafka.Kafka")
    form = (shutil.which("java"), "-cp", f"{jars}/*", "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c")
    ours = (str(letterbox), "broker", "--config")
    quiet = ("admin.listener=none",)
    return [
        Side("kafka", "durable", ("log.flush.interval.messages=1",), java, form, f"flush.messages={2**63 - 1}"),
        Side("letterbox", "durable", quiet, ours),
        Side("kafka", "page-cache", (), java, form),
        Side("letterbox", "page-cache", (*quiet, "log.flush.on.ack=false"), ours),
    ]


def free_ports():
    """Two neighbouring ports that nothing listens on: the broker's and the controller's."""
    for _ in range(100):
        with socket.socket() as a, socket.socket() as b:
            a.bind(("127.0.0.1", 0))
            try:
                b.bind(("127.0.0.1", a.getsockname()[1] + 1))
            except OSError:
                continue
            return a.getsockname()[1]
    raise RuntimeError("no two free ports")


def cpu_seconds(pid):
    """User and system time of all threads of a process, ended ones too: the sum of utime and stime, with the kernel's own precision."""
    # The process clock of another process has the number (~pid << 3) | CPUCLOCK_SCHED (clock_getcpuclockid).
    return time.clock_gettime((~pid << 3) | 2)


@dataclass
class Broker:
    """One process of a side, from `start` to `stop`; its data stays until `delete`."""
    side: Side
    folder: pathlib.Path
    load: pathlib.Path
    port: int = field(default_factory=free_ports)
    process: subprocess.Popen = None

    def __post_init__(self):
        self.folder.mkdir(parents=True)
        self.settings = self.folder / "server.properties"
        self.settings.write_text("\n".join([
            "process.roles=broker,controller", "node.id=1",
            f"controller.quorum.voters=1@127.0.0.1:{self.port + 1}",
            f"listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.port + 1}",
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names=CONTROLLER",
            f"log.dirs={self.folder / 'data'}",
            "offsets.topic.replication.factor=1", "transaction.state.log.replication.factor=1", "transaction.state.log.min.isr=1",
            *self.side.settings, ""]))
        if self.side.prepare:
            subprocess.run([*self.side.prepare, str(self.settings)], check=True, stdout=subprocess.DEVNULL)

    def start(self):
        """Starts the process; returns (ms until the port took a connection, ms until the first record was accepted).

        The waiting client runs already, so that nothing but the broker is on the way.
        """
        first = subprocess.Popen([str(self.load), "first", "--port", str(self.port), "--topic", "first", "--seconds", "120"],
                                 stdout=subprocess.PIPE, text=True)
        atexit.register(first.kill)  # when we are told to end in the middle
        first.stdout.readline()
        log = open(self.folder / "broker.log", "ab")
        began = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.process = subprocess.Popen([*self.side.program, str(self.settings)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        line = first.stdout.readline()
        if first.wait() != 0 or not line:
            raise RuntimeError(f"{self.side.name} did not accept a record; its log: {self.folder / 'broker.log'}")
        said = json.loads(line)
        return (said["connected_ns"] - began) / 1e6, (said["accepted_ns"] - began) / 1e6

    def cpu_seconds(self):
        """As the function of this name."""
        return cpu_seconds(self.process.pid)

    def user_and_system(self):
        """utime and stime of /proc/PID/stat in seconds; ticks of 10 ms."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / tick, int(fields[12]) / tick

    def memory_kib(self):
        """VmRSS, VmHWM (its peak) and RssAnon of /proc/PID/status."""
        found = {}
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("VmRSS", "VmHWM", "RssAnon"):
                found[name] = int(rest.split()[0])
        return found

    def stop(self):
        """SIGTERM, and SIGKILL when that took a minute; returns the seconds to the end."""
        if self.process is None or self.process.poll() is not None:
            return None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return time.monotonic() - began

    def delete(self):
        """Removes data, settings and log."""
        shutil.rmtree(self.folder, ignore_errors=True)
