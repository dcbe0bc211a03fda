//! Frames to machines without an address.

use farrier::net::MacAddr;
use farrier::net::frame::{Delivery, FrameSender};

use crate::support::{isolated, make_bridge, ones_sum};

#[test]
fn a_frame_reaches_its_station_without_arp() {
    if !isolated("frame::a_frame_reaches_its_station_without_arp") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let wire = wire.undissected();
    let sender = FrameSender::open(&bridge).unwrap();
    let station = MacAddr([0x52, 0x54, 0, 0, 0, 9]);
    let offers: Vec<Vec<u8>> = (0..3_u8).map(|number| vec![number; 300 + usize::from(number)]).collect();
    let deliveries: Vec<_> = offers
        .iter()
        .map(|payload| Delivery {
            to: station,
            destination: "192.168.2.9:68".parse().unwrap(),
            source_port: 67,
            payload,
        })
        .collect();
    assert!(sender.send_batch(&deliveries).iter().all(Result::is_ok));
    for offer in &offers {
        // The very next IPv4 or ARP frame must be it.
        let frame = wire.expect("an offer", |frame| {
            let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
            (ethertype == 0x0800 || ethertype == 0x0806).then(|| frame.to_vec())
        });
        assert_eq!(frame[..6], station.0);
        assert_eq!(frame[6..12], bridge.mac.0);
        assert_eq!(frame[12..14], [0x08, 0x00]);
        let packet = &frame[14..];
        assert_eq!(packet[12..20], [192, 168, 2, 2, 192, 168, 2, 9]);
        assert_eq!(ones_sum(&packet[..20]), 0xffff);
        let datagram = &packet[20..];
        assert_eq!(datagram[..4], [0, 67, 0, 68]);
        let pseudo = [&packet[12..20], &[0, 17], &datagram[4..6]].concat();
        assert_eq!(ones_sum(&[pseudo.as_slice(), datagram].concat()), 0xffff);
        assert_eq!(&datagram[8..], offer);
    }
    // Too long for the MTU: refused whole, never fragmented.
    let error = sender.send(station, "192.168.2.9:68".parse().unwrap(), 67, &[0; 1473]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
}
