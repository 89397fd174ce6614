//! Policies of many services.

use moat_model::net::Ula;
use moat_model::policy::{NetPolicy, SourceEntry};
use moat_model::{AddressPair, Egress, InstanceId, LinkName, NetworkId, ServiceId, ZoneId};
use std::collections::BTreeSet;

const ULA: Ula = Ula([0xfd6d, 0x6f61, 0x7401]);
const ZONE: ZoneId = ZoneId(1);

/// The instance of the service with this number (from 1).
pub fn instance(number: u16) -> Option<AddressPair> {
    Some(NetworkId::new(0)?.instance(ULA, number))
}

/// The service address of the service with this number (from 1).
pub fn service(number: u16) -> Option<AddressPair> {
    Some(NetworkId::new(0)?.service(ULA, number))
}

/// Services 1 to `count` of one private network, each with one ready instance and its service address.
pub fn of(count: u16) -> NetPolicy {
    let mut policy = NetPolicy::default();
    (1..=count).for_each(|number| add(&mut policy, number));
    policy
}

/// Adds one service with its instance.
pub fn add(policy: &mut NetPolicy, number: u16) {
    let id = format!("srv-{number:020}");
    let (Some(address), Some(vip), Ok(service), Ok(id)) =
        (instance(number), service(number), ServiceId::new(id.clone()), InstanceId::new(format!("{id}-00001")))
    else {
        return;
    };
    policy.sources.insert(id, SourceEntry { link: LinkName::of(address.v4), address, zone: Some(ZONE), egress: Egress::Internet, service });
    policy.receivers.insert((ZONE, address));
    if number.is_multiple_of(4) {
        policy.ingress.insert((address, 10000));
    }
    policy.services.insert(vip, BTreeSet::from([address]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_of_n_services_has_n_of_each_and_is_consistent() {
        for count in [1, 10, 300] {
            let policy = of(count);
            let n = usize::from(count);
            assert_eq!((policy.sources.len(), policy.receivers.len(), policy.services.len()), (n, n, n));
            moat_net_linux::lower::check(&policy).unwrap();
        }
    }
}
