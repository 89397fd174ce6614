//! The text that `nft` reads, as files to look at: `UPDATE=1` writes them anew.

use crate::world::{ULA, ZONE, vip};
use moat_model::policy::{NetPolicy, SourceEntry};
use moat_model::{AddressPair, Egress, InstanceId, LinkName, NetworkId, ServiceId, ZoneId};
use moat_net_linux::lower::{Facts, base, difference, full, text, transaction};
use moat_net_linux::trace::trace;
use moat_net_linux::{Origin, Outcome, Packet};
use std::path::Path;

fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; run with UPDATE=1", path.display()));
    assert!(expected == found, "{} differs; look at it with UPDATE=1 and git diff:\n{found}", path.display());
}

pub fn facts() -> Facts {
    Facts {
        uplink_v4: Some("100.127.240.2".parse().unwrap()),
        uplink_v6: Some("fd00:1:2::2".parse().unwrap()),
        host_addresses: ["203.0.113.5".parse().unwrap(), "2001:db8::5".parse().unwrap()].into(),
    }
}

fn at(offset: u16) -> AddressPair {
    NetworkId::new(0).unwrap().instance(ULA, offset)
}

/// A web service of two instances, a private one with an allow list, a worker without egress, a datastore.
fn shop() -> NetPolicy {
    let mut policy = NetPolicy::default();
    let mut add = |name: &str, offset, zone, egress| {
        let entry =
            SourceEntry { link: LinkName::of(at(offset).v4), address: at(offset), zone, egress, service: ServiceId::new(name).unwrap() };
        policy.sources.insert(InstanceId::new(format!("{name}-{offset}")).unwrap(), entry);
    };
    add("web", 1, Some(ZONE), Egress::Internet);
    add("web", 2, Some(ZONE), Egress::Internet);
    add(
        "catalog",
        3,
        Some(ZONE),
        Egress::Ranges(["1.1.1.0/24".parse().unwrap(), "1.1.0.0/16".parse().unwrap(), "2606:4700::/32".parse().unwrap()].into()),
    );
    add("mailer", 4, Some(ZoneId(7)), Egress::None);
    add("store", 5, None, Egress::None);
    policy.receivers = [(ZONE, at(1)), (ZONE, at(2)), (ZONE, at(5)), (ZoneId(7), at(5))].into();
    policy.pairs = [(at(1), at(3)), (at(2), at(3))].into();
    policy.ingress = [(at(1), 10000), (at(2), 10000)].into();
    policy.services = [(vip(1), [at(1), at(2)].into()), (vip(2), [at(3)].into()), (vip(3), [at(5)].into()), (vip(4), [].into())].into();
    policy
}

#[test]
fn the_closed_filter() {
    golden("base.nft", &text(&base(&facts())));
    assert_eq!(base(&facts()).dangling(), Vec::<String>::new());
}

#[test]
fn a_shop() {
    let ruleset = full(&facts(), &shop());
    assert_eq!(ruleset.dangling(), Vec::<String>::new());
    golden("shop.nft", &text(&ruleset));
}

#[test]
fn one_instance_of_a_shop_is_replaced() {
    let (old, mut new) = (shop(), shop());
    let gone = InstanceId::new("web-2").unwrap();
    let mut entry = new.sources.remove(&gone).unwrap();
    (entry.address, entry.link) = (at(6), LinkName::of(at(6).v4));
    new.sources.insert(InstanceId::new("web-6").unwrap(), entry);
    new.receivers.remove(&(ZONE, at(2)));
    new.receivers.insert((ZONE, at(6)));
    new.services.insert(vip(1), [at(1), at(6)].into());
    new.services.insert(vip(2), [at(1), at(3)].into());
    new.services.remove(&vip(3));
    let whole = transaction(&full(&facts(), &old), &full(&facts(), &new));
    golden("replace.nft", &whole);
    let (gone, come) = difference(&old, &new);
    assert_eq!(transaction(&full(&facts(), &gone), &full(&facts(), &come)), whole, "the difference lowers to the same");
    assert_eq!(transaction(&full(&facts(), &old), &full(&facts(), &old)), "");
}

#[test]
fn what_the_tracer_says() {
    let ruleset = full(&facts(), &shop());
    let link = |offset| LinkName::of(at(offset).v4);
    let instance = |offset: u16| Outcome::Instance { link: link(offset), address: at(offset).v4.into() };
    let v4 = |text: &str| text.parse().unwrap();
    let rows = [
        ("web to catalog by its service address", 1, vip(2).v4.into(), 5432, instance(3)),
        ("web to a web service, first turn", 1, vip(1).v4.into(), 80, instance(1)),
        ("worker of another zone to catalog", 4, at(3).v4.into(), 5432, Outcome::Dropped),
        ("worker to the datastore", 4, vip(3).v4.into(), 6379, instance(5)),
        ("a datastore opens nothing", 5, at(1).v4.into(), 80, Outcome::Dropped),
        ("reserved port", 1, vip(3).v4.into(), 18012, Outcome::Dropped),
        ("nobody is ready", 1, vip(4).v4.into(), 80, Outcome::Refused),
        ("unknown service address", 1, vip(9).v4.into(), 80, Outcome::NoRoute),
        ("internet", 1, v4("8.8.8.8"), 443, Outcome::Internet),
        ("internet, closed", 4, v4("8.8.8.8"), 443, Outcome::Dropped),
        ("a listed range", 3, v4("1.1.200.1"), 443, Outcome::Internet),
        ("no listed range", 3, v4("8.8.8.8"), 443, Outcome::Dropped),
        ("metadata", 1, v4("169.254.169.254"), 80, Outcome::Dropped),
        ("the host", 1, v4("203.0.113.5"), 22, Outcome::Dropped),
        ("DNS is UDP and TCP 53 of the gateway", 5, v4("169.254.1.1"), 53, Outcome::Router),
        ("nothing else of the gateway", 5, v4("169.254.1.1"), 80, Outcome::Dropped),
    ];
    let mut told = String::new();
    for (what, from, to, port, expected) in rows {
        let traced = trace(&ruleset, &Packet::opening(Origin::Link(link(from)), at(from).v4.into(), to, port));
        assert_eq!(traced.outcome, expected, "{what}: {:#?}", traced.steps);
        told += &format!("# {what}\n{}\n\n", traced.steps.join("\n"));
    }
    golden("traces.txt", &told);

    let mut held = shop();
    held.held.extend([vip(1), vip(4)]);
    for (what, to, expected) in
        [("nobody is ready yet", vip(4), Outcome::Dropped), ("held, and somebody is ready all the same", vip(1), instance(1))]
    {
        let packet = Packet::opening(Origin::Link(link(1)), at(1).v4.into(), to.v4.into(), 80);
        assert_eq!(trace(&full(&facts(), &held), &packet).outcome, expected, "{what}");
    }
    let (before, after) = difference(&shop(), &held);
    let turned = transaction(&full(&facts(), &before), &full(&facts(), &after));
    assert_eq!(turned, transaction(&full(&facts(), &shop()), &full(&facts(), &held)), "the difference lowers to the same");
    assert!(turned.contains("goto hold"), "{turned}");
}
