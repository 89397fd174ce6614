//! A packet's way through a ruleset, without a kernel.
//!
//! [`trace`] walks the same chains the kernel would, in the same order, and says which rule decided. Routes are those
//! that [`crate::Network::attach`] makes: one per source, by its link. Invariant: it reads the ruleset only.

use crate::lower::ir::{Action, Atom, Constant, Field, FlowState, Hook, Key, Match, Ruleset, Target, Value, is_of};
use crate::lower::{EGRESS, UPLINK, rule_text};
use crate::packet::{FlowKind, Origin, Outcome, Packet};
use ipnet::IpNet;
use moat_model::LinkName;
use std::net::IpAddr;

/// What a packet met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What became of it.
    pub outcome: Outcome,
    /// Each deciding step, for people.
    pub steps: Vec<String>,
    /// Where a service address was translated to.
    pub translated: Option<IpAddr>,
}

/// Sends a packet through a ruleset.
pub fn trace(ruleset: &Ruleset, packet: &Packet) -> Trace {
    let mut walk = Walk {
        ruleset,
        packet,
        destination: packet.destination,
        mark: 0,
        out_link: None,
        steps: vec![format!("{} → {}", packet.source, packet.destination)],
        translated: None,
    };
    let outcome = walk.run();
    walk.steps.push(format!("the packet {outcome}"));
    Trace { outcome, steps: walk.steps, translated: walk.translated }
}

/// How a chain ended.
enum End {
    Accepted,
    Dropped,
    Refused,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    destination: IpAddr,
    mark: u32,
    out_link: Option<String>,
    steps: Vec<String>,
    translated: Option<IpAddr>,
}

enum Route {
    Local,
    Link(LinkName),
    Uplink,
    Nowhere,
}

impl Walk<'_> {
    fn run(&mut self) -> Outcome {
        if self.packet.origin != Origin::Router {
            if let Some(outcome) = self.hook(Hook::Raw) {
                return outcome;
            }
            match &self.packet.state {
                FlowKind::New => {
                    if let Some(outcome) = self.hook(Hook::TranslateIn) {
                        return outcome;
                    }
                }
                FlowKind::Opener { translated: Some(to) } | FlowKind::Reply { translated: Some(to) } => {
                    self.steps.push(format!("known flow: to {to}"));
                    self.destination = *to;
                }
                FlowKind::Opener { .. } | FlowKind::Reply { .. } | FlowKind::Error { .. } | FlowKind::Invalid => {}
            }
        }
        let route = self.route();
        let (hook, outcome) = match route {
            Route::Nowhere => return Outcome::NoRoute,
            Route::Local => {
                self.out_link = Some("lo".to_owned());
                (Hook::Input, Outcome::Router)
            }
            Route::Link(link) => {
                self.out_link = Some(link.as_str().to_owned());
                (Hook::Forward, Outcome::Instance { link, address: self.destination })
            }
            Route::Uplink => {
                self.out_link = Some(UPLINK.to_owned());
                (Hook::Forward, Outcome::Internet)
            }
        };
        let hook = if self.packet.origin == Origin::Router { Hook::Output } else { hook };
        self.hook(hook).unwrap_or(outcome)
    }

    /// The route to the destination, as the router's table has it.
    fn route(&self) -> Route {
        if self.ruleset.local.contains(&self.destination) {
            return Route::Local;
        }
        if let Some(link) = self.ruleset.link_to(self.destination) {
            return Route::Link(link);
        }
        if self.ruleset.unroutable.iter().any(|net| net.contains(&self.destination)) { Route::Nowhere } else { Route::Uplink }
    }

    /// Runs the base chains of a hook; `None` when the packet goes on.
    fn hook(&mut self, hook: Hook) -> Option<Outcome> {
        let ruleset = self.ruleset;
        for (name, _) in ruleset.chains.iter().filter(|(_, chain)| chain.hook == Some(hook)) {
            match self.chain(name) {
                Some(End::Accepted) => {}
                Some(End::Dropped) => return Some(Outcome::Dropped),
                Some(End::Refused) => return Some(Outcome::Refused),
                None if matches!(hook, Hook::TranslateIn | Hook::TranslateOut) => {}
                None => {
                    self.steps.push(format!("{name}: nothing allows it"));
                    return Some(Outcome::Dropped);
                }
            }
        }
        None
    }

    /// Runs a chain and those it goes to; `None` when no rule decided.
    fn chain(&mut self, name: &str) -> Option<End> {
        let ruleset = self.ruleset;
        'rules: for rule in &ruleset.chains.get(name)?.rules {
            if !rule.matches.iter().all(|condition| self.holds(condition)) {
                continue;
            }
            for action in &rule.actions {
                let say = |walk: &mut Self| walk.steps.push(format!("{name}: {}", rule_text(rule)));
                match action {
                    Action::Accept => {
                        say(self);
                        return Some(End::Accepted);
                    }
                    Action::Drop => {
                        say(self);
                        return Some(End::Dropped);
                    }
                    Action::Reset | Action::Unreachable(_) => {
                        say(self);
                        return Some(End::Refused);
                    }
                    Action::Goto(chain) => {
                        say(self);
                        return self.chain(chain);
                    }
                    Action::ByState(states) => {
                        let state = self.state();
                        if let Some((_, chain)) = states.iter().find(|(listed, _)| Some(*listed) == state) {
                            say(self);
                            return self.chain(chain);
                        }
                    }
                    Action::ByProto(protocols) => {
                        let proto = Atom::Proto(self.packet.proto);
                        if let Some((_, chain)) = protocols.iter().find(|(listed, _)| equals(&proto, listed)) {
                            say(self);
                            return self.chain(chain);
                        }
                    }
                    Action::ByMap(fields, map) => {
                        if let Some(Value::Goto(chain)) = self.look_up(fields, map) {
                            say(self);
                            return self.chain(&chain);
                        }
                    }
                    Action::MarkFrom(fields, map) => match self.look_up(fields, map) {
                        Some(Value::Mark(mark)) => self.mark = mark,
                        Some(Value::Address(_) | Value::Goto(_)) | None => continue 'rules,
                    },
                    Action::TranslateDestination(family, target) => {
                        if !is_of(self.destination, *family) {
                            continue 'rules;
                        }
                        let to = match target {
                            Target::Map(map) => match self.look_up(&[Field::Destination(*family)], map) {
                                Some(Value::Address(to)) => to,
                                Some(Value::Mark(_) | Value::Goto(_)) | None => continue 'rules,
                            },
                            Target::Spread(targets) if targets.is_empty() => continue 'rules,
                            Target::Spread(targets) => targets[self.packet.turn % targets.len()],
                        };
                        self.steps.push(format!("{name}: service address {} → {to}", self.destination));
                        self.destination = to;
                        self.translated = Some(to);
                        return Some(End::Accepted);
                    }
                    Action::TranslateSource(_) | Action::Masquerade => return Some(End::Accepted),
                    Action::Count(_) | Action::Learn(..) => {}
                }
            }
        }
        None
    }

    const fn state(&self) -> Option<FlowState> {
        match self.packet.state {
            FlowKind::New => Some(FlowState::New),
            FlowKind::Opener { .. } | FlowKind::Reply { .. } => Some(FlowState::Established),
            FlowKind::Error { .. } => Some(FlowState::Related),
            FlowKind::Invalid => None,
        }
    }

    fn holds(&self, condition: &Match) -> bool {
        match condition {
            Match::Is(field, constants) => {
                self.value(*field).is_some_and(|value| constants.iter().any(|constant| equals(&value, constant)))
            }
            Match::IsNot(field, constant) => self.value(*field).is_some_and(|value| !equals(&value, constant)),
            Match::In(fields, set) => self.contains(fields, set),
            Match::State(state) => self.state() == Some(*state),
            Match::Family(family) => is_of(self.packet.source, *family),
            Match::Translated => self.translated.is_some(),
            Match::Internet => self.mark & EGRESS != 0,
            Match::Reply => matches!(self.packet.state, FlowKind::Reply { .. }),
        }
    }

    /// The value of a field; `None` when this packet has none.
    fn value(&self, field: Field) -> Option<Atom> {
        let packet = self.packet;
        let of_family = |address: IpAddr, family| is_of(address, family).then(|| Atom::address(address));
        match field {
            Field::InLink => match &packet.origin {
                Origin::Link(link) => Some(Atom::Link(link.clone())),
                Origin::Uplink => Some(Atom::Named(UPLINK.to_owned())),
                Origin::Router => None,
            },
            Field::OutLink => self.out_link.clone().map(Atom::Named),
            Field::Source(family) => of_family(packet.source, family),
            Field::Destination(family) => of_family(self.destination, family),
            Field::FlowSource(family) => match packet.state {
                FlowKind::Error { opener, .. } => of_family(opener, family),
                FlowKind::New | FlowKind::Opener { .. } | FlowKind::Reply { .. } | FlowKind::Invalid => None,
            },
            Field::FlowResponder(family) => match packet.state {
                FlowKind::Error { responder, .. } => of_family(responder, family),
                FlowKind::New | FlowKind::Opener { .. } | FlowKind::Reply { .. } | FlowKind::Invalid => None,
            },
            Field::Proto => Some(Atom::Proto(packet.proto)),
            Field::Port => matches!(packet.proto, 6 | 17 | 132).then_some(Atom::Port(packet.port)),
            Field::IcmpType(family) => {
                let proto = match family {
                    moat_model::Family::V4 => 1,
                    moat_model::Family::V6 => 58,
                };
                (packet.proto == proto && is_of(packet.source, family)).then(|| Atom::Port(packet.icmp_type.into()))
            }
            Field::Zone => Some(Atom::Mark(self.mark & !EGRESS)),
        }
    }

    fn key(&self, fields: &[Field]) -> Option<Key> {
        fields.iter().map(|field| self.value(*field)).collect()
    }

    fn look_up(&self, fields: &[Field], map: &str) -> Option<Value> {
        let key = self.key(fields)?;
        self.ruleset.sets.get(map)?.elements.get(&key)?.clone()
    }

    fn contains(&self, fields: &[Field], set: &str) -> bool {
        let (Some(key), Some(set)) = (self.key(fields), self.ruleset.sets.get(set)) else { return false };
        if !set.interval {
            return set.elements.contains_key(&key);
        }
        set.elements.keys().any(|element| element.len() == key.len() && element.iter().zip(&key).all(|(range, value)| within(range, value)))
    }
}

fn within(range: &Atom, value: &Atom) -> bool {
    match (range, value) {
        (Atom::Net(range), Atom::Net(value)) => range.contains(value),
        _ => range == value,
    }
}

fn equals(value: &Atom, constant: &Constant) -> bool {
    match (value, constant) {
        (Atom::Link(link), Constant::Link(name)) => link.as_str() == *name,
        (Atom::Named(link), Constant::Link(name)) => link == name,
        (Atom::Net(net), Constant::Address(address)) => *net == IpNet::from(*address),
        (Atom::Proto(proto), Constant::Number(number)) => u16::from(*proto) == *number,
        (Atom::Port(port), Constant::Number(number)) => port == number,
        _ => false,
    }
}

impl Ruleset {
    /// The link that leads to an address: the one that it may send from.
    pub fn link_to(&self, address: IpAddr) -> Option<LinkName> {
        let atom = Atom::address(address);
        let sources = ["sources4", "sources6"].into_iter().filter_map(|name| self.sets.get(name));
        sources.flat_map(|set| set.elements.keys()).find_map(|key| match key.as_slice() {
            [Atom::Link(link), source] if *source == atom => Some(link.clone()),
            _ => None,
        })
    }
}
