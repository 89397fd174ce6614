//! Rulesets as text for `nft -f -`.

use super::TABLE;
use super::ir::{Action, Atom, Chain, Constant, Field, FlowState, Hook, Key, Kind, Match, Rule, Ruleset, Set, Target, Value, ValueKind};
use ipnet::IpNet;
use moat_model::Family;
use std::fmt::{self, Write};

/// The whole table as `nft` reads it.
pub fn text(ruleset: &Ruleset) -> String {
    let mut out = String::with_capacity(64 * 1024);
    // Writing to a string can't fail.
    let _ = write_table(&mut out, ruleset);
    out
}

/// The text that puts a table in the place of whatever is there, in one transaction.
pub fn replace(ruleset: &Ruleset) -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n{}", text(ruleset))
}

/// The name of the empty chain that says which rules are loaded: it changes with every rule but not with elements, so
/// that one cheap listing tells whether the live table is of this version of the filter.
pub fn version_chain(ruleset: &Ruleset) -> String {
    let mut rules = String::new();
    for (name, set) in &ruleset.sets {
        let _ = write_set_head(&mut rules, name, set);
    }
    for (name, chain) in ruleset.chains.iter().filter(|(name, _)| !is_dynamic(name)) {
        let _ = write_chain(&mut rules, name, chain);
    }
    format!("version_{:016x}", crate::fnv(rules.as_bytes()))
}

/// Whether a chain belongs to one service.
pub(super) fn is_dynamic(chain: &str) -> bool {
    chain.starts_with("service_")
}

fn write_table(out: &mut String, ruleset: &Ruleset) -> fmt::Result {
    writeln!(out, "table inet {TABLE} {{")?;
    for counter in &ruleset.counters {
        writeln!(out, "  counter {counter} {{ }}")?;
    }
    for (name, set) in &ruleset.sets {
        write_set(out, name, set)?;
    }
    // A chain must be there before a rule or an element goes to it.
    for (name, _) in ruleset.chains.iter().filter(|(_, chain)| chain.hook.is_none()) {
        writeln!(out, "  chain {name} {{ }}")?;
    }
    writeln!(out, "  chain {} {{ }}", version_chain(ruleset))?;
    for (name, chain) in &ruleset.chains {
        write_chain(out, name, chain)?;
    }
    writeln!(out, "}}")
}

fn write_set_head(out: &mut String, name: &str, set: &Set) -> fmt::Result {
    let word = if set.value.is_some() { "map" } else { "set" };
    write!(out, "  {word} {name} {{ type ")?;
    for (i, kind) in set.key.iter().enumerate() {
        write!(out, "{}{}", if i == 0 { "" } else { " . " }, kind_word(*kind))?;
    }
    match set.value {
        None => {}
        Some(ValueKind::Mark) => write!(out, " : mark")?,
        Some(ValueKind::Verdict) => write!(out, " : verdict")?,
        Some(ValueKind::Address(family)) => write!(out, " : {}", kind_word(Kind::Address(family)))?,
    }
    write!(out, ";")?;
    if set.interval {
        write!(out, " flags interval;")?;
    }
    if let Some(learned) = set.learned {
        write!(out, " flags dynamic,timeout; timeout {}s; size {}; counter;", learned.timeout, learned.size)?;
    }
    Ok(())
}

fn write_set(out: &mut String, name: &str, set: &Set) -> fmt::Result {
    write_set_head(out, name, set)?;
    if !set.elements.is_empty() {
        write!(out, " elements = {{ ")?;
        write_elements(out, set.elements.iter().map(|(key, value)| (key, value.as_ref())))?;
        write!(out, " }}")?;
    }
    writeln!(out, " }}")
}

/// Elements with commas between them.
pub(super) fn write_elements<'a>(out: &mut String, elements: impl Iterator<Item = (&'a Key, Option<&'a Value>)>) -> fmt::Result {
    for (i, (key, value)) in elements.enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        for (j, atom) in key.iter().enumerate() {
            if j > 0 {
                out.push_str(" . ");
            }
            write_atom(out, atom)?;
        }
        match value {
            None => {}
            Some(Value::Mark(mark)) => write!(out, " : {mark}")?,
            Some(Value::Address(address)) => write!(out, " : {address}")?,
            Some(Value::Goto(chain)) => write!(out, " : goto {chain}")?,
        }
    }
    Ok(())
}

fn write_atom(out: &mut String, atom: &Atom) -> fmt::Result {
    match atom {
        Atom::Link(link) => write!(out, "\"{link}\""),
        Atom::Named(link) => write!(out, "\"{link}\""),
        Atom::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(out, "{}", net.addr()),
        Atom::Net(IpNet::V4(net)) => write!(out, "{net}"),
        Atom::Net(IpNet::V6(net)) => write!(out, "{net}"),
        Atom::Proto(proto) => write!(out, "{proto}"),
        Atom::Port(port) => write!(out, "{port}"),
        Atom::Mark(mark) => write!(out, "{mark}"),
    }
}

const fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Link => "ifname",
        Kind::Address(Family::V4) => "ipv4_addr",
        Kind::Address(Family::V6) => "ipv6_addr",
        Kind::Proto => "inet_proto",
        Kind::Port => "inet_service",
        Kind::Mark => "mark",
    }
}

fn write_chain(out: &mut String, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(out, "  chain {name} {{")?;
    if let Some(hook) = chain.hook {
        writeln!(out, "    {}", hook_text(hook))?;
    }
    for rule in &chain.rules {
        writeln!(out, "    {}", RuleText(rule))?;
    }
    writeln!(out, "  }}")
}

const fn hook_text(hook: Hook) -> &'static str {
    match hook {
        Hook::Raw => "type filter hook prerouting priority raw; policy drop;",
        Hook::TranslateIn => "type nat hook prerouting priority dstnat; policy accept;",
        Hook::Forward => "type filter hook forward priority filter; policy drop;",
        Hook::Input => "type filter hook input priority filter; policy drop;",
        Hook::Output => "type filter hook output priority filter; policy drop;",
        Hook::TranslateOut => "type nat hook postrouting priority srcnat; policy accept;",
    }
}

/// A rule as `nft` prints it.
pub fn rule_text(rule: &Rule) -> String {
    RuleText(rule).to_string()
}

pub(super) struct RuleText<'a>(pub &'a Rule);

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let matches = self.0.matches.iter().map(|m| MatchText(m).to_string());
        let words: Vec<String> = matches.chain(self.0.actions.iter().map(|a| ActionText(a).to_string())).collect();
        f.write_str(&words.join(" "))
    }
}

struct MatchText<'a>(&'a Match);

impl fmt::Display for MatchText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Match::Is(field, constants) if constants.len() == 1 => write!(f, "{} {}", field_word(*field), list(constants)),
            Match::Is(field, constants) => write!(f, "{} {{ {} }}", field_word(*field), list(constants)),
            Match::IsNot(field, constant) => write!(f, "{} != {}", field_word(*field), constant_text(constant)),
            Match::In(fields, set) => write!(f, "{} @{set}", key_text(fields)),
            Match::State(state) => write!(f, "ct state {}", state_word(*state)),
            Match::Reply => f.write_str("ct direction reply"),
            Match::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Match::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Match::Translated => f.write_str("ct status dnat"),
            Match::Internet => f.write_str("meta mark & 0x80000000 != 0"),
        }
    }
}

struct ActionText<'a>(&'a Action);

impl fmt::Display for ActionText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Action::Accept => f.write_str("accept"),
            Action::Drop => f.write_str("drop"),
            Action::Goto(chain) => write!(f, "goto {chain}"),
            Action::ByState(states) => {
                let states: Vec<String> = states.iter().map(|(state, chain)| format!("{} : goto {chain}", state_word(*state))).collect();
                write!(f, "ct state vmap {{ {} }}", states.join(", "))
            }
            Action::ByProto(protocols) => {
                let protocols: Vec<String> =
                    protocols.iter().map(|(proto, chain)| format!("{} : goto {chain}", constant_text(proto))).collect();
                write!(f, "meta l4proto vmap {{ {} }}", protocols.join(", "))
            }
            Action::ByMap(fields, map) => write!(f, "{} vmap @{map}", key_text(fields)),
            Action::MarkFrom(fields, map) => write!(f, "meta mark set {} map @{map}", key_text(fields)),
            Action::TranslateDestination(family, Target::Map(map)) => {
                write!(f, "dnat {} to {} map @{map}", family_word(*family), field_word(Field::Destination(*family)))
            }
            Action::TranslateDestination(family, Target::Spread(targets)) => {
                let slots: Vec<String> = targets.iter().enumerate().map(|(slot, target)| format!("{slot} : {target}")).collect();
                write!(f, "dnat {} to numgen inc mod {} map {{ {} }}", family_word(*family), targets.len(), slots.join(", "))
            }
            Action::TranslateSource(address) => write!(f, "snat {} to {address}", family_word(super::base::family_of(*address))),
            Action::Masquerade => f.write_str("masquerade"),
            Action::Reset => f.write_str("reject with tcp reset"),
            Action::Unreachable(Family::V4) => f.write_str("reject with icmp port-unreachable"),
            Action::Unreachable(Family::V6) => f.write_str("reject with icmpv6 port-unreachable"),
            Action::Count(counter) => write!(f, "counter name {counter}"),
            Action::Learn(fields, set) => write!(f, "add @{set} {{ {} }}", key_text(fields)),
        }
    }
}

fn key_text(fields: &[Field]) -> String {
    fields.iter().map(|field| field_word(*field)).collect::<Vec<_>>().join(" . ")
}

fn list(constants: &[Constant]) -> String {
    constants.iter().map(constant_text).collect::<Vec<_>>().join(", ")
}

fn constant_text(constant: &Constant) -> String {
    match constant {
        Constant::Link(link) => format!("\"{link}\""),
        Constant::Address(address) => address.to_string(),
        Constant::Number(number) => number.to_string(),
    }
}

const fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

const fn state_word(state: FlowState) -> &'static str {
    match state {
        FlowState::New => "new",
        FlowState::Established => "established",
        FlowState::Related => "related",
    }
}

const fn field_word(field: Field) -> &'static str {
    match field {
        Field::InLink => "iifname",
        Field::OutLink => "oifname",
        Field::Source(Family::V4) => "ip saddr",
        Field::Source(Family::V6) => "ip6 saddr",
        Field::Destination(Family::V4) => "ip daddr",
        Field::Destination(Family::V6) => "ip6 daddr",
        Field::FlowSource(Family::V4) => "ct original ip saddr",
        Field::FlowSource(Family::V6) => "ct original ip6 saddr",
        Field::FlowResponder(Family::V4) => "ct reply ip saddr",
        Field::FlowResponder(Family::V6) => "ct reply ip6 saddr",
        Field::Proto => "meta l4proto",
        Field::Port => "th dport",
        Field::IcmpType(Family::V4) => "icmp type",
        Field::IcmpType(Family::V6) => "icmpv6 type",
        Field::Zone => "(meta mark & 0x7fffffff)",
    }
}
