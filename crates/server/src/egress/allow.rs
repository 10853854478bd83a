//! What the operator lets users reach beside public addresses: names, addresses and networks.

use std::net::IpAddr;

use ipnet::IpNet;

#[derive(Debug, Default)]
pub(super) struct Allowed {
    names: Vec<String>,
    networks: Vec<IpNet>,
}

impl Allowed {
    /// Each entry is `hooks.example.internal`, `127.0.0.1`, `::1` or `10.1.0.0/16`.
    pub(super) fn parse(entries: &[String]) -> Result<Self, String> {
        let mut allowed = Self::default();
        for entry in entries {
            let text = entry.trim();
            if let Ok(network) = text.parse::<IpNet>() {
                allowed.networks.push(network);
            } else if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
                allowed.networks.push(address.into());
            } else if is_name(text) {
                allowed.names.push(plain(text));
            } else {
                return Err(format!(
                    "'{entry}' is no host name, no address and no network such as 10.1.0.0/16"
                ));
            }
        }
        Ok(allowed)
    }

    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names.contains(&plain(name))
    }

    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// As names are compared.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A URL, a port or a wildcard is none.
fn is_name(text: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !text.is_empty()
        && text.chars().all(is_good)
        && text.contains(|c: char| c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entries: &[&str]) -> Result<Allowed, String> {
        let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
        Allowed::parse(&entries)
    }

    #[test]
    fn names_addresses_and_networks_are_told_apart() {
        let list = allowed(&["Hooks.internal.", "10.1.0.0/16", "127.0.0.1", "::1"]).unwrap();
        assert!(list.has_name("hooks.internal") && list.has_name("hooks.internal."));
        assert!(!list.has_name("other.internal") && !list.has_name("x.hooks.internal"));
        let has = |text: &str| list.has_address(text.parse().unwrap());
        assert!(has("10.1.255.1") && has("127.0.0.1") && has("::1") && has("::ffff:10.1.0.1"));
        assert!(!has("10.2.0.1") && !has("127.0.0.2") && !has("::2"));
    }

    #[test]
    fn what_is_none_of_them_is_refused_by_name() {
        for bad in ["http://hooks", "hooks:80", "*.internal", "10.0.0.0/33", "10.0.0", ""] {
            let refusal = allowed(&[bad]).unwrap_err();
            assert!(refusal.contains(&format!("'{bad}'")), "{refusal}");
        }
    }
}
