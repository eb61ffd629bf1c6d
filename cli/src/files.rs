//! Files that options name.

use std::path::Path;

use letterbox_client::properties::parse_properties;
use letterbox_env::Env;

use crate::failure::Failure;

/// What is in `file`.
pub(crate) fn read(env: &Env, file: &str) -> Result<Vec<u8>, Failure> {
    env.disk
        .read(Path::new(file))
        .map_err(|error| Failure::Stderr(format!("cannot read {file}: {error}")))
}

/// The settings in `file`, a property file of Java's.
pub(crate) fn read_properties(env: &Env, file: &str) -> Result<Vec<(String, String)>, Failure> {
    parse_properties(read(env, file)?).map_err(|error| Failure::Stderr(format!("{file}, {error}")))
}
