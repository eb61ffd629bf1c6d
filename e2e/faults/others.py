"""Clients that are processes of their own, and what they say as a history: Apache Kafka's verifiable producer and consumer, and franz-go."""

import json
import os
import signal
import subprocess
import threading
import time

# The topic of Java's has one partition: who only reads what the producer says cannot know where a record goes.
JAVA, FRANZ = "java", "franz"
FRANZ_PARTITIONS = 4
# A record is in the history before the producer has sent it, because the producer tells only what was acknowledged.
AHEAD = 2000


class Client:
    def __init__(self, load, name, work, command, environment=None):
        # What was acknowledged, or committed where it only reads.
        self.progress = 0
        self.load, self.name = load, name
        self.log = open(os.path.join(work, f"{name}.log"), "ab")
        self.said = open(os.path.join(work, f"{name}.jsonl"), "w", encoding="utf-8")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, **(environment or {})},
                                        start_new_session=True)
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self):
        for line in self.process.stdout:
            self.said.write(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            self.told(event)

    def told(self, event):
        getattr(self, event.get("name", ""), lambda event: None)(event)

    def stop(self, patience):
        """Ends it in order."""
        if self.process.poll() is not None:
            self.load.trouble(f"{self.name} ended by itself with {self.process.returncode}")
        else:
            self.ask_to_end()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.load.trouble(f"{self.name} does not end within {patience} s")
                self.process.kill()
        self.thread.join()
        self.said.close()

    def ask_to_end(self):
        self.process.send_signal(signal.SIGTERM)


class JavaProducer(Client):
    def __init__(self, load, tool, work, bootstrap, number, per_second):
        self.number, self.begun = number, 0
        settings = os.path.join(work, "java-producer.properties")
        with open(settings, "w", encoding="utf-8") as file:
            # The tool's own default is no retries.
            file.write("retries=2147483647\nenable.idempotence=true\nlinger.ms=5\n")
        self.begin(load, AHEAD)
        super().__init__(load, f"java-producer-{number}", work, [
            tool, "kafka-verifiable-producer", "--bootstrap-server", bootstrap, "--topic", JAVA, "--throughput", str(per_second),
            "--value-prefix", str(number), "--acks", "-1", "--command-config", settings])

    def record(self, count):
        return {"topic": JAVA, "partition": 0, "value": (self.number << 40) | count}

    def begin(self, load, upto):
        while self.begun < upto:
            load.history.write(f"java-producer-{self.number}", self.begun, "invoke", "send", idempotent=True, records=[self.record(self.begun)])
            self.begun += 1

    def producer_send_success(self, event):
        count = int(event["value"].split(".")[1])
        self.begin(self.load, count + AHEAD)
        self.progress += 1
        offset = event["offset"] if event["offset"] >= 0 else None
        record = {name: value for name, value in {**self.record(count), "offset": offset}.items() if value is not None}
        self.load.history.write(self.name, count, "ok", "send", idempotent=True, records=[record])

    def producer_send_error(self, event):
        self.load.trouble(f"{self.name}: value {event.get('value')} was given up: {event.get('exception')} {event.get('message')}")


class JavaConsumer(Client):
    """The only member of its group."""

    GROUP = "java-readers"

    def __init__(self, load, tool, work, bootstrap):
        self.op, self.generation, self.records, self.resumes = 0, 0, [], False
        super().__init__(load, "java-consumer", work, [
            tool, "kafka-verifiable-consumer", "--bootstrap-server", bootstrap, "--topic", JAVA, "--group-id", self.GROUP, "--verbose",
            "--reset-policy", "earliest"])

    def partitions_assigned(self, event):
        self.resumes = bool(event["partitions"])

    def record_data(self, event):
        number, count = event["value"].split(".")
        if self.resumes:
            self.resumes = False
            self.op += 1
            self.generation += 1
            at = [{"topic": JAVA, "partition": event["partition"], "offset": event["offset"] or -1}]
            self.load.history.write(self.name, self.op, "ok", "rebalance", group=self.GROUP, generation=self.generation, member=self.name, partitions=at)
        self.records.append({"topic": event["topic"], "partition": event["partition"], "offset": event["offset"], "value": (int(number) << 40) | int(count)})

    def records_consumed(self, event):
        self.op += 1
        self.load.history.write(self.name, self.op, "ok", "poll", records=self.records)
        self.records = []

    def offsets_committed(self, event):
        offsets = [{"topic": each["topic"], "partition": each["partition"], "offset": each["offset"]} for each in event["offsets"]]
        fields = {"group": self.GROUP, "generation": self.generation, "member": self.name, "offsets": offsets}
        self.op += 1
        self.load.history.write(self.name, self.op, "invoke", "commit", **fields)
        if event["success"]:
            self.progress += 1
            self.load.history.write(self.name, self.op, "ok", "commit", **fields)
        else:
            self.load.note(f"{self.name}: commit: {event.get('error')}")
            self.load.history.write(self.name, self.op, "info", "commit", error=str(event.get("error")), **fields)


class Franz(Client):
    """A producer and the only member of a group, in one process (e2e/clients/go/faults)."""

    def __init__(self, load, program, work, bootstrap, number):
        super().__init__(load, "franz", work, [program], {"BOOTSTRAP": bootstrap, "TOPIC": FRANZ, "PRODUCER": str(number), "EVENTS": os.devnull})

    def ask_to_end(self):
        self.process.stdin.close()

    def told(self, event):
        if "note" in event:
            self.load.note(event["note"])
        elif "trouble" in event:
            self.load.trouble(event["trouble"])
        else:
            self.progress += event["kind"] == "send" and event["phase"] == "ok"
            self.load.history.write(**event)
