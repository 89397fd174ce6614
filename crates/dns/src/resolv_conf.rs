//! The machine's resolvers, from `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The name servers of a `resolv.conf` (resolv.conf(5)), port 53, in order; more than libc's three are kept.
///
/// Lines that are not `nameserver ADDRESS` are skipped, and so are link-local servers with an interface by name
/// (`fe80::1%eth0`): see [`parse_resolv_conf_with`]. Empty when nothing is listed.
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    parse_resolv_conf_with(text, |_| None)
}

/// Like [`parse_resolv_conf`]; `interface` gives the index of an interface by its name.
pub fn parse_resolv_conf_with(text: &str, interface: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        // A comment stands alone on its line: `#` or `;` in the first column.
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(server) = words.next().and_then(|word| server(word, &interface)) else { continue };
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

fn server(word: &str, interface: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, 53));
    }
    let (address, scope) = word.split_once('%')?;
    let scope = scope.parse().ok().or_else(|| interface(scope))?;
    Some(SocketAddrV6::new(address.parse::<Ipv6Addr>().ok()?, 53, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let text = "# made by hand\n; nameserver 9.9.9.9\nnameserver 127.0.0.53\n\tnameserver\t2606:4700::1111  # inline\nsearch lan\noptions edns0\nnameserver nonsense\nnameserver\n\
                    nameserver fe80::1%3\nnameserver fe80::2%eth0\nnameserver 127.0.0.53\r\nnameservers 1.1.1.1\n";
        let plain: Vec<String> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(plain, ["127.0.0.53:53", "[2606:4700::1111]:53", "[fe80::1%3]:53"]);
        let named = parse_resolv_conf_with(text, |name| (name == "eth0").then_some(7));
        assert_eq!(named.last().unwrap().to_string(), "[fe80::2%7]:53");
        assert!(parse_resolv_conf("").is_empty());
    }
}
