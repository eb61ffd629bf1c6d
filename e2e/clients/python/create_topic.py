"""create_topic.py TOPIC PARTITIONS: for clients without admin calls."""
import os
import sys

from confluent_kafka.admin import AdminClient, NewTopic

topic, partitions = sys.argv[1:]
admin = AdminClient({"bootstrap.servers": os.environ["BOOTSTRAP"]})
admin.create_topics([NewTopic(topic, int(partitions), 1)])[topic].result(30)
