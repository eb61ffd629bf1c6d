/*
 * The load of bench/run: one light client for every broker that is compared.
 *
 *   load topic   makes a topic
 *   load produce sends records through librdkafka, as fast as a window allows or at a rate
 *   load consume reads a topic's first `count` records through librdkafka
 *   load tail    sends at a rate and reads what was sent at the same time: end-to-end latency
 *   load ping    sends one record a request on raw sockets, one request in flight per connection
 *   load first   tries from before the broker listens until the first record is accepted
 *
 * A measuring mode opens its connections, prints "ready", waits for a line on its input, runs, and prints one
 * line of JSON. The caller reads the broker's CPU clock at both lines, so set-up is not counted.
 * Any refused record or lost connection ends the program with status 1: a failed run has no numbers.
 */
#include "load.h"

#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const int64_t second_ns = 1000000000;

/* ---- what all modes share ---- */

int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * second_ns + t.tv_nsec;
}

void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

void histogram_add(struct histogram *h, int64_t us)
{
    uint64_t value = us < 0 ? 0 : (uint64_t)us;
    int shift = value < 128 ? 0 : 57 - __builtin_clzll(value);
    size_t bucket = (size_t)shift * 64 + (value >> shift);
    size_t last = sizeof h->counts / sizeof h->counts[0] - 1;
    h->counts[bucket < last ? bucket : last]++;
    h->total++;
    if (value > h->max) h->max = value;
}

double histogram_percentile(const struct histogram *h, double percent)
{
    uint64_t wanted = (uint64_t)((double)h->total * percent / 100.0), seen = 0;
    for (size_t i = 0; i < sizeof h->counts / sizeof h->counts[0]; i++) {
        seen += h->counts[i];
        if (seen > wanted) {
            /* The inverse of histogram_add: below 128 a bucket is a value, above it is a range's lower edge. */
            size_t shift = i < 128 ? 0 : i / 64 - 1;
            return (double)((uint64_t)(i - shift * 64) << shift);
        }
    }
    return (double)h->max;
}

void wait_for_go(void)
{
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(1);
}

void print_result(int64_t records, int64_t bytes, int64_t elapsed_ns, const struct histogram *latency)
{
    double seconds = (double)elapsed_ns / (double)second_ns;
    printf("{\"records\":%lld,\"bytes\":%lld,\"seconds\":%.6f", (long long)records, (long long)bytes, seconds);
    if (latency)
        printf(",\"p50_us\":%.0f,\"p99_us\":%.0f,\"p999_us\":%.0f,\"max_us\":%llu", histogram_percentile(latency, 50),
               histogram_percentile(latency, 99), histogram_percentile(latency, 99.9), (unsigned long long)latency->max);
    puts("}");
    fflush(stdout);
}

/* ---- librdkafka ---- */

static struct histogram latency;
static _Atomic int64_t delivered;
static _Atomic int64_t last_delivery_ns;
static bool measuring;

/* The opaque of a message is the time it was due, so that a stalled sender does not hide a slow broker. */
static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
    (void)rk, (void)opaque;
    if (m->err) fail("a record was not accepted: %s", rd_kafka_err2str(m->err));
    if (measuring) {
        int64_t now = now_ns();
        histogram_add(&latency, (now - (int64_t)(intptr_t)m->_private) / 1000);
        last_delivery_ns = now;
    }
    delivered++;
}

static void on_error(rd_kafka_t *rk, int err, const char *reason, void *opaque)
{
    (void)rk, (void)opaque;
    fail("%s: %s", rd_kafka_err2name(err), reason);
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
    char why[256];
    if (rd_kafka_conf_set(conf, name, value, why, sizeof why) != RD_KAFKA_CONF_OK) fail("%s", why);
}

static void set_int(rd_kafka_conf_t *conf, const char *name, long value)
{
    char text[24];
    snprintf(text, sizeof text, "%ld", value);
    set(conf, name, text);
}

static rd_kafka_t *open_client(rd_kafka_type_t type, const struct options *o, rd_kafka_conf_t *conf)
{
    char address[300], why[256];
    snprintf(address, sizeof address, "%s:%d", o->host, o->port);
    set(conf, "bootstrap.servers", address);
    set(conf, "broker.address.family", "v4");
    rd_kafka_conf_set_error_cb(conf, on_error);
    rd_kafka_t *rk = rd_kafka_new(type, conf, why, sizeof why);
    if (!rk) fail("%s", why);
    return rk;
}

static int window_of(const struct options *o)
{
    int bytes = o->batch_bytes ? 64 * o->batch_bytes : 8 << 20;
    int window = o->window ? o->window : bytes / o->size;
    return window < 1 ? 1 : window;
}

static rd_kafka_t *open_producer(const struct options *o)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "acks", o->acks);
    set(conf, "enable.idempotence", o->idempotent ? "true" : "false");
    set(conf, "max.in.flight", "5");
    set(conf, "linger.ms", o->linger_ms);
    set(conf, "compression.codec", "none");
    set(conf, "queue.buffering.max.messages", "10000000");
    set(conf, "queue.buffering.max.kbytes", "2097151");
    set(conf, "socket.nagle.disable", "true");
    if (o->batch_bytes) set_int(conf, "batch.size", o->batch_bytes);
    if (o->window == 1) set(conf, "batch.num.messages", "1");
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    return open_client(RD_KAFKA_PRODUCER, o, conf);
}

struct sender {
    const struct options *o;
    rd_kafka_t *rk;
    rd_kafka_topic_t *topic;
    char *value;
    int64_t sent;
};

static struct sender open_sender(const struct options *o)
{
    struct sender s = { .o = o, .rk = open_producer(o) };
    s.topic = rd_kafka_topic_new(s.rk, o->topic, NULL);
    s.value = malloc((size_t)o->size);
    if (!s.topic || !s.value) fail("out of memory");
    /* Bytes that do not repeat in short; the same in every run. */
    uint32_t x = 2463534242;
    for (int i = 0; i < o->size; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        s.value[i] = (char)x;
    }
    return s;
}

/* `stamp`: the value's first eight bytes carry the time it was due (0 means: not measured). */
static void send_one(struct sender *s, int partition, int64_t due_ns, bool stamp, int64_t stamp_ns)
{
    char key[17];
    size_t key_len = 0;
    if (s->o->keyed && partition == RD_KAFKA_PARTITION_UA) key_len = (size_t)snprintf(key, sizeof key, "%016lld", (long long)s->sent);
    if (stamp) memcpy(s->value, &stamp_ns, sizeof stamp_ns);
    while (rd_kafka_produce(s->topic, partition, stamp ? RD_KAFKA_MSG_F_COPY : 0, s->value, (size_t)s->o->size, key_len ? key : NULL, key_len,
                            (void *)(intptr_t)due_ns) != 0) {
        rd_kafka_resp_err_t err = rd_kafka_last_error();
        if (err != RD_KAFKA_RESP_ERR__QUEUE_FULL) fail("produce: %s", rd_kafka_err2str(err));
        rd_kafka_poll(s->rk, 10);
    }
    s->sent++;
}

static void wait_until_delivered(struct sender *s, int64_t target)
{
    int64_t deadline = now_ns() + 120 * second_ns;
    while (delivered < target) {
        rd_kafka_poll(s->rk, 100);
        if (now_ns() > deadline) fail("%lld of %lld records were answered", (long long)delivered, (long long)target);
    }
}

/* One record into each partition: connections, metadata, and the producer id are there afterwards. */
static void prime(struct sender *s, bool stamp)
{
    for (int p = 0; p < s->o->partitions; p++) send_one(s, p, 0, stamp, 0);
    wait_until_delivered(s, s->o->partitions);
    s->sent = 0;
    delivered = 0;
    measuring = true;
}

static atomic_bool all_delivered;

static void *poll_deliveries(void *rk)
{
    while (!all_delivered) rd_kafka_poll(rk, 50);
    return NULL;
}

static void send_paced(struct sender *s, int64_t start, bool stamp)
{
    pthread_t poller;
    if (pthread_create(&poller, NULL, poll_deliveries, s->rk)) fail("no thread");
    int64_t end = start + (int64_t)(s->o->seconds * (double)second_ns);
    for (int64_t i = 0; i < s->o->count; i++) {
        int64_t due = start + i * second_ns / s->o->rate;
        if (due >= end) break;
        if (due > now_ns()) {
            struct timespec t = { due / second_ns, due % second_ns };
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
        }
        send_one(s, s->o->partitions == 1 ? 0 : RD_KAFKA_PARTITION_UA, due, stamp, due);
    }
    for (int64_t deadline = now_ns() + 60 * second_ns; delivered < s->sent;) {
        if (now_ns() > deadline) fail("%lld of %lld records were answered", (long long)delivered, (long long)s->sent);
        struct timespec t = { 0, 200000 };
        nanosleep(&t, NULL);
    }
    all_delivered = true;
    pthread_join(poller, NULL);
}

static void send_saturated(struct sender *s, int64_t start)
{
    int64_t end = start + (int64_t)(s->o->seconds * (double)second_ns), window = window_of(s->o), now = start;
    for (int64_t i = 0; i < s->o->count; i++) {
        if ((i & 31) == 0 || window == 1) {
            now = now_ns();
            if (now >= end) break;
            rd_kafka_poll(s->rk, 0);
        }
        while (s->sent - delivered >= window) {
            rd_kafka_poll(s->rk, 100);
            now = now_ns();
        }
        send_one(s, s->o->partitions == 1 ? 0 : RD_KAFKA_PARTITION_UA, now, false, 0);
    }
    wait_until_delivered(s, s->sent);
}

static void run_produce(const struct options *o)
{
    struct sender s = open_sender(o);
    prime(&s, false);
    wait_for_go();
    int64_t start = now_ns();
    if (o->rate) send_paced(&s, start, false);
    else send_saturated(&s, start);
    print_result(s.sent, s.sent * o->size, last_delivery_ns - start, &latency);
}

struct reader {
    rd_kafka_t *rk;
    rd_kafka_topic_t *topic;
    rd_kafka_queue_t *queue;
};

/* The simple consumer: no group, so no coordinator takes part in the measurement. */
static struct reader open_reader(const struct options *o, int64_t *available)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    /* Bounds that are never reached: at a bound librdkafka pauses for a second, which would be measured. */
    set(conf, "queued.min.messages", "10000000");
    set(conf, "queued.max.messages.kbytes", "2097151");
    struct reader r = { .rk = open_client(RD_KAFKA_CONSUMER, o, conf) };
    r.topic = rd_kafka_topic_new(r.rk, o->topic, NULL);
    r.queue = rd_kafka_queue_new(r.rk);
    *available = 0;
    for (int p = 0; p < o->partitions; p++) {
        int64_t low, high;
        rd_kafka_resp_err_t err = rd_kafka_query_watermark_offsets(r.rk, o->topic, p, &low, &high, 10000);
        if (err) fail("offsets of %s-%d: %s", o->topic, p, rd_kafka_err2str(err));
        *available += high - low;
    }
    return r;
}

static void start_reading(struct reader *r, const struct options *o)
{
    for (int p = 0; p < o->partitions; p++)
        if (rd_kafka_consume_start_queue(r->topic, p, 0, r->queue) != 0) fail("fetch: %s", rd_kafka_err2str(rd_kafka_last_error()));
}

struct reading {
    int64_t records, bytes, last_ns;
};

static void on_record(rd_kafka_message_t *m, void *opaque)
{
    struct reading *r = opaque;
    if (m->err) fail("fetch: %s", rd_kafka_message_errstr(m));
    r->bytes += (int64_t)m->len;
    r->records++;
}

static void run_consume(const struct options *o)
{
    int64_t available;
    struct reader r = open_reader(o, &available);
    int64_t count = o->count < available ? o->count : available;
    wait_for_go();
    struct reading got = { .last_ns = now_ns() };
    int64_t start = got.last_ns;
    start_reading(&r, o);
    /* Calls back for all that is there as soon as anything is; the batch call would wait to fill its array. */
    while (got.records < count) {
        int64_t before = got.records, now;
        rd_kafka_consume_callback_queue(r.queue, 1000, on_record, &got);
        now = now_ns();
        if (got.records > before) got.last_ns = now;
        else if (now - got.last_ns > 20 * second_ns) fail("%lld of %lld records came", (long long)got.records, (long long)count);
    }
    print_result(got.records, got.bytes, got.last_ns - start, NULL);
}

struct tail {
    struct reader reader;
    struct histogram latency;
    _Atomic int64_t seen;
    _Atomic int64_t last_ns;
    atomic_bool stop;
};

static void on_tail_record(rd_kafka_message_t *m, void *opaque)
{
    struct tail *t = opaque;
    int64_t due, now = now_ns();
    if (m->err) fail("fetch: %s", rd_kafka_message_errstr(m));
    memcpy(&due, m->payload, sizeof due);
    if (due) {
        histogram_add(&t->latency, (now - due) / 1000);
        t->last_ns = now;
        t->seen++;
    }
}

static void *read_tail(void *argument)
{
    struct tail *t = argument;
    while (!t->stop) rd_kafka_consume_callback_queue(t->reader.queue, 50, on_tail_record, t);
    return NULL;
}

static void run_tail(const struct options *o)
{
    static struct tail tail;
    int64_t available;
    pthread_t consumer;
    struct sender s = open_sender(o);
    prime(&s, true);
    tail.reader = open_reader(o, &available);
    start_reading(&tail.reader, o);
    wait_for_go();
    int64_t start = now_ns();
    if (pthread_create(&consumer, NULL, read_tail, &tail)) fail("no thread");
    send_paced(&s, start, true);
    for (int64_t deadline = now_ns() + 30 * second_ns; tail.seen < s.sent;) {
        if (now_ns() > deadline) fail("%lld of %lld records came", (long long)tail.seen, (long long)s.sent);
        struct timespec t = { 0, 1000000 };
        nanosleep(&t, NULL);
    }
    tail.stop = true;
    pthread_join(consumer, NULL);
    print_result(s.sent, s.sent * o->size, tail.last_ns - start, &tail.latency);
}

static void run_topic(const struct options *o)
{
    char why[256];
    rd_kafka_t *rk = open_client(RD_KAFKA_PRODUCER, o, rd_kafka_conf_new());
    rd_kafka_NewTopic_t *topic = rd_kafka_NewTopic_new(o->topic, o->partitions, 1, why, sizeof why);
    if (!topic) fail("%s", why);
    if (o->config) {
        char name[256];
        const char *equals = strchr(o->config, '=');
        if (!equals || (size_t)(equals - o->config) >= sizeof name) fail("--config takes KEY=VALUE");
        snprintf(name, sizeof name, "%.*s", (int)(equals - o->config), o->config);
        rd_kafka_NewTopic_set_config(topic, name, equals + 1);
    }
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_CreateTopics(rk, &topic, 1, NULL, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, 30000);
    if (!event) fail("no answer to CreateTopics");
    if (rd_kafka_event_error(event)) fail("CreateTopics: %s", rd_kafka_event_error_string(event));
    size_t n;
    const rd_kafka_topic_result_t **results = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &n);
    for (size_t i = 0; i < n; i++)
        if (rd_kafka_topic_result_error(results[i])) fail("CreateTopics: %s", rd_kafka_topic_result_error_string(results[i]));
}

/* ---- the command line ---- */

static struct options read_options(int argc, char **argv)
{
    struct options o = { .host = "127.0.0.1", .partitions = 1, .size = 1024, .count = 1000, .seconds = 3600, .acks = "all", .linger_ms = "5", .connections = 1 };
    if (argc < 2) fail("usage: load topic|produce|consume|tail|ping|first --port N --topic NAME [--OPTION VALUE]...");
    o.mode = argv[1];
    for (int i = 2; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value) fail("%s needs a value", name);
        if (!strcmp(name, "--port")) o.port = atoi(value);
        else if (!strcmp(name, "--topic")) o.topic = value;
        else if (!strcmp(name, "--partitions")) o.partitions = atoi(value);
        else if (!strcmp(name, "--size")) o.size = atoi(value);
        else if (!strcmp(name, "--count")) o.count = atoll(value);
        else if (!strcmp(name, "--seconds")) o.seconds = atof(value);
        else if (!strcmp(name, "--acks")) o.acks = value;
        else if (!strcmp(name, "--idempotent")) o.idempotent = atoi(value) != 0;
        else if (!strcmp(name, "--linger-ms")) o.linger_ms = value;
        else if (!strcmp(name, "--batch-bytes")) o.batch_bytes = atoi(value);
        else if (!strcmp(name, "--window")) o.window = atoi(value);
        else if (!strcmp(name, "--rate")) o.rate = atoi(value);
        else if (!strcmp(name, "--keyed")) o.keyed = atoi(value) != 0;
        else if (!strcmp(name, "--config")) o.config = value;
        else if (!strcmp(name, "--connections")) o.connections = atoi(value);
        else fail("no option is called %s", name);
    }
    if (!o.port || !o.topic) fail("--port and --topic must be given");
    if (o.partitions < 1 || o.size < 8 || o.count < 1 || o.connections < 1) fail("--partitions, --count and --connections start at 1, --size at 8");
    return o;
}

int main(int argc, char **argv)
{
    struct options o = read_options(argc, argv);
    if (!strcmp(o.mode, "topic")) run_topic(&o);
    else if (!strcmp(o.mode, "produce")) run_produce(&o);
    else if (!strcmp(o.mode, "consume")) run_consume(&o);
    else if (!strcmp(o.mode, "tail")) run_tail(&o);
    else if (!strcmp(o.mode, "ping")) run_ping(&o);
    else if (!strcmp(o.mode, "echo")) run_echo(&o);
    else if (!strcmp(o.mode, "first")) run_first(&o);
    else fail("no mode is called %s", o.mode);
    /* Clients are not closed: the numbers are out, and closing waits for background threads. */
    fflush(stdout);
    _Exit(0);
}
