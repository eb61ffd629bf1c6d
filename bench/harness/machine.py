"""What the numbers were measured on, and what else ran meanwhile. No names of machines."""
import os
import pathlib
import platform
import re
import subprocess
import tarfile
import time


def describe(folder, jars, letterbox):
    """Facts a reader needs to place the numbers."""
    return {
        "cpu": _first(r"model name\s*:\s*(.*)", _read("/proc/cpuinfo")) or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(_first(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))) / 2**20, 1),
        "kernel": platform.release().partition("-")[0],  # what follows names a builder
        "file_system": _file_system(folder),
        "appends_with_fdatasync_per_s": round(_sync_rate(folder)),
        "java": _first(r'version "([^"]*)"', _output(["java", "-version"])),
        "kafka": pathlib.Path(jars).name.removeprefix("kafka-"),
        "letterbox": _output([str(letterbox), "--version"]).strip().splitlines()[0] if letterbox else None,
        "librdkafka": _output(["pkg-config", "--modversion", "rdkafka"]).strip(),
        "load_average_at_start": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def sizes(letterbox, jars, image):
    """Bytes on disk: the image's one layer, out of its archive if there is one; one binary; jars and the Java runtime they need, apart."""
    java_home = pathlib.Path(os.path.realpath(_output(["sh", "-c", "command -v java"]).strip())).parent.parent
    stripped = letterbox.stat().st_size
    if ".debug_line" in _output(["readelf", "-SW", str(letterbox)]):
        copy = letterbox.with_suffix(".stripped")
        subprocess.run(["strip", "-o", str(copy), str(letterbox)], check=True)
        stripped = copy.stat().st_size
        copy.unlink()
    return {"image": _layer(image) if image else None, "letterbox": stripped, "kafka_jars": sum(jar.stat().st_size for jar in pathlib.Path(jars).glob("*.jar")),
            "java_runtime": sum(f.stat().st_size for f in java_home.rglob("*") if f.is_file() and not f.is_symlink())}


def busy_seconds():
    """CPU seconds that all processes of the machine have used, time stolen by the hypervisor included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(n) for n in _read("/proc/stat").split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(share, patience):
    """Waits until less than `share` of the machine was busy for a second, at most `patience` seconds; whether it was."""
    deadline = time.monotonic() + patience
    while True:
        before = busy_seconds()
        time.sleep(1)
        if (busy_seconds() - before) / os.cpu_count() < share:
            return True
        if time.monotonic() > deadline:
            return False


def _sync_rate(folder):
    """Appends of 4 KiB with an fdatasync each, for a second: what a flush on every message can reach."""
    path, block, count = pathlib.Path(folder) / "sync-probe", bytes(4096), 0
    with open(path, "wb", buffering=0) as file:
        began = time.monotonic()
        while time.monotonic() - began < 1:
            file.write(block)
            os.fdatasync(file.fileno())
            count += 1
        rate = count / (time.monotonic() - began)
    path.unlink()
    return rate


def _layer(archive):
    with tarfile.open(archive) as members:
        return sum(member.size for member in members if member.name.endswith("/layer.tar"))


def _file_system(folder):
    best = ("", "unknown")
    for line in _read("/proc/mounts").splitlines():
        _, at, kind, *_ = line.split()
        if os.path.realpath(folder).startswith(at) and len(at) >= len(best[0]):
            best = (at, kind)
    return best[1]


def _read(path):
    return pathlib.Path(path).read_text()


def _output(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout or "unknown"


def _first(pattern, text):
    found = re.search(pattern, text)
    return found.group(1) if found else None
