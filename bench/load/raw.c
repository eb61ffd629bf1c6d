/*
 * Modes on raw sockets: requests small enough that any client library would cost more than the broker.
 *
 * Produce version 7 and Metadata version 4, written and read by hand: no flexible fields, and both are spoken by
 * every Kafka since 2.1.
 */
#define _GNU_SOURCE /* accept4 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PRODUCE = 0, METADATA = 3, RESPONSE_MAX = 64 << 10 };

/* ---- writing requests ---- */

struct bytes {
    unsigned char *at;
    size_t len, room;
};

static void put(struct bytes *b, const void *data, size_t len)
{
    if (b->len + len > b->room) {
        b->room = (b->len + len) * 2;
        b->at = realloc(b->at, b->room);
        if (!b->at) fail("out of memory");
    }
    memcpy(b->at + b->len, data, len);
    b->len += len;
}

static void put_int(struct bytes *b, int64_t value, int width)
{
    unsigned char out[8];
    for (int i = 0; i < width; i++) out[i] = (unsigned char)((uint64_t)value >> (8 * (width - 1 - i)));
    put(b, out, (size_t)width);
}

static void put_int_at(struct bytes *b, size_t at, int64_t value, int width)
{
    for (int i = 0; i < width; i++) b->at[at + (size_t)i] = (unsigned char)((uint64_t)value >> (8 * (width - 1 - i)));
}

static void put_string(struct bytes *b, const char *text)
{
    put_int(b, (int64_t)strlen(text), 2);
    put(b, text, strlen(text));
}

static void put_varint(struct bytes *b, int64_t value)
{
    uint64_t zigzag = ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
    do {
        unsigned char byte = (zigzag & 0x7f) | (zigzag > 0x7f ? 0x80 : 0);
        put(b, &byte, 1);
        zigzag >>= 7;
    } while (zigzag);
}

static uint32_t crc32c(const unsigned char *data, size_t len)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < len; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0x82f63b78u & -(crc & 1));
    }
    return ~crc;
}

/* A batch (magic 2) of one record with a value of `size` bytes and no key. */
static struct bytes one_record_batch(int size)
{
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    int64_t ms = wall.tv_sec * 1000 + wall.tv_nsec / 1000000;

    struct bytes record = { 0 };
    put_int(&record, 0, 1); /* attributes */
    put_varint(&record, 0); /* timestamp delta */
    put_varint(&record, 0); /* offset delta */
    put_varint(&record, -1); /* no key */
    put_varint(&record, size);
    char *value = calloc(1, (size_t)size);
    if (!value) fail("out of memory");
    for (int i = 0; i < size; i++) value[i] = (char)('a' + i % 26);
    put(&record, value, (size_t)size);
    put_varint(&record, 0); /* headers */

    struct bytes b = { 0 };
    put_int(&b, 0, 8); /* base offset */
    size_t length_at = b.len;
    put_int(&b, 0, 4);
    put_int(&b, -1, 4); /* leader epoch */
    put_int(&b, 2, 1); /* magic */
    size_t crc_at = b.len;
    put_int(&b, 0, 4);
    put_int(&b, 0, 2); /* attributes */
    put_int(&b, 0, 4); /* last offset delta */
    put_int(&b, ms, 8);
    put_int(&b, ms, 8);
    put_int(&b, -1, 8); /* producer id */
    put_int(&b, -1, 2); /* producer epoch */
    put_int(&b, -1, 4); /* base sequence */
    put_int(&b, 1, 4); /* records */
    put_varint(&b, (int64_t)record.len);
    put(&b, record.at, record.len);
    put_int_at(&b, length_at, (int64_t)(b.len - length_at - 4), 4);
    put_int_at(&b, crc_at, crc32c(b.at + crc_at + 4, b.len - crc_at - 4), 4);
    return b;
}

static struct bytes request(int api, int version)
{
    struct bytes b = { 0 };
    put_int(&b, 0, 4); /* size, by `close_request` */
    put_int(&b, api, 2);
    put_int(&b, version, 2);
    put_int(&b, 1, 4); /* correlation id */
    put_string(&b, "bench");
    return b;
}

static void close_request(struct bytes *b)
{
    put_int_at(b, 0, (int64_t)b->len - 4, 4);
}

static struct bytes produce_request(const struct options *o, int partition)
{
    struct bytes b = request(PRODUCE, 7), batch = one_record_batch(o->size);
    put_int(&b, -1, 2); /* no transactional id */
    put_int(&b, !strcmp(o->acks, "all") ? -1 : atoi(o->acks), 2);
    put_int(&b, 30000, 4); /* timeout in ms */
    put_int(&b, 1, 4); /* topics */
    put_string(&b, o->topic);
    put_int(&b, 1, 4); /* partitions */
    put_int(&b, partition, 4);
    put_int(&b, (int64_t)batch.len, 4);
    put(&b, batch.at, batch.len);
    close_request(&b);
    return b;
}

/* Asks for the topic and lets the broker make it. */
static struct bytes metadata_request(const struct options *o)
{
    struct bytes b = request(METADATA, 4);
    put_int(&b, 1, 4);
    put_string(&b, o->topic);
    put_int(&b, 1, 1);
    close_request(&b);
    return b;
}

/* ---- reading answers ---- */

struct answer {
    unsigned char at[RESPONSE_MAX];
    size_t len; /* bytes received so far, with the four of the size */
    size_t pos; /* of the next read_int */
};

static int64_t read_int(struct answer *a, int width)
{
    int64_t value = 0;
    if (a->pos + (size_t)width > a->len) fail("an answer is too short");
    for (int i = 0; i < width; i++) value = (value << 8) | a->at[a->pos++];
    return width == 2 ? (int16_t)value : width == 4 ? (int32_t)value : value;
}

static void skip(struct answer *a, int64_t len)
{
    if (len > 0) a->pos += (size_t)len;
    if (a->pos > a->len) fail("an answer is too short");
}

/* Whether the whole answer is there. */
static bool is_complete(struct answer *a)
{
    if (a->len < 4) return false;
    a->pos = 0;
    size_t size = (size_t)read_int(a, 4);
    if (size + 4 > sizeof a->at) fail("an answer of %zu bytes", size);
    return a->len >= size + 4;
}

static int produce_error(struct answer *a)
{
    a->pos = 8; /* size, correlation id */
    if (read_int(a, 4) != 1) fail("an answer to one topic names others");
    skip(a, read_int(a, 2));
    if (read_int(a, 4) != 1) fail("an answer to one partition names others");
    skip(a, 4);
    return (int)read_int(a, 2);
}

/* Whether the topic is there with a leader for its first partition. */
static bool topic_is_ready(struct answer *a)
{
    a->pos = 12; /* size, correlation id, throttle time */
    for (int64_t brokers = read_int(a, 4); brokers > 0; brokers--) {
        skip(a, 4);
        skip(a, read_int(a, 2)); /* host */
        skip(a, 4);
        skip(a, read_int(a, 2)); /* rack */
    }
    skip(a, read_int(a, 2)); /* cluster id */
    skip(a, 4); /* controller */
    if (read_int(a, 4) != 1 || read_int(a, 2) != 0) return false;
    skip(a, read_int(a, 2));
    skip(a, 1);
    if (read_int(a, 4) < 1) return false;
    int error = (int)read_int(a, 2);
    skip(a, 4);
    return error == 0 && read_int(a, 4) >= 0;
}

/* ---- sockets ---- */

/* A connected socket, or -1 with errno set. */
static int try_connect(const struct options *o)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)o->port) };
    if (inet_pton(AF_INET, o->host, &to.sin_addr) != 1) fail("%s is no IPv4 address", o->host);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) fail("socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static bool send_all(int fd, const struct bytes *b)
{
    for (size_t done = 0; done < b->len;) {
        ssize_t n = send(fd, b->at + done, b->len - done, MSG_NOSIGNAL);
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

/* Reads what is there once; false when the peer closed. */
static bool receive(int fd, struct answer *a)
{
    ssize_t n = recv(fd, a->at + a->len, sizeof a->at - a->len, 0);
    if (n <= 0) return false;
    a->len += (size_t)n;
    return true;
}

static bool exchange(int fd, const struct bytes *b, struct answer *a)
{
    a->len = 0;
    if (!send_all(fd, b)) return false;
    while (!is_complete(a))
        if (!receive(fd, a)) return false;
    return true;
}

/* ---- ping: one record a request, one request in flight per connection ---- */

struct connection {
    int fd;
    int64_t sent_ns;
    struct bytes request;
    struct answer answer;
};

static void send_next(struct connection *c)
{
    c->answer.len = 0;
    c->sent_ns = now_ns();
    if (!send_all(c->fd, &c->request)) fail("the broker closed a connection");
}

static void check_produced(struct answer *a)
{
    int error = produce_error(a);
    if (error) fail("a record was refused with error code %d", error);
}

void run_ping(const struct options *o)
{
    static struct histogram latency;
    struct connection *all = calloc((size_t)o->connections, sizeof *all);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (!all || poller < 0) fail("no memory or no epoll");
    for (int i = 0; i < o->connections; i++) {
        struct connection *c = &all[i];
        c->fd = try_connect(o);
        if (c->fd < 0) fail("connect: %s", strerror(errno));
        c->request = produce_request(o, i % o->partitions);
        if (!exchange(c->fd, &c->request, &c->answer)) fail("the broker closed a connection");
        check_produced(&c->answer);
        struct epoll_event want = { .events = EPOLLIN, .data.ptr = c };
        epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &want);
    }
    wait_for_go();

    int64_t start = now_ns(), now = start, end = start + (int64_t)(o->seconds * 1e9), sent = 0, done = 0;
    for (int i = 0; i < o->connections; i++) send_next(&all[i]), sent++;
    while (done < sent) {
        struct epoll_event events[64];
        int n = epoll_wait(poller, events, 64, 30000);
        if (n == 0) fail("no answer within 30 s");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!receive(c->fd, &c->answer)) fail("the broker closed a connection");
            if (!is_complete(&c->answer)) continue;
            now = now_ns();
            check_produced(&c->answer);
            histogram_add(&latency, (now - c->sent_ns) / 1000);
            done++;
            if (sent < o->count && now < end) send_next(c), sent++;
        }
    }
    print_result(done, done * o->size, now - start, &latency);
}

/* ---- echo: a server that does nothing but answer: what any broker pays the kernel for a request ---- */

/* Produce version 7: one topic without a name, one partition, no error. */
static struct bytes produce_answer(void)
{
    struct bytes b = { 0 };
    put_int(&b, 0, 4); /* size, by `close_request` */
    put_int(&b, 1, 4); /* correlation id, as `request` has it */
    put_int(&b, 1, 4); /* topics */
    put_string(&b, "");
    put_int(&b, 1, 4); /* partitions */
    put_int(&b, 0, 4);
    put_int(&b, 0, 2); /* error */
    put_int(&b, 0, 8); /* base offset */
    put_int(&b, -1, 8); /* log append time */
    put_int(&b, 0, 8); /* log start offset */
    put_int(&b, 0, 4); /* throttle time */
    close_request(&b);
    return b;
}

/* One thread and epoll, level-triggered; runs until it is killed. */
void run_echo(const struct options *o)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)o->port) };
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), poller = epoll_create1(EPOLL_CLOEXEC), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (inet_pton(AF_INET, o->host, &at.sin_addr) != 1 || bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) fail("listen: %s", strerror(errno));
    struct epoll_event want = { .events = EPOLLIN, .data.ptr = NULL };
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &want);
    struct bytes answer = produce_answer();
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                c = calloc(1, sizeof *c);
                if (!c || (c->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0) fail("accept: %s", strerror(errno));
                setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                want.data.ptr = c;
                epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &want);
                continue;
            }
            if (!receive(c->fd, &c->answer)) {
                close(c->fd);
                free(c);
                continue;
            }
            if (!is_complete(&c->answer)) continue;
            /* One request is in flight per connection, so nothing follows it. */
            c->answer.len = 0;
            if (!send_all(c->fd, &answer)) fail("the client closed a connection");
        }
    }
}

/* ---- first: from before the broker listens until it accepts a record ---- */

static void pause_us(long us)
{
    struct timespec t = { 0, us * 1000 };
    nanosleep(&t, NULL);
}

/* Prints moments of CLOCK_MONOTONIC, to be compared with the caller's own moment of starting the broker. */
void run_first(const struct options *o)
{
    static struct answer answer;
    struct bytes metadata = metadata_request(o), produce = produce_request(o, 0);
    int64_t deadline = now_ns() + (int64_t)(o->seconds * 1e9);
    puts("ready");
    fflush(stdout);
    while (now_ns() < deadline) {
        /* Refused at once while nobody listens; a quarter of a millisecond leaves the CPU to the broker. */
        int fd = try_connect(o);
        if (fd < 0) {
            pause_us(250);
            continue;
        }
        int64_t connected = now_ns();
        while (now_ns() < deadline && exchange(fd, &metadata, &answer)) {
            if (topic_is_ready(&answer)) {
                if (!exchange(fd, &produce, &answer)) break;
                if (produce_error(&answer) == 0) {
                    printf("{\"connected_ns\":%lld,\"accepted_ns\":%lld}\n", (long long)connected, (long long)now_ns());
                    return;
                }
            }
            pause_us(500);
        }
        close(fd);
    }
    fail("no record was accepted within %.0f s", o->seconds);
}
