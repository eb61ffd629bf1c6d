// franz-go: asks for the newest version of every API.
package main

import (
	"context"
	"fmt"
	"regexp"
	"runtime/debug"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"letterbox.dev/matrix"
)

type member struct {
	name     string
	client   *kgo.Client
	lock     sync.Mutex
	assigned map[int32]bool
}

func join(name string) *member {
	m := &member{name: name, assigned: map[int32]bool{}}
	change := func(to bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
			m.lock.Lock()
			defer m.lock.Unlock()
			for _, partition := range topics[matrix.Topic] {
				if to {
					m.assigned[partition] = true
				} else {
					delete(m.assigned, partition)
				}
			}
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(matrix.Bootstrap), kgo.ConsumerGroup(matrix.Group), kgo.ConsumeTopics(matrix.Topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(10e9), kgo.OnPartitionsAssigned(change(true)), kgo.OnPartitionsRevoked(change(false)), kgo.OnPartitionsLost(change(false)))
	matrix.Check(err, "join")
	m.client = client
	return m
}

func (m *member) partitions() (partitions []int32) {
	m.lock.Lock()
	defer m.lock.Unlock()
	for partition := range m.assigned {
		partitions = append(partitions, partition)
	}
	return partitions
}

// poll hands over what arrives until `more` says no or the context ends.
func (m *member) poll(ctx context.Context, handle func(*kgo.Record)) {
	for ctx.Err() == nil {
		fetches := m.client.PollFetches(ctx)
		for _, failed := range fetches.Errors() {
			if ctx.Err() == nil {
				matrix.Check(failed.Err, "fetch")
			}
		}
		fetches.EachRecord(handle)
	}
}

func headersOf(record *kgo.Record) (headers []matrix.Header) {
	for _, header := range record.Headers {
		headers = append(headers, matrix.Header{Name: header.Key, Value: header.Value})
	}
	return headers
}

func produce(records []matrix.Record) {
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	for i, run := range matrix.Runs(records, len(codecs)) {
		client, err := kgo.NewClient(kgo.SeedBrokers(matrix.Bootstrap), kgo.DefaultProduceTopic(matrix.Topic), kgo.ProducerBatchCompression(codecs[i]))
		matrix.Check(err, "producer")
		for _, each := range run {
			record := &kgo.Record{Key: each.Key, Value: each.Value}
			for _, header := range each.Headers {
				record.Headers = append(record.Headers, kgo.RecordHeader{Key: header.Name, Value: header.Value})
			}
			client.Produce(context.Background(), record, func(at *kgo.Record, err error) {
				matrix.Check(err, "produce")
				matrix.Event("produced", each.Seq, at.Partition, at.Offset)
			})
		}
		matrix.Check(client.Flush(context.Background()), "flush")
		client.Close()
	}
}

// One story from its beginning to its end, so not cut, whatever its length.
func main() {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/twmb/franz-go" {
				fmt.Println("version", module.Version)
			}
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), matrix.End)
	defer cancel()
	records := matrix.Records()
	half := len(records) / 2

	client, err := kgo.NewClient(kgo.SeedBrokers(matrix.Bootstrap))
	matrix.Check(err, "admin")
	admin := kadm.NewClient(client)
	_, err = admin.CreateTopic(ctx, matrix.Partitions, 1, nil, matrix.Topic)
	matrix.Check(err, "create topic")

	var lock sync.Mutex
	count, positions := 0, map[string]map[int32]int64{"A": {}, "B": {}}
	polling, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	members := []*member{join("A"), join("B")}
	for _, m := range members {
		running.Add(1)
		go func() {
			defer running.Done()
			m.poll(polling, func(record *kgo.Record) {
				lock.Lock()
				defer lock.Unlock()
				if count < half {
					count++
					matrix.Consumed(1, m.name, record.Partition, record.Offset, record.Key, record.Value, headersOf(record))
					positions[m.name][record.Partition] = record.Offset + 1
				}
			})
		}()
	}
	matrix.Until(func() bool { return len(members[0].partitions()) == 2 && len(members[1].partitions()) == 2 }, "two members join")
	for _, m := range members {
		matrix.Assigned(m.name, m.partitions())
	}
	produce(records)
	matrix.Until(func() bool {
		lock.Lock()
		defer lock.Unlock()
		return count >= half && len(positions["A"]) > 0 && len(positions["B"]) > 0
	}, "the group consumes")
	stop()
	running.Wait()
	for _, m := range members {
		offsets := map[string]map[int32]kgo.EpochOffset{matrix.Topic: {}}
		for partition, offset := range positions[m.name] {
			offsets[matrix.Topic][partition] = kgo.EpochOffset{Epoch: -1, Offset: offset}
		}
		m.client.CommitOffsetsSync(ctx, offsets, nil)
	}
	told, err := admin.FetchOffsets(ctx, matrix.Group)
	matrix.Check(err, "fetch offsets")
	told.Each(func(at kadm.OffsetResponse) {
		matrix.Check(at.Err, "fetch offsets")
		matrix.Event("committed", at.Partition, at.At)
	})
	for _, m := range members {
		m.client.Close()
	}

	last := join("C")
	resumed, done := context.WithCancel(ctx)
	last.poll(resumed, func(record *kgo.Record) {
		matrix.Consumed(2, "C", record.Partition, record.Offset, record.Key, record.Value, headersOf(record))
		if count++; count >= len(records) {
			done()
		}
	})
	done()
	last.client.Close()
	if count < len(records) {
		matrix.Check(fmt.Errorf("%d of %d records came", count, len(records)), "resume")
	}
	otherCalls(ctx, admin)
}

func fill(ctx context.Context, count int) {
	client, err := kgo.NewClient(kgo.SeedBrokers(matrix.Bootstrap), kgo.DefaultProduceTopic(matrix.CallsTopic))
	matrix.Check(err, "producer")
	defer client.Close()
	for i := range count {
		at := time.UnixMilli(matrix.CallsStart + 1000*int64(i))
		matrix.Check(client.ProduceSync(ctx, &kgo.Record{Value: fmt.Append(nil, i), Timestamp: at}).FirstErr(), "produce")
	}
}

func drain(ctx context.Context, count int, options ...kgo.Opt) (offsets []int64) {
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(matrix.Bootstrap), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	matrix.Check(err, "consumer")
	defer client.Close()
	for len(offsets) < count {
		fetches := client.PollFetches(ctx)
		matrix.Check(ctx.Err(), "other calls consume")
		fetches.EachRecord(func(record *kgo.Record) { offsets = append(offsets, record.Offset) })
	}
	return offsets
}

func otherCalls(ctx context.Context, admin *kadm.Client) {
	topics, err := admin.ListTopics(ctx)
	matrix.Check(err, "list topics")
	matrix.Called("list", len(topics[matrix.Topic].Partitions))
	configs, err := admin.DescribeTopicConfigs(ctx, matrix.Topic)
	matrix.Check(err, "describe configs")
	for _, each := range configs[0].Configs {
		if each.Key == "retention.ms" {
			matrix.Called("config", *each.Value)
		}
	}
	create := func() {
		_, err := admin.CreateTopic(ctx, 1, 1, nil, matrix.CallsTopic)
		matrix.Check(err, "create topic")
	}
	create()
	fill(ctx, 5)
	pattern := "^" + regexp.QuoteMeta(matrix.Topic) + "-c.*"
	matrix.Called("pattern", len(drain(ctx, 5, kgo.ConsumerGroup(matrix.Group+"-calls"), kgo.ConsumeRegex(), kgo.ConsumeTopics(pattern))))
	after, err := admin.ListOffsetsAfterMilli(ctx, matrix.CallsStart+2500, matrix.CallsTopic)
	matrix.Check(err, "offsets by time")
	at, _ := after.Lookup(matrix.CallsTopic, 0)
	matrix.Called("time", at.Offset)
	_, err = admin.DeleteTopic(ctx, matrix.CallsTopic)
	matrix.Check(err, "delete topic")
	create()
	fill(ctx, 3)
	matrix.Recreated(drain(ctx, 3, kgo.ConsumeTopics(matrix.CallsTopic)))
}
