//! Ports that were given out and that nobody listens on.
//!
//! A blueprint gives one service the port of another (`property: hostport`) before either runs. Where the other's program then listens
//! elsewhere, its clients have an address at which nobody answers: that is told to whoever can write the right `PORT`.

use super::Core;
use crate::protocol::{OpenPort, OpenProtocol};
use moat_model::net::RESERVED_PORTS;
use moat_model::state::Listener;
use moat_model::{Proto, Purpose, Service, ServiceKind, Slug};
use std::collections::BTreeSet;

impl Core {
    /// Which port of a service was given to whom and is not open, while others are: in words, with what to write.
    pub(super) fn port_given_wrong(&self, service: &Service) -> Option<String> {
        let live =
            self.live.values().find(|live| live.slug == service.slug && live.purpose == Purpose::Serve && live.ready && !live.stopping)?;
        let takers = service.port_given_to.iter().filter(|taker| self.desired.services.contains_key(*taker));
        given_wrong(service, &takers.collect::<Vec<_>>(), &live.listeners)
    }

    /// The ports at which the instances of a service that take traffic can be reached, in order.
    pub(super) fn open_ports(&self, service: &Service) -> Vec<OpenPort> {
        let serving = self.live.values().filter(|live| live.slug == service.slug && live.purpose == Purpose::Serve && live.ready);
        let open = serving.filter(|_| service.kind.receives()).flat_map(|live| &live.listeners).filter(|listener| !listener.loopback_only);
        let ports = open.filter(|listener| !RESERVED_PORTS.contains(&listener.endpoint.port)).map(|listener| OpenPort {
            port: listener.endpoint.port,
            protocol: match listener.endpoint.proto {
                Proto::Tcp => OpenProtocol::Tcp,
                Proto::Udp => OpenProtocol::Udp,
            },
        });
        ports.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Tells that of a service whose deploy is over, and of those whose port it was given, once no deploy of any of them is under way.
    pub(super) fn say_ports_around(&mut self, slug: &Slug) {
        let services = self.desired.services.values();
        let around = services.filter(|service| service.slug == *slug || service.port_given_to.contains(slug));
        let settled = |service: &&Service| !service.port_given_to.iter().chain([&service.slug]).any(|slug| self.deploys.contains_key(slug));
        let said: Vec<(Slug, String)> =
            around.filter(settled).filter_map(|service| Some((service.slug.clone(), self.port_given_wrong(service)?))).collect();
        for (slug, words) in said {
            self.notice(Some(&slug), words);
        }
    }
}

fn given_wrong(service: &Service, takers: &[&Slug], listeners: &[Listener]) -> Option<String> {
    if takers.is_empty() || !matches!(service.kind, ServiceKind::Web | ServiceKind::Pserv) {
        return None;
    }
    let given = service.port?;
    let open: Vec<&Listener> = listeners.iter().filter(|listener| !listener.loopback_only).collect();
    if open.is_empty() || open.iter().any(|listener| listener.endpoint.port == given) {
        return None;
    }
    let list: Vec<String> = open.iter().map(|listener| format!("{}/{}", listener.endpoint.port, listener.endpoint.proto)).collect();
    let names: Vec<String> = takers.iter().map(|taker| format!("`{taker}`")).collect();
    let were = if names.len() == 1 { "was" } else { "were" };
    let fix = match (open.as_slice(), service.written_keys.contains("PORT")) {
        ([one], false) => format!("write `PORT: {}` in the envVars of `{}`", one.endpoint.port, service.slug),
        ([one], true) => format!("write `PORT: {}` instead of {given} in the envVars of `{}`", one.endpoint.port, service.slug),
        (_, _) => format!("write the one that they need as `PORT` in the envVars of `{}`", service.slug),
    };
    Some(format!(
        "it listens on {}, but {} {were} given `{}:{given}`, where nobody answers: {fix}, or have its program listen on $PORT",
        list.join(", "),
        names.join(", "),
        service.slug
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_model::Endpoint;

    #[test]
    fn a_port_that_was_given_out_and_is_not_open_is_told_with_what_to_write() {
        let text = "services:\n  - {type: pserv, name: stock, runtime: image, image: {url: a}}\n  - {type: pserv, name: named, runtime: image, image: {url: a}, envVars: [{key: PORT, value: 53}]}\n";
        let read = moat_blueprint::read(text);
        let none = std::collections::BTreeMap::new();
        let input = moat_planner::resolve::Input {
            path: std::path::Path::new("/a/render.yaml"),
            source: std::path::Path::new("/a"),
            blueprint: &read.blueprint,
            given: &none,
            files: &none,
            git: moat_planner::resolve::GitFacts::default(),
        };
        let mut count = 0;
        let mut random = || {
            count += 1;
            [count; 32]
        };
        let settings = moat_planner::resolve::Settings::default();
        let state = moat_planner::resolve::resolve(&[input], &mut moat_planner::memory::Memory::default(), &mut random, &settings).state;
        let [stock, named] = ["stock", "named"].map(|slug| state.services.get(slug).unwrap());
        let [shop, mail] = ["shop", "mail"].map(|slug| Slug::new(slug).unwrap());
        let tcp = |port, loopback_only| Listener { endpoint: Endpoint { proto: Proto::Tcp, port }, loopback_only };
        let both = [&shop, &mail];
        for (service, takers, listeners, says) in [
            (
                stock,
                &both[..1],
                vec![tcp(8000, false)],
                Some("listens on 8000/tcp, but `shop` was given `stock:10000`, where nobody answers: write `PORT: 8000` in"),
            ),
            (
                stock,
                &both,
                vec![tcp(8000, false), tcp(8001, false)],
                Some("`shop`, `mail` were given `stock:10000`, where nobody answers: write the one"),
            ),
            (named, &both[..1], vec![tcp(54, false)], Some("write `PORT: 54` instead of 53 in the envVars of `named`")),
            (stock, &both, vec![tcp(8000, false), tcp(10000, false)], None),
            // What is open inside only is another matter, which has words of its own.
            (stock, &both, vec![tcp(8000, true)], None),
            (stock, &[], vec![tcp(8000, false)], None),
        ] {
            let said = given_wrong(service, takers, &listeners);
            assert_eq!(said.is_some(), says.is_some(), "{said:?}");
            assert!(said.as_deref().unwrap_or_default().contains(says.unwrap_or_default()), "{said:?}");
        }
    }
}
