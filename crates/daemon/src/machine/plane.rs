//! The data plane's process as the loop sees it.

use super::{Doing, Plane};
use crate::dataplane::{DataPlane, PlaneError};
use crate::protocol::Failure;
use moat_dataplane::Host;
use moat_dns::Zones;
use moat_model::Generation;
use moat_net_linux::Network;
use std::collections::{BTreeMap, BTreeSet};
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
    fn listen<'a>(&'a mut self, address: &'a str) -> Doing<'a, Result<(), Failure>> {
        Box::pin(self.plane.listen(address))
    }
    fn is_serving(&self) -> bool {
        self.plane.is_serving()
    }
    fn ensure(&mut self) -> Doing<'_, Result<(), PlaneError>> {
        Box::pin(self.plane.ensure(&self.network))
    }
    fn publish(&mut self, generation: Generation, hosts: BTreeMap<String, Host>, zones: Zones) -> Doing<'_, ()> {
        Box::pin(self.plane.publish(generation, hosts, zones))
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
