import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Apache Kafka's own client. The two members of the group take turns in one thread. */
public final class Client {
    static final String BOOTSTRAP = System.getenv("BOOTSTRAP");
    static final String TOPIC = System.getenv("TOPIC");
    static final String GROUP = System.getenv("GROUP");
    static final int PARTITIONS = 4;
    static final long DEADLINE = System.nanoTime() + Long.parseLong(System.getenv().getOrDefault("DEADLINE", "90")) * 1_000_000_000L;
    static PrintWriter events;

    static final class Input {
        int seq;
        byte[] key;
        byte[] value;
        List<Header> headers = new ArrayList<>();
    }

    public static void main(String[] args) throws Exception {
        System.out.println("version " + System.getenv("VERSION"));
        events = new PrintWriter(Files.newBufferedWriter(Path.of(System.getenv("EVENTS"))), true);
        List<Input> inputs = read();
        int half = inputs.size() / 2;
        try (Admin admin = Admin.create(common())) {
            admin.createTopics(List.of(new NewTopic(TOPIC, PARTITIONS, (short) 1))).all().get();
        }

        Map<String, KafkaConsumer<byte[], byte[]>> members = new TreeMap<>();
        members.put("A", consumer());
        members.put("B", consumer());
        while (!sharedOut(members)) {
            inTime("two members join");
            for (KafkaConsumer<byte[], byte[]> each : members.values()) {
                each.poll(Duration.ofMillis(50));
            }
        }
        members.forEach((name, each) -> event("assigned", name,
            each.assignment().stream().map(part -> "" + part.partition()).collect(Collectors.joining(","))));

        produce(inputs);

        int count = 0;
        Map<String, Map<TopicPartition, OffsetAndMetadata>> positions = new TreeMap<>();
        members.keySet().forEach(name -> positions.put(name, new HashMap<>()));
        while (count < half || positions.values().stream().anyMatch(Map::isEmpty)) {
            inTime("the group consumes");
            for (String name : members.keySet()) {
                for (ConsumerRecord<byte[], byte[]> record : members.get(name).poll(Duration.ofMillis(50))) {
                    if (count < half) {
                        count++;
                        consumed(1, name, record);
                        positions.get(name).put(new TopicPartition(TOPIC, record.partition()), new OffsetAndMetadata(record.offset() + 1));
                    }
                }
            }
        }
        for (String name : members.keySet()) {
            KafkaConsumer<byte[], byte[]> each = members.get(name);
            each.commitSync(positions.get(name));
            each.committed(positions.get(name).keySet()).forEach((part, at) -> event("committed", part.partition(), at.offset()));
        }
        members.values().forEach(KafkaConsumer::close);

        try (KafkaConsumer<byte[], byte[]> last = consumer()) {
            while (count < inputs.size()) {
                inTime("consumption resumes");
                for (ConsumerRecord<byte[], byte[]> record : last.poll(Duration.ofMillis(100))) {
                    count++;
                    consumed(2, "C", record);
                }
            }
        }
        otherCalls();
    }

    static void otherCalls() throws Exception {
        String topic = TOPIC + "-calls";
        long start = System.currentTimeMillis() - 60_000;
        TopicPartition part = new TopicPartition(topic, 0);
        try (Admin admin = Admin.create(common())) {
            try (KafkaConsumer<byte[], byte[]> each = consumer(GROUP)) {
                boolean isListed = admin.listTopics().names().get().contains(TOPIC);
                event("called", "list", isListed ? each.listTopics().get(TOPIC).size() : "not there");
            }
            ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, TOPIC);
            event("called", "config", admin.describeConfigs(List.of(resource)).all().get().get(resource).get("retention.ms").value());

            admin.createTopics(List.of(new NewTopic(topic, 1, (short) 1))).all().get();
            fill(topic, start, 5);
            try (KafkaConsumer<byte[], byte[]> each = consumer(GROUP + "-calls")) {
                each.subscribe(Pattern.compile("^" + Pattern.quote(TOPIC) + "-c.*"));
                event("called", "pattern", drain(each, 5, "a pattern is consumed").size());
                event("called", "time", each.offsetsForTimes(Map.of(part, start + 2500)).get(part).offset());
            }
            admin.deleteTopics(List.of(topic)).all().get();
            admin.createTopics(List.of(new NewTopic(topic, 1, (short) 1))).all().get();
            fill(topic, start, 3);
            try (KafkaConsumer<byte[], byte[]> each = consumer(GROUP + "-again")) {
                each.assign(List.of(part));
                List<Long> offsets = drain(each, 3, "a topic that was made again is consumed");
                event("called", "recreate", Collections.min(offsets) + ":" + offsets.size());
            }
        }
    }

    static void fill(String topic, long start, int count) throws Exception {
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(common(), new ByteArraySerializer(), new ByteArraySerializer())) {
            for (int i = 0; i < count; i++) {
                producer.send(new ProducerRecord<>(topic, 0, start + 1000L * i, null, new byte[] {(byte) i})).get();
            }
        }
    }

    static List<Long> drain(KafkaConsumer<byte[], byte[]> each, int count, String doing) {
        List<Long> offsets = new ArrayList<>();
        while (offsets.size() < count) {
            inTime(doing);
            each.poll(Duration.ofMillis(100)).forEach(record -> offsets.add(record.offset()));
        }
        return offsets;
    }

    static void produce(List<Input> inputs) throws Exception {
        String[] codecs = {"none", "gzip", "snappy", "lz4", "zstd"};
        int size = (inputs.size() + codecs.length - 1) / codecs.length;
        for (int i = 0; i < codecs.length; i++) {
            Properties settings = common();
            settings.put("enable.idempotence", "true");
            settings.put("acks", "all");
            settings.put("compression.type", codecs[i]);
            settings.put("linger.ms", "5");
            List<Input> run = inputs.subList(i * size, Math.min(inputs.size(), (i + 1) * size));
            try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
                List<java.util.concurrent.Future<RecordMetadata>> sent = new ArrayList<>();
                for (Input input : run) {
                    sent.add(producer.send(new ProducerRecord<>(TOPIC, null, input.key, input.value, input.headers)));
                }
                for (int j = 0; j < run.size(); j++) {
                    RecordMetadata at = sent.get(j).get();
                    event("produced", run.get(j).seq, at.partition(), at.offset());
                }
            }
        }
    }

    static Properties common() {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", BOOTSTRAP);
        return settings;
    }

    static KafkaConsumer<byte[], byte[]> consumer() {
        KafkaConsumer<byte[], byte[]> each = consumer(GROUP);
        each.subscribe(List.of(TOPIC));
        return each;
    }

    static KafkaConsumer<byte[], byte[]> consumer(String group) {
        Properties settings = common();
        settings.put("group.id", group);
        settings.put("enable.auto.commit", "false");
        settings.put("auto.offset.reset", "earliest");
        settings.put("session.timeout.ms", "10000");
        return new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static boolean sharedOut(Map<String, KafkaConsumer<byte[], byte[]>> members) {
        List<Integer> all = new ArrayList<>();
        for (KafkaConsumer<byte[], byte[]> each : members.values()) {
            if (each.assignment().isEmpty()) {
                return false;
            }
            each.assignment().forEach(part -> all.add(part.partition()));
        }
        return all.stream().sorted().collect(Collectors.toList()).equals(List.of(0, 1, 2, 3));
    }

    static List<Input> read() throws Exception {
        List<Input> inputs = new ArrayList<>();
        for (String line : Files.readAllLines(Path.of(System.getenv("RECORDS")))) {
            String[] fields = line.split("\t", -1);
            Input input = new Input();
            input.seq = Integer.parseInt(fields[0]);
            input.key = unhex(fields[1]);
            input.value = unhex(fields[2]);
            for (String pair : fields[3].split(",")) {
                String[] parts = pair.split("=", -1);
                input.headers.add(new RecordHeader(parts[0], unhex(parts[1])));
            }
            inputs.add(input);
        }
        return inputs;
    }

    static byte[] unhex(String text) {
        if (text.equals("-")) {
            return null;
        }
        byte[] bytes = new byte[text.length() / 2];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) Integer.parseInt(text.substring(2 * i, 2 * i + 2), 16);
        }
        return bytes;
    }

    static String hex(byte[] bytes) {
        if (bytes == null) {
            return "-";
        }
        byte[] digits = "0123456789abcdef".getBytes(StandardCharsets.US_ASCII);
        byte[] text = new byte[bytes.length * 2];
        for (int i = 0; i < bytes.length; i++) {
            text[2 * i] = digits[(bytes[i] >> 4) & 15];
            text[2 * i + 1] = digits[bytes[i] & 15];
        }
        return new String(text, StandardCharsets.US_ASCII);
    }

    static void consumed(int phase, String member, ConsumerRecord<byte[], byte[]> record) {
        List<String> headers = new ArrayList<>();
        record.headers().forEach(header -> headers.add(header.key() + "=" + hex(header.value())));
        event("consumed", phase, member, record.partition(), record.offset(), hex(record.key()), hex(record.value()), String.join(",", headers));
    }

    static void event(Object... fields) {
        events.println(java.util.Arrays.stream(fields).map(String::valueOf).collect(Collectors.joining("\t")));
    }

    static void inTime(String doing) {
        if (System.nanoTime() > DEADLINE) {
            System.err.println("out of time while " + doing);
            System.exit(1);
        }
    }
}
