//! Reading options and ending as Kafka's tools do, for tools that live elsewhere (those that need
//! the broker's own code).

use std::io::Write;

pub use crate::args::{Command, Grammar, Parsed, Spec, Takes};
pub use crate::failure::Failure;

/// The exit code of a tool; prints why it failed.
pub fn exit_code(
    result: Result<i32, Failure>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> i32 {
    let code = match result {
        Ok(code) => code,
        Err(failure) => failure.report(stdout, stderr),
    };
    // A closed pipe (`| head`) is not worth a complaint.
    let _ = stdout.flush();
    let _ = stderr.flush();
    code
}
