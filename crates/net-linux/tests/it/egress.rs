//! What services may open outside.

use crate::outside::{INTERNET_V4, INTERNET_V6, Surroundings, ip};
use crate::world::*;
use moat_model::Egress;

#[test]
fn egress_is_as_narrow_as_asked() {
    on_a_machine(async |world| {
        let around = Surroundings::new();
        sh_in(&around.internet.ns, "ip addr add 198.51.100.77/32 dev eth0");
        world.network.ensure_router().await.unwrap();
        let open = world.instance(1, None, Egress::Internet).await;
        let closed = world.instance(2, Some(ZONE), Egress::None).await;
        let list = |texts: &[&str]| Egress::Ranges(texts.iter().map(|text| text.parse().unwrap()).collect());
        let some =
            world.instance(3, Some(ZONE), list(&["198.51.100.0/30", "198.51.100.2/31", "2606:4700:db8::/64", "192.168.0.0/16"])).await;
        for to in [INTERNET_V4, INTERNET_V6] {
            must_open(&open, ip(to), 80);
            must_close(&closed, ip(to), 80);
            must_open(&some, ip(to), 80);
        }
        assert!(tcp(&open, ip("198.51.100.77"), 80).is_open());
        must_close(&some, ip("198.51.100.77"), 80);
        // Listing a private range opens nothing.
        must_close(&some, ip("192.168.7.7"), 80);
        // Narrowing cuts what is open, widening opens it again.
        let datagrams = moat_net_linux::ns::in_ns(&open, || std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        datagrams.connect((INTERNET_V4, 80)).unwrap();
        ask(&datagrams).unwrap();
        for (egress, passes) in
            [(Egress::None, false), (list(&["198.51.100.2/32"]), true), (list(&["198.51.100.3/32"]), false), (Egress::Internet, true)]
        {
            world.policy.sources.get_mut(&open.id).unwrap().egress = egress.clone();
            world.apply().await;
            datagrams.set_read_timeout(Some(if passes { std::time::Duration::from_secs(5) } else { CLOSED })).unwrap();
            assert_eq!(ask(&datagrams).is_ok(), passes, "{egress:?}");
        }
    });
}
