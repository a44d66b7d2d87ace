//! Memory and processor time of a cluster that does nothing.

use std::{
    collections::BTreeMap,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use skiff_e2e::{Cluster, leftovers};

use crate::Figure;

/// What starts a cluster is over by then.
const SETTLE: Duration = Duration::from_secs(30);
const WATCHED: Duration = Duration::from_secs(60);

pub(crate) fn measure() -> Vec<Figure> {
    let cluster = Cluster::create("bench", &[]);
    sleep(SETTLE);
    let (processes, started) = (processor_time(&cluster), Instant::now());
    sleep(WATCHED);
    let later = processor_time(&cluster);
    let mut ticks = 0;
    for (pid, name) in names(&later) {
        let of_process = later[&pid] - processes.get(&pid).copied().unwrap_or(0);
        eprintln!("  {of_process} ticks by process {pid}, {name}");
        ticks += of_process;
    }
    let seconds = ticks as f64 / ticks_per_second();
    let busy = 100.0 * seconds / started.elapsed().as_secs_f64();
    let total = |field: &str| later.keys().map(|pid| kib(*pid, field)).sum::<u64>() as f64 * 1024.0 / 1e6;
    let figures = vec![
        Figure::new(
            format!("idle memory, PSS of {} processes", later.len()),
            format!("{:.1} MB", total("Pss:")),
            "≤ 64 MB",
        ),
        Figure::new("idle memory, sum of RSS", format!("{:.1} MB", total("Rss:")), ""),
        Figure::new("idle processor time", format!("{busy:.2} % of a core"), "≤ 0.3 %"),
    ];
    drop(cluster);
    figures
}

/// Of each process of the cluster, in ticks.
fn processor_time(cluster: &Cluster) -> BTreeMap<i32, u64> {
    let ticks = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // utime and stime, the 14th and 15th field, counted behind the name.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
    };
    let processes = leftovers::processes(&cluster.home.dir);
    processes.into_iter().filter_map(|(pid, _)| Some((pid, ticks(pid)?))).collect()
}

/// What the processes are called.
fn names(processes: &BTreeMap<i32, u64>) -> Vec<(i32, String)> {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
    processes.keys().map(|pid| (*pid, name(pid))).collect()
}

fn ticks_per_second() -> f64 {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    per_second.ok().flatten().expect("every Linux has it") as f64
}

fn kib(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
