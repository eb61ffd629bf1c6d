// faults: franz-go as e2e/faults runs it, until its input ends: an idempotent producer and a group of one member on a topic that is there. Prints
// what it sees as a history (sim/src/history.rs) without times, and what it was told in between as notes.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"letterbox.dev/matrix"
)

const group, member = "franz-readers", "franz-reader"

var (
	printing   sync.Mutex
	out        = json.NewEncoder(os.Stdout)
	partitions = matrix.Partitions
)

type fields map[string]any

func event(process string, op int, phase, kind string, more fields) {
	line := fields{"process": process, "op": op, "phase": phase, "kind": kind}
	for name, value := range more {
		line[name] = value
	}
	say(line)
}

func say(line fields) {
	printing.Lock()
	defer printing.Unlock()
	matrix.Check(out.Encode(line), "print")
}

func note(doing string, err error) { say(fields{"note": fmt.Sprintf("franz-go: %s: %v", doing, err)}) }

func payload(value, partition int) string {
	text := fmt.Sprintf("lb1 %d %s %d ", value, matrix.Topic, partition)
	return fmt.Sprintf("%s%08x", text, crc32.ChecksumIEEE([]byte(text)))
}

// produce sends records of the producer with this number, about a hundred each second.
func produce(ctx context.Context, number int) {
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(matrix.Bootstrap, ",")...), kgo.DefaultProduceTopic(matrix.Topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	matrix.Check(err, "producer")
	process := fmt.Sprintf("franz-producer-%d", number)
	for op := 1; ctx.Err() == nil; op++ {
		partition, value := op%partitions, number<<40|op
		record := fields{"topic": matrix.Topic, "partition": partition, "value": value}
		event(process, op, "invoke", "send", fields{"idempotent": true, "records": []fields{record}})
		sent := &kgo.Record{Value: []byte(payload(value, partition)), Partition: int32(partition)}
		client.Produce(context.Background(), sent, func(at *kgo.Record, err error) {
			if err != nil {
				say(fields{"trouble": fmt.Sprintf("%s: value %d was given up: %v", process, value, err)})
				event(process, op, "info", "send", fields{"idempotent": true, "records": []fields{record}})
				return
			}
			record["offset"] = at.Offset
			event(process, op, "ok", "send", fields{"idempotent": true, "records": []fields{record}})
		})
		time.Sleep(10 * time.Millisecond)
	}
	patience, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if err := client.Flush(patience); err != nil {
		say(fields{"trouble": fmt.Sprintf("%s: not all records have a fate: %v", process, err)})
	}
	client.Close()
}

func place(partition int32, offset int64) fields {
	return fields{"topic": matrix.Topic, "partition": partition, "offset": offset}
}

// consume commits each poll.
func consume(ctx context.Context) {
	var lock sync.Mutex
	op, generation := 0, 0
	next := func() int { lock.Lock(); defer lock.Unlock(); op++; return op }
	resumes := func(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
		generation++
		var at []fields
		for partition, offset := range offsets[matrix.Topic] {
			at = append(at, place(partition, max(offset.EpochOffset().Offset, -1)))
		}
		event(member, next(), "ok", "rebalance", fields{"group": group, "generation": generation, "member": member, "partitions": at})
		return offsets, nil
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(matrix.Bootstrap, ",")...), kgo.ConsumerGroup(group), kgo.ConsumeTopics(matrix.Topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AdjustFetchOffsetsFn(resumes), kgo.FetchMaxWait(500*time.Millisecond), kgo.BlockRebalanceOnPoll())
	matrix.Check(err, "consumer")
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		for _, failed := range fetches.Errors() {
			if ctx.Err() == nil {
				note("fetch", failed.Err)
			}
		}
		records := []fields{}
		upto := map[int32]kgo.EpochOffset{}
		fetches.EachRecord(func(record *kgo.Record) {
			read := place(record.Partition, record.Offset)
			read["payload"] = string(record.Value)
			records = append(records, read)
			upto[record.Partition] = kgo.EpochOffset{Epoch: -1, Offset: record.Offset + 1}
		})
		if len(records) > 0 {
			event(member, next(), "ok", "poll", fields{"records": records})
			commit(client, next(), upto)
		}
		client.AllowRebalance()
	}
	client.Close()
}

func commit(client *kgo.Client, op int, upto map[int32]kgo.EpochOffset) {
	var offsets []fields
	for partition, at := range upto {
		offsets = append(offsets, place(partition, at.Offset))
	}
	more := fields{"group": group, "generation": -1, "member": member, "offsets": offsets}
	event(member, op, "invoke", "commit", more)
	phase := "ok"
	patience, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := client.CommitRecords(patience, recordsBefore(upto)...); err != nil {
		note("commit", err)
		phase = "info"
	}
	event(member, op, phase, "commit", more)
}

// recordsBefore are the last records that a commit of these offsets covers.
func recordsBefore(upto map[int32]kgo.EpochOffset) (records []*kgo.Record) {
	for partition, at := range upto {
		records = append(records, &kgo.Record{Topic: matrix.Topic, Partition: partition, Offset: at.Offset - 1, LeaderEpoch: -1})
	}
	return records
}

func main() {
	number, err := strconv.Atoi(os.Getenv("PRODUCER"))
	matrix.Check(err, "PRODUCER")
	ctx, cancel := context.WithCancel(context.Background())
	reading, stop := context.WithCancel(context.Background())
	var consumer, producer sync.WaitGroup
	producer.Add(1)
	consumer.Add(1)
	go func() { defer producer.Done(); produce(ctx, number) }()
	go func() { defer consumer.Done(); consume(reading) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	producer.Wait()
	stop()
	consumer.Wait()
}
