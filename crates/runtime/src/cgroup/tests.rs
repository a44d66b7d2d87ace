use super::*;

/// A cgroup of the test's own, gone with it.
struct Own<'a>(&'a Cgroups, String);

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.0.remove(&self.1).expect("removes its cgroup");
    }
}

fn name() -> String {
    format!("/skiff-test-{}", uuid::Uuid::new_v4())
}

#[test]
fn limits_reach_the_kernel() {
    let cgroups = Cgroups::detect(Path::new("/sys/fs/cgroup")).expect("cgroups");
    let Cgroups::V1(hierarchies) = &cgroups else {
        return; // On v2 the end-to-end tests cover this.
    };
    let path = format!("{}/inner", name());
    let parent = path.trim_end_matches("/inner").to_owned();
    let _own = Own(&cgroups, parent);
    let limits = Limits {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory: Some(64 << 20),
        hugepages: vec![("2MB".into(), 0)],
        ..Default::default()
    };
    let spec = cgroups.create(&path, &limits, &DeviceRule::defaults()).expect("created");
    let dirs = hierarchies.dirs(&path);
    let read = |controller: &str, file: &str| {
        let dir = dirs.iter().find(|d| d.starts_with(format!("/sys/fs/cgroup/{controller}")));
        let text = fs::read_to_string(dir.expect("a directory").join(file)).expect("readable");
        text.trim().to_owned()
    };
    assert_eq!(read("cpu", "cpu.shares"), "512");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(read("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    let devices = read("devices", "devices.list");
    assert!(devices.contains("c 1:3 rwm") && !devices.contains("a *:*"), "{devices}");
    assert!(spec.join.iter().all(|file| file.ends_with("tasks") && file.exists()));

    // A process in it shows up in the usage and is killed with it.
    let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleeps");
    for dir in &dirs {
        write(dir, "cgroup.procs", &child.id().to_string()).expect("joins");
    }
    let usage = cgroups.usage(&path).expect("readable");
    assert_eq!((usage.pids, usage.memory_limit), (1, Some(64 << 20)));
    cgroups.update(&path, &Limits { memory: Some(32 << 20), ..Default::default() }).expect("less");
    assert_eq!(read("memory", "memory.limit_in_bytes"), (32 << 20).to_string());
    let reaper = std::thread::spawn(move || child.wait().expect("ends"));
    cgroups.remove(&path).expect("removed");
    assert!(!reaper.join().expect("no panic").success());
    assert!(dirs.iter().all(|dir| !dir.exists()));
    cgroups.remove(&path).expect("twice is fine");
}

#[test]
fn device_program_is_enforced_on_v2() {
    // The v2 hierarchy has no controllers here, but takes device programs.
    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|root| rustix::fs::statfs(*root).is_ok_and(|s| s.f_type as u64 == CGROUP2_MAGIC))
        .expect("a v2 hierarchy");
    let cgroups = Cgroups::V2(root.to_owned());
    let own = Own(&cgroups, name());
    let spec = cgroups.create(&own.1, &Limits::default(), &DeviceRule::defaults()).expect("created");
    let run = |script: &str| {
        let join = spec.join[0].display();
        let script = format!("echo 0 > {join} && {script}");
        std::process::Command::new("sh").args(["-c", &script]).output().expect("runs")
    };
    assert!(run("echo > /dev/null && head -c1 /dev/zero > /dev/null").status.success());
    let dir = tempfile::tempdir().expect("a directory");
    let kmsg = dir.path().join("kmsg");
    // Making the node is allowed, opening it is not.
    let out = run(&format!("mknod {0} c 1 11 && ! head -c1 {0}", kmsg.display()));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stderr).contains("Operation not permitted"));
}

#[test]
fn rules_have_the_notation_of_v1() {
    let rule = |letters: &str| DeviceRule {
        block: Some(true),
        major: Some(8),
        minor: None,
        access: Access::parse(letters).expect("letters"),
    };
    assert_eq!(rule("rm").to_string(), "b 8:* rm");
    assert_eq!(DeviceRule::everything()[0].to_string(), "a");
    assert_eq!(Access::parse("rx"), None);
}
