// sarama: asks for the versions that its configuration names.
package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"letterbox.dev/matrix"
)

func settings() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Enable = false
	config.Consumer.Group.Session.Timeout = 10e9
	config.Consumer.Return.Errors = true
	return config
}

// member is one member of the group; its handler runs once for each partition and generation.
type member struct {
	name     string
	group    sarama.ConsumerGroup
	lock     sync.Mutex
	assigned []int32
	handle   func(*sarama.ConsumerMessage) bool
}

func (m *member) Setup(session sarama.ConsumerGroupSession) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.assigned = session.Claims()[matrix.Topic]
	return nil
}

func (m *member) Cleanup(session sarama.ConsumerGroupSession) error {
	session.Commit()
	return nil
}

func (m *member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, ok := <-claim.Messages():
			if !ok {
				return nil
			}
			if m.handle(message) {
				session.MarkMessage(message, "")
			}
		case <-session.Context().Done():
			return nil
		}
	}
}

func (m *member) partitions() []int32 {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.assigned
}

func join(ctx context.Context, running *sync.WaitGroup, name string, handle func(*sarama.ConsumerMessage) bool) *member {
	group, err := sarama.NewConsumerGroup([]string{matrix.Bootstrap}, matrix.Group, settings())
	matrix.Check(err, "join")
	m := &member{name: name, group: group, handle: handle}
	running.Add(1)
	go func() {
		defer running.Done()
		for ctx.Err() == nil {
			err := group.Consume(ctx, []string{matrix.Topic}, m)
			if err != nil && !errors.Is(err, sarama.ErrClosedConsumerGroup) && ctx.Err() == nil {
				matrix.Check(err, "consume")
			}
		}
		matrix.Check(group.Close(), "leave")
	}()
	go func() {
		for err := range group.Errors() {
			matrix.Check(err, "group")
		}
	}()
	return m
}

func consumed(phase int, name string, message *sarama.ConsumerMessage) {
	headers := make([]matrix.Header, len(message.Headers))
	for i, header := range message.Headers {
		headers[i] = matrix.Header{Name: string(header.Key), Value: header.Value}
	}
	matrix.Consumed(phase, name, message.Partition, message.Offset, message.Key, message.Value, headers)
}

func produce(records []matrix.Record) {
	codecs := []sarama.CompressionCodec{sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4, sarama.CompressionZSTD}
	for i, run := range matrix.Runs(records, len(codecs)) {
		config := settings()
		config.Producer.RequiredAcks = sarama.WaitForAll
		config.Producer.Idempotent = true
		config.Net.MaxOpenRequests = 1
		config.Producer.Return.Successes = true
		config.Producer.Compression = codecs[i]
		producer, err := sarama.NewSyncProducer([]string{matrix.Bootstrap}, config)
		matrix.Check(err, "producer")
		messages := make([]*sarama.ProducerMessage, len(run))
		for j, record := range run {
			messages[j] = &sarama.ProducerMessage{Topic: matrix.Topic, Key: sarama.ByteEncoder(record.Key), Metadata: record.Seq}
			if record.Value != nil {
				messages[j].Value = sarama.ByteEncoder(record.Value)
			}
			for _, header := range record.Headers {
				messages[j].Headers = append(messages[j].Headers, sarama.RecordHeader{Key: []byte(header.Name), Value: header.Value})
			}
		}
		matrix.Check(producer.SendMessages(messages), "produce")
		for _, message := range messages {
			matrix.Event("produced", message.Metadata, message.Partition, message.Offset)
		}
		matrix.Check(producer.Close(), "close producer")
	}
}

func main() {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/IBM/sarama" {
				fmt.Println("version", module.Version)
			}
		}
	}
	records := matrix.Records()
	half := len(records) / 2
	admin, err := sarama.NewClusterAdmin([]string{matrix.Bootstrap}, settings())
	matrix.Check(err, "admin")
	matrix.Check(admin.CreateTopic(matrix.Topic, &sarama.TopicDetail{NumPartitions: matrix.Partitions, ReplicationFactor: 1}, false), "create topic")

	var lock sync.Mutex
	count, positions := 0, map[string]map[int32]int64{"A": {}, "B": {}}
	first := func(name string) func(*sarama.ConsumerMessage) bool {
		return func(message *sarama.ConsumerMessage) bool {
			lock.Lock()
			defer lock.Unlock()
			if count >= half {
				return false
			}
			count++
			consumed(1, name, message)
			positions[name][message.Partition] = message.Offset + 1
			return true
		}
	}
	ctx, stop := context.WithDeadline(context.Background(), matrix.End)
	var running sync.WaitGroup
	members := []*member{join(ctx, &running, "A", first("A")), join(ctx, &running, "B", first("B"))}
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
	told, err := admin.ListConsumerGroupOffsets(matrix.Group, map[string][]int32{matrix.Topic: {0, 1, 2, 3}})
	matrix.Check(err, "fetch offsets")
	for partition, at := range told.Blocks[matrix.Topic] {
		if at.Offset >= 0 {
			matrix.Event("committed", partition, at.Offset)
		}
	}
	ctx, stop = context.WithDeadline(context.Background(), matrix.End)
	join(ctx, &running, "C", func(message *sarama.ConsumerMessage) bool {
		lock.Lock()
		defer lock.Unlock()
		count++
		consumed(2, "C", message)
		return true
	})
	matrix.Until(func() bool { lock.Lock(); defer lock.Unlock(); return count >= len(records) }, "consumption resumes")
	stop()
	running.Wait()
	otherCalls(admin)
	matrix.Check(admin.Close(), "close admin")
}

func fill(count int) {
	config := settings()
	config.Producer.Return.Successes = true
	producer, err := sarama.NewSyncProducer([]string{matrix.Bootstrap}, config)
	matrix.Check(err, "producer")
	for i := range count {
		at := time.UnixMilli(matrix.CallsStart + 1000*int64(i))
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: matrix.CallsTopic, Value: sarama.StringEncoder(fmt.Sprint(i)), Timestamp: at})
		matrix.Check(err, "produce")
	}
	matrix.Check(producer.Close(), "close producer")
}

// sarama has no subscription to a pattern.
func otherCalls(admin sarama.ClusterAdmin) {
	// This one call lists all topics and describes the configurations of all of them.
	topics, err := admin.ListTopics()
	matrix.Check(err, "list topics")
	matrix.Called("list", topics[matrix.Topic].NumPartitions)
	entries, err := admin.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: matrix.Topic})
	matrix.Check(err, "describe configs")
	for _, each := range entries {
		if each.Name == "retention.ms" {
			matrix.Called("config", each.Value)
		}
	}
	create := func() {
		detail := &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}
		matrix.Check(admin.CreateTopic(matrix.CallsTopic, detail, false), "create topic")
	}
	create()
	fill(5)
	client, err := sarama.NewClient([]string{matrix.Bootstrap}, settings())
	matrix.Check(err, "client")
	offset, err := client.GetOffset(matrix.CallsTopic, 0, matrix.CallsStart+2500)
	matrix.Check(err, "offset by time")
	matrix.Called("time", offset)
	matrix.Check(client.Close(), "close client")
	matrix.Check(admin.DeleteTopic(matrix.CallsTopic), "delete topic")
	create()
	fill(3)
	consumer, err := sarama.NewConsumer([]string{matrix.Bootstrap}, settings())
	matrix.Check(err, "consumer")
	part, err := consumer.ConsumePartition(matrix.CallsTopic, 0, sarama.OffsetOldest)
	matrix.Check(err, "consume")
	var offsets []int64
	for len(offsets) < 3 {
		select {
		case message := <-part.Messages():
			offsets = append(offsets, message.Offset)
		case failed := <-part.Errors():
			matrix.Check(failed, "consume")
		case <-time.After(time.Until(matrix.End)):
			matrix.Check(errors.New("out of time"), "a topic that was made again is consumed")
		}
	}
	matrix.Recreated(offsets)
	matrix.Check(consumer.Close(), "close consumer")
}
