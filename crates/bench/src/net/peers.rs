//! What Moat's path is compared with: the least there can be, the same without policy, and a list of rules.

use super::scene::{PORT, Path, Room};
use crate::failure::Outcome;
use std::fmt::Write;
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);
/// The gateway of the routed peers, the same that Moat uses.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Namespaces that live as long as their path is measured.
pub type Rooms = Vec<Room>;

/// One pair of links between the two.
pub fn direct() -> Outcome<(Path, Rooms)> {
    let (client, server) = (Room::new()?, Room::new()?);
    client.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}\naddress add {CLIENT}/24 dev eth0\nlink set eth0 up",
        server.pid()
    ))?;
    server.ip(&format!("address add {SERVER}/24 dev eth0\nlink set eth0 up"))?;
    let path = Path::new("one veth pair, nothing between", &client, &server, SERVER, PORT)?;
    Ok((path, vec![client, server]))
}

/// Two routed links through a third namespace, as Moat lays them, without a filter and without connection tracking.
pub fn routed() -> Outcome<(Path, Rooms)> {
    let (client, server, router) = (Room::new()?, Room::new()?, Room::new()?);
    let mut inside = String::new();
    for (index, (room, address)) in [(&client, CLIENT), (&server, SERVER)].into_iter().enumerate() {
        let (near, far) = (format!("02:00:00:00:01:0{index}"), format!("02:00:00:00:02:0{index}"));
        router.ip(&format!("link add r{index} address {near} type veth peer name eth0 address {far} netns {}", room.pid()))?;
        let lines = [
            format!("address add {address}/32 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("neighbour add {GATEWAY} lladdr {near} nud permanent dev eth0"),
            format!("route add {GATEWAY} dev eth0 scope link"),
            format!("route add default via {GATEWAY} dev eth0"),
        ];
        room.ip(&lines.join("\n"))?;
        let _ = writeln!(
            inside,
            "link set r{index} up\nneighbour add {address} lladdr {far} nud permanent dev r{index}\nroute add {address} dev r{index} scope link"
        );
    }
    router.ip(&inside)?;
    router.feed("sh", &["-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"], "")?;
    let path = Path::new("routed veths, no policy", &client, &server, SERVER, PORT)?;
    Ok((path, vec![client, server, router]))
}

/// The same with one `iptables` rule for each service, the measured one last, after connection tracking's shortcut.
pub fn listed(services: usize) -> Outcome<(Path, Rooms)> {
    let (mut path, rooms) = routed()?;
    path.name = format!("routed veths, {services} `iptables` rules");
    let mut rules = String::from(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n",
    );
    let first = u32::from(Ipv4Addr::new(10, 64, 0, 1));
    for service in (first..).take(services.saturating_sub(1)).map(Ipv4Addr::from).chain([SERVER]) {
        let _ = writeln!(rules, "-A FORWARD -d {service}/32 -j ACCEPT");
    }
    rules.push_str("COMMIT\n");
    if let Some(router) = rooms.last() {
        router.feed("iptables-restore", &[], &rules)?;
    }
    Ok((path, rooms))
}
