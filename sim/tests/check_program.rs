//! `letterbox-check` as a script uses it: what it prints and how it exits.
#![allow(clippy::disallowed_methods, reason = "a test stands outside of the seam")]

use std::io::Write;
use std::process::{Command, Stdio};

/// Feeds `history` to the program; its exit code and what it printed.
fn check(history: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_letterbox-check"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(history.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

const ANY: &[&str] = &["--sends-ok-min", "1", "--reads-min", "1", "--faults-min", "0"];

/// One acknowledged record, read back by a scan at `offset`.
fn history(offset: i64) -> String {
    format!(
        r#"{{"process":"p","op":1,"phase":"invoke","time_ns":1,"kind":"send","idempotent":true,"records":[{{"topic":"t","partition":0,"value":7}}]}}
{{"process":"p","op":1,"phase":"ok","time_ns":2,"kind":"send","idempotent":true,"records":[{{"topic":"t","partition":0,"value":7,"offset":0}}]}}
{{"process":"s","op":1,"phase":"ok","time_ns":3,"kind":"scan","broker":"b","topic":"t","partition":0,"start":0,"end":1,"records":[{{"topic":"t","partition":0,"offset":{offset},"payload":"lb1 7 t 0 3c9830d4"}}]}}
"#
    )
}

#[test]
fn a_clean_history_exits_with_0() {
    let (code, text) = check(&history(0), ANY);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("1 records acknowledged") && text.contains("no anomaly found"), "{text}");
}

#[test]
fn an_anomaly_is_named_and_exits_with_1() {
    let (code, text) = check(&history(4), ANY);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("inconsistent-offset: 1\n") && text.contains("ANOMALIES FOUND"),
        "{text}"
    );
}

#[test]
fn a_run_with_too_little_in_it_has_failed() {
    for arguments in [&["--faults-min", "0"][..], &["--sends-ok-min", "1", "--reads-min", "1"]] {
        let (code, text) = check(&history(0), arguments);
        assert_eq!(code, Some(1));
        assert!(text.contains("vacuous: "), "{text}");
    }
    assert_eq!(check("", &[]).0, Some(1));
}

#[test]
fn a_line_that_is_no_event_is_named_and_exits_with_2() {
    let (code, text) = check(&format!("{}{{\"process\":", history(0)), ANY);
    assert_eq!(code, Some(2));
    assert!(text.contains("line 4"), "{text}");
}
