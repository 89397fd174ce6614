//! Certificates that a server gives by itself: when it is asked, and when it may look.

use super::world::World;
use super::{Core, parts};
use crate::blueprints::{Doors, read_and_resolve};
use crate::core::acme::News;
use crate::core::{Msg, acme};
use crate::protocol::UpRequest;
use moat_certs::{AcmeError, Again, Proof};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Where nobody listens.
const SERVER: &str = "https://127.0.0.1:1/dir";

const SERVICES: &str = "
services:
  - type: web
    name: shop
    runtime: static
    staticPublishPath: .
    domains: [a.example.com, b.example.com]
    renderSubdomainPolicy: disabled
";

/// A daemon that serves two names and asks for their certificates.
async fn daemon(world: &Arc<World>) -> (Core, mpsc::UnboundedReceiver<Msg>) {
    world.begin();
    let (tx, rx) = mpsc::unbounded_channel();
    let mut core = Core::of(parts(world, true), tx, std::iter::empty()).await.unwrap();
    let all = BTreeMap::from([(PathBuf::from("/app/render.yaml"), UpRequest::new("/app/render.yaml", SERVICES))]);
    let outcome = read_and_resolve(&all, &mut core.durable.memory, Doors { http: "127.0.0.1:8080", https: None });
    core.desired = outcome.state;
    assert!(core.desired.services.len() == 1, "{:?}", outcome.diagnostics);
    core.durable.public.set("acme", SERVER).unwrap();
    core.dataplane.ensure().await.unwrap();
    (core, rx)
}

/// What comes of asking next.
async fn news(rx: &mut mpsc::UnboundedReceiver<Msg>) -> News {
    loop {
        if let Msg::Acme(news) = rx.recv().await.unwrap() {
            return news;
        }
    }
}

/// The name that was asked for, which got no certificate for this reason.
async fn refused(core: &mut Core, rx: &mut mpsc::UnboundedReceiver<Msg>, error: AcmeError) -> String {
    let News::Certificate(url, name, Err(_)) = news(rx).await else { panic!("nobody listens there") };
    assert_eq!(url, SERVER);
    core.acme_news(News::Certificate(url, name.clone(), Err(error)));
    name
}

fn ask(core: &mut Core) -> bool {
    core.ask_for_certificates();
    core.shown.asking
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_asked_too_often_is_left_alone_whichever_name_is_due() {
    let world = World::new(1);
    let (mut core, mut rx) = daemon(&world).await;
    assert!(ask(&mut core));
    // One that failed is not asked for again soon, the others are.
    let first = refused(&mut core, &mut rx, AcmeError::Server("no".to_owned())).await;
    assert!(ask(&mut core));
    let limited = || AcmeError::TooOften { why: "enough".to_owned(), again: Some(Again::In(Duration::from_hours(2))) };
    let second = refused(&mut core, &mut rx, limited()).await;
    assert_ne!(first, second);
    assert!(!ask(&mut core), "others are due and the server said to come later");
    // The pause is durable.
    drop(core);
    world.end(Duration::ZERO);
    let (mut core, mut rx) = daemon(&world).await;
    tokio::time::advance(Duration::from_mins(119)).await;
    assert!(!ask(&mut core));
    tokio::time::advance(Duration::from_mins(2)).await;
    assert!(ask(&mut core));
    let third = refused(&mut core, &mut rx, limited()).await;
    assert_eq!(first, third, "it waits for longer");
    // Another server knows nothing of that.
    core.durable.public.set("acme", "https://127.0.0.1:2/dir").unwrap();
    core.certificates_changed();
    assert!(ask(&mut core));
}

#[tokio::test(start_paused = true)]
async fn a_changed_contact_is_told_once_and_a_refused_one_keeps_no_name_waiting() {
    let world = World::new(1);
    let (mut core, mut rx) = daemon(&world).await;
    core.durable.public.set("acme-contact", "a@example.com").unwrap();
    let directory = core.durable.public.directory().unwrap();
    core.acme_news(News::Account(directory, moat_model::Secret::new("{}")));
    assert!(ask(&mut core));
    let News::Certificate(..) = news(&mut rx).await else { panic!("the contact is the one that the account was made with") };
    core.acme_news(News::Certificate(SERVER.to_owned(), "a.example.com".to_owned(), Err(AcmeError::Server("no".to_owned()))));

    core.durable.public.set("acme-contact", "b@example.com").unwrap();
    assert!(ask(&mut core));
    let News::Contact(directory, Err(error)) = news(&mut rx).await else { panic!("it is not told") };
    assert_eq!(directory.contact.as_deref(), Some("b@example.com"));
    core.acme_news(News::Contact(directory, Err(error)));
    assert!(ask(&mut core));
    let News::Certificate(..) = news(&mut rx).await else { panic!("names wait for a contact that is refused") };
    core.acme_news(News::Certificate(SERVER.to_owned(), "b.example.com".to_owned(), Err(AcmeError::Server("no".to_owned()))));

    // Another one is told at once, and then no more.
    core.durable.public.set("acme-contact", "off").unwrap();
    assert!(ask(&mut core));
    let News::Contact(directory, _) = news(&mut rx).await else { panic!("it is not told") };
    assert_eq!(directory.contact, None);
    core.acme_news(News::Contact(directory, Ok(())));
    tokio::time::advance(Duration::from_mins(6)).await;
    assert!(ask(&mut core));
    let News::Certificate(..) = news(&mut rx).await else { panic!("it is told again") };
}

#[tokio::test(start_paused = true)]
async fn a_proof_is_shown_only_once_the_data_plane_has_it() {
    let world = World::new(1);
    let (mut core, _rx) = daemon(&world).await;
    core.durable.public.set("acme", "off").unwrap();
    let (done, mut shown) = oneshot::channel();
    let proof = Proof { name: "a.example.com".to_owned(), token: "token".to_owned(), answer: "token.thumb".to_owned(), certificate: None };
    world.inner().deaf = true;
    core.acme_news(acme::News::Prove((proof, done)));
    for _ in 0..3 {
        core.advance().await;
        assert!(shown.try_recv().is_err(), "the server looks before there is something to see");
    }
    world.inner().deaf = false;
    core.advance().await;
    assert!(shown.try_recv().is_ok());
}
