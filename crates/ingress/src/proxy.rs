//! One request: decide, pass on, answer, note.

use crate::body::{Relay, RequestBody, ResponseBody};
use crate::clients::{Clients, Place};
use crate::compress::{self, Outgoing};
use crate::decide::{Decision, Refusal, decide};
use crate::failure::Failure;
use crate::link::Late;
use crate::pool::{Flight, Pool, Sender, Speak, connect};
use crate::received::{Limits, Received};
use crate::record::{Exchange, Open, Recorded};
use crate::site::{Answer, Lack, Site};
use crate::tunnel::{Counted, OpenTunnel, tunnel};
use crate::{Arrival, Dial, Policy, Records, Route, RouteTable, Routes, Settings, Tls, announce, forwarded, heads, pages, sleep};
use base64::Engine as _;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body, Incoming};
use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// What every request needs.
pub(crate) struct Proxy<D> {
    pub routes: Arc<RouteTable>,
    pub dial: Arc<D>,
    pub pool: Arc<Pool>,
    pub settings: Settings,
    /// The certificates that are shown, where TLS is spoken.
    pub tls: Option<Arc<Tls>>,
    /// Turns true, or is closed, when serving stops: connections end with the request they carry.
    pub stopping: watch::Receiver<bool>,
    /// Turns true, or is closed, when tunnels end.
    pub cutting: watch::Receiver<bool>,
    /// How many tunnels are open.
    pub tunnels: watch::Sender<usize>,
    /// Who is connected.
    pub clients: Arc<Clients>,
    /// Places for requests that are held.
    pub held: Semaphore,
    /// Places for answers that are compressed.
    pub compressing: Arc<Semaphore>,
    /// What is noted.
    pub records: Records,
}

/// Who asks, and under which id.
pub(crate) struct Caller<'a> {
    pub arrival: &'a Arrival,
    /// The client's address, as instances read it.
    pub address: &'a HeaderValue,
    pub id: &'a HeaderValue,
    /// A WebSocket over HTTP/2, which is an upgrade from here on.
    pub bridged: bool,
    /// What its connection is counted by.
    pub place: Option<&'a Arc<Place>>,
}

impl<'a> Caller<'a> {
    /// The id as text.
    fn text(&self) -> &'a str {
        self.id.to_str().unwrap_or_default()
    }
}

/// Where a server of certificates asks for a proof (RFC 8555 §8.3).
const PROOFS: &str = "/.well-known/acme-challenge/";

/// An answer from an instance.
struct Answered {
    response: Response<Incoming>,
    flight: Flight,
    sender: Sender,
}

/// Why sending over one connection failed.
enum Unsent {
    /// Nothing left this machine; the request is whole.
    Nothing(Box<Request<RequestBody>>, Failure),
    /// It may have arrived; its connection ended without one byte of an answer.
    Unanswered(Failure),
    /// Some of it may have arrived.
    Some(Failure),
}

impl<D: Dial> Proxy<D> {
    /// Answers one request; every failure becomes a page.
    pub async fn handle(&self, request: Request<Incoming>, connection: &(Arrival, HeaderValue, Arc<Place>)) -> Response<Recorded> {
        let id = heads::request_id(fastrand::u64(..));
        let (mut head, body) = request.into_parts();
        let bridged = heads::take_http2(&mut head, websocket_key);
        let routes = self.routes.load();
        let told = forwarded::by_proxy(&routes.policy.trusted, &mut head, &connection.0).map(|arrival| {
            let address = heads::address_of(&arrival);
            Box::new((arrival, address))
        });
        let (arrival, address) = told.as_deref().map_or((&connection.0, &connection.1), |(arrival, address)| (arrival, address));
        let caller = Caller { arrival, address, id: &id, bridged, place: Some(&connection.2) };
        let mut exchange = Exchange::new(&self.records, &mut head, arrival, caller.text());
        // A body with a doubtful length ends its connection (RFC 9112 §6.1): nothing behind it is read as a request.
        let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
        let one = head.version != Version::HTTP_2;
        let (method, liked) = (head.method.clone(), compress::liked(&head.headers));
        let mut response = self.answer(head, body, &caller, &mut exchange).await;
        let last = chunked || (*self.stopping.borrow() && response.status() != StatusCode::SWITCHING_PROTOCOLS);
        if last && one {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if arrival.secure
            && let Some(hsts) = &routes.policy.hsts
        {
            response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        exchange.answered(response.status());
        let response = if routes.policy.compress && compress::may_be(&method, &response) {
            compress::compressed(response, liked, &self.compressing)
        } else {
            response.map(Outgoing::Plain)
        };
        response.map(|body| Recorded::new(body, exchange))
    }

    /// Whether a request over TLS is for a name whose certificate its client has not seen.
    fn is_misdirected(&self, head: &Parts, arrival: &Arrival) -> bool {
        let (Some(name), Some(tls)) = (&arrival.name, &self.tls) else { return false };
        // What is no host name is refused for that.
        crate::decide::host_of(head).is_ok_and(|(host, _)| host != **name && !tls.is_same(&host, name))
    }

    async fn answer(&self, mut head: Parts, body: Incoming, caller: &Caller<'_>, exchange: &mut Exchange) -> Response<ResponseBody> {
        let mut routes = self.routes.load();
        // By TLS too: servers follow whoever sends them there.
        if !routes.proofs.is_empty()
            && let Some(proof) = head.uri.path().strip_prefix(PROOFS).and_then(|token| routes.proofs.get(token))
        {
            return page(pages::proof(proof), caller.id);
        }
        if self.is_misdirected(&head, caller.arrival) {
            return page(pages::refusal(&Refusal::Misdirected, &head.headers, caller.text()), caller.id);
        }
        let (mut handed_on, mut waited) = (false, false);
        let route = loop {
            let (route, site) = match decide(&routes, &head, caller.arrival) {
                Decision::Proxy(route) | Decision::Serve(route, _) if !handed_on && let Some(refusal) = over_limit(route, caller) => {
                    exchange.service(&route.service, route.meter.own());
                    return page(pages::refusal(&refusal, &head.headers, caller.text()), caller.id);
                }
                Decision::Proxy(route) => break route,
                Decision::Serve(route, site) => (route, Arc::clone(site)),
                Decision::Move(route, to) => {
                    exchange.service(&route.service, route.meter.own());
                    return page(pages::moved(&to), caller.id);
                }
                Decision::Hold(_) if !waited => {
                    if let Some((route, robots)) = sleep::robots(&routes, &head) {
                        exchange.service(&route.service, route.meter.own());
                        return page(robots, caller.id);
                    }
                    waited = true;
                    // Those that few need are boxed: each request is as large as all of them.
                    routes = Box::pin(self.when_not_held(&head, caller.arrival)).await;
                    continue;
                }
                Decision::Hold(refusal) | Decision::Refuse(refusal) => {
                    if let Refusal::NoInstance { service, .. }
                    | Refusal::Suspended { service }
                    | Refusal::Forbidden { service }
                    | Refusal::Maintenance { service, .. } = &refusal
                        && let Some(route) = routes.route_of(&head)
                    {
                        exchange.service(service, route.meter.own());
                    }
                    return page(pages::refusal(&refusal, &head.headers, caller.text()), caller.id);
                }
            };
            exchange.service(&route.service, route.meter.own());
            let answer;
            (head, answer) = Box::pin(from_site(site, head)).await;
            let lack = match answer {
                Ok(Answer::Response(mut response)) => {
                    heads::identify(response.headers_mut(), caller.id);
                    return response.map(|content| Either::Right(Either::Left(content)));
                }
                // As if the client had asked there: the routes decide, so that only what is public answers. Once, so that
                // two sites can't hand a request to and fro.
                Ok(Answer::Pass { host, target }) if !handed_on => {
                    handed_on = true;
                    heads::hand_on(&mut head, &host, target);
                    continue;
                }
                Ok(Answer::Pass { .. }) => Lack::Circle,
                Ok(Answer::Page(lack)) => lack,
                Err(error) => {
                    exchange.failed(&error);
                    Lack::Unreadable
                }
            };
            return page(pages::lack(&route.service, lack, &head.headers, caller.text()), caller.id);
        };
        exchange.service(&route.service, route.meter.own());
        let asked = pages::wishes(&head.headers);
        match self.pass(route, Request::from_parts(head, body), caller, &routes.policy, exchange).await {
            Ok(response) => response,
            Err(failure) => {
                exchange.failed(&failure);
                page(pages::failure(&route.service, &failure, &asked, caller.text()), caller.id)
            }
        }
    }

    /// The routes by which a request that is held goes on: those of when its service has an instance, or gives up waiting
    /// for one, or of when it was held for long enough. Where too many are held, the present ones.
    async fn when_not_held(&self, head: &Parts, arrival: &Arrival) -> Arc<Routes> {
        let mut changes = self.routes.changes();
        let Ok(_place) = self.held.try_acquire() else { return self.routes.load() };
        let ready = async {
            loop {
                let routes = self.routes.load();
                // A closed channel can't be: the table is held here.
                let is_held = matches!(decide(&routes, head, arrival), Decision::Hold(_));
                if let Some(service) = sleep::sleeper(&routes, head) {
                    self.routes.rouse(service);
                }
                if !is_held || changes.changed().await.is_err() {
                    return routes;
                }
            }
        };
        timeout(self.settings.hold_wait, ready).await.unwrap_or_else(|_| self.routes.load())
    }

    async fn pass(
        &self,
        route: &Route,
        mut request: Request<Incoming>,
        caller: &Caller<'_>,
        policy: &Policy,
        exchange: &mut Exchange,
    ) -> Result<Response<ResponseBody>, Failure> {
        let upgrade = if caller.bridged { Some(HeaderValue::from_static("websocket")) } else { heads::wanted_upgrade(&request) };
        let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let grpc = upgrade.is_none() && heads::is_grpc(request.headers());
        let limits = if grpc { Limits::default() } else { limits(policy, request.version()) };
        if let Some(most) = limits.most.filter(|most| request.body().size_hint().lower() > *most) {
            return Err(Failure::ClientLong(most));
        }
        heads::to_instance(&mut request, caller, upgrade.as_ref());
        if grpc {
            heads::to_http2(&mut request);
        }
        let speak = if grpc { Speak::Two } else { Speak::One };
        // The body of a WebSocket's opening over HTTP/2 is the WebSocket itself.
        let own = route.meter.own();
        let request =
            request.map(|body| if caller.bridged { RequestBody::Empty } else { RequestBody::Client(Received::new(body, own, limits)) });
        let sent = self.send(route, request, (speak, upgrade.is_some()), caller.arrival, exchange).await?;
        let Answered { mut response, flight, sender } = sent;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            if caller.bridged && status.is_success() {
                return Err(Failure::NotSwitched(status));
            }
            heads::to_client(&mut response, caller.id, None);
            return Ok(response.map(|body| Either::Left(Relay::new(body, flight, sender))));
        }
        let Some(client_side) = client_side else { return Err(Failure::Switched) };
        let instance_side = hyper::upgrade::on(&mut response);
        let agreed = response.headers().get(header::UPGRADE).cloned().or(upgrade);
        if caller.bridged {
            heads::to_client(&mut response, caller.id, None);
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
        } else {
            heads::to_client(&mut response, caller.id, agreed.as_ref());
        }
        let open = Open::new(Arc::clone(exchange.counters()));
        let counted = Counted { flight, tunnel: OpenTunnel::new(&self.tunnels), open, place: caller.place.cloned() };
        tokio::spawn(tunnel(client_side, instance_side, counted, self.cutting.clone()));
        Ok(response.map(|_| Either::Right(Either::Right(Full::default()))))
    }

    /// Sends to one instance after the other while nothing has been sent.
    ///
    /// A kept connection may be closed by its instance at the moment of sending. What has no body and changes nothing is then sent
    /// once more, to the same instance, over a new connection; whatever becomes of that is the answer. Who can end a program by a
    /// request must not end more than that program by it.
    async fn send(
        &self,
        route: &Route,
        mut request: Request<RequestBody>,
        (speak, upgrade): (Speak, bool),
        arrival: &Arrival,
        exchange: &mut Exchange,
    ) -> Result<Answered, Failure> {
        let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
        let replayable = safe && request.body().is_end_stream();
        let mut left = Cow::from(&route.upstreams);
        let mut failed = None;
        while let Some(address) = self.pool.choose(&left, || fastrand::u64(..)) {
            let mut flight = self.pool.enter(address);
            let announce = route.announced(address).map(|version| announce::header(version, arrival));
            if announce.is_some() {
                flight.stay_alone();
            }
            if let Some(known) = route.meter.instance(address) {
                exchange.instance(known);
                if let RequestBody::Client(body) = request.body_mut() {
                    body.count_by(&known.counters);
                }
            }
            let mut again = false;
            while let Some(sender) = flight.take(speak, replayable).filter(|_| !upgrade && announce.is_none()) {
                let copy = replayable.then(|| copy_of(&request));
                match (self.send_over(sender, request).await, copy) {
                    (Ok((response, sender)), _) => return Ok(Answered { response, flight, sender }),
                    (Err(Unsent::Nothing(whole, _)), _) => request = *whole,
                    (Err(Unsent::Unanswered(_)), Some(copy)) => {
                        (request, again) = (copy, true);
                        break;
                    }
                    (Err(Unsent::Unanswered(failure) | Unsent::Some(failure)), _) => return Err(failure),
                }
            }
            let connected = Box::pin(connect(&*self.dial, &flight, address, speak, announce.as_deref(), &self.settings)).await;
            let failure = match connected {
                Err(failure) => failure,
                Ok(sender) => match self.send_over(sender, request).await {
                    Ok((response, sender)) => return Ok(Answered { response, flight, sender }),
                    Err(Unsent::Unanswered(failure) | Unsent::Some(failure)) => return Err(failure),
                    Err(Unsent::Nothing(whole, failure)) => {
                        request = *whole;
                        failure
                    }
                },
            };
            tracing::debug!(service = %route.service, %address, %failure, "an instance can't be reached");
            if again {
                return Err(failure);
            }
            failed = Some(failure);
            left.to_mut().retain(|candidate| *candidate != address);
        }
        // Without upstreams a route is refused before.
        Err(failed.unwrap_or(Failure::ResponseLate))
    }

    async fn send_over(&self, mut sender: Sender, request: Request<RequestBody>) -> Result<(Response<Incoming>, Sender), Unsent> {
        let upload = request.body().upload();
        match sender.send(request, self.settings.response_wait).await {
            Ok(Ok(response)) => {
                // From here on the task may wait for a client that takes nothing, while it sends.
                if response.status() == StatusCode::SWITCHING_PROTOCOLS || upload.is_some_and(|body| !body.is_over()) {
                    sender.detach();
                }
                Ok((response, sender))
            }
            Ok(Err(mut error)) => {
                let whole = error.take_message();
                let failure = Failure::of_exchange(error.into_error());
                if !failure.is_clients() {
                    sender.give_up();
                }
                let ended = matches!(failure, Failure::Closed(_) | Failure::Broken(_));
                Err(match whole {
                    Some(request) => Unsent::Nothing(Box::new(request), failure),
                    None if ended && !sender.has_heard() => Unsent::Unanswered(failure),
                    None => Unsent::Some(failure),
                })
            }
            Err(Late) => {
                sender.give_up();
                Err(Unsent::Some(Failure::ResponseLate))
            }
        }
    }
}

/// What a request's body is held to. Over HTTP/2 it may be silent for as long as it likes: it is half of a conversation there.
fn limits(policy: &Policy, version: Version) -> Limits {
    Limits { most: policy.max_body, pause: policy.client_idle.filter(|_| version != Version::HTTP_2) }
}

/// Why a client's request is one too many, where it is.
fn over_limit(route: &Route, caller: &Caller<'_>) -> Option<Refusal> {
    let wait = route.limit.as_ref()?.over(caller.arrival.client)?;
    Some(Refusal::TooMany { service: route.service.clone(), wait: wait.as_secs() + 1 })
}

/// Asks a site on a thread that may block; the head comes back.
async fn from_site(site: Arc<Site>, head: Parts) -> (Parts, io::Result<Answer>) {
    let kept = head.clone();
    let task = tokio::task::spawn_blocking(move || {
        let answer = site.answer(&head);
        (head, answer)
    });
    task.await.unwrap_or_else(|error| (kept, Err(io::Error::other(error))))
}

/// What a WebSocket's opening over HTTP/1.1 has and over HTTP/2 has not (RFC 6455 §4.1).
fn websocket_key() -> Option<HeaderValue> {
    let bytes = [random().to_be_bytes(), random().to_be_bytes()].concat();
    HeaderValue::try_from(base64::engine::general_purpose::STANDARD.encode(bytes)).ok()
}

/// A request without body, once more.
fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn page(mut page: Response<Full<hyper::body::Bytes>>, id: &HeaderValue) -> Response<ResponseBody> {
    heads::identify(page.headers_mut(), id);
    page.map(|page| Either::Right(Either::Right(page)))
}

/// 64 random bits that nobody can guess.
pub(crate) fn random() -> u64 {
    // The kernel's generator fails only before it was seeded once, at boot; the process' own seed covers that.
    getrandom::u64().unwrap_or_else(|_| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(std::time::SystemTime::now())
    })
}
