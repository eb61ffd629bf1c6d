"""Brokers in network namespaces of their own, joined by a bridge, and what can be broken between them.

The caller runs in a namespace of its own too (`unshare --net`), where the clients are: nothing here touches the host's network.
"""

import subprocess

CLIENTS = 0


def address(node):
    """Of a broker, or of the clients."""
    return f"10.77.0.{node or 254}"


def run(*command, text=None):
    subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL)


class Network:
    def __init__(self, nodes):
        self.holders = {}
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "addr", "add", f"{address(CLIENTS)}/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")
        for node in nodes:
            # A process that keeps the namespace also while no broker runs in it.
            holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
            holder.stdout.read(1)
            self.holders[node] = holder
            run("ip", "link", "add", f"to{node}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
            run("ip", "link", "set", f"to{node}", "master", "bridge", "up")
            for command in (["link", "set", "lo", "up"], ["addr", "add", f"{address(node)}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                run(*self.inside(node), "ip", *command)

    def inside(self, node):
        """What a command begins with that is to run where this broker runs."""
        return ["nsenter", f"--net=/proc/{self.holders[node].pid}/ns/net"]

    def filter(self, node, rules):
        """Puts these rules, and no others, around one broker; each is ("input" or "output", nft's words)."""
        chains = "".join(
            f"chain {hook} {{\n type filter hook {hook} priority 0;\n" + "".join(f" {words}\n" for at, words in rules if at == hook) + "}\n"
            for hook in ("input", "output")
        )
        run(*self.inside(node), "nft", "-f", "-", text=f"table inet faults {{}}\ndelete table inet faults\ntable inet faults {{\n{chains}}}\n")

    def cut(self, node, peers, directions=("input", "output")):
        """Nothing passes between this broker and those; `directions` are seen from the broker."""
        side = {"input": "saddr", "output": "daddr"}
        self.filter(node, [(hook, f"ip {side[hook]} {address(peer)} drop") for hook in directions for peer in peers])

    def lose(self, node, percent):
        """So many of the broker's packets are lost, in each direction."""
        self.filter(node, [(hook, f'oifname != "lo" iifname != "lo" numgen random mod 100 < {percent} drop') for hook in ("input", "output")])

    def delay(self, node, milliseconds):
        """What the broker sends comes later, or where the kernel has no netem, at 2 Mbit/s only. Says which."""
        begin = [*self.inside(node), "tc", "qdisc", "replace", "dev", "eth0", "root"]
        netem = subprocess.run([*begin, "netem", "delay", f"{milliseconds}ms", f"{milliseconds // 2}ms"], stderr=subprocess.DEVNULL)
        if netem.returncode == 0:
            return f"delay of {milliseconds} ms"
        run(*begin, "tbf", "rate", "2mbit", "burst", "4kb", "latency", f"{milliseconds}ms")
        return f"2 Mbit/s, a queue of {milliseconds} ms"

    def heal(self, node):
        run(*self.inside(node), "nft", "-f", "-", text="table inet faults {}\ndelete table inet faults\n")
        subprocess.run([*self.inside(node), "tc", "qdisc", "del", "dev", "eth0", "root"], stderr=subprocess.DEVNULL)
