//! `--describe`: offsets, members, state.

use std::collections::BTreeMap;
use std::io::Write;

use letterbox_client::{
    Client, CommittedOffset, DescribedGroup, Error, IsolationLevel, OffsetSpec, TopicPartition,
};
use letterbox_env::{Gather, join_address};

use super::{complain, failed_call, group_names};
use crate::args::Parsed;
use crate::failure::Failure;

pub(super) async fn run(
    client: &Client,
    parsed: &Parsed,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let mut groups = BTreeMap::new();
    let names = match group_names(client, parsed).await {
        Ok(names) => names,
        Err(error) => return failed_call(out, &error),
    };
    for name in names {
        match client.describe_group(&name).await {
            Ok(group) => drop(groups.insert(name, group)),
            Err(error) => return failed_call(out, &error),
        }
    }
    let verbose = parsed.has("verbose");
    for group in groups.values() {
        let result = if parsed.has("members") {
            members(group, verbose, out, err)
        } else if parsed.has("state") {
            state(client, group, verbose, out, err).await
        } else {
            match rows(client, group).await {
                Ok(rows) => offsets(group, &rows, verbose, out, err),
                Err(error) => failed_call(out, &error),
            }
        };
        result?;
    }
    Ok(())
}

/// Says what is remarkable about the state; tells whether there is something to print.
fn has_rows(
    group: &DescribedGroup,
    count: usize,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<bool, Failure> {
    let name = &group.group;
    match group.state.as_str() {
        "Dead" => complain(out, format!("Consumer group '{name}' does not exist."))?,
        "Empty" => {
            out.flush()?;
            writeln!(err, "\nConsumer group '{name}' has no active members.")?;
        }
        "PreparingRebalance" | "CompletingRebalance" | "Assigning" | "Reconciling" => {
            out.flush()?;
            writeln!(err, "\nWarning: Consumer group '{name}' is rebalancing.")?;
        }
        _ => {}
    }
    Ok(group.state != "Dead" && count > 0)
}

/// One line of the offsets table; `None` prints as `-`.
struct Row {
    partition: TopicPartition,
    committed: Option<CommittedOffset>,
    end: Option<i64>,
    member: Option<(String, String, String)>,
}

async fn rows(client: &Client, group: &DescribedGroup) -> Result<Vec<Row>, Error> {
    let committed = client.list_group_offsets(&group.group, None).await?;
    let mut owned = Vec::new();
    let mut members: Vec<_> =
        group.members.iter().filter(|member| !member.assignment.is_empty()).collect();
    members.sort_by_key(|member| std::cmp::Reverse(member.assignment.len()));
    for member in members {
        let mut partitions = member.assignment.clone();
        partitions.sort();
        let who = (member.member_id.clone(), member.host.clone(), member.client_id.clone());
        owned.extend(partitions.into_iter().map(|partition| (partition, Some(who.clone()))));
    }
    let unowned: Vec<_> = committed
        .keys()
        .filter(|partition| !owned.iter().any(|(other, _)| other == *partition))
        .cloned()
        .collect();
    owned.extend(unowned.into_iter().map(|partition| (partition, None)));
    let wanted = owned
        .iter()
        .map(|(partition, _)| (partition.clone(), OffsetSpec::Latest))
        .gather::<BTreeMap<_, _>>();
    let ends = if wanted.is_empty() {
        BTreeMap::new()
    } else {
        client.list_offsets(&wanted, IsolationLevel::ReadUncommitted).await?
    };
    let row = |(partition, member): (TopicPartition, _)| {
        let end = ends.get(&partition).and_then(|end| end.as_ref().ok()?.offset);
        Row { committed: committed.get(&partition).cloned(), end, member, partition }
    };
    Ok(owned.into_iter().map(row).collect())
}

fn offsets(
    group: &DescribedGroup,
    rows: &[Row],
    verbose: bool,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    if !has_rows(group, rows.len(), out, err)? {
        return Ok(());
    }
    let name = group.group.as_str();
    let widest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0).max(15);
    let member = |row: &Row| {
        row.member.clone().unwrap_or_else(|| ("-".to_owned(), "-".to_owned(), "-".to_owned()))
    };
    let (w1, w2) =
        (name.len().max(15), widest(&mut rows.iter().map(|row| row.partition.topic.len())));
    let (w3, w4) = (
        widest(&mut rows.iter().map(|row| member(row).0.len())),
        widest(&mut rows.iter().map(|row| member(row).1.len())),
    );
    let mut line = |cells: [&str; 10]| -> std::io::Result<()> {
        let [group, topic, partition, epoch, current, end, lag, consumer, host, client] = cells;
        write!(out, "\n{group:<w1$} {topic:<w2$} {partition:<10} ")?;
        if verbose {
            write!(out, "{epoch:<15} ")?;
        }
        write!(out, "{current:<15} {end:<15} {lag:<15} {consumer:<w3$} {host:<w4$} {client}")
    };
    line([
        "GROUP",
        "TOPIC",
        "PARTITION",
        "LEADER-EPOCH",
        "CURRENT-OFFSET",
        "LOG-END-OFFSET",
        "LAG",
        "CONSUMER-ID",
        "HOST",
        "CLIENT-ID",
    ])?;
    let text =
        |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for row in rows {
        let current = row.committed.as_ref().map(|committed| committed.offset);
        let epoch = row
            .committed
            .as_ref()
            .map(|committed| i64::from(committed.leader_epoch))
            .filter(|epoch| *epoch >= 0);
        let lag = current.and_then(|current| Some(row.end?.saturating_sub(current)));
        let (consumer, host, client) = member(row);
        let partition = row.partition.partition.to_string();
        line([
            name,
            &row.partition.topic,
            &partition,
            &text(epoch),
            &text(current),
            &text(row.end),
            &text(lag),
            &consumer,
            &host,
            &client,
        ])?;
    }
    Ok(writeln!(out)?)
}

fn members(
    group: &DescribedGroup,
    verbose: bool,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let wide = has_rows(group, group.members.len(), out, err)?;
    let listed = if wide { group.members.as_slice() } else { &[] };
    let widest = |at_least: usize, lengths: &mut dyn Iterator<Item = usize>| {
        lengths.max().unwrap_or(0).max(at_least)
    };
    let with_instance = listed.iter().any(|member| member.instance_id.is_some());
    let w1 = if listed.is_empty() { 15 } else { group.group.len().max(15) };
    let w2 = widest(15, &mut listed.iter().map(|member| member.member_id.len()));
    let w3 = widest(
        17,
        &mut listed.iter().map(|member| member.instance_id.as_deref().unwrap_or("").len()),
    );
    let w4 = widest(15, &mut listed.iter().map(|member| member.host.len()));
    let w5 = widest(15, &mut listed.iter().map(|member| member.client_id.len()));
    let w6 = widest(20, &mut listed.iter().map(|member| assignment(&member.assignment).len()));
    let mut line = |cells: [&str; 10]| -> std::io::Result<()> {
        let [group, consumer, instance, host, client, count, epoch, current, target_epoch, target] =
            cells;
        write!(out, "{group:<w1$} {consumer:<w2$} ")?;
        if with_instance {
            write!(out, "{instance:<w3$} ")?;
        }
        write!(out, "{host:<w4$} {client:<w5$} {count:<15} ")?;
        if verbose {
            write!(out, "{epoch:<15} {current:<w6$} {target_epoch:<15} {target:<20}")?;
        }
        writeln!(out)
    };
    let header = [
        "CONSUMER-ID",
        "GROUP-INSTANCE-ID",
        "HOST",
        "CLIENT-ID",
        "#PARTITIONS",
        "CURRENT-EPOCH",
        "CURRENT-ASSIGNMENT",
        "TARGET-EPOCH",
        "TARGET-ASSIGNMENT",
    ];
    let [a, b, c, d, e, f, g, h, i] = header;
    // The header begins after an empty line.
    line_break(&mut line, ["\nGROUP", a, b, c, d, e, f, g, h, i], w1)?;
    for member in listed {
        let (count, assigned) =
            (member.assignment.len().to_string(), assignment(&member.assignment));
        let instance = member.instance_id.as_deref().unwrap_or("");
        line([
            &group.group,
            &member.member_id,
            instance,
            &member.host,
            &member.client_id,
            &count,
            "-",
            &assigned,
            "-",
            "-",
        ])?;
    }
    Ok(())
}

/// Pads a first cell that begins with a line break as if it did not.
fn line_break(
    line: &mut impl FnMut([&str; 10]) -> std::io::Result<()>,
    mut cells: [&str; 10],
    width: usize,
) -> std::io::Result<()> {
    let padded = format!("{:<1$}", cells[0], width + 1);
    cells[0] = "";
    let [_, a, b, c, d, e, f, g, h, i] = cells;
    line([&padded, a, b, c, d, e, f, g, h, i])
}

/// `topic:0,1;other:3`, or `-` for nothing.
fn assignment(partitions: &[TopicPartition]) -> String {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        topics.entry(&partition.topic).or_default().push(partition.partition);
    }
    if topics.is_empty() {
        return "-".to_owned();
    }
    let text = topics.into_iter().map(|(topic, mut ids)| {
        ids.sort_unstable();
        format!("{topic}:{}", ids.iter().map(i32::to_string).collect::<Vec<_>>().join(","))
    });
    text.collect::<Vec<_>>().join(";")
}

async fn state(
    client: &Client,
    group: &DescribedGroup,
    verbose: bool,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    if !has_rows(group, 1, out, err)? {
        return Ok(());
    }
    let brokers = client.metadata(Some(&[])).await?.brokers;
    let address = brokers
        .get(&group.coordinator)
        .map_or_else(|| "-".to_owned(), |broker| join_address(&broker.host, broker.port));
    let coordinator = format!("{address}  ({})", group.coordinator);
    let (w1, w2) = (group.group.len().max(15), coordinator.len().max(25));
    let strategy = if group.protocol.is_empty() { "-" } else { &group.protocol };
    let count = group.members.len().to_string();
    let mut line = |name: &str,
                    coordinator: &str,
                    strategy: &str,
                    state: &str,
                    epochs: [&str; 2],
                    count: &str|
     -> std::io::Result<()> {
        write!(out, "\n{name:<w1$} {coordinator:<w2$} {strategy:<20} {state:<20} ")?;
        if verbose {
            write!(out, "{:<15} {:<25} ", epochs[0], epochs[1])?;
        }
        write!(out, "{count}")
    };
    line(
        "GROUP",
        "COORDINATOR (ID)",
        "ASSIGNMENT-STRATEGY",
        "STATE",
        ["GROUP-EPOCH", "TARGET-ASSIGNMENT-EPOCH"],
        "#MEMBERS",
    )?;
    line(&group.group, &coordinator, strategy, &group.state, ["-", "-"], &count)?;
    Ok(writeln!(out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_grouped_and_sorted() {
        let partitions =
            [TopicPartition::new("b", 1), TopicPartition::new("a", 2), TopicPartition::new("a", 0)];
        assert_eq!(assignment(&partitions), "a:0,2;b:1");
        assert_eq!(assignment(&[]), "-");
    }

    #[test]
    fn offsets_are_printed_in_kafkas_columns() {
        let group = DescribedGroup {
            group: "g".into(),
            state: "Stable".into(),
            protocol_type: "consumer".into(),
            protocol: "range".into(),
            members: vec![],
            coordinator: 1,
        };
        let committed =
            Some(CommittedOffset { offset: 3, leader_epoch: 0, metadata: String::new() });
        let rows = [Row {
            partition: TopicPartition::new("t", 0),
            committed,
            end: Some(10),
            member: None,
        }];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        offsets(&group, &rows, false, &mut out, &mut err).unwrap();
        let expected = "\nGROUP           TOPIC           PARTITION  CURRENT-OFFSET  \
            LOG-END-OFFSET  LAG             CONSUMER-ID     HOST            CLIENT-ID\ng               \
            t               0          3               10              7               -               \
            -               -\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
