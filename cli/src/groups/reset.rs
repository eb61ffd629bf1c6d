//! `--reset-offsets`: where to, shown or carried out.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use letterbox_client::{
    BrokerError, Client, CommittedOffset, Error, ErrorCode, IsolationLevel, OffsetSpec,
    TopicPartition,
};
use letterbox_env::Env;

use super::{complain, failed_call, group_names};
use crate::args::Parsed;
use crate::failure::{Failure, sentence};

/// The options that say where to; they exclude one another.
pub(super) const SCENARIOS: [&str; 8] = [
    "to-offset",
    "shift-by",
    "to-datetime",
    "by-duration",
    "to-earliest",
    "to-latest",
    "to-current",
    "from-file",
];

type Offsets = BTreeMap<TopicPartition, i64>;

pub(super) async fn run(
    env: &Env,
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    if !SCENARIOS.iter().any(|scenario| parsed.has(scenario)) {
        let all = SCENARIOS.map(|scenario| format!("[{scenario}]")).join(", ");
        return Err(parsed.wrong(format!(
            "Option '[reset-offsets]' requires one of the following scenarios: [{all}]"
        )));
    }
    let groups = match group_names(client, parsed).await {
        Ok(groups) => groups,
        Err(error) => return failed_call(out, &error),
    };
    let mut reset: BTreeMap<String, Offsets> = BTreeMap::new();
    for group in groups {
        let state = match client.describe_group(&group).await {
            Ok(group) => group.state,
            Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => "Dead".to_owned(),
            Err(error) => return failed_call(out, &error),
        };
        if !matches!(state.as_str(), "Empty" | "Dead") {
            complain(
                out,
                format!(
                    "Assignments can only be reset if the group '{group}' is inactive, but the \
                     current state is {state}."
                ),
            )?;
            reset.insert(group, Offsets::new());
            continue;
        }
        let planned = plan(env, client, parsed, &group, out, err).await?;
        let result = match planned {
            Ok(offsets) if parsed.has("execute") => {
                commit(client, &group, &offsets).await.map(|()| offsets)
            }
            planned => planned,
        };
        match result {
            Ok(offsets) => drop(reset.insert(group, offsets)),
            // Unlike elsewhere, Kafka's tool leaves the exception's name out here.
            Err(Error::Broker(error)) => {
                return complain(
                    out,
                    format!("Executing consumer group command failed due to {}", sentence(&error)),
                );
            }
            Err(error) => return failed_call(out, &error),
        }
    }
    print(parsed, &reset, out)
}

fn print(
    parsed: &Parsed,
    reset: &BTreeMap<String, Offsets>,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let rows = || {
        reset.iter().flat_map(|(group, offsets)| {
            offsets.iter().map(move |(partition, offset)| (group, partition, offset))
        })
    };
    if parsed.has("export") {
        let single = parsed.values("group").len() == 1;
        for (group, partition, offset) in rows() {
            let group = if single { String::new() } else { format!("{group},") };
            writeln!(out, "{group}{},{},{offset}", partition.topic, partition.partition)?;
        }
        return Ok(writeln!(out)?);
    }
    let w1 = reset.keys().map(String::len).max().unwrap_or(0).max(15);
    let w2 = rows().map(|(_, partition, _)| partition.topic.len()).max().unwrap_or(0).max(15);
    if !reset.is_empty() {
        write!(out, "\n{:<w1$} {:<w2$} {:<10} NEW-OFFSET", "GROUP", "TOPIC", "PARTITION")?;
    }
    for (group, partition, offset) in rows() {
        write!(
            out,
            "\n{group:<w1$} {:<w2$} {:<10} {offset}",
            partition.topic, partition.partition
        )?;
    }
    Ok(writeln!(out)?)
}

async fn commit(client: &Client, group: &str, offsets: &Offsets) -> Result<(), Error> {
    let offsets = offsets.iter().map(|(partition, offset)| {
        (
            partition.clone(),
            CommittedOffset { offset: *offset, leader_epoch: -1, metadata: String::new() },
        )
    });
    let outcomes = client.alter_group_offsets(group, &offsets.collect()).await?;
    outcomes.into_values().collect::<Result<(), BrokerError>>()?;
    Ok(())
}

async fn plan(
    env: &Env,
    client: &Client,
    parsed: &Parsed,
    group: &str,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<Result<Offsets, Error>, Failure> {
    let committed = match client.list_group_offsets(group, None).await {
        Ok(committed) => committed,
        Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => BTreeMap::new(),
        Err(error) => return Ok(Err(error)),
    };
    let partitions = if parsed.has("all-topics") {
        committed.keys().cloned().collect()
    } else if parsed.has("topic") {
        match wanted_partitions(client, parsed).await? {
            Ok(partitions) => partitions,
            Err(error) => return Ok(Err(error)),
        }
    } else if parsed.has("from-file") {
        Vec::new()
    } else {
        return Err(
            parsed.wrong("One of the reset scopes should be defined: --all-topics, --topic.")
        );
    };
    let each = |offset: i64| {
        partitions.iter().map(|partition| (partition.clone(), offset)).collect::<Offsets>()
    };
    if parsed.has("to-offset") {
        let offset = parsed.number("to-offset")?.unwrap_or(0);
        return Ok(in_range(client, each(offset), err).await);
    }
    if parsed.has("to-earliest") {
        return Ok(at(client, &partitions, OffsetSpec::Earliest).await);
    }
    if parsed.has("to-latest") {
        return Ok(at(client, &partitions, OffsetSpec::Latest).await);
    }
    if parsed.has("shift-by") {
        let shift: i64 = parsed.number("shift-by")?.unwrap_or(0);
        let mut shifted = Offsets::new();
        for partition in &partitions {
            let Some(current) = committed.get(partition) else {
                return Err(parsed.wrong(format!(
                    "Cannot shift offset for partition {partition} since \
                        there is no current committed offset"
                )));
            };
            shifted.insert(partition.clone(), current.offset.saturating_add(shift));
        }
        return Ok(in_range(client, shifted, err).await);
    }
    if let Some(text) = parsed.value("to-datetime") {
        let Some(ms) = datetime_ms(text) else {
            complain(
                out,
                format!(
                    "Executing consumer group command failed due to java.text.ParseException: \
                     Unparseable date: \"{text}\""
                ),
            )?;
            return Ok(Ok(Offsets::new()));
        };
        return at_time(client, &partitions, ms, out).await;
    }
    if let Some(text) = parsed.value("by-duration") {
        let Some(ms) = duration_ms(text) else {
            complain(
                out,
                "Executing consumer group command failed due to Text cannot be parsed to a \
                 Duration",
            )?;
            return Ok(Ok(Offsets::new()));
        };
        return at_time(client, &partitions, env.clock.wall_ms().saturating_sub(ms), out).await;
    }
    if let Some(file) = parsed.value("from-file") {
        let bytes = env
            .disk
            .read(Path::new(file))
            .map_err(|error| Failure::Stderr(format!("cannot read {file}: {error}")))?;
        let single = parsed.values("group").len() == 1;
        let offsets = from_csv(&String::from_utf8_lossy(&bytes), group, single)
            .map_err(|line| Failure::Stderr(format!("{file}: {line}")))?;
        if offsets.is_empty() {
            complain(out, format!("No reset plan for group {group} found."))?;
        }
        return Ok(in_range(client, offsets, err).await);
    }
    // --to-current: what is committed, and the end where nothing is.
    let (have, lack): (Vec<_>, Vec<_>) =
        partitions.into_iter().partition(|partition| committed.contains_key(partition));
    let ends = at(client, &lack, OffsetSpec::Latest).await;
    let current = have.into_iter().filter_map(|partition| {
        committed.get(&partition).map(|committed| (partition, committed.offset))
    });
    Ok(ends.map(|ends| current.chain(ends).collect()))
}

/// `topic:0,1`.
pub(super) fn partitions_of(word: &str) -> Result<Vec<TopicPartition>, String> {
    let (topic, ids) = match word.split(':').collect::<Vec<_>>().as_slice() {
        [topic, ids] => (*topic, *ids),
        _ => return Err(format!("Invalid topic arg '{word}', expected topic name and partitions")),
    };
    let id = |text: &str| {
        text.trim()
            .parse()
            .map_err(|_| format!("Invalid partition '{text}' specified in topic arg '{word}''"))
    };
    ids.split(',').map(|text| Ok(TopicPartition::new(topic, id(text)?))).collect()
}

async fn wanted_partitions(
    client: &Client,
    parsed: &Parsed,
) -> Result<Result<Vec<TopicPartition>, Error>, Failure> {
    let mut wanted = Vec::new();
    let mut whole = Vec::new();
    for word in parsed.values("topic") {
        if word.contains(':') {
            wanted.extend(partitions_of(word).map_err(|line| parsed.wrong(line))?);
        } else {
            whole.push(word.to_owned());
        }
    }
    let mut topics = whole.clone();
    topics.extend(wanted.iter().map(|partition| partition.topic.clone()));
    topics.sort();
    topics.dedup();
    let metadata = match client.metadata(Some(&topics)).await {
        Ok(metadata) => metadata,
        Err(error) => return Ok(Err(error)),
    };
    let refuse = |code, message| Ok(Err(BrokerError { code, message }.into()));
    for topic in metadata.topics.values() {
        if let Some(code) = topic.error {
            return refuse(code, None);
        }
    }
    let known = |partition: &TopicPartition| {
        metadata
            .topics
            .get(&partition.topic)
            .is_some_and(|topic| topic.partitions.contains_key(&partition.partition))
    };
    let unknown: Vec<String> = wanted
        .iter()
        .filter(|partition| !known(partition))
        .map(TopicPartition::to_string)
        .collect();
    if !unknown.is_empty() {
        return refuse(
            ErrorCode::UnknownTopicOrPartition,
            Some(format!("The partitions \"{}\" do not exist", unknown.join(","))),
        );
    }
    for name in whole {
        let ids = metadata.topics.get(&name).into_iter().flat_map(|topic| topic.partitions.keys());
        wanted.extend(ids.map(|id| TopicPartition::new(name.clone(), *id)));
    }
    Ok(Ok(wanted))
}

async fn at(
    client: &Client,
    partitions: &[TopicPartition],
    spec: OffsetSpec,
) -> Result<Offsets, Error> {
    let wanted =
        partitions.iter().map(|partition| (partition.clone(), spec)).collect::<BTreeMap<_, _>>();
    let mut offsets = Offsets::new();
    if wanted.is_empty() {
        return Ok(offsets);
    }
    for (partition, found) in client.list_offsets(&wanted, IsolationLevel::ReadUncommitted).await? {
        offsets.insert(partition, found?.offset.unwrap_or(-1));
    }
    Ok(offsets)
}

async fn at_time(
    client: &Client,
    partitions: &[TopicPartition],
    ms: i64,
    out: &mut (dyn Write + Send),
) -> Result<Result<Offsets, Error>, Failure> {
    let mut offsets = match at(client, partitions, OffsetSpec::Timestamp(ms)).await {
        Ok(offsets) => offsets,
        Err(error) => return Ok(Err(error)),
    };
    let after: Vec<TopicPartition> = offsets
        .iter()
        .filter(|(_, offset)| **offset < 0)
        .map(|(partition, _)| partition.clone())
        .collect();
    for partition in &after {
        writeln!(
            out,
            "\nWarn: Partition {} from topic {} is empty. Falling back to latest known offset.",
            partition.partition, partition.topic
        )?;
    }
    Ok(at(client, &after, OffsetSpec::Latest).await.map(|ends| {
        offsets.extend(ends);
        offsets
    }))
}

/// Moves offsets into what each partition has.
async fn in_range(
    client: &Client,
    mut offsets: Offsets,
    err: &mut (dyn Write + Send),
) -> Result<Offsets, Error> {
    let partitions: Vec<TopicPartition> = offsets.keys().cloned().collect();
    let starts = at(client, &partitions, OffsetSpec::Earliest).await?;
    let ends = at(client, &partitions, OffsetSpec::Latest).await?;
    for (partition, offset) in &mut offsets {
        let (start, end) = (
            starts.get(partition).copied().unwrap_or(0),
            ends.get(partition).copied().unwrap_or(0),
        );
        let (edge, side, name) =
            if *offset > end { (end, "higher", "latest") } else { (start, "lower", "earliest") };
        if *offset > end || *offset < start {
            // A warning that cannot be written is lost, the reset goes on.
            let _ = writeln!(
                err,
                "New offset ({offset}) is {side} than {name} offset for topic partition \
                 {partition}. Value will be set to {edge}."
            );
            *offset = edge;
        }
    }
    Ok(offsets)
}

/// The lines of `group`: `topic,partition,offset`, or with the group in front.
fn from_csv(text: &str, group: &str, single: bool) -> Result<Offsets, String> {
    let mut offsets = Offsets::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let cells: Vec<&str> = line.split(',').map(|cell| cell.trim().trim_matches('"')).collect();
        let (topic, partition, offset) = match cells.as_slice() {
            [topic, partition, offset] if single => (*topic, *partition, *offset),
            [name, topic, partition, offset] if *name == group => (*topic, *partition, *offset),
            [_, _, _, _] => continue,
            _ => {
                return Err(format!(
                    "{line:?} is not of the form topic,partition,offset or \
                     group,topic,partition,offset"
                ));
            }
        };
        let (Ok(partition), Ok(offset)) = (partition.parse(), offset.parse()) else {
            return Err(format!("{line:?} has a number that is none"));
        };
        offsets.insert(TopicPartition::new(topic, partition), offset);
    }
    Ok(offsets)
}

/// `YYYY-MM-DDTHH:mm:SS.sss`, then nothing (UTC), `Z`, `+hh`, `+hhmm` or `+hh:mm`; milliseconds
/// since 1970.
fn datetime_ms(text: &str) -> Option<i64> {
    let (date, rest) = text.split_once('T')?;
    let cut = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
    let (time, zone) = (rest.get(..cut)?, rest.get(cut..)?);
    let numbers = |text: &str, by: char| {
        text.split(by).map(|part| part.parse::<i64>().ok()).collect::<Option<Vec<i64>>>()
    };
    let [year, month, day] = numbers(date, '-')?.try_into().ok()?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let (hour, minute, second) = match numbers(time, ':')?.as_slice() {
        [hour, minute, second] => (*hour, *minute, *second),
        [hour, minute] => (*hour, *minute, 0),
        _ => return None,
    };
    let valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..61).contains(&second);
    if !valid
        || !(0..=9999).contains(&year)
        || fraction.is_empty()
        || !fraction.bytes().all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    let millis: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let offset = match zone.strip_prefix(['+', '-']) {
        None if zone.is_empty() || zone == "Z" => 0,
        None => return None,
        Some(digits) => {
            let digits = digits.replace(':', "");
            let (hours, minutes) =
                if digits.len() == 4 { digits.split_at(2) } else { (digits.as_str(), "0") };
            let minutes = hours.parse::<i64>().ok().filter(|hours| *hours <= 18)? * 60
                + minutes.parse::<i64>().ok()?;
            if zone.starts_with('-') { -minutes } else { minutes }
        }
    };
    // Days since 1970 in the Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (m * 153 + 2) / 5 + day
            - 1
            - 719_468;
    Some((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + millis)
}

/// `PnDTnHnMnS` in milliseconds.
fn duration_ms(text: &str) -> Option<i64> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let text = text.strip_prefix(['P', 'p'])?;
    let (mut total, mut number, mut in_time, mut any) = (0f64, String::new(), false, false);
    for c in text.chars() {
        let unit = match c.to_ascii_uppercase() {
            'T' if number.is_empty() && !in_time => {
                in_time = true;
                continue;
            }
            'D' if !in_time => 86_400_000.0,
            'H' if in_time => 3_600_000.0,
            'M' if in_time => 60_000.0,
            'S' if in_time => 1000.0,
            '0'..='9' | '.' | '-' | '+' => {
                number.push(c);
                continue;
            }
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * unit;
        number.clear();
        any = true;
    }
    #[allow(clippy::cast_possible_truncation, reason = "saturates")]
    let total = total as i64;
    (any && number.is_empty()).then_some(if negative { -total } else { total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_kafka_reads_them() {
        for (text, ms) in [
            ("1970-01-01T00:00:00.000", Some(0)),
            ("2024-02-29T12:30:15.250", Some(1_709_209_815_250)),
            ("2024-02-29T12:30:15.250Z", Some(1_709_209_815_250)),
            ("2024-02-29T12:30:15.250+02:00", Some(1_709_202_615_250)),
            ("2024-02-29T12:30:15.250-0130", Some(1_709_215_215_250)),
            ("2000-03-01T00:00:00.000", Some(951_868_800_000)),
            ("2024-13-01T00:00:00.000", None),
            ("yesterday", None),
        ] {
            assert_eq!(datetime_ms(text), ms, "{text}");
        }
        for (text, ms) in [
            ("P1D", Some(86_400_000)),
            ("PT1H30M", Some(5_400_000)),
            ("P1DT0.5S", Some(86_400_500)),
            ("P", None),
            ("1D", None),
            ("PT5", None),
        ] {
            assert_eq!(duration_ms(text), ms, "{text}");
        }
    }

    #[test]
    fn plans_are_read_with_and_without_groups() {
        let want = Offsets::from([(TopicPartition::new("t", 0), 5)]);
        assert_eq!(from_csv("t,0,5\n\n", "g", true), Ok(want.clone()));
        assert_eq!(from_csv("g,t,0,5\nother,t,1,6\n", "g", false), Ok(want));
        assert!(from_csv("t,0\n", "g", true).is_err());
        assert!(from_csv("t,0,x\n", "g", true).is_err());
        assert_eq!(
            partitions_of("t:0,2").unwrap(),
            [TopicPartition::new("t", 0), TopicPartition::new("t", 2)]
        );
        assert!(partitions_of("t:x").is_err() && partitions_of("t:1:2").is_err());
    }
}
