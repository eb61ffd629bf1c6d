//! `--reset-offsets`: where to, shown or carried out.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::{
    BrokerError, Client, CommittedOffset, Error, ErrorCode, IsolationLevel, OffsetSpec,
    TopicPartition,
};
use letterbox_env::{Env, Gather};

use super::{command_failed, complain, failed_call, group_names, topics_and_partitions};
use crate::args::Parsed;
use crate::failure::{Failure, sentence};
use crate::files::read;

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
type Committed = BTreeMap<TopicPartition, CommittedOffset>;

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
        let result = match plan(env, client, parsed, &group, out, err).await {
            Ok(offsets) if parsed.has("execute") => {
                commit(client, &group, &offsets).await.map(|()| offsets).map_err(Stop::Call)
            }
            planned => planned,
        };
        match result {
            Ok(offsets) => drop(reset.insert(group, offsets)),
            // Unlike elsewhere, Kafka's tool leaves the exception's name out here.
            Err(Stop::Call(Error::Broker(error))) => return command_failed(out, sentence(&error)),
            Err(Stop::Call(error)) => return failed_call(out, &error),
            Err(Stop::End(failure)) => return Err(failure),
        }
    }
    print(parsed, &reset, out)
}

/// Why a plan was not made or not carried out.
enum Stop {
    /// A call to the cluster failed.
    Call(Error),
    /// The tool ends.
    End(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::End(failure)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::End(error.into())
    }
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
    let outcomes = client.alter_group_offsets(group, &offsets.gather()).await?;
    outcomes.into_values().collect::<Result<(), BrokerError>>()?;
    Ok(())
}

/// Where each partition is reset to.
async fn plan(
    env: &Env,
    client: &Client,
    parsed: &Parsed,
    group: &str,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<Offsets, Stop> {
    let committed = match client.list_group_offsets(group, None).await {
        Ok(committed) => committed,
        Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => BTreeMap::new(),
        Err(error) => return Err(error.into()),
    };
    let partitions = scope(client, parsed, &committed).await?;
    if let Some(offset) = parsed.number("to-offset")? {
        let offsets = partitions.into_iter().map(|partition| (partition, offset)).gather();
        return Ok(in_range(client, offsets, err).await?);
    }
    if parsed.has("to-earliest") {
        return Ok(at(client, &partitions, OffsetSpec::Earliest).await?);
    }
    if parsed.has("to-latest") {
        return Ok(at(client, &partitions, OffsetSpec::Latest).await?);
    }
    if let Some(shift) = parsed.number("shift-by")? {
        let offsets = shifted(parsed, partitions, &committed, shift)?;
        return Ok(in_range(client, offsets, err).await?);
    }
    if let Some(text) = parsed.value("to-datetime") {
        let Some(ms) = datetime_ms(text) else {
            command_failed(out, format!("java.text.ParseException: Unparseable date: \"{text}\""))?;
            return Ok(Offsets::new());
        };
        return at_time(client, &partitions, ms, out).await;
    }
    if let Some(text) = parsed.value("by-duration") {
        let Some(ms) = duration_ms(text) else {
            command_failed(out, "Text cannot be parsed to a Duration")?;
            return Ok(Offsets::new());
        };
        return at_time(client, &partitions, env.clock.wall_ms().saturating_sub(ms), out).await;
    }
    if let Some(file) = parsed.value("from-file") {
        let bytes = read(env, file)?;
        let single = parsed.values("group").len() == 1;
        let offsets = from_csv(&String::from_utf8_lossy(&bytes), group, single)
            .map_err(|line| Failure::Stderr(format!("{file}: {line}")))?;
        if offsets.is_empty() {
            complain(out, format!("No reset plan for group {group} found."))?;
        }
        return Ok(in_range(client, offsets, err).await?);
    }
    Ok(current(client, partitions, &committed).await?)
}

/// The partitions to reset; none when a file names them.
async fn scope(
    client: &Client,
    parsed: &Parsed,
    committed: &Committed,
) -> Result<Vec<TopicPartition>, Stop> {
    if parsed.has("all-topics") {
        Ok(committed.keys().cloned().collect())
    } else if parsed.has("topic") {
        wanted_partitions(client, parsed).await
    } else if parsed.has("from-file") {
        Ok(Vec::new())
    } else {
        let line = "One of the reset scopes should be defined: --all-topics, --topic.";
        Err(parsed.wrong(line).into())
    }
}

/// `shift` further than what is committed, which each of `partitions` must have.
fn shifted(
    parsed: &Parsed,
    partitions: Vec<TopicPartition>,
    committed: &Committed,
    shift: i64,
) -> Result<Offsets, Failure> {
    let one = |partition: TopicPartition| match committed.get(&partition) {
        Some(current) => Ok((partition, current.offset.saturating_add(shift))),
        None => Err(parsed.wrong(format!(
            "Cannot shift offset for partition {partition} since there is no current committed \
             offset"
        ))),
    };
    partitions.into_iter().map(one).collect()
}

/// What is committed, and the end where nothing is.
async fn current(
    client: &Client,
    partitions: Vec<TopicPartition>,
    committed: &Committed,
) -> Result<Offsets, Error> {
    let (have, lack): (Vec<_>, Vec<_>) =
        partitions.into_iter().partition(|partition| committed.contains_key(partition));
    let ends = at(client, &lack, OffsetSpec::Latest).await?;
    let current = have.into_iter().filter_map(|partition| {
        committed.get(&partition).map(|committed| (partition, committed.offset))
    });
    Ok(current.chain(ends).gather())
}

async fn wanted_partitions(client: &Client, parsed: &Parsed) -> Result<Vec<TopicPartition>, Stop> {
    let (whole, mut wanted) = topics_and_partitions(parsed)?;
    let mut topics = whole.clone();
    topics.extend(wanted.iter().map(|partition| partition.topic.clone()));
    topics.sort();
    topics.dedup();
    let metadata = client.metadata(Some(&topics)).await?;
    let refusal = |code, message| Error::from(BrokerError { code, message });
    if let Some(code) = metadata.topics.values().find_map(|topic| topic.error) {
        return Err(refusal(code, None).into());
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
        let line = format!("The partitions \"{}\" do not exist", unknown.join(","));
        return Err(refusal(ErrorCode::UnknownTopicOrPartition, Some(line)).into());
    }
    for name in whole {
        let ids = metadata.topics.get(&name).into_iter().flat_map(|topic| topic.partitions.keys());
        wanted.extend(ids.map(|id| TopicPartition::new(name.clone(), *id)));
    }
    Ok(wanted)
}

async fn at(
    client: &Client,
    partitions: &[TopicPartition],
    spec: OffsetSpec,
) -> Result<Offsets, Error> {
    let wanted =
        partitions.iter().map(|partition| (partition.clone(), spec)).gather::<BTreeMap<_, _>>();
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
) -> Result<Offsets, Stop> {
    let mut offsets = at(client, partitions, OffsetSpec::Timestamp(ms)).await?;
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
    offsets.extend(at(client, &after, OffsetSpec::Latest).await?);
    Ok(offsets)
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
            return Err(format!("{line:?}: the partition and the offset must be numbers"));
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
    }
}
