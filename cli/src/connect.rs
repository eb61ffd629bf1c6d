//! From options and property files to a connected client.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use letterbox_client::{Client, ClientOptions};
use letterbox_env::Env;
use tokio::time::Instant;

use crate::args::{Parsed, listed};
use crate::failure::Failure;
use crate::files::read_properties;

/// How long a tool goes on trying to connect, unless `default.api.timeout.ms` is shorter.
///
/// Kafka's tools try for a minute in silence. A broker that is started beside the tool, and the
/// rules of a Kubernetes Service, take some hundred milliseconds; whoever mistyped an address should
/// not wait long.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Client settings from files and the command line. Those that nobody reads are reported.
#[derive(Debug, Default)]
pub(crate) struct Properties {
    values: BTreeMap<String, String>,
    read: BTreeSet<String>,
}

impl Properties {
    /// The settings in the file that the first given one of `options` names.
    pub(crate) fn load(env: &Env, parsed: &Parsed, options: &[&str]) -> Result<Self, Failure> {
        let mut properties = Self::default();
        properties.add_file(env, parsed, options)?;
        Ok(properties)
    }

    /// Adds the settings in the file that the first given one of `options` names; they win over
    /// what is there.
    pub(crate) fn add_file(
        &mut self,
        env: &Env,
        parsed: &Parsed,
        options: &[&str],
    ) -> Result<(), Failure> {
        if let Some(file) = parsed.first(options) {
            self.values.extend(read_properties(env, file)?);
        }
        Ok(())
    }

    /// Adds `key=value` words, which win over what is there.
    pub(crate) fn add_words(&mut self, words: &[&str]) -> Result<(), Failure> {
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| Failure::Stderr(format!("{word:?} is not of the form key=value")))?;
            self.set(key.trim(), value);
        }
        Ok(())
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.values.insert(key.to_owned(), value.to_owned());
    }

    pub(crate) fn get(&mut self, key: &str) -> Option<String> {
        self.read.insert(key.to_owned());
        self.values.get(key).cloned()
    }

    pub(crate) fn number<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, Failure> {
        match self.get(key) {
            None => Ok(None),
            Some(text) => match text.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    Err(Failure::Stderr(format!("Invalid value {text} for configuration {key}")))
                }
            },
        }
    }

    pub(crate) fn millis(&mut self, key: &str) -> Result<Option<Duration>, Failure> {
        Ok(self.number(key)?.map(Duration::from_millis))
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>, Failure> {
        match self.get(key).map(|text| text.to_ascii_lowercase()).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(text) => Err(Failure::Stderr(format!(
                "Invalid value {text} for configuration {key}: Expected value to be either true or \
                 false"
            ))),
        }
    }

    /// Connects; says on `err` which settings were read by nobody: Kafka's tools pass over those as
    /// well.
    ///
    /// Refused is only what would drop security.
    pub(crate) async fn connect(
        mut self,
        env: &Env,
        bootstrap: &str,
        client_id: &str,
        timeout: Option<Duration>,
        err: &mut (dyn Write + Send),
    ) -> Result<Client, Failure> {
        if let Some(protocol) = self.get("security.protocol")
            && !protocol.eq_ignore_ascii_case("PLAINTEXT")
        {
            let line = format!(
                "security.protocol={protocol} is not supported yet; this version connects to \
                 PLAINTEXT listeners only"
            );
            return Err(Failure::Stderr(line));
        }
        let defaults = ClientOptions::default();
        let options = ClientOptions {
            client_id: self.get("client.id").unwrap_or_else(|| client_id.to_owned()),
            request_timeout: self.millis("request.timeout.ms")?.unwrap_or(defaults.request_timeout),
            api_timeout: timeout
                .or(self.millis("default.api.timeout.ms")?)
                .unwrap_or(defaults.api_timeout),
            retry_backoff: self.millis("retry.backoff.ms")?.unwrap_or(defaults.retry_backoff),
            metadata_max_age: self
                .millis("metadata.max.age.ms")?
                .unwrap_or(defaults.metadata_max_age),
            connect_timeout: defaults.connect_timeout,
            connect_wait: defaults.connect_wait,
            response_bytes_max: defaults.response_bytes_max,
        };
        // The address of the cluster comes from the command line, and how keys and values become
        // bytes from the tool.
        let elsewhere = [
            "bootstrap.servers",
            "key.deserializer",
            "key.serializer",
            "value.deserializer",
            "value.serializer",
        ];
        for key in self
            .values
            .keys()
            .filter(|key| !self.read.contains(*key) && !elsewhere.contains(&key.as_str()))
        {
            writeln!(err, "WARN The client setting {key} has no effect in this tool.")?;
        }
        let bootstrap: Vec<String> =
            listed(bootstrap).map(|address| without_protocol(address).to_owned()).collect();
        first_connection(env, &bootstrap, options, err).await
    }
}

/// Connects, and tries again for [`CONNECT_WAIT`] when nobody answers, which it says at once.
async fn first_connection(
    env: &Env,
    bootstrap: &[String],
    options: ClientOptions,
    err: &mut (dyn Write + Send),
) -> Result<Client, Failure> {
    let wait = CONNECT_WAIT.min(options.api_timeout);
    let give_up = Instant::now() + wait;
    let mut said = None;
    loop {
        let error = match Client::connect(env.clone(), bootstrap, options.clone()).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let text = error.to_string();
        let known = said.as_ref() == Some(&text);
        if !error.is_retriable() || Instant::now() + options.retry_backoff >= give_up {
            let gave_up = format!("Gave up after {wait:?}.");
            return Err(Failure::Stderr(if known { gave_up } else { text }));
        }
        if !known {
            writeln!(err, "{text}. Trying for up to {wait:?}.")?;
            err.flush()?;
            said = Some(text);
        }
        tokio::time::sleep(options.retry_backoff).await;
    }
}

/// `host:port` out of `PROTOCOL://host:port`, as Kafka's clients read it: the protocol is that of
/// `security.protocol`.
fn without_protocol(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, address)| address)
}

/// A client for an admin tool.
pub(crate) async fn admin(
    env: &Env,
    parsed: &Parsed,
    timeout: Option<Duration>,
    err: &mut (dyn Write + Send),
) -> Result<Client, Failure> {
    admin_with(env, parsed, &["command-config"], timeout, err).await
}

/// As [`admin`], with the property file in the first of `files` that was given.
pub(crate) async fn admin_with(
    env: &Env,
    parsed: &Parsed,
    files: &[&str],
    timeout: Option<Duration>,
    err: &mut (dyn Write + Send),
) -> Result<Client, Failure> {
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    let properties = Properties::load(env, parsed, files)?;
    properties.connect(env, &bootstrap, "adminclient-1", timeout, err).await
}

#[cfg(test)]
mod tests {
    use super::without_protocol;

    #[test]
    fn the_protocol_before_an_address_is_passed_over() {
        for address in ["PLAINTEXT://[::1]:9092", "[::1]:9092", "my-listener://[::1]:9092"] {
            assert_eq!(without_protocol(address), "[::1]:9092");
        }
    }
}
