// Package matrix is what the Go clients share: the input, the report, and a deadline.
package matrix

import (
	"encoding/hex"
	"fmt"
	"log"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Partitions of the topic that every client makes.
const Partitions = 4

// Header of a record.
type Header struct {
	Name  string
	Value []byte
}

// Record to produce; a nil Value is a tombstone.
type Record struct {
	Seq     int
	Key     []byte
	Value   []byte
	Headers []Header
}

var (
	// Bootstrap, Topic and Group come from the environment.
	Bootstrap, Topic, Group = os.Getenv("BOOTSTRAP"), os.Getenv("TOPIC"), os.Getenv("GROUP")
	// End of the time that a run may take.
	End = time.Now().Add(seconds(os.Getenv("DEADLINE"), 90))

	reportLock sync.Mutex
	report     = must(os.Create(os.Getenv("EVENTS")))
)

func seconds(text string, otherwise int) time.Duration {
	if n, err := strconv.Atoi(text); err == nil {
		otherwise = n
	}
	return time.Duration(otherwise) * time.Second
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// Check ends the run when there is an error.
func Check(err error, doing string) {
	if err != nil {
		log.Fatalf("%s: %v", doing, err)
	}
}

func unhex(text string) []byte {
	if text == "-" {
		return nil
	}
	data := must(hex.DecodeString(text))
	if data == nil {
		data = []byte{}
	}
	return data
}

func toHex(data []byte) string {
	if data == nil {
		return "-"
	}
	return hex.EncodeToString(data)
}

// Records reads the input.
func Records() (records []Record) {
	for _, line := range strings.Split(string(must(os.ReadFile(os.Getenv("RECORDS")))), "\n") {
		if line == "" {
			continue
		}
		fields := strings.Split(line, "\t")
		record := Record{Seq: must(strconv.Atoi(fields[0])), Key: unhex(fields[1]), Value: unhex(fields[2])}
		for _, pair := range strings.Split(fields[3], ",") {
			name, value, _ := strings.Cut(pair, "=")
			record.Headers = append(record.Headers, Header{name, unhex(value)})
		}
		records = append(records, record)
	}
	return records
}

// Event writes one line of the report.
func Event(fields ...any) {
	texts := make([]string, len(fields))
	for i, field := range fields {
		texts[i] = fmt.Sprint(field)
	}
	reportLock.Lock()
	defer reportLock.Unlock()
	must(report.WriteString(strings.Join(texts, "\t") + "\n"))
}

// Consumed reports one record.
func Consumed(phase int, member string, partition int32, offset int64, key, value []byte, headers []Header) {
	pairs := make([]string, len(headers))
	for i, header := range headers {
		pairs[i] = header.Name + "=" + hex.EncodeToString(header.Value)
	}
	Event("consumed", phase, member, partition, offset, toHex(key), toHex(value), strings.Join(pairs, ","))
}

// Assigned reports the partitions of a member.
func Assigned(member string, partitions []int32) {
	texts := make([]string, len(partitions))
	for i, partition := range partitions {
		texts[i] = fmt.Sprint(partition)
	}
	Event("assigned", member, strings.Join(texts, ","))
}

// Until waits for a condition, and ends the run when it takes too long.
func Until(condition func() bool, doing string) {
	for !condition() {
		if time.Now().After(End) {
			log.Fatalf("out of time while %s", doing)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Runs parts the records into n runs, one for each codec.
func Runs(records []Record, n int) (runs [][]Record) {
	size := (len(records) + n - 1) / n
	for from := 0; from < len(records); from += size {
		runs = append(runs, records[from:min(from+size, len(records))])
	}
	return runs
}

// CallsTopic is the topic of the other calls: five records, a second apart from CallsStart on (milliseconds).
var (
	CallsTopic = Topic + "-calls"
	CallsStart = time.Now().Add(-time.Minute).UnixMilli()
)

// Called reports what one of the other calls gave.
func Called(name string, result any) {
	Event("called", name, result)
}

// Recreated reports the offsets of a topic that was deleted and made again.
func Recreated(offsets []int64) {
	Called("recreate", fmt.Sprintf("%d:%d", slices.Min(offsets), len(offsets)))
}
