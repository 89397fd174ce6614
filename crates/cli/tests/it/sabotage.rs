//! `moat verify` sees sabotage and names the pair.

use crate::host::{Host, Said, example, host, service, wait_for};

fn verify_fails_naming(host: &Host, what: &str, names: &[&str]) {
    let said = host.moat(&["verify"]);
    assert_eq!(said.code, 1, "{what}: verify passed\n{}", said.out);
    for name in names {
        assert!(said.out.contains(name), "{what}: `{name}` is not named\n{}", said.out);
    }
}

#[test]
fn every_kind_of_sabotage_is_seen_and_named() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    // It would be mended within a second otherwise.
    let up = host.moat_command(&["up", "-d", file.to_str().unwrap()]).env("MOAT_REPAIR", "off").output().unwrap();
    Said::from(up).ok();
    host.moat(&["verify"]).ok();
    let ps = host.ps();
    let address = |slug: &str| service(&ps, slug)["instances"][0]["address"]["v4"].as_str().unwrap().to_owned();
    let (counter, greeter) = (address("counter"), address("greeter"));

    // A rule that lets everything through, first in the forward chain.
    let chain = host.router("nft -a list table inet moat | awk '/chain /{c=$2} /hook forward/{print c; exit}'").ok().out.trim().to_owned();
    assert!(!chain.is_empty());
    host.router(&format!("nft insert rule inet moat {chain} accept")).ok();
    verify_fails_naming(&host, "an accept-all rule", &["counter"]);
    host.router(&format!(
        "nft delete rule inet moat {chain} handle $(nft -a list chain inet moat {chain} | awk '/^[ \t]*accept # handle/{{print $NF; exit}}')"
    ))
    .ok();
    host.moat(&["verify"]).ok();

    // A rule for one pair only.
    host.router(&format!("nft insert rule inet moat {chain} ip daddr {counter} accept")).ok();
    verify_fails_naming(&host, "an accept rule for the worker", &["counter"]);
    host.router(&format!("nft delete rule inet moat {chain} handle $(nft -a list chain inet moat {chain} | awk '/{counter} accept # handle/{{print $NF; exit}}')")).ok();
    host.moat(&["verify"]).ok();

    // An element is taken away: whoever it stood for is named. Each set and map with an element of the service, in turn.
    let sets = host.router(&format!("nft -j list table inet moat | python3 -c \"import json,sys; d=json.load(sys.stdin)['nftables']; [print(k, v['name']) for e in d for k,v in e.items() if k in ('set','map') and '{greeter}' in json.dumps(v.get('elem', [])) and 'timeout' not in v.get('flags', [])]\"")).ok().out;
    assert!(sets.lines().count() >= 2, "{sets}");
    for line in sets.lines() {
        let name = line.split_whitespace().nth(1).unwrap();
        let element = host
            .router(&format!("nft list set inet moat {name} 2>/dev/null || nft list map inet moat {name}"))
            .out
            .split_once("elements = {")
            .map(|(_, rest)| rest.split('}').next().unwrap_or_default().to_owned())
            .unwrap_or_default()
            .split(',')
            .map(|e| e.trim().to_owned())
            .find(|e| e.contains(&greeter))
            .unwrap_or_else(|| panic!("no element of {greeter} in {name}"));
        host.router(&format!("nft delete element inet moat {name} '{{ {element} }}'")).ok();
        verify_fails_naming(&host, &format!("without {element} in {name}"), &["greeter"]);
        host.router(&format!("nft add element inet moat {name} '{{ {element} }}'")).ok();
        host.moat(&["verify"]).ok();
    }

    // A route from the host into the private range.
    let uplink = host.sh("ip -o link | grep -o 'mu-[0-9a-f]*' | head -1").ok().out.trim().to_owned();
    host.sh(&format!("ip route add {greeter}/32 dev {uplink}")).ok();
    verify_fails_naming(&host, "a host route", &["host", "greeter"]);
    host.sh(&format!("ip route del {greeter}/32 dev {uplink}")).ok();
    host.moat(&["verify"]).ok();
}

#[test]
fn what_somebody_changed_is_mended_and_told() {
    let Some(host) = host() else { return };
    let file = example(&host, "hello");
    host.moat(&["up", "-d", file.to_str().unwrap()]).ok();
    let greeter = service(&host.ps(), "greeter")["instances"][0]["address"]["v4"].as_str().unwrap().to_owned();
    let told = |what: &str| {
        wait_for(what, || host.moat(&["events"]).ok().out.lines().any(|line| line.contains("repaired") && line.contains(what)));
        let verified = host.moat(&["verify"]).ok().out;
        assert!(verified.lines().any(|line| line.contains("mended since") && line.contains(what)), "{what}:\n{verified}");
    };
    // An element of the filter, a rule of it, a table beside it, a rule of the host's table, the way to an instance.
    let list = host.router("nft list set inet moat receivers4").ok().out;
    let (_, elements) = list.split_once("elements = {").expect("elements");
    let element = elements.split(['}', ',']).map(str::trim).find(|e| e.contains(&greeter)).expect("an element of the greeter").to_owned();
    host.router(&format!("nft delete element inet moat receivers4 '{{ {element} }}'")).ok();
    told(&greeter);
    assert!(host.router("nft list set inet moat receivers4").ok().out.contains(&element));
    host.router("nft insert rule inet moat forward accept").ok();
    told("has a foreign rule");
    host.router("nft add table ip sly").ok();
    told("sly");
    assert_eq!(host.router("nft list tables").ok().out.trim(), "table inet moat");
    let table = host.sh("nft list tables | awk '/moat_/{print $3; exit}'").ok().out.trim().to_owned();
    host.sh(&format!("nft flush chain inet {table} input")).ok();
    told("lacks the rule");
    host.router(&format!("ip route del {greeter}")).ok();
    told("no route");
    let link = host.router(&format!("ip -o route get {greeter} | grep -o 'mt[0-9a-f]*' | head -1")).ok().out.trim().to_owned();
    host.router(&format!("ip link del {link}")).ok();
    told("connected again");
}
