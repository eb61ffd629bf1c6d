import static org.junit.jupiter.api.Assertions.assertEquals;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.junit.jupiter.api.Test;
import org.testcontainers.kafka.KafkaContainer;
import org.testcontainers.utility.DockerImageName;

class LetterboxContainerTest {
    static final DockerImageName IMAGE = DockerImageName.parse(System.getProperty("image", "letterbox:latest")).asCompatibleSubstituteFor("apache/kafka");

    @Test
    void the_kafka_module_starts_the_image_and_records_go_through() throws Exception {
        try (KafkaContainer kafka = new KafkaContainer(IMAGE)) {
            kafka.start();
            Map<String, Object> settings = Map.of("bootstrap.servers", kafka.getBootstrapServers());
            try (Admin admin = Admin.create(settings)) {
                assertEquals("4L6g3nShT-eMCtK--X86sw", admin.describeCluster().clusterId().get());
                admin.createTopics(List.of(new NewTopic("orders", 3, (short) 1))).all().get();
            }
            try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
                for (int i = 0; i < 100; i++) {
                    producer.send(new ProducerRecord<>("orders", "key-" + i % 7, "value-" + i)).get();
                }
            }
            List<String> values = new ArrayList<>();
            Map<String, Object> reading = Map.of("bootstrap.servers", kafka.getBootstrapServers(), "group.id", "check", "auto.offset.reset", "earliest");
            try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(reading, new StringDeserializer(), new StringDeserializer())) {
                consumer.subscribe(List.of("orders"));
                long deadline = System.nanoTime() + Duration.ofSeconds(30).toNanos();
                while (values.size() < 100 && System.nanoTime() < deadline) {
                    consumer.poll(Duration.ofMillis(100)).forEach(record -> values.add(record.value()));
                }
            }
            List<String> expected = new ArrayList<>();
            for (int i = 0; i < 100; i++) {
                expected.add("value-" + i);
            }
            assertEquals(expected.stream().sorted().toList(), values.stream().sorted().toList());
        }
    }

    @Test
    void a_second_listener_is_reached_from_another_container() throws Exception {
        try (org.testcontainers.containers.Network network = org.testcontainers.containers.Network.newNetwork();
             KafkaContainer kafka = new KafkaContainer(IMAGE).withListener("inside:19092").withNetwork(network)) {
            kafka.start();
            try (org.testcontainers.containers.GenericContainer<?> tools = new org.testcontainers.containers.GenericContainer<>(IMAGE)
                    .withNetwork(network).withCommand("sleep", "120")) {
                tools.start();
                var created = tools.execInContainer("kafka-topics", "--create", "--topic", "inner", "--partitions", "2", "--bootstrap-server", "inside:19092");
                assertEquals("Created topic inner.\n", created.getStdout(), created.getStderr());
            }
        }
    }
}
