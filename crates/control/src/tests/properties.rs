//! Ledger and placement over random fleets.

use std::collections::{BTreeMap, BTreeSet};

use format::record::{Record, Server, ServerDrive};
use model::{
    id::{DriveId, Zone},
    state::Duty,
    units::Gib,
    volume::{Media, Stripes},
};
use proptest::prelude::*;

use super::world::rate;
use crate::{
    ledger::{Claim, Ledger},
    placement::{Fleet, Wish, ZoneRule, choose},
    state::{State, Write},
};

fn zone(n: u8) -> Zone {
    format!("local-1{}", char::from(b'a' + n)).parse().expect("a zone")
}

#[derive(Debug, Clone)]
struct Drive {
    media: Media,
    gib: u32,
    iops: u32,
    mib: u32,
}

fn media() -> impl Strategy<Value = Media> {
    prop_oneof![Just(Media::Ssd), Just(Media::Hdd)]
}

fn drive() -> impl Strategy<Value = Drive> {
    (media(), 1..200u32, 100..20_000u32, 50..2_000u32).prop_map(|(media, gib, iops, mib)| Drive {
        media,
        gib,
        iops,
        mib,
    })
}

/// Servers: zone, whether up, drives.
fn servers() -> impl Strategy<Value = Vec<(u8, bool, Vec<Drive>)>> {
    let server = (0..3u8, prop::bool::weighted(0.9), prop::collection::vec(drive(), 0..4));
    prop::collection::vec(server, 0..8)
}

fn claim() -> impl Strategy<Value = Claim> {
    (1..80u32, 100..6_000u32, 8..500u32)
        .prop_map(|(gib, iops, mib)| Claim { size: Gib::new(gib), rate: rate(iops, mib) })
}

fn fleet(servers: &[(u8, bool, Vec<Drive>)]) -> Fleet {
    let mut state = State::default();
    let mut up = BTreeSet::new();
    for (n, (in_zone, is_up, drives)) in servers.iter().enumerate() {
        let server = format!("server-{n}").parse().expect("a name");
        if *is_up {
            up.insert(server);
        }
        let record = |(at, d): (usize, &Drive)| ServerDrive {
            drive: format!("drive-{at}").parse().expect("a name"),
            media: d.media,
            capacity: Gib::new(d.gib).to_bytes(),
            rate: rate(d.iops, d.mib),
            emulation: None,
        };
        state.apply(&Write::Put(Record::Server(Server {
            server: format!("server-{n}").parse().expect("a name"),
            zone: zone(*in_zone),
            address: "127.0.0.1:1".parse().expect("an address"),
            drives: drives.iter().enumerate().map(record).collect(),
            duty: Duty::Serving,
        })));
    }
    Fleet {
        ledger: Ledger::of(&state),
        up,
        barred: BTreeSet::new(),
        cordoned: BTreeSet::new(),
        stored: BTreeMap::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn groups_are_placed_on_servers_of_their_own_and_never_over_commit(
        servers in servers(),
        wishes in prop::collection::vec((media(), 0..3u8, claim(), 1..4u32), 0..40),
    ) {
        let mut fleet = fleet(&servers);
        let mut promised: BTreeMap<DriveId, Vec<Claim>> = BTreeMap::new();
        for (media, in_zone, claim, stripes) in wishes {
            let stripes = Stripes::try_from(stripes).expect("legal");
            let zone = zone(in_zone);
            let mut excluded = BTreeSet::new();
            for zone_rule in [ZoneRule::Strict, ZoneRule::WhereZoneHasNone] {
                let nothing = BTreeSet::new();
                let wish = Wish {
                    media, zone: &zone, zone_rule, claim, stripes, stored: 0,
                    excluded: &excluded, preferred: &nothing,
                };
                let chosen = choose(&fleet, &wish);
                prop_assert_eq!(&chosen, &choose(&fleet, &wish), "the same wish, the same drive");
                let Ok(drives) = chosen else { break };
                let server = &drives[0].server;
                prop_assert!(!excluded.contains(server), "two replicas on {}", server);
                prop_assert!(fleet.up.contains(server));
                prop_assert_eq!(drives.len(), stripes.get() as usize);
                prop_assert_eq!(drives.iter().collect::<BTreeSet<_>>().len(), drives.len());
                for drive in &drives {
                    prop_assert_eq!(&drive.server, server);
                    let account = &fleet.ledger.drives[drive];
                    prop_assert_eq!(account.media, media);
                    if zone_rule == ZoneRule::Strict {
                        prop_assert_eq!(&account.zone, &zone);
                    }
                    let share = claim.share(u64::from(stripes.get()));
                    promised.entry(drive.clone()).or_default().push(share);
                }
                fleet.ledger.reserve(&drives, claim);
                excluded.insert(server.clone());
            }
        }
        for (drive, account) in &fleet.ledger.drives {
            let claims = promised.get(drive).map_or(&[][..], Vec::as_slice);
            let bytes: u64 = claims.iter().map(|c| c.size.to_bytes().get()).sum();
            let iops: u64 = claims.iter().map(|c| u64::from(c.rate.iops.get())).sum();
            prop_assert_eq!(bytes, account.promised.bytes);
            prop_assert!(bytes <= account.offered.bytes);
            prop_assert!(iops <= account.offered.iops);
            prop_assert!(account.promised.mib_per_sec <= account.offered.mib_per_sec);
        }
    }

    #[test]
    fn a_refusal_means_that_no_drive_would_do(
        servers in servers(), media in media(), in_zone in 0..3u8, claim in claim(), stripes in 1..4u32,
    ) {
        let stripes = Stripes::try_from(stripes).expect("legal");
        let fleet = fleet(&servers);
        let (zone, nothing) = (zone(in_zone), BTreeSet::new());
        let wish = Wish {
            media, zone: &zone, zone_rule: ZoneRule::Strict, claim, stripes, stored: 0,
            excluded: &nothing, preferred: &nothing,
        };
        let possible = |(d, a): (&DriveId, &crate::ledger::Account)| {
            a.media == media && a.zone == zone && fleet.up.contains(&d.server)
                && fleet.ledger.fits_share(d, claim.share(u64::from(stripes.get())))
        };
        let mut of_server: BTreeMap<_, u32> = BTreeMap::new();
        for (drive, _) in fleet.ledger.drives.iter().filter(|each| possible(*each)) {
            *of_server.entry(&drive.server).or_default() += 1;
        }
        let any = of_server.values().any(|&drives| drives >= stripes.get());
        prop_assert_eq!(choose(&fleet, &wish).is_ok(), any);
    }

    #[test]
    fn raising_a_claim_never_over_commits_and_never_lowers(
        offered in drive(), first in claim(), second in claim(), to in claim(),
    ) {
        let mut fleet = fleet(&[(0, true, vec![offered])]);
        let id = fleet.ledger.drives.keys().next().cloned().expect("one drive");
        let on = std::slice::from_ref(&id);
        for claim in [first, second] {
            if fleet.ledger.fits(on, claim) {
                fleet.ledger.reserve(on, claim);
            }
        }
        if fleet.ledger.fits(on, first) {
            fleet.ledger.reserve(on, first);
            let now = fleet.ledger.raise(on, first, to);
            prop_assert_eq!(now.and(first), now, "lower than it was");
        }
        let account = &fleet.ledger.drives[&id];
        prop_assert!(account.promised.bytes <= account.offered.bytes);
        prop_assert!(account.promised.iops <= account.offered.iops);
        prop_assert!(account.promised.mib_per_sec <= account.offered.mib_per_sec);
    }
}
