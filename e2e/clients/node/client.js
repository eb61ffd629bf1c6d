// kafkajs: unmaintained, and everywhere.
'use strict';
const fs = require('fs');
const { Kafka, CompressionTypes, ConfigResourceTypes, logLevel } = require('kafkajs');

const { BOOTSTRAP, TOPIC, GROUP, RECORDS, EVENTS } = process.env;
const PARTITIONS = 4;
const deadline = Date.now() + 1000 * Number(process.env.DEADLINE || 90);
const report = fs.openSync(EVENTS, 'w');
const event = (...fields) => fs.writeSync(report, fields.join('\t') + '\n');
const unhex = (text) => (text === '-' ? null : Buffer.from(text, 'hex'));
const hex = (bytes) => (bytes === null || bytes === undefined ? '-' : Buffer.from(bytes).toString('hex'));

const records = fs.readFileSync(RECORDS, 'utf8').split('\n').filter(Boolean).map((line) => {
  const [seq, key, value, headers] = line.split('\t');
  return {
    seq: Number(seq), key: unhex(key), value: unhex(value),
    headers: Object.fromEntries(headers.split(',').map((pair) => pair.split('=')).map(([name, data]) => [name, unhex(data)])),
  };
});
const half = Math.floor(records.length / 2);
const kafka = new Kafka({ clientId: 'matrix', brokers: BOOTSTRAP.split(','), logLevel: logLevel.WARN });

async function until(condition, doing) {
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`out of time while ${doing}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function member(name, onAssigned, onMessage) {
  const consumer = kafka.consumer({ groupId: GROUP, sessionTimeout: 10000, rebalanceTimeout: 10000, heartbeatInterval: 500 });
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => onAssigned(name, payload.memberAssignment[TOPIC] || []));
  consumer.on(consumer.events.CRASH, ({ payload }) => { if (!payload.restart) { console.error(payload.error); process.exit(1); } });
  await consumer.connect();
  await consumer.subscribe({ topics: [TOPIC], fromBeginning: true });
  await consumer.run({ autoCommit: false, eachMessage: async ({ partition, message }) => onMessage(name, partition, message) });
  return consumer;
}

function consumed(phase, name, partition, message) {
  const headers = Object.entries(message.headers || {}).map(([key, data]) => `${key}=${hex(data)}`).join(',');
  event('consumed', phase, name, partition, message.offset, hex(message.key), hex(message.value), headers);
}

async function produce() {
  const codecs = [CompressionTypes.None, CompressionTypes.GZIP];
  const size = Math.ceil(records.length / codecs.length);
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 });
  await producer.connect();
  for (const [i, compression] of codecs.entries()) {
    const run = records.slice(i * size, (i + 1) * size);
    for (let at = 0; at < run.length; at += 100) {
      const part = run.slice(at, at + 100);
      // kafkajs tells one base offset per partition, so places are left to the judge.
      await producer.send({ topic: TOPIC, acks: -1, compression, messages: part });
      part.forEach(({ seq }) => event('produced', seq, -1, -1));
    }
  }
  await producer.disconnect();
}

async function main() {
  console.log('version', require('kafkajs/package.json').version);
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: [{ topic: TOPIC, numPartitions: PARTITIONS, replicationFactor: 1 }] });
  await admin.disconnect();

  const assignments = {}, positions = { A: {}, B: {} };
  let count = 0;
  const onAssigned = (name, partitions) => { assignments[name] = partitions; };
  const first = (name, partition, message) => {
    if (count >= half) return;
    count += 1;
    consumed(1, name, partition, message);
    positions[name][partition] = Number(message.offset) + 1;
  };
  const members = { A: await member('A', onAssigned, first), B: await member('B', onAssigned, first) };
  await until(() => ['A', 'B'].every((name) => (assignments[name] || []).length === PARTITIONS / 2), 'two members join');
  Object.entries(assignments).forEach(([name, partitions]) => event('assigned', name, partitions.join(',')));

  await produce();
  await until(() => count >= half && Object.values(positions).every((each) => Object.keys(each).length > 0), 'the group consumes');
  for (const [name, consumer] of Object.entries(members)) {
    const offsets = Object.entries(positions[name]).map(([partition, offset]) => ({ topic: TOPIC, partition: Number(partition), offset: String(offset) }));
    await consumer.commitOffsets(offsets);
  }
  const told = kafka.admin();
  await told.connect();
  const [{ partitions }] = await told.fetchOffsets({ groupId: GROUP, topics: [TOPIC] });
  partitions.filter(({ offset }) => offset !== '-1').forEach(({ partition, offset }) => event('committed', partition, offset));
  await told.disconnect();
  await Promise.all(Object.values(members).map((consumer) => consumer.disconnect()));

  const last = await member('C', () => {}, (name, partition, message) => { count += 1; consumed(2, name, partition, message); });
  await until(() => count >= records.length, 'consumption resumes');
  await last.disconnect();
  await otherCalls();
}

async function otherCalls() {
  const topic = `${TOPIC}-calls`, start = Date.now() - 60000;
  const called = (name, result) => event('called', name, result);
  const admin = kafka.admin();
  await admin.connect();
  const { topics } = await admin.fetchTopicMetadata();
  const found = topics.find(({ name }) => name === TOPIC);
  called('list', (await admin.listTopics()).includes(TOPIC) && found ? found.partitions.length : 'not there');
  const { resources } = await admin.describeConfigs({ includeSynonyms: false, resources: [{ type: ConfigResourceTypes.TOPIC, name: TOPIC }] });
  called('config', resources[0].configEntries.find(({ configName }) => configName === 'retention.ms').configValue);

  const make = () => admin.createTopics({ topics: [{ topic, numPartitions: 1, replicationFactor: 1 }], waitForLeaders: true });
  const fill = async (count) => {
    const producer = kafka.producer();
    await producer.connect();
    const messages = [...Array(count).keys()].map((i) => ({ value: String(i), timestamp: String(start + 1000 * i) }));
    await producer.send({ topic, messages });
    await producer.disconnect();
  };
  const drain = async (groupId, topics, count, doing) => {
    const offsets = [], consumer = kafka.consumer({ groupId });
    await consumer.connect();
    await consumer.subscribe({ topics, fromBeginning: true });
    await consumer.run({ autoCommit: false, eachMessage: async ({ message }) => { offsets.push(Number(message.offset)); } });
    await until(() => offsets.length >= count, doing);
    await consumer.disconnect();
    return offsets;
  };
  await make();
  await fill(5);
  called('pattern', (await drain(`${GROUP}-calls`, [new RegExp(`^${TOPIC}-c.*`)], 5, 'a pattern is consumed')).length);
  called('time', (await admin.fetchTopicOffsetsByTimestamp(topic, start + 2500))[0].offset);
  await admin.deleteTopics({ topics: [topic] });
  await make();
  await fill(3);
  const offsets = await drain(`${GROUP}-again`, [topic], 3, 'a topic that was made again is consumed');
  called('recreate', `${Math.min(...offsets)}:${offsets.length}`);
  await admin.disconnect();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
