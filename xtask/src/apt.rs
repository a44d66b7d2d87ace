//! Debian packages without touching the machine's: apt with sources, lists and a package state of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::shell;

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package lists are fetched again when they are older.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// The packages of one Debian suite.
pub(crate) struct Apt {
    suite: String,
    dir: PathBuf,
}

impl Apt {
    /// Fetches the package lists unless there are fresh ones.
    pub(crate) fn new(suite: &str) -> Result<Self> {
        let apt = Self { suite: suite.to_owned(), dir: shell::target().join("apt").join(suite) };
        apt.prepare().with_context(|| format!("cannot use Debian's packages of {suite}"))?;
        Ok(apt)
    }

    fn prepare(&self) -> Result<()> {
        for dir in ["lists/partial", "archives/partial", "debs", "etc/apt.conf.d", "etc/preferences.d"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        // Nothing is installed, as far as this apt knows, so that it resolves dependencies completely.
        fs::write(self.dir.join("status"), "")?;
        let source = format!("deb [signed-by={KEYRING}] {MIRROR} {} main\n", self.suite);
        fs::write(self.dir.join("etc/sources.list"), source)?;
        let fetched = self.dir.join("fetched");
        let age = fs::metadata(&fetched)
            .and_then(|data| data.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_none_or(|age| age > FRESH) {
            shell::output(self.command("apt-get").arg("update"))?;
            fs::write(fetched, "")?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = shell::command(program);
        let dir = self.dir.display();
        command.current_dir(self.dir.join("debs")).args(["-q", "-y"]);
        for option in [
            format!("Dir::Etc={dir}/etc"),
            format!("Dir::State={dir}"),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}"),
            format!("Dir::Cache::archives={dir}/archives"),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            "Debug::NoLocking=true".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Downloads packages, without what they depend on, and unpacks them to `to`, which is replaced.
    pub(crate) fn unpack(&self, packages: &[&str], to: &Path) -> Result<()> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        packages.iter().try_for_each(|package| unpack(&self.download(package)?, to))
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        shell::output(self.command("apt-get").arg("download").arg(package))?;
        let newest = fs::read_dir(self.dir.join("debs"))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with(&format!("{package}_"))
            })
            .max_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
        let Some(deb) = newest else { bail!("apt-get downloaded no {package}") };
        Ok(deb)
    }

    /// Downloads packages with everything that they depend on, and returns the files by package name.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let install = || {
            let mut command = self.command("apt-get");
            command.arg("install").args(packages);
            command
        };
        // Before the download: what is in the cache already is not named any more afterwards.
        shell::output(self.command("apt-get").arg("clean"))?;
        let planned = shell::output(install().arg("--print-uris"))?;
        shell::output(install().arg("--download-only"))?;
        // 'http://…/nginx_1.26.3_amd64.deb' nginx_1.26.3_amd64.deb 600000 SHA256:…
        let files = planned.lines().filter(|line| line.starts_with('\'')).filter_map(|line| line.split(' ').nth(1));
        let named = |file: &str| {
            let name = file.split('_').next().unwrap_or(file).to_owned();
            (name, self.dir.join("archives").join(file))
        };
        let mut all: Vec<_> = files.map(named).collect();
        all.sort();
        Ok(all)
    }
}

/// Unpacks a package's files; none of its scripts runs.
pub(crate) fn unpack(deb: &Path, to: &Path) -> Result<()> {
    shell::output(shell::command("dpkg-deb").arg("-x").arg(deb).arg(to)).map(drop)
}
