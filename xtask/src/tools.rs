//! What the tests need beyond a Rust toolchain.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{apt::Apt, shell};

/// Programs that tests call, where the package manager puts them, and the package that has them.
const PROGRAMS: [(&str, &str); 10] = [
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
    ("curl", "curl"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("openssl", "openssl"),
    ("pip3", "python3-pip"),
    ("script", "bsdutils"),
    ("unshare", "util-linux"),
    ("dpkg-deb", "dpkg"),
];
/// The kubectl versions that the tests run, and the Debian suite that has each.
const KUBECTLS: [(&str, &str); 2] = [("1.36", "sid"), ("1.32", "trixie")];
const ETCD_SUITE: &str = "trixie";
const REGISTRY_SUITE: &str = "bookworm";
/// Has the files of Swagger UI, which FastAPI's pages want from the Internet.
const SWAGGER_UI: &str = "flask-swagger-ui==5.34.0";
const CARGO_DENY: &str = "0.20.2";
/// The Helm that the tests run.
const HELM: &str = "v4.3.1";
/// What its `go.mod` asks for, and the Debian suite that has it.
const GO: &str = "1.26";
const GO_SUITE: &str = "sid";

/// Installs packages for the programs that are missing.
pub(crate) fn programs() -> Result<()> {
    let missing: Vec<_> =
        PROGRAMS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    let apt = |args: &[&str]| {
        let mut command = shell::command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]).args(args);
        shell::output(&mut command)
    };
    let install = || apt(&[&["install", "--no-install-recommends"], missing.as_slice()].concat());
    // The lists of packages may be missing, or too old.
    if install().is_err() {
        apt(&["update"])?;
        install()?;
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(program).is_file())
}

/// Puts Debian's kubectls to `target/tools/kubectl-VERSION`.
pub(crate) fn kubectls() -> Result<()> {
    for (version, suite) in KUBECTLS {
        tool(&format!("kubectl-{version}"), |path| {
            println!("fetching kubectl {version} of Debian {suite}");
            from_package(suite, "kubectl", "usr/bin/kubectl", path)
        })?;
    }
    Ok(())
}

/// Puts Debian's etcdctl to `target/tools/etcdctl`.
pub(crate) fn etcdctl() -> Result<()> {
    tool("etcdctl", |path| {
        println!("fetching etcdctl of Debian {ETCD_SUITE}");
        from_package(ETCD_SUITE, "etcd-client", "usr/bin/etcdctl", path)
    })
    .map(drop)
}

/// Puts Debian's registry for images to `target/tools/docker-registry`.
pub(crate) fn registry() -> Result<()> {
    tool("docker-registry", |path| {
        println!("fetching the registry of Debian {REGISTRY_SUITE}");
        from_package(REGISTRY_SUITE, "docker-registry", "usr/bin/docker-registry", path)
    })
    .map(drop)
}

/// Builds Helm to `target/tools/helm`; modules and what is compiled of them stay in Go's own caches.
pub(crate) fn helm() -> Result<()> {
    tool("helm", |path| {
        println!("building Helm {HELM}");
        let bin = path.with_extension("bin");
        let mut install = shell::command(go()?);
        install.args(["install", "-trimpath", "-ldflags", "-s -w", &format!("helm.sh/helm/v4/cmd/helm@{HELM}")]);
        // Another toolchain than the one that was chosen would be a download.
        install.env("GOBIN", &bin).env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
        shell::output(&mut install).with_context(|| format!("cannot build Helm {HELM}"))?;
        fs::rename(bin.join("helm"), path)?;
        fs::remove_dir(bin)?;
        Ok(())
    })
    .map(drop)
}

/// Puts the files of Swagger UI to `target/tools/swagger-ui/flask_swagger_ui/dist`.
pub(crate) fn swagger_ui() -> Result<()> {
    tool("swagger-ui", |path| {
        let mut pip = shell::command("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target"]).arg(path);
        shell::run(pip.args(["--root-user-action=ignore", SWAGGER_UI]))
    })
    .map(drop)
}

/// A Go that is new enough: the machine's own, or else Debian's below `target/tools`.
fn go() -> Result<PathBuf> {
    if is_there("go") {
        let version = shell::output(shell::command("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?;
        if is_new_enough(&version) {
            return Ok("go".into());
        }
        println!("{} is too old: Helm needs Go {GO}", version.trim());
    }
    let root = tool(&format!("go-{GO}"), |path| {
        println!("fetching Go {GO} of Debian {GO_SUITE}");
        let apt = Apt::new(GO_SUITE)?;
        let packages = ["go", "src"].map(|part| format!("golang-{GO}-{part}"));
        apt.unpack(&[&packages[0], &packages[1]], path)
    })?;
    Ok(root.join(format!("usr/lib/go-{GO}/bin/go")))
}

/// Of versions as `go1.26.8`.
fn is_new_enough(version: &str) -> bool {
    let numbers = |text: &str| text.split('.').take(2).map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
    match (numbers(version.trim().trim_start_matches("go")), numbers(GO)) {
        (Some(found), Some(wanted)) => found >= wanted,
        _ => false,
    }
}

/// Puts Debian's etcd to `target/tools/etcd`.
pub(crate) fn etcd() -> Result<PathBuf> {
    tool("etcd", |path| {
        println!("fetching etcd of Debian {ETCD_SUITE}");
        from_package(ETCD_SUITE, "etcd-server", "usr/bin/etcd", path)
    })
}

/// cargo-deny, which takes minutes to build; the machine's own is taken if there is one.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    if is_there("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let built = shell::target().join("tools/cargo-deny-root");
    let program = built.join("bin/cargo-deny");
    if !program.exists() {
        println!("building cargo-deny {CARGO_DENY}");
        // No default features: those are for fetching advisories, and not used.
        let mut install = shell::cargo(&["install", "--quiet", "--locked", "--no-default-features"]);
        install.args(["--version", CARGO_DENY, "cargo-deny", "--root"]).arg(&built);
        // Optimising it would take longer than all its runs.
        install.args(["--profile", "dev", "--target-dir"]).arg(shell::target().join("tools/build"));
        // Outside of the repository, whose flags are for the product.
        install.current_dir(std::env::temp_dir());
        shell::run(&mut install).context("cannot build cargo-deny")?;
        fs::remove_dir_all(shell::target().join("tools/build"))?;
    }
    Ok(program)
}

/// Takes one file out of a package.
pub(crate) fn from_package(suite: &str, package: &str, file: &str, to: &Path) -> Result<()> {
    let unpacked = to.with_extension("unpacked");
    Apt::new(suite)?.unpack(&[package], &unpacked)?;
    fs::copy(unpacked.join(file), to).with_context(|| format!("{package} of {suite} has no {file}"))?;
    fs::remove_dir_all(unpacked)?;
    Ok(())
}

/// Makes `target/tools/NAME` unless it is there; whatever interrupts that leaves no half of it.
pub(crate) fn tool(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = shell::target().join("tools");
    let path = dir.join(name);
    if !path.exists() {
        fs::create_dir_all(&dir)?;
        let draft = dir.join(format!(".{name}"));
        make(&draft)?;
        fs::rename(draft, &path)?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_is_compared_by_numbers() {
        for (version, enough) in
            [("go1.26.8\n", true), ("go1.27", true), ("go2.0.1", true), ("go1.9.7", false), ("devel", false)]
        {
            assert_eq!(is_new_enough(version), enough, "{version}");
        }
    }
}
