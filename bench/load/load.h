/* Shared by the load program's parts: options, clock, latency histogram, the start signal, raw requests. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct options {
    const char *mode;
    const char *host;        /* of the broker; the same for librdkafka and for raw sockets */
    int port;
    const char *topic;
    int partitions;
    int size;                /* bytes of a record's value */
    int64_t count;           /* records to send or read */
    double seconds;          /* sending stops after this long, even below `count` */
    const char *acks;        /* "0", "1" or "all" */
    bool idempotent;
    const char *linger_ms;
    int batch_bytes;         /* librdkafka's batch.size */
    int window;              /* most records sent and not yet answered; 0 means 8 MiB of values, or 64 batches when batch_bytes is given */
    int rate;                /* records per second; 0 sends as fast as the window allows */
    bool keyed;              /* 16 byte keys spread the records over the partitions by hash */
    int connections;         /* of `ping` */
    const char *config;      /* of `topic`: one KEY=VALUE, or null */
};

/* Latencies in microseconds, in buckets 1/64 wide of their power of two: an error below 1.6 %. */
struct histogram {
    uint64_t counts[64 * 40];
    uint64_t total;
    uint64_t max;
};

void histogram_add(struct histogram *h, int64_t microseconds);
double histogram_percentile(const struct histogram *h, double percent);

int64_t now_ns(void);
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Says that connections stand, and waits until the caller has read the broker's counters. */
void wait_for_go(void);

/* Prints the one line of JSON that ends a measured run. `latency` may be null. */
void print_result(int64_t records, int64_t bytes, int64_t elapsed_ns, const struct histogram *latency);

/* Modes on raw sockets (raw.c). */
void run_ping(const struct options *o);
_Noreturn void run_echo(const struct options *o);
void run_first(const struct options *o);
