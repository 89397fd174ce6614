//! The data plane's process as the loop sees it.

use super::{Doing, Plane};
use crate::dataplane::{DataPlane, PlaneError};
use crate::protocol::Failure;
use moat_dataplane::message::Measures;
use moat_dataplane::{CertificateSet, Config, Doors};
use moat_ingress::LogFormat;
use moat_net_linux::Network;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

/// A data plane in the router namespace of a network.
pub struct Served {
    plane: DataPlane,
    network: Network,
}

impl Served {
    /// Nothing is served yet.
    pub const fn new(plane: DataPlane, network: Network) -> Self {
        Self { plane, network }
    }
}

impl Plane for Served {
    fn listening(&self) -> Option<SocketAddr> {
        self.plane.listening()
    }
    fn listening_https(&self) -> Option<SocketAddr> {
        self.plane.listening_https()
    }
    fn listen<'a>(&'a mut self, http: &'a str, https: Option<&'a str>) -> Doing<'a, Result<(), Failure>> {
        Box::pin(self.plane.listen(http, https))
    }
    fn listen_databases(&mut self, at: Doors<SocketAddr>) -> Doing<'_, Result<(), Failure>> {
        Box::pin(self.plane.listen_databases(at))
    }
    fn is_serving(&self) -> bool {
        self.plane.is_serving()
    }
    fn ensure(&mut self) -> Doing<'_, Result<(), PlaneError>> {
        Box::pin(self.plane.ensure(&self.network))
    }
    fn replace(&mut self) -> Doing<'_, Result<(), PlaneError>> {
        Box::pin(self.plane.replace())
    }
    fn show(&self, certificates: CertificateSet) {
        self.plane.show(certificates);
    }
    fn log(&mut self, format: Option<LogFormat>) {
        self.plane.log(format);
    }
    fn measure(&self) -> Doing<'static, Option<Measures>> {
        self.plane.measure()
    }
    fn publish(&mut self, config: Config) -> Doing<'_, bool> {
        Box::pin(self.plane.publish(config))
    }
    fn resolvers(&self) -> Vec<SocketAddr> {
        self.plane.resolvers()
    }
    fn releases_in_use(&self) -> BTreeSet<String> {
        self.plane.releases_in_use()
    }
    fn root(&self) -> &Path {
        self.plane.root()
    }
    fn pid(&self) -> Option<u32> {
        self.plane.pid()
    }
    fn stop(&mut self) -> Doing<'_, ()> {
        Box::pin(self.plane.stop())
    }
}
