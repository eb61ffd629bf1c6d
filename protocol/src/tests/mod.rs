//! Tests of the wire as a whole: every API and version, with messages made from the schema table
//! and from the codec.

mod fast_path;
mod make;
mod seeds;
mod walk;

use super::schema::{self, Kind};
use super::schema_table::{REQUESTS, RESPONSES};
use super::{apis, codec_range};

#[test]
fn nothing_is_advertised_beyond_kafka_or_the_codec() {
    for api in apis::APIS {
        let codec = codec_range(api.key).unwrap();
        assert!(
            codec.min <= api.min && api.max <= codec.max,
            "{}: the codec knows {codec}",
            api.name
        );
        for (table, suffix) in [(REQUESTS, "Request"), (RESPONSES, "Response")] {
            let message = schema::find(table, api.key).unwrap();
            assert_eq!(message.name, format!("{}{suffix}", api.name));
            assert!(
                message.versions.contains(api.min) && message.versions.contains(api.max),
                "{}: Kafka has {:?}",
                api.name,
                message.versions
            );
            assert_eq!(message.flexible.0, api.flexible_min, "{}", api.name);
        }
        assert!(api.advertised_min <= api.min && api.min <= api.max, "{}", api.name);
        assert!(
            api.advertised_min == api.min || api.key == apis::PRODUCE,
            "{}: only Produce lists what it refuses",
            api.name
        );
    }
}

/// The codec reads such a version as the one before it; every field must be in both or in neither.
#[test]
fn versions_that_look_like_the_one_before_do() {
    fn visit(kind: &Kind, version: i16, name: &str) {
        match kind {
            Kind::Array(element) => visit(element, version, name),
            Kind::Struct(fields) => {
                for field in *fields {
                    for versions in [field.versions, field.nullable] {
                        assert_eq!(
                            versions.contains(version),
                            versions.contains(version - 1),
                            "{name} v{version}: {}",
                            field.name
                        );
                    }
                    visit(&field.kind, version, name);
                }
            }
            _ => {}
        }
    }
    for (key, version) in super::codec::SAME_AS_BEFORE {
        for message in
            [schema::find(REQUESTS, *key).unwrap(), schema::find(RESPONSES, *key).unwrap()]
        {
            assert!(message.flexible.contains(*version - 1), "{}", message.name);
            visit(&Kind::Struct(message.fields), *version, message.name);
        }
    }
}

/// `LETTERBOX_UPDATE=1 cargo test --workspace --lib made_from_the_table_of_apis` writes it.
#[test]
#[allow(clippy::disallowed_methods, reason = "a page of the repository")]
fn the_table_in_the_readme_is_made_from_the_table_of_apis() {
    const HEAD: &str = "| API | versions | API | versions |\n|---|---|---|---|\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let kept = std::fs::read_to_string(path).unwrap();
    let (before, rest) = kept.split_once(HEAD).expect("README.md has lost its table of APIs");
    let (_, after) = rest.split_once("\n\n").unwrap();
    let cell = |api: &apis::Api| match api.min == api.max {
        true => format!("| {} | {} ", api.name, api.min),
        false => format!("| {} | {}–{} ", api.name, api.min, api.max),
    };
    let (left, right) = apis::APIS.split_at(apis::APIS.len().div_ceil(2));
    let right = right.iter().map(cell).chain(std::iter::once("| | ".to_owned()));
    let rows: Vec<_> = left.iter().zip(right).map(|(l, r)| format!("{}{r}|", cell(l))).collect();
    let made = format!("{before}{HEAD}{}\n\n{after}", rows.join("\n"));
    if std::env::var_os("LETTERBOX_UPDATE").is_some() {
        std::fs::write(path, &made).unwrap();
    } else {
        assert!(kept == made, "README.md does not tell what is served; see CONTRIBUTING.md");
    }
}

#[test]
fn tables_are_sorted_by_key_so_that_they_can_be_searched() {
    assert!(apis::APIS.is_sorted_by(|a, b| a.key < b.key));
    assert!(REQUESTS.is_sorted_by(|a, b| a.key < b.key));
    assert!(RESPONSES.is_sorted_by(|a, b| a.key < b.key));
}

#[test]
fn response_headers_follow_the_version() {
    let versions = |key: i16, version| {
        apis::find(key)
            .map(|api| (api.request_header_version(version), api.response_header_version(version)))
    };
    assert_eq!(versions(3, 8), Some((1, 0)));
    assert_eq!(versions(3, 9), Some((2, 1)));
    assert_eq!(versions(18, 3), Some((2, 0)), "ApiVersions answers with header 0 always");
    assert_eq!(versions(60, 0), Some((2, 1)));
}

/// The walk bounds a count by the bytes that are left, so an element must take some.
#[test]
fn every_element_takes_at_least_one_byte() {
    fn least(kind: &Kind, version: i16, flexible: bool) -> usize {
        match kind {
            Kind::Fixed(size) => *size,
            Kind::Str | Kind::Blob | Kind::Records | Kind::Array(_) => 1,
            Kind::Struct(fields) => {
                let placed =
                    fields.iter().filter(|f| f.tag.is_none() && f.versions.contains(version));
                placed.map(|f| least(&f.kind, version, flexible)).sum::<usize>()
                    + usize::from(flexible)
            }
        }
    }
    fn visit(kind: &Kind, version: i16, flexible: bool, name: &str) {
        match kind {
            Kind::Array(element) => {
                assert!(least(element, version, flexible) >= 1, "{name} v{version}");
                visit(element, version, flexible, name);
            }
            Kind::Struct(fields) => fields
                .iter()
                .filter(|f| f.versions.contains(version))
                .for_each(|f| visit(&f.kind, version, flexible, f.name)),
            _ => {}
        }
    }
    for message in REQUESTS.iter().chain(RESPONSES) {
        for version in message.versions.0..=message.versions.1 {
            visit(
                &Kind::Struct(message.fields),
                version,
                message.flexible.contains(version),
                message.name,
            );
        }
    }
}

/// Runs the generator's own check; without python3 or the kafka-clients jar it says so.
#[test]
#[allow(clippy::disallowed_methods, reason = "the generator is another program")]
fn the_schema_table_is_what_kafka_publishes() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/generate.py");
    match std::process::Command::new("python3").args([script, "--check"]).output() {
        Ok(out) => {
            eprint!("{}", String::from_utf8_lossy(&out.stdout));
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        Err(e) => eprintln!("not run: python3: {e}"),
    }
}
