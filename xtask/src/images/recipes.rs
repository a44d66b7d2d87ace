//! What is in each image.

/// How one image, under several tags, is made. [`BASE`] has what a recipe does not say.
pub(super) struct Recipe {
    /// Its repository, and the archive's name.
    pub(super) name: &'static str,
    /// Every tag is an image of its own with the same files and another `VERSION` in its environment.
    pub(super) tags: &'static [&'static str],
    /// Debian's suite.
    pub(super) suite: &'static str,
    pub(super) packages: &'static [&'static str],
    /// Dependencies that nothing in the image calls: packages whose names begin so.
    pub(super) without: &'static [&'static str],
    /// Packages from PyPI, with their versions.
    pub(super) python: &'static [&'static str],
    /// The same, not installed: pip in the image takes them from `/usr/share/wheels`, where there is no index to ask.
    pub(super) wheels: &'static [&'static str],
    /// Paths that are not taken; a final `/` means everything below.
    pub(super) pruned: &'static [&'static str],
    /// Files that packages' scripts would have written.
    pub(super) files: &'static [(&'static str, &'static str)],
    /// Those of `files` that are programs.
    pub(super) programs: &'static [&'static str],
    pub(super) links: &'static [(&'static str, &'static str)],
    /// Hard links in `/bin` for everything that busybox can do.
    pub(super) applets: bool,
    pub(super) environment: &'static [&'static str],
    pub(super) working_dir: &'static str,
    pub(super) entrypoint: &'static [&'static str],
    pub(super) command: &'static [&'static str],
    pub(super) ports: &'static [&'static str],
    pub(super) stop_signal: Option<&'static str>,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
    postgres:x:999:999:postgres:/var/lib/postgresql:/bin/bash\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nadm:x:4:\nwww-data:x:33:\npostgres:x:999:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";
/// What every image has.
const ACCOUNTS: [(&str, &str); 3] = [("etc/passwd", PASSWD), ("etc/group", GROUP), ("etc/nsswitch.conf", NSSWITCH)];

/// As in the image of the same name on Docker Hub.
const NGINX_SITE: &str = "server {
    listen 80;
    server_name localhost;
    location / {
        root /usr/share/nginx/html;
        index index.html index.htm;
    }
}
";

const DOCUMENTATION: &[&str] = &[
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/share/common-licenses/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/share/bash-completion/",
    "usr/share/terminfo/",
    "etc/systemd/",
    "usr/lib/systemd/",
    "etc/init.d/",
    "etc/logrotate.d/",
    "etc/ufw/",
    "usr/share/vim/",
    "usr/share/menu/",
    "etc/skel/",
    "etc/update-motd.d/",
];

const BASE: Recipe = Recipe {
    name: "",
    tags: &["latest"],
    suite: "trixie",
    packages: &[],
    without: &[],
    python: &[],
    wheels: &[],
    pruned: DOCUMENTATION,
    files: &ACCOUNTS,
    programs: &[],
    links: &[],
    applets: false,
    environment: &[],
    working_dir: "",
    entrypoint: &[],
    command: &[],
    ports: &[],
    stop_signal: None,
};

const BUSYBOX: Recipe = Recipe {
    name: "busybox",
    tags: &["latest", "1.36"],
    packages: &["busybox-static"],
    pruned: &["usr/"],
    applets: true,
    command: &["sh"],
    ..BASE
};

/// Installed for scripts that packages run at their installation, which are not run.
const FOR_SCRIPTS: &[&str] = &["debconf", "cdebconf", "perl", "gcc-", "debianutils", "mawk", "readline-common"];

const PYTHON_PACKAGES: &[&str] =
    &["python3.11-minimal", "python3.11", "python3", "bash", "dash", "coreutils", "curl", "libc-bin", "base-files"];

/// The guide's requirements.txt.
const FASTAPI: &[&str] =
    &["fastapi==0.115.5", "uvicorn[standard]==0.32.1", "psycopg2-binary==2.9.10", "pydantic==2.10.3"];

pub(super) const RECIPES: [Recipe; 9] = [
    Recipe {
        name: "nginx",
        tags: &["latest", "1.20", "1.21", "1.25", "1.27"],
        packages: &["nginx", "bash", "dash", "coreutils", "curl", "grep", "sed", "libc-bin", "base-files"],
        without: &[
            "debconf",
            "cdebconf",
            "perl",
            "iproute2",
            "ca-certificates",
            "openssl",
            "tzdata",
            "mawk",
            "libbpf",
            "libelf",
            "libmnl",
            "libxtables",
            "libcap2-bin",
            "libdb5",
            "libtirpc",
            "readline-common",
            "gcc-",
            "debianutils",
        ],
        files: &[ACCOUNTS[0], ACCOUNTS[1], ACCOUNTS[2], ("etc/nginx/conf.d/default.conf", NGINX_SITE)],
        links: &[("var/log/nginx/access.log", "/dev/stdout"), ("var/log/nginx/error.log", "/dev/stderr")],
        command: &["nginx", "-g", "daemon off;"],
        ports: &["80/tcp"],
        stop_signal: Some("SIGQUIT"),
        ..BASE
    },
    BUSYBOX,
    Recipe {
        name: "prometheus",
        packages: &["prometheus", "libc-bin", "base-files", "tzdata"],
        // Its old pages, and what only its package's scripts call.
        without: &["adduser", "debconf", "cdebconf", "perl", "libjs-", "fonts-", "passwd", "prometheus-node-exporter"],
        pruned: &[
            "usr/bin/promtool",
            "usr/share/doc/",
            "usr/share/man/",
            "usr/share/prometheus/",
            "etc/",
            "usr/lib/systemd/",
        ],
        entrypoint: &["prometheus"],
        ports: &["9090/tcp"],
        ..BASE
    },
    // Stand-ins for the guides' own applications: the same ports and paths.
    Recipe {
        name: "myapi",
        tags: &["1.0"],
        files: &[
            ACCOUNTS[0],
            ACCOUNTS[1],
            ACCOUNTS[2],
            ("www/index.html", "myapi\n"),
            ("www/health", "ok\n"),
            ("www/ready", "ok\n"),
        ],
        command: &["httpd", "-f", "-vv", "-p", "3000", "-h", "/www"],
        ports: &["3000/tcp"],
        ..BUSYBOX
    },
    Recipe {
        name: "myfrontend",
        tags: &["1.0"],
        files: &[ACCOUNTS[0], ACCOUNTS[1], ACCOUNTS[2], ("www/index.html", "<h1>myfrontend</h1>\n")],
        command: &["httpd", "-f", "-vv", "-h", "/www"],
        ports: &["80/tcp"],
        ..BUSYBOX
    },
    Recipe {
        name: "myapp",
        tags: &["latest", "1.0", "v1", "v1.0", "v2", "v2.0"],
        files: &[ACCOUNTS[0], ACCOUNTS[1], ACCOUNTS[2], ("app/server.sh", include_str!("files/myapp.sh"))],
        programs: &["app/server.sh"],
        command: &["/app/server.sh"],
        ports: &["3000/tcp", "8080/tcp"],
        ..BUSYBOX
    },
    // The guides' database: its tag is theirs, its program that of Debian.
    Recipe {
        name: "postgres",
        tags: &["16", "15", "14", "latest"],
        packages: &[
            "postgresql-17",
            "bash",
            "dash",
            "coreutils",
            "util-linux",
            "sed",
            "grep",
            "libc-bin",
            "base-files",
        ],
        // Compiled queries need a compiler; without it they are interpreted.
        without: &["debconf", "cdebconf", "perl", "gcc-", "debianutils", "mawk", "libllvm", "libz3", "ssl-cert"],
        pruned: &[
            "usr/share/doc/",
            "usr/share/man/",
            "usr/share/locale/",
            "usr/share/postgresql/17/man/",
            "usr/lib/postgresql/17/lib/bitcode/",
            "usr/lib/postgresql/17/lib/llvmjit.so",
        ],
        files: &[
            ACCOUNTS[0],
            ACCOUNTS[1],
            ACCOUNTS[2],
            ("usr/local/bin/docker-entrypoint.sh", include_str!("files/postgres.sh")),
        ],
        programs: &["usr/local/bin/docker-entrypoint.sh"],
        environment: &[
            "PATH=/usr/lib/postgresql/17/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PGDATA=/var/lib/postgresql/data",
            "LANG=C.UTF-8",
        ],
        entrypoint: &["docker-entrypoint.sh"],
        command: &["postgres"],
        ports: &["5432/tcp"],
        stop_signal: Some("SIGINT"),
        ..BASE
    },
    // With pip, as on Docker Hub: the guide's Dockerfile installs the same packages with it.
    Recipe {
        name: "python",
        tags: &["3.11-slim"],
        suite: "bookworm",
        packages: PYTHON_PACKAGES,
        without: FOR_SCRIPTS,
        python: &["pip==24.3.1"],
        wheels: FASTAPI,
        files: &[
            ACCOUNTS[0],
            ACCOUNTS[1],
            ACCOUNTS[2],
            (
                "etc/pip.conf",
                "[global]\nno-index = true\nfind-links = /usr/share/wheels\nroot-user-action = ignore\nbreak-system-packages = true\n",
            ),
            (
                "usr/local/bin/pip",
                "#!/usr/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\n\nsys.exit(main())\n",
            ),
        ],
        programs: &["usr/local/bin/pip"],
        command: &["python3"],
        ..BASE
    },
    // What the guide's Dockerfile makes.
    Recipe {
        name: "fastapi-demo",
        suite: "bookworm",
        packages: PYTHON_PACKAGES,
        without: FOR_SCRIPTS,
        python: FASTAPI,
        files: &[
            ACCOUNTS[0],
            ACCOUNTS[1],
            ACCOUNTS[2],
            (
                "usr/local/bin/uvicorn",
                "#!/usr/bin/python3\nimport sys\nfrom uvicorn.main import main\n\nsys.exit(main())\n",
            ),
            ("app/main.py", include_str!("files/fastapi.py")),
        ],
        programs: &["usr/local/bin/uvicorn"],
        working_dir: "/app",
        command: &["uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8000"],
        ports: &["8000/tcp"],
        ..BASE
    },
];
