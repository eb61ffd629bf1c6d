"""One session: a fresh broker, its start, every row once, its end. A sample is one row of one session."""
import atexit
import json
import os
import subprocess
import time

from . import machine
from .brokers import Broker, cpu_seconds, free_ports
from .rows import ROWS, WARM_UP, WARM_UPS_MAX


def run_session(side, folder, load, length, round_number, wanted, say):
    """Returns what was measured: start, memory, samples by row. `length` is "short" or "full"."""
    broker = Broker(side, folder, load)
    try:
        say(f"round {round_number}: {side.name}, {side.durability}")
        connected, accepted = broker.start()
        time.sleep(1 if length == "short" else 3)
        session = {"broker": side.name, "durability": side.durability, "round": round_number,
                   "first_connection_ms": connected, "first_record_ms": accepted, "idle": broker.memory_kib(), "samples": {}}
        session["warm_ups"] = warm_up(broker, length, say)
        for row in ROWS:
            if side.durability in row.durabilities and (not wanted or row.key in wanted):
                session["samples"][row.key] = measure(broker, row, length, say)
        session["loaded"] = broker.memory_kib()
        session["stop_s"] = broker.stop()
        if length == "full":
            session["restart_connection_ms"], session["restart_first_record_ms"] = broker.start()
        return session
    except Exception:
        print((folder / "broker.log").read_text()[-3000:])
        raise
    finally:
        broker.stop()
        broker.delete()


def warm_up(broker, length, say):
    """Repeats each row of the warm-up until it gains less than a tenth, or has run WARM_UPS_MAX times; returns the repetitions by row."""
    made = {}
    for row in WARM_UP:
        create_topic(broker, row, broker.side.warm_topic)
        before, made[row.key] = None, 0
        while made[row.key] < WARM_UPS_MAX[length]:
            sample = measure(broker, row, length, say, create=False)
            made[row.key] += 1
            cost = sample["cpu_s"] / sample["records"]
            if before is not None and cost > before * 0.9:
                break
            before = cost
    return made


def create_topic(broker, row, config=None):
    """The row's own topic, when it has one."""
    if not row.reads:
        run(broker, "topic", {"topic": row.key, "partitions": row.partitions, **({"config": config} if config else {})})


def measure(broker, row, length, say, create=True):
    """Runs one row against a running broker: what the load program saw, and the broker's CPU meanwhile."""
    topic = row.reads or row.key
    if create:
        create_topic(broker, row)
    # What earlier rows left to be written back is written now, not during this row.
    os.sync()
    options = {"topic": topic, **row.options, **(row.full if length == "full" else row.short)}
    process = open_load(broker, row.mode, options)
    expect(process, "ready")
    cpu, split, busy, began = broker.cpu_seconds(), broker.user_and_system(), machine.busy_seconds(), time.monotonic()
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    elapsed = time.monotonic() - began
    cpu_after, split_after, busy_after = broker.cpu_seconds(), broker.user_and_system(), machine.busy_seconds()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    if status != 0 or not line:
        raise RuntimeError(f"{row.key}: the load program ended with status {os.waitstatus_to_exitcode(status)}")
    sample = json.loads(line)
    sample["cpu_s"] = cpu_after - cpu
    sample["cpu_user_s"], sample["cpu_system_s"] = (after - before for before, after in zip(split, split_after))
    sample["load_cpu_s"] = used.ru_utime + used.ru_stime
    others = busy_after - busy - sample["cpu_s"] - sample["load_cpu_s"]
    sample["others_share"] = max(0.0, others / (elapsed * os.cpu_count()))
    say(f"  {row.key}: {sample['records'] / sample['seconds']:,.0f} records/s, broker {sample['cpu_s']:.2f} CPU s, others {sample['others_share']:.0%}")
    return sample


def open_load(broker, mode, options):
    """The load program, started."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen([str(broker.load), mode, "--port", str(broker.port), *arguments],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if mode != "topic" else None, text=True)
    atexit.register(process.kill)  # when we are told to end in the middle
    return process


def echo(load, length):
    """CPU microseconds a request that a server which only answers costs (mode echo of the load program), by connections."""
    found = {}
    for connections in (1, 16):
        port = str(free_ports())
        server = subprocess.Popen([str(load), "echo", "--port", port, "--topic", "echo"], stdout=subprocess.PIPE, text=True)
        atexit.register(server.kill)
        expect(server, "ready")
        options = {"connections": connections, "size": 100, "acks": "all", "count": 10_000_000, "seconds": 5 if length == "full" else 1}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        client = subprocess.Popen([str(load), "ping", "--port", port, "--topic", "echo", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        expect(client, "ready")
        before = cpu_seconds(server.pid)
        said, _ = client.communicate("go\n")
        found[connections] = (cpu_seconds(server.pid) - before) / json.loads(said)["records"] * 1e6
        server.kill()
        server.wait()
    return found


def run(broker, mode, options):
    """The load program in a mode that measures nothing."""
    if open_load(broker, mode, options).wait() != 0:
        raise RuntimeError(f"load {mode} failed against {broker.side.name}")


def expect(process, word):
    """Reads one line that must be `word`."""
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"the load program said {line!r} instead of {word!r}")
