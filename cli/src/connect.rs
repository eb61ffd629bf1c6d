//! From options and property files to a connected client.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use letterbox_client::{Client, ClientOptions};
use letterbox_env::Env;

use crate::args::Parsed;
use crate::failure::Failure;

/// Client settings from files and the command line. Those that nobody reads are reported.
#[derive(Debug, Default)]
pub(crate) struct Properties {
    values: BTreeMap<String, String>,
    read: BTreeSet<String>,
}

impl Properties {
    /// The settings in `file`, when there is one, in Java's properties syntax.
    pub(crate) fn load(env: &Env, file: Option<&str>) -> Result<Self, Failure> {
        let mut properties = Self::default();
        if let Some(file) = file {
            let bytes = env.disk.read(Path::new(file)).map_err(|error| Failure::Stderr(format!("cannot read {file}: {error}")))?;
            for line in String::from_utf8_lossy(&bytes).lines() {
                let line = line.trim();
                if line.is_empty() || line.starts_with(['#', '!']) {
                    continue;
                }
                let (key, value) = line.split_once(['=', ':']).unwrap_or((line, ""));
                properties.set(key.trim(), value.trim());
            }
        }
        Ok(properties)
    }

    /// Adds `key=value` words, which win over what is there.
    pub(crate) fn add_words(&mut self, words: &[&str]) -> Result<(), Failure> {
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| Failure::Stderr(format!("{word:?} is not of the form key=value")))?;
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
                Err(_) => Err(Failure::Stderr(format!("Invalid value {text} for configuration {key}"))),
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
            Some(text) => {
                Err(Failure::Stderr(format!("Invalid value {text} for configuration {key}: Expected value to be either true or false")))
            }
        }
    }

    /// Connects; whatever was not read by then or before is reported on `warn` or, when it asks for security, refused.
    pub(crate) async fn connect(
        mut self,
        env: &Env,
        bootstrap: &str,
        client_id: &str,
        timeout: Option<Duration>,
    ) -> Result<Client, Failure> {
        if let Some(protocol) = self.get("security.protocol")
            && protocol != "PLAINTEXT"
        {
            let line = format!("security.protocol={protocol} is not supported yet; this version connects to PLAINTEXT listeners only");
            return Err(Failure::Stderr(line));
        }
        if let Some(key) = self.values.keys().find(|key| key.starts_with("sasl.") || key.starts_with("ssl.")) {
            return Err(Failure::Stderr(format!("{key} is not supported yet; this version connects to PLAINTEXT listeners only")));
        }
        let defaults = ClientOptions::default();
        let options = ClientOptions {
            client_id: self.get("client.id").unwrap_or_else(|| client_id.to_owned()),
            request_timeout: self.millis("request.timeout.ms")?.unwrap_or(defaults.request_timeout),
            api_timeout: timeout.or(self.millis("default.api.timeout.ms")?).unwrap_or(defaults.api_timeout),
            retry_backoff: self.millis("retry.backoff.ms")?.unwrap_or(defaults.retry_backoff),
            metadata_max_age: self.millis("metadata.max.age.ms")?.unwrap_or(defaults.metadata_max_age),
            connect_timeout: defaults.connect_timeout,
            connect_wait: defaults.connect_wait,
            response_bytes_max: defaults.response_bytes_max,
        };
        if let Some(key) = self.values.keys().find(|key| !self.read.contains(*key) && *key != "bootstrap.servers") {
            return Err(Failure::Stderr(format!("the client setting {key} is not supported by this tool; remove it")));
        }
        let bootstrap: Vec<String> =
            bootstrap.split(',').map(|address| address.trim().to_owned()).filter(|address| !address.is_empty()).collect();
        Client::connect(env.clone(), &bootstrap, options).await.map_err(|error| Failure::Stderr(error.to_string()))
    }
}

/// A client for an admin tool.
pub(crate) async fn admin(env: &Env, parsed: &Parsed, timeout: Option<Duration>) -> Result<Client, Failure> {
    let bootstrap = parsed.required("bootstrap-server")?.to_owned();
    let properties = Properties::load(env, parsed.value("command-config"))?;
    properties.connect(env, &bootstrap, "adminclient-1", timeout).await
}
