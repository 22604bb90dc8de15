//! Every shape of partition between the four that a volume needs: what can be served is served,
//! nothing is lost, and all is whole again when it has passed.
//! `cargo xtask sim --shapes` tells what each costs.

use std::time::Duration;

use sim::scenario::shapes::{SHAPES, Served, Shape, partition};

/// Silence for 2 s, patience of 3 s, and the time it takes to be sure and to act.
const STALL_MAX: Duration = Duration::from_secs(9);

fn survive(seed: u64, shape: &Shape) -> Served {
    match partition(seed, shape, false) {
        Ok(served) => served,
        Err(violation) => panic!("seed {seed}: {}", violation.what),
    }
}

fn in_all_shapes(seed: u64, half: usize) {
    for (index, shape) in SHAPES.iter().enumerate().filter(|(i, _)| i % 2 == half) {
        let served = survive(seed + index as u64, shape);
        assert!(served.stall < STALL_MAX, "{}: {served:?}", shape.name);
        assert!(served.answers > 500, "{}: {served:?}", shape.name);
    }
}

#[test]
fn every_shape_is_served_1() {
    in_all_shapes(100, 0);
}

#[test]
fn every_shape_is_served_2() {
    in_all_shapes(200, 1);
}

#[test]
fn without_the_manager_nothing_stalls() {
    let shape = SHAPES.iter().find(|s| s.name == "manager | all").expect("it is there");
    let served = survive(300, shape);
    assert!(served.stall < Duration::from_millis(100), "{served:?}");
}
