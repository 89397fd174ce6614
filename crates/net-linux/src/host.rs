//! The one thing in the host's namespace: the uplink, its table of masquerading, and forwarding.
//!
//! Safety never depends on any of it: what egress may reach is decided in the router namespace. Functions here run in a
//! thread of the host's namespace, unless they say otherwise.
#![expect(
    clippy::format_push_string,
    clippy::many_single_char_names,
    reason = "a ruleset is put together from lines, an address from groups"
)]

use crate::link::{self, End, FAR_MAC, Links, ROUTER_MAC};
use crate::listing::{self, Listing};
use crate::lower::{Facts, UPLINK};
use crate::record::HostRecord;
use crate::rules::{self, Watch};
use crate::{NetError, fnv, nft, sysctl};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges that the uplink's /30 is taken from, in order of preference.
const POOLS: [(&str, u32, u32); 3] =
    [("100.127.240.0/20", 0x647f_f000, 1024), ("198.19.240.0/20", 0xc613_f000, 1024), ("172.31.240.0/20", 0xac1f_f000, 1024)];
/// Links of this and other runtime folders on one host begin with this.
const LINK_PREFIX: &str = "mu-";

/// Names that the host sees.
#[derive(Debug, Clone)]
pub struct Names {
    /// The host's end of the uplink.
    pub link: String,
    /// The host's table.
    pub table: String,
    seed: u64,
}

impl Names {
    pub fn of(run_dir: &std::path::Path) -> Self {
        let seed = fnv(run_dir.as_os_str().as_encoded_bytes());
        let tag = format!("{:06x}", seed >> 40);
        Self { link: format!("{LINK_PREFIX}{tag}"), table: format!("moat_{tag}"), seed }
    }

    /// Chooses ranges that no route of the host overlaps.
    pub fn choose(&self) -> Result<HostRecord, NetError> {
        let mut links = Links::open().map_err(NetError::link("list the host's routes"))?;
        let mut taken = links.destinations().map_err(NetError::link("list the host's routes"))?;
        taken.extend(links.addresses().map_err(NetError::link("list the host's addresses"))?.into_iter().map(|(_, net)| net.trunc()));
        taken.retain(|net| net.prefix_len() > 0);
        let free = |net: IpNet| !taken.iter().any(|other| other.contains(&net) || net.contains(other));
        let candidates = POOLS.iter().flat_map(|(_, first, count)| {
            let start = u32::try_from(self.seed % u64::from(*count)).unwrap_or(0);
            (0..*count).map(move |i| Ipv4Addr::from(first + 4 * ((start + i) % count)))
        });
        let v4 = candidates
            .filter_map(|base| Ipv4Net::new(base, 30).ok())
            .find(|net| free((*net).into()))
            .ok_or(NetError::NoUplinkRange { pool: POOLS[0].0 })?;
        let v6 = sysctl::has_ipv6().then(|| (0..64).filter_map(|i| self.ula(i)).find(|net| free((*net).into()))).flatten();
        Ok(HostRecord {
            uplink_v4: Ipv4Addr::from(u32::from(v4.network()) + 1),
            uplink_v6: v6.map(|net| Ipv6Addr::from(u128::from(net.network()) + 1)),
            settings: Vec::new(),
            facts: Facts::default(),
        })
    }

    /// A /126 of unique local addresses (RFC 4193) that belongs to this runtime folder.
    fn ula(&self, i: u64) -> Option<Ipv6Net> {
        let bits = fnv(&(self.seed ^ i).to_be_bytes());
        let [_, a, b, c, d, e, ..] = bits.to_be_bytes();
        let group = |hi, lo| u16::from_be_bytes([hi, lo]);
        Ipv6Net::new(Ipv6Addr::new(group(0xfd, a), group(b, c), group(d, e), 0, 0, 0, 0, 0), 126).ok()
    }

    /// Makes the uplink into `router` unless it is whole; what was done.
    pub fn ensure_uplink(&self, record: &HostRecord, router: &File) -> Result<Vec<String>, NetError> {
        let name = &self.link;
        let refuse = |doing: &str| NetError::link(format!("{doing} `{name}`"));
        let mut done = Vec::new();
        let mut links = Links::open().map_err(refuse("look for"))?;
        let mut near = links.find(name).map_err(refuse("look for"))?;
        let far =
            crate::ns::in_ns(router, || Links::open()?.find(UPLINK)).and_then(|found| found).map_err(refuse("look for the peer of"))?;
        let paired = matches!((&near, &far), (Some(near), Some(far)) if near.peer == Some(far.index) && far.peer == Some(near.index));
        if !paired {
            if near.is_some() {
                links.remove(name).map_err(refuse("remove"))?;
            }
            if far.is_some() {
                crate::ns::in_ns(router, || Links::open()?.remove(UPLINK)).and_then(|r| r).map_err(refuse("remove the peer of"))?;
            }
            links
                .run(vec![link::new_pair(&End { name, mac: FAR_MAC }, &End { name: UPLINK, mac: ROUTER_MAC }, router)])
                .map_err(refuse("make"))?;
            done.push(format!("made the uplink `{name}`"));
            near = links.find(name).map_err(refuse("look for"))?;
        }
        let Some(near) = near else { return Err(refuse("find")(std::io::ErrorKind::NotFound.into())) };
        for (setting, value) in [("accept_ra", "0"), ("autoconf", "0"), ("addr_gen_mode", "1"), ("accept_redirects", "0")] {
            sysctl::set(&format!("ipv6/conf/{name}/{setting}"), value).map_err(NetError::io(format!("set `{setting}` of `{name}`")))?;
        }
        let had: BTreeSet<IpNet> = links
            .addresses()
            .map_err(refuse("list the addresses of"))?
            .into_iter()
            .filter(|(index, _)| *index == near.index)
            .map(|(_, net)| net)
            .collect();
        let ours: Vec<IpNet> = addresses(record.uplink_v4, record.uplink_v6);
        if paired && (!near.up || ours.iter().any(|net| !had.contains(net))) {
            done.push(format!("gave the uplink `{name}` its addresses back"));
        }
        // Up first: addresses and neighbours of a link that is down don't last.
        let mut requests = vec![link::up(near.index)];
        requests.extend(ours.iter().map(|net| link::address(near.index, *net)));
        requests.extend(router_ends(record).map(|address| link::neighbour(near.index, address, ROUTER_MAC)));
        links.run(requests).map_err(refuse("configure"))?;
        crate::ns::in_ns(router, || ensure_router_end(record)).and_then(|r| r).map_err(refuse("configure the peer of"))?;
        links.wait_until_running(name).map_err(refuse("wait for"))?;
        Ok(done)
    }

    /// Loads the host's table unless it is there as it should be; what was done.
    pub fn ensure_table(&self, record: &HostRecord, watch: &Watch) -> Result<Vec<String>, NetError> {
        let now = rules::generation().map_err(NetError::io("ask for the generation of the host's rules"))?;
        if watch.knows(now) {
            return Ok(Vec::new());
        }
        let table = &self.table;
        let text = format!("table inet {table} {{\n{}}}\n", self.table_body(record));
        let live = Listing::here(&["table", "inet", table])?;
        let changes = Listing::expected(&text)?.differences(&live, "the host");
        if changes.is_empty() {
            watch.settle(now);
            return Ok(Vec::new());
        }
        nft::apply(&format!("table inet {table}\ndelete table inet {table}\n{text}"), "load the host's table")?;
        let what = format!("the table `inet {table}` (masquerading of egress)");
        Ok(vec![if live == Listing::default() {
            format!("loaded {what}")
        } else {
            format!("loaded {what} again: {}", listing::summary(&changes))
        }])
    }

    fn table_body(&self, record: &HostRecord) -> String {
        let (link, v4) = (&self.link, record.router_v4());
        let mut leave = format!("    ip saddr {v4} oifname != \"{link}\" masquerade\n");
        let mut pass = format!("    iifname \"{link}\" ip saddr != {v4} drop\n");
        match record.router_v6() {
            Some(v6) => {
                leave += &format!("    ip6 saddr {v6} oifname != \"{link}\" masquerade\n");
                pass += &format!("    iifname \"{link}\" ip6 saddr != {v6} drop\n");
            }
            None => pass += &format!("    iifname \"{link}\" meta nfproto ipv6 drop\n"),
        }
        format!(
            "  chain leave {{\n    type nat hook postrouting priority srcnat; policy accept;\n{leave}  }}\n\
             \x20 chain input {{\n    type filter hook input priority filter - 5; policy accept;\n    iifname \"{link}\" drop\n  }}\n\
             \x20 chain forward {{\n    type filter hook forward priority filter - 5; policy accept;\n{pass}    oifname \"{link}\" ct state != {{ established, related }} drop\n  }}\n"
        )
    }

    /// Whether forwarding is on as [`Names::ensure_forwarding`] leaves it.
    pub fn forwards(&self, record: &HostRecord, kept: &sysctl::Kept) -> Result<bool, NetError> {
        let refuse = || NetError::io("read the host's forwarding");
        let of_link = ["ipv4/conf/LINK/forwarding", "ipv6/conf/LINK/force_forwarding"].map(|name| name.replace("LINK", &self.link));
        let ipv6 = record.uplink_v6.is_some();
        let wanted = wanted_settings(ipv6, |name| kept.get(name)).map_err(refuse())?;
        let of_link = of_link.into_iter().filter(|name| ipv6 || name.starts_with("ipv4")).map(|name| (name, "1".to_owned()));
        for (name, value) in wanted.into_iter().chain(of_link) {
            // What this kernel does not have can't be off.
            if kept.get(&name).map_err(refuse())?.is_some_and(|now| now != value) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Turns forwarding on, and notes in `record` what was off; what was done.
    pub fn ensure_forwarding(
        &self,
        record: &mut HostRecord,
        save: impl Fn(&HostRecord) -> Result<(), NetError>,
    ) -> Result<Vec<String>, NetError> {
        let mut done = Vec::new();
        let others = self.others()?;
        for (name, value) in wanted_settings(record.uplink_v6.is_some(), sysctl::get).map_err(NetError::io("read the host's forwarding"))? {
            let now = sysctl::get(&name).map_err(NetError::io(format!("read `net/{name}`")))?;
            let noted = record.settings.iter().any(|(noted, _)| *noted == name);
            if now.as_deref() == Some(&value) {
                // On already because another runtime folder turned it on: who leaves last restores it.
                if let Some(before) = others.iter().find_map(|alias| noted_in(alias, &name)).filter(|before| !noted && *before != value) {
                    record.settings.push((name, before));
                    save(record)?;
                }
                continue;
            }
            if let (Some(now), false) = (now, noted) {
                record.settings.extend(odd_links(&name, &now).map_err(NetError::io("read the host's forwarding"))?);
                record.settings.push((name.clone(), now));
                save(record)?;
            }
            if sysctl::set(&name, &value).map_err(NetError::io(format!("set `net/{name}`")))? {
                done.push(format!("set `net/{name}` of the host to {value}"));
            }
        }
        // A link made after the switch was thrown does not always follow it.
        for name in ["ipv4/conf/LINK/forwarding", "ipv6/conf/LINK/force_forwarding"].map(|name| name.replace("LINK", &self.link)) {
            if (record.uplink_v6.is_some() || name.starts_with("ipv4"))
                && sysctl::set(&name, "1").map_err(NetError::io(format!("set `net/{name}`")))?
            {
                done.push(format!("set `net/{name}` of the host to 1"));
            }
        }
        let note: Vec<String> = record
            .settings
            .iter()
            .filter(|(name, _)| SHARED.contains(&name.as_str()))
            .map(|(name, before)| format!("{name}={before}"))
            .collect();
        let note = format!("moat {}", note.join(" "));
        let refuse = || NetError::link(format!("label `{}`", self.link));
        let mut links = Links::open().map_err(refuse())?;
        if let Some(near) = links.find(&self.link).map_err(refuse())?.filter(|near| near.alias.as_deref() != Some(note.trim())) {
            links.run(vec![link::alias(near.index, note.trim())]).map_err(refuse())?;
        }
        Ok(done)
    }

    /// Labels of the uplinks of other runtime folders on this host.
    fn others(&self) -> Result<Vec<String>, NetError> {
        let refuse = || NetError::link("list the host's links");
        let all = Links::open().map_err(refuse())?.all().map_err(refuse())?;
        Ok(all
            .into_iter()
            .filter(|link| link.name.starts_with(LINK_PREFIX) && link.name != self.link)
            .map(|link| link.alias.unwrap_or_default())
            .collect())
    }

    /// Takes everything off the host: link, table, forwarding; whether something was there.
    pub fn remove(&self, record: Option<&HostRecord>) -> Result<bool, NetError> {
        let mut changed = false;
        if nft::tables()?.contains(&self.table) {
            nft::apply(&format!("delete table inet {}\n", self.table), "remove the host's table")?;
            changed = true;
        }
        let others = self.others()?;
        let refuse = || NetError::link(format!("remove `{}`", self.link));
        let mut links = Links::open().map_err(refuse())?;
        let label = links.find(&self.link).map_err(refuse())?.and_then(|near| near.alias).unwrap_or_default();
        let mut settings = record.map(|record| record.settings.clone()).unwrap_or_default();
        if record.is_none() {
            settings.extend(SHARED.iter().filter_map(|name| noted_in(&label, name).map(|before| ((*name).to_owned(), before))));
        }
        if others.is_empty() {
            for (name, before) in settings.iter().rev() {
                changed |= sysctl::set(name, before).map_err(NetError::io(format!("set `net/{name}` back")))?;
            }
        }
        changed |= links.remove(&self.link).map_err(refuse())?;
        Ok(changed)
    }

    /// The host's own addresses, the uplink's left out.
    pub fn host_addresses(&self) -> Result<BTreeSet<IpAddr>, NetError> {
        let refuse = || NetError::link("list the host's addresses");
        let mut links = Links::open().map_err(refuse())?;
        let uplink = links.find(&self.link).map_err(refuse())?.map(|link| link.index);
        let all = links.addresses().map_err(refuse())?;
        Ok(all
            .into_iter()
            .filter(|(index, _)| Some(*index) != uplink)
            .map(|(_, net)| net.addr())
            .filter(|address| !address.is_loopback())
            .collect())
    }
}

/// Settings that runtime folders share, noted in the labels of their uplinks.
const SHARED: [&str; 4] =
    ["ipv4/ip_forward", "ipv6/conf/all/force_forwarding", "ipv6/conf/default/force_forwarding", "ipv6/conf/all/forwarding"];

fn noted_in(label: &str, name: &str) -> Option<String> {
    label.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// The links whose own setting differs from the switch for all of them, which throwing it would overwrite.
fn odd_links(switch: &str, value: &str) -> std::io::Result<Vec<(String, String)>> {
    let (folder, setting) = match switch {
        "ipv4/ip_forward" => ("ipv4/conf", "forwarding"),
        "ipv6/conf/all/forwarding" => ("ipv6/conf", "forwarding"),
        "ipv6/conf/all/force_forwarding" => ("ipv6/conf", "force_forwarding"),
        _ => return Ok(Vec::new()),
    };
    let mut odd = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/sys/net/{folder}"))? {
        let link = entry?.file_name().to_string_lossy().into_owned();
        let name = format!("{folder}/{link}/{setting}");
        let own = sysctl::get(&name)?.filter(|own| own != value && link != "all" && !link.starts_with(LINK_PREFIX));
        odd.extend(own.map(|own| (name, own)));
    }
    Ok(odd)
}

/// Settings that egress needs. IPv6 forwarding as such would make the host deaf to router advertisements, so the newer
/// `force_forwarding` is taken where there is one, and links that listen are told to go on (`accept_ra` 2) where not.
fn wanted_settings(ipv6: bool, get: impl Fn(&str) -> std::io::Result<Option<String>>) -> std::io::Result<Vec<(String, String)>> {
    let mut wanted = vec![("ipv4/ip_forward".to_owned(), "1".to_owned())];
    let on = |name: &str| get(name).map(|value| value.as_deref() == Some("1"));
    if !ipv6 || on("ipv6/conf/all/forwarding")? && get("ipv6/conf/all/force_forwarding")?.is_none() {
        return Ok(wanted);
    }
    if get("ipv6/conf/all/force_forwarding")?.is_some() {
        if !on("ipv6/conf/all/forwarding")? {
            wanted.extend(["all", "default"].map(|scope| (format!("ipv6/conf/{scope}/force_forwarding"), "1".to_owned())));
        }
        return Ok(wanted);
    }
    for entry in std::fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let name = format!("ipv6/conf/{}/accept_ra", entry?.file_name().to_string_lossy());
        if on(&name)? {
            wanted.push((name, "2".to_owned()));
        }
    }
    wanted.push(("ipv6/conf/all/forwarding".to_owned(), "1".to_owned()));
    Ok(wanted)
}

fn addresses(v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> Vec<IpNet> {
    let v4 = Ipv4Net::new(v4, 30).ok().map(IpNet::V4);
    let v6 = v6.and_then(|v6| Ipv6Net::new(v6, 126).ok()).map(IpNet::V6);
    v4.into_iter().chain(v6).collect()
}

fn host_ends(record: &HostRecord) -> impl Iterator<Item = IpAddr> {
    [Some(IpAddr::V4(record.uplink_v4)), record.uplink_v6.map(IpAddr::V6)].into_iter().flatten()
}

fn router_ends(record: &HostRecord) -> impl Iterator<Item = IpAddr> {
    [Some(IpAddr::V4(record.router_v4())), record.router_v6().map(IpAddr::V6)].into_iter().flatten()
}

/// In the router namespace: addresses, neighbours and default routes of the uplink.
fn ensure_router_end(record: &HostRecord) -> std::io::Result<()> {
    let mut links = Links::open()?;
    let Some(far) = links.find(UPLINK)? else { return Err(std::io::ErrorKind::NotFound.into()) };
    let mut requests = vec![link::up(far.index)];
    requests.extend(addresses(record.router_v4(), record.router_v6()).into_iter().map(|net| link::address(far.index, net)));
    requests.extend(host_ends(record).map(|address| link::neighbour(far.index, address, FAR_MAC)));
    requests.extend(host_ends(record).map(|address| link::default_route(far.index, address)));
    links.run(requests)?;
    links.wait_until_running(UPLINK)
}
