//! What containers must not be able to do.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use skiff_cri::v1;

use crate::Test;
use crate::harness::{Node, block_on};

pub(crate) const TESTS: &[Test] = &[
    ("capabilities_are_those_asked_for", || block_on(capabilities_are_those_asked_for())),
    ("users_come_from_the_image", || block_on(users_come_from_the_image())),
    ("seccomp_holds_for_exec_too", || block_on(seccomp_holds_for_exec_too())),
    ("mounts_do_not_escape", || block_on(mounts_do_not_escape())),
    ("read_only_is_read_only", || block_on(read_only_is_read_only())),
    ("devices_are_confined", || block_on(devices_are_confined())),
    ("privileged_sees_the_node", || block_on(privileged_sees_the_node())),
    ("nothing_of_the_node_leaks_in", || block_on(nothing_of_the_node_leaks_in())),
];

fn security(c: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    c.linux.get_or_insert_default().security_context.get_or_insert_default()
}

async fn capabilities_are_those_asked_for() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let all = [
        "sh",
        "-c",
        "status CapEff;status CapPrm;status CapBnd;status CapInh;status CapAmb;status NoNewPrivs;status Seccomp:",
    ];
    let (_, out, _) = node.output(&pod, &all, &|_| {}).await;
    let default = "00000000a80425fb";
    let none = "0000000000000000";
    assert_eq!(out.lines().collect::<Vec<_>>(), [default, default, default, none, none, "0", "2"]);
    let (_, out, _) = node
        .output(&pod, &all, &|c| {
            let security = security(c);
            security.capabilities = Some(v1::Capability {
                drop_capabilities: vec!["ALL".into()],
                add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
                ..Default::default()
            });
            security.run_as_user = Some(v1::Int64Value { value: 1000 });
            security.no_new_privs = true;
        })
        .await;
    let bind = "0000000000000400";
    assert_eq!(out.lines().collect::<Vec<_>>(), [bind, bind, bind, bind, bind, "1", "2"]);
    // An ordinary user holds nothing although its bounding set is the default one.
    let (_, out, _) =
        node.output(&pod, &all, &|c| security(c).run_as_user = Some(v1::Int64Value { value: 1000 })).await;
    assert_eq!(out.lines().collect::<Vec<_>>()[..3], [none, none, default]);
    let mut config = Node::container_config("bad", &["echo"]);
    security(&mut config).capabilities =
        Some(v1::Capability { add_capabilities: vec!["NOPE".into()], ..Default::default() });
    let error = node.create(&pod, config).await.expect_err("unknown");
    assert!(error.message().contains("unknown capability \"NOPE\""), "{error:?}");
    node.finish().await;
}

async fn users_come_from_the_image() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = ["id"];
    assert_eq!(node.output(&pod, &id, &|_| {}).await.1, "0 0 0");
    let by_name = |c: &mut v1::ContainerConfig| security(c).run_as_username = "web".into();
    assert_eq!(node.output(&pod, &id, &by_name).await.1, "101 102 102,200");
    let strict = |c: &mut v1::ContainerConfig| {
        let security = security(c);
        security.run_as_user = Some(v1::Int64Value { value: 101 });
        security.run_as_group = Some(v1::Int64Value { value: 5 });
        security.supplemental_groups = vec![7, 8];
        security.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict as i32;
    };
    let container = node.run(&pod, "strict", &["sh", "-c", "id;sleep 600"], &strict).await;
    node.wait_log(&pod, "strict", "101 5 5,7,8").await;
    assert_eq!(node.exec(&container, &["id"]).await.1, "101 5 5,7,8", "an exec is the same user");
    let user = node.status(&container).await.user.and_then(|u| u.linux).expect("told");
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (101, 5, vec![5, 7, 8]));
    let mut config = Node::container_config("unknown", &["echo"]);
    security(&mut config).run_as_username = "nosuch".into();
    let id = node.create(&pod, config).await.expect("creates");
    let error = node.start(&id).await.expect_err("unknown");
    let text = "unable to find user nosuch: no matching entries in passwd file";
    assert!(error.message().contains(text), "{error:?}");
    node.finish().await;
}

async fn seccomp_holds_for_exec_too() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sleep", "600"], &|_| {}).await;
    let (code, _, err) = node.exec(&id, &["unshare"]).await;
    assert!(code != 0 && err.contains("EPERM"), "{err}");
    assert_eq!(node.exec(&id, &["status", "Seccomp:"]).await.1, "2");
    let profile = node.path("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
    std::fs::write(&profile, text).expect("written");
    let localhost = |c: &mut v1::ContainerConfig| {
        security(c).seccomp = Some(v1::SecurityProfile {
            profile_type: v1::ProfileType::Localhost as i32,
            localhost_ref: profile.display().to_string(),
        });
    };
    let id = node.run(&pod, "local", &["sleep", "600"], &localhost).await;
    for _ in 0..2 {
        let (code, _, err) = node.exec(&id, &["chmod", "/etc/passwd"]).await;
        assert!(code == 1 && err.contains("Permission denied"), "{err}");
    }
    let unconfined = |c: &mut v1::ContainerConfig| {
        let profile_type = v1::ProfileType::Unconfined as i32;
        security(c).seccomp = Some(v1::SecurityProfile { profile_type, ..Default::default() });
    };
    assert_eq!(node.output(&pod, &["status", "Seccomp:"], &unconfined).await.1, "0");
    node.finish().await;
}

async fn mounts_do_not_escape() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let outside = node.path("outside");
    let volume = node.path("volume");
    std::fs::create_dir(&outside).expect("made");
    std::fs::create_dir(&volume).expect("made");
    std::fs::write(volume.join("file"), "data").expect("written");
    // Another container of the volume has left links that lead out of it.
    symlink(&outside, volume.join("absolute")).expect("made");
    symlink("../../../../../../../../../../../..", volume.join("dots")).expect("made");
    symlink("/proc/self", volume.join("proc")).expect("made");
    let mount = |target: &str, source: &std::path::Path| v1::Mount {
        container_path: target.into(),
        host_path: source.display().to_string(),
        ..Default::default()
    };
    let out_dir = outside.display().to_string();
    let with = |more: Vec<v1::Mount>| {
        let volume = mount("/vol", &volume);
        move |c: &mut v1::ContainerConfig| {
            c.mounts = [vec![volume.clone()], more.clone()].concat();
        }
    };
    let through_absolute = with(vec![mount("/vol/absolute/inner", &volume)]);
    let (_, out, err) = node.output(&pod, &["ls", &format!("{out_dir}/inner")], &through_absolute).await;
    assert_eq!(out, "absolute dots file proc", "resolved in the container: {err}");
    assert_eq!(std::fs::read_dir(&outside).expect("there").count(), 0, "untouched on the node");
    let through_dots = with(vec![mount("/vol/dots/made", &volume)]);
    let (_, out, _) = node.output(&pod, &["ls", "/made"], &through_dots).await;
    assert_eq!(out, "absolute dots file proc");
    for target in ["/proc", "/proc/sys", "/vol/proc/attr", "/vol/proc"] {
        let mut config = Node::container_config(&target.replace('/', "-"), &["echo"]);
        with(vec![mount(target, &volume)])(&mut config);
        let id = node.create(&pod, config).await.expect("creates");
        let error = node.start(&id).await.expect_err("refused");
        assert!(error.message().contains("inside /proc"), "{target}: {error:?}");
    }
    for target in ["/", "relative"] {
        let mut config = Node::container_config("bad", &["echo"]);
        config.mounts = vec![mount(target, &volume)];
        assert!(node.create(&pod, config).await.is_err(), "{target}");
    }
    // A file onto a directory is told as users know it.
    let mut config = Node::container_config("mismatch", &["echo"]);
    config.mounts = vec![mount("/etc", &volume.join("file"))];
    let id = node.create(&pod, config).await.expect("creates");
    let error = node.start(&id).await.expect_err("refused");
    assert!(error.message().contains("mount a directory onto a file (or vice-versa)"), "{error:?}");
    node.finish().await;
}

async fn read_only_is_read_only() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let volume = node.path("volume");
    std::fs::create_dir(&volume).expect("made");
    std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o777)).expect("set");
    let script = [
        "sh",
        "-c",
        "write /x no;write /ro/x no;write /rw/x yes;write /dev/shm/x yes;write /proc/sys/kernel/hostname no;write /sys/kernel/mm/ksm/run 0;write /sys/fs/cgroup/memory/memory.limit_in_bytes 1;read /proc/kcore;ls /proc/scsi;ls /masked",
    ];
    let (_, out, err) = node
        .output(&pod, &script, &|c| {
            let mount = |target: &str, readonly| v1::Mount {
                container_path: target.into(),
                host_path: volume.display().to_string(),
                readonly,
                ..Default::default()
            };
            c.mounts = vec![mount("/ro", true), mount("/rw", false), mount("/masked", false)];
            let security = security(c);
            security.readonly_rootfs = true;
            security.readonly_paths = vec!["/proc/sys".into(), "/nothing/there".into()];
            security.masked_paths = vec!["/proc/kcore".into(), "/proc/scsi".into(), "/masked".into(), "/none".into()];
        })
        .await;
    let refused: Vec<_> = err.lines().filter(|l| l.contains("Read-only file system")).collect();
    assert_eq!(refused.len(), 5, "root, volume, proc, sys, cgroup: {err}\n{out}");
    assert_eq!(std::fs::read_to_string(volume.join("x")).expect("written"), "yes");
    // The volume that is masked holds what was written through the other path.
    assert_eq!(out.trim(), "", "masked");
    let cgroup = node.output(&pod, &["read", "/sys/fs/cgroup/memory/memory.limit_in_bytes"], &|_| {}).await;
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert!(cgroup.1.parse::<u64>().is_ok(), "its own limit can be read: {cgroup:?}");
    }
    node.finish().await;
}

async fn devices_are_confined() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    // kmsg is made but cannot be opened; null can.
    let script = ["sh", "-c", "ls /dev;mknod /kmsg 1 11;read /kmsg;write /dev/null x;echo done"];
    let (_, out, err) = node.output(&pod, &script, &|_| {}).await;
    let first = out.lines().next().expect("a list");
    assert_eq!(first, "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero");
    assert!(err.contains("Operation not permitted") && out.ends_with("done"), "{err} {out}");
    let given = |c: &mut v1::ContainerConfig| {
        c.devices = vec![v1::Device {
            host_path: "/dev/zero".into(),
            container_path: "/dev/given".into(),
            permissions: "rw".into(),
        }];
    };
    let (_, out, err) = node.output(&pod, &["sh", "-c", "ls /dev;write /dev/given x"], &given).await;
    assert!(out.contains(" given ") || out.contains("given"), "{out}");
    assert_eq!(err, "");
    node.finish().await;
}

async fn privileged_sees_the_node() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let (_, out, err) = node
        .output(&pod, &["sh", "-c", "status Seccomp:;mount /tmp2;mount /;ls /dev"], &|c| {
            security(c).privileged = true;
            c.working_dir = "/tmp2".into();
        })
        .await;
    assert!(out.starts_with('0'), "{out}");
    assert!(out.contains("kmsg") && err.is_empty(), "{out} {err}");
    let (_, _, err) = node.output(&pod, &["mount", "/tmp"], &|_| {}).await;
    assert!(err.contains("EPERM"), "{err}");
    node.finish().await;
}

async fn nothing_of_the_node_leaks_in() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sleep", "600"], &|_| {}).await;
    assert_eq!(node.exec(&id, &["ls", "/proc/self/fd"]).await.1, "0 1 2 3", "and the list's own");
    assert_eq!(node.exec(&id, &["pwd"]).await.1, "/");
    let mounts = node.exec(&id, &["read", "/proc/self/mounts"]).await.1;
    let root = mounts.lines().filter(|line| line.split(' ').nth(1) == Some("/")).count();
    assert_eq!(root, 1, "{mounts}");
    assert!(!mounts.contains("/sys/fs/cgroup/unified"), "{mounts}");
    let (_, processes, _) = node.exec(&id, &["ls", "/proc"]).await;
    let numbers: Vec<_> = processes.split(' ').filter(|n| n.parse::<u32>().is_ok()).collect();
    assert_eq!(numbers.len(), 2, "itself and its exec: {processes}");
    // The program is the node's binary until execve: by then it must not be reachable.
    let layers = node.runtime.as_ref().expect("runs").images().root().join("layers");
    assert_eq!(std::fs::metadata(layers.parent().expect("a parent")).expect("there").mode() & 0o777, 0o700);
    let network = node.exec(&id, &["ls", "/sys/class/net"]).await.1;
    assert_eq!(network, "lo", "only its own network");
    node.finish().await;
}
