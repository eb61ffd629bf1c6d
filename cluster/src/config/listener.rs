//! `listeners`, `advertised.listeners` and the protocol map.

use letterbox_env::{join_address, split_listener};

use super::Problem;

/// How bytes travel on a listener. TLS and SASL are not offered yet, so they cannot be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// No encryption, no authentication.
    Plaintext,
}

/// One `NAME://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The listener's name, upper case as in Kafka.
    pub name: String,
    /// Host to bind to or to advertise; empty binds every interface.
    pub host: String,
    /// The port; 0 in `listeners` takes a free one.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.name, join_address(&self.host, self.port))
    }
}

/// Reads a comma-separated list of endpoints of the setting `key`.
pub(super) fn parse_endpoints(key: &'static str, value: &str) -> Result<Vec<Endpoint>, Problem> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let bad = |why: &str| {
            Problem::value(
                key,
                value,
                format!("\"{item}\" {why}; write NAME://host:port, for example PLAINTEXT://:9092"),
            )
        };
        let (name, host, port) = split_listener(item).map_err(bad)?;
        if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            return Err(bad("has no usable name"));
        }
        let name = name.to_ascii_uppercase();
        if endpoints.iter().any(|other| other.name == name) {
            return Err(bad("uses a listener name that is already taken"));
        }
        let host = host.to_owned();
        if let Some(taken) = port_taken(&endpoints, &host, port).filter(|_| key == "listeners") {
            return Err(bad(&taken));
        }
        endpoints.push(Endpoint { name, host, port });
    }
    Ok(endpoints)
}

/// That a listener already uses this address, as a part of a sentence.
pub(super) fn port_taken(listeners: &[Endpoint], host: &str, port: u16) -> Option<String> {
    let shared = |other: &&Endpoint| other.port == port && same_address(&other.host, host);
    let other = listeners.iter().find(shared).filter(|_| port != 0)?;
    Some(format!("uses port {port}, which listener {} already uses", other.name))
}

/// Whether two hosts name, as far as their spelling tells, an address that both would listen on.
/// Two interfaces, or IPv4 and IPv6, may have one port each (KIP-797). A name may be any address.
fn same_address(a: &str, b: &str) -> bool {
    let everything = |host: &str| host.is_empty();
    let (is_a_v6, is_b_v6) = (a.contains(':'), b.contains(':'));
    a == b
        || everything(a)
        || everything(b)
        || (is_a_v6 == is_b_v6 && [a, b].iter().any(|host| matches!(*host, "0.0.0.0" | "::")))
}

/// The protocol of each listener name: the map's entry, or the name itself when it is a protocol.
pub(super) fn protocol_of(
    name: &str,
    map: &str,
    controllers: &[String],
) -> Result<Protocol, Problem> {
    const KEY: &str = "listener.security.protocol.map";
    let mapped = map
        .split(',')
        .filter_map(|pair| pair.trim().split_once(':'))
        .find(|(key, _)| key.trim().eq_ignore_ascii_case(name));
    match mapped.map_or(name, |(_, protocol)| protocol.trim()).to_ascii_uppercase().as_str() {
        "PLAINTEXT" => Ok(Protocol::Plaintext),
        protocol @ ("SSL" | "SASL_PLAINTEXT" | "SASL_SSL") => Err(Problem::value(
            KEY,
            map,
            format!(
                "listener {name} asks for {protocol}, which this version does not offer; use \
                 PLAINTEXT"
            ),
        )),
        // KRaft files name a controller listener without mapping it.
        _ if mapped.is_none() && controllers.iter().any(|controller| controller == name) => {
            Ok(Protocol::Plaintext)
        }
        _ => Err(Problem::value(
            KEY,
            map,
            format!("listener {name} has no protocol; add {name}:PLAINTEXT"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_in_all_their_shapes() {
        let endpoints = parse_endpoints(
            "listeners",
            "PLAINTEXT://:9092, external://[::1]:9094,CONTROLLER://host.example:9093",
        )
        .unwrap();
        let shown: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            ["PLAINTEXT://:9092", "EXTERNAL://[::1]:9094", "CONTROLLER://host.example:9093"]
        );
        for (bad, said) in [
            (":9092", "has no ://"),
            ("A://host", "has no port"),
            ("A://:99999", "0 to 65535"),
            ("A://:1,a://:2", "already taken"),
            ("A://:1,B://:1", "port 1"),
            ("A://host:1,B://host:1", "port 1"),
            ("A://0.0.0.0:1,B://127.0.0.1:1", "port 1"),
            ("A://:1,B://[::1]:1", "port 1"),
            ("A://[::]:1,B://[::1]:1", "port 1"),
        ] {
            let problem = parse_endpoints("listeners", bad).unwrap_err().to_string();
            assert!(problem.contains(said), "{bad}: {problem}");
        }
    }

    #[test]
    fn one_port_serves_two_hosts_and_both_families() {
        for listeners in [
            "A://127.0.0.1:9092,B://192.168.1.5:9092",
            "A://0.0.0.0:9092,B://[::]:9092",
            "A://127.0.0.1:9092,B://[::1]:9092",
            "A://inside.example:9092,B://outside.example:9092",
            "A://:0,B://:0",
        ] {
            assert_eq!(
                parse_endpoints("listeners", listeners).map(|all| all.len()),
                Ok(2),
                "{listeners}"
            );
        }
    }

    #[test]
    fn protocols_that_are_not_offered_are_refused_by_name() {
        assert!(protocol_of("SSL", "", &[]).unwrap_err().to_string().contains("SSL"));
        assert!(
            protocol_of("OUT", "OUT:SASL_SSL", &[]).unwrap_err().to_string().contains("SASL_SSL")
        );
        assert!(
            protocol_of("OUT", "IN:PLAINTEXT", &[])
                .unwrap_err()
                .to_string()
                .contains("OUT:PLAINTEXT")
        );
        assert!(protocol_of("OUT", "out:plaintext", &[]).is_ok());
        assert!(protocol_of("CTRL", "OUT:PLAINTEXT", &["CTRL".to_owned()]).is_ok());
        assert!(protocol_of("CTRL", "CTRL:SASL_SSL", &["CTRL".to_owned()]).is_err());
    }
}
