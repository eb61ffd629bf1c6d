//! What `letterbox up` shows: a line that moves for each cluster and topic on a terminal, plain
//! lines elsewhere.
//!
//! Progress goes to standard error; the addresses, once everything is ready, to standard output.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kube::ResourceExt as _;

use super::file::Documents;
use crate::api::{
    ClusterStorage, DeletionPolicy, KafkaCluster, KafkaClusterStatus, KafkaTopic, ListenerType,
    READY, find_condition, is_true, needless_setting,
};
use crate::desired::POOL;
use crate::platform::ports::ClusterPorts;
use crate::reconcile::TopicPass;

pub(super) struct Say {
    bars: Option<MultiProgress>,
    shown: BTreeMap<String, (String, Option<ProgressBar>)>,
    told: String,
}

impl Say {
    pub(super) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, shown: BTreeMap::new(), told: String::new() }
    }

    pub(super) fn line(&self, text: &str) {
        match &self.bars {
            // A terminal that went away is nobody to tell.
            Some(bars) => drop(bars.println(text)),
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    /// What the file asks for that a local process cannot give.
    pub(super) fn notes(&self, documents: &Documents) {
        for cluster in &documents.clusters {
            self.note("KafkaCluster", &cluster.name_any(), &ignored_of_cluster(cluster));
            if let Some(needless) = needless_setting(&cluster.spec) {
                self.line(&format!("KafkaCluster {}: {needless}", cluster.name_any()));
            }
        }
        for topic in &documents.topics {
            let ignored = (topic.spec.deletion_policy == DeletionPolicy::Delete)
                .then(|| "spec.deletionPolicy".to_owned());
            self.note("KafkaTopic", &topic.name_any(), ignored.as_slice());
        }
    }

    fn note(&self, kind: &str, name: &str, ignored: &[String]) {
        if !ignored.is_empty() {
            self.line(&format!(
                "{kind} {name}: for Kubernetes only, and without effect here: {}",
                ignored.join(", ")
            ));
        }
    }

    pub(super) fn cluster(&mut self, cluster: &KafkaCluster, status: &KafkaClusterStatus) {
        let servers: Vec<&str> =
            status.listeners.iter().map(|listener| listener.bootstrap_servers.as_str()).collect();
        let done = is_true(&status.conditions, READY);
        let waits = || {
            find_condition(&status.conditions, READY)
                .map(|ready| ready.message.clone())
                .unwrap_or_default()
        };
        let text = if done {
            format!("Ready at {}", servers.join(" "))
        } else {
            format!("{}: {}", status.phase, waits())
        };
        self.show(&format!("KafkaCluster {}", cluster.name_any()), &text, done);
    }

    pub(super) fn topic(&mut self, topic: &KafkaTopic, pass: Option<&TopicPass>, message: &str) {
        let ready = pass.filter(|pass| is_true(&pass.status.conditions, READY));
        let partitions = ready.and_then(|pass| pass.status.partitions);
        let text = match (ready, partitions) {
            (_, Some(partitions)) => format!("Ready with {partitions} partitions"),
            (Some(_), None) => "created; not on every broker yet".to_owned(),
            (None, None) => message.to_owned(),
        };
        self.show(&format!("KafkaTopic {}", topic.name_any()), &text, partitions.is_some());
    }

    /// Once, whenever everything has become ready: where clients connect.
    pub(super) fn ready(&mut self, documents: &Documents, ports_of: impl Fn(&str) -> ClusterPorts) {
        let mut text = String::new();
        for cluster in &documents.clusters {
            for listener in cluster.status.iter().flat_map(|status| &status.listeners) {
                text.push_str(&format!(
                    "{} {} bootstrap.servers={}\n",
                    cluster.name_any(),
                    listener.name,
                    listener.bootstrap_servers
                ));
            }
            let brokers = ports_of(&cluster.name_any()).brokers;
            for (id, ports) in brokers.iter().filter(|_| brokers.len() > 1) {
                let clients =
                    ports.clients.iter().map(|(name, port)| format!("{name}=localhost:{port} "));
                text.push_str(&format!(
                    "{} {POOL}-{id} {}admin=localhost:{}\n",
                    cluster.name_any(),
                    clients.collect::<String>(),
                    ports.admin
                ));
            }
        }
        if text != self.told {
            let print = || {
                drop(write!(std::io::stdout(), "{text}").and_then(|()| std::io::stdout().flush()))
            };
            match &self.bars {
                Some(bars) => bars.suspend(print),
                None => print(),
            }
            self.told = text;
        }
    }

    pub(super) fn stopping(&mut self) {
        for (_, bar) in self.shown.values() {
            bar.iter().for_each(ProgressBar::finish_and_clear);
        }
        self.shown.clear();
        self.line("stopping: brokers complete requests in progress (Ctrl-C again kills them)");
    }

    pub(super) fn stopped(&self) {
        self.line("stopped");
    }

    fn show(&mut self, subject: &str, text: &str, done: bool) {
        let bars = self.bars.as_ref();
        let entry = self.shown.entry(subject.to_owned()).or_insert_with(|| {
            let bar = bars.map(|bars| {
                let bar = bars.add(ProgressBar::new_spinner());
                if let Ok(style) =
                    ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})")
                {
                    bar.set_style(style);
                }
                bar.set_prefix(subject.to_owned());
                bar
            });
            (String::new(), bar)
        });
        if let Some(bar) = &entry.1 {
            // The time shown is how long the last wait took.
            match (done, bar.is_finished()) {
                (true, false) => bar.finish_with_message(text.to_owned()),
                (true, true) => bar.set_message(text.to_owned()),
                (false, true) => bar.reset(),
                (false, false) => {
                    bar.set_message(text.to_owned());
                    bar.tick();
                }
            }
        } else if entry.0 != text {
            drop(writeln!(std::io::stderr(), "{subject}: {text}"));
        }
        text.clone_into(&mut entry.0);
    }
}

/// The fields of `cluster` that ask for something that a local process does not have. Ports are
/// given from the first one up, whatever the file says.
fn ignored_of_cluster(cluster: &KafkaCluster) -> Vec<String> {
    let (spec, usual) = (&cluster.spec, ClusterStorage::default());
    let mut ignored = Vec::new();
    let mut add = |is_set: bool, field: String| ignored.extend(is_set.then_some(field));
    add(spec.version.is_some(), "spec.version".to_owned());
    add(spec.image.is_some(), "spec.image".to_owned());
    add(spec.storage.size != usual.size, "spec.storage.size".to_owned());
    add(spec.storage.class.is_some(), "spec.storage.class".to_owned());
    add(
        spec.storage.deletion_policy != usual.deletion_policy,
        "spec.storage.deletionPolicy".to_owned(),
    );
    for (index, listener) in spec.listeners.iter().enumerate() {
        let at = |field: &str| format!("spec.listeners[{index}].{field}");
        add(listener.port != 9092, at("port"));
        add(listener.type_ != ListenerType::Internal, at("type"));
        add(listener.bootstrap.is_some(), at("bootstrap"));
        add(!listener.brokers.is_empty(), at("brokers"));
    }
    add(!spec.resources.is_empty(), "spec.resources".to_owned());
    ignored
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_without_effect_is_named() {
        let ignored = |spec: serde_json::Value| {
            ignored_of_cluster(&KafkaCluster::new("a", serde_json::from_value(spec).unwrap()))
        };
        assert!(ignored(json!({"config": {"num.partitions": "3"}, "listeners": [{"name": "plain", "port": 9092}]})).is_empty());
        let all = ignored(json!({
            "version": "1", "image": "a:1", "resources": {"limits": {"cpu": "1"}},
            "storage": {"size": "1Gi", "class": "a", "deletionPolicy": "Delete"},
            "listeners": [
                {"name": "plain", "port": 9093},
                {"name": "outside", "port": 9092, "type": "nodeport", "bootstrap": {}, "brokers": [{"broker": 0}]},
            ],
        }));
        let storage = ["spec.storage.size", "spec.storage.class", "spec.storage.deletionPolicy"];
        let listeners = [
            "spec.listeners[0].port",
            "spec.listeners[1].type",
            "spec.listeners[1].bootstrap",
            "spec.listeners[1].brokers",
        ];
        assert_eq!(
            all,
            [&["spec.version", "spec.image"][..], &storage, &listeners, &["spec.resources"]]
                .concat()
        );
    }
}
