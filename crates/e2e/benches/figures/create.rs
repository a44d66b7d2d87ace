//! From the command to a Ready node with DNS answering.

use std::time::Instant;

use skiff_e2e::Cluster;

use crate::{Figure, median};

const ROUNDS: usize = 6;

pub(crate) fn measure() -> Vec<Figure> {
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let cluster = Cluster::create("bench", &[]);
        seconds.push(started.elapsed().as_secs_f64());
        let left = cluster.delete();
        assert!(left.is_empty(), "{left:#?}");
    }
    // The first one reads the binary from the disk.
    let warm = seconds.split_off(1);
    vec![
        Figure::new("cluster create until Ready, warm", format!("{:.2} s", median(warm)), "≤ 1 s"),
        Figure::new("cluster create until Ready, first", format!("{:.2} s", seconds[0]), ""),
    ]
}
