//! What is in each image.

/// How one image, under several tags, is made.
pub(super) struct Recipe {
    /// Its repository, and the archive's name.
    pub(super) name: &'static str,
    /// Every tag is an image of its own with the same files and another `VERSION` in its environment.
    pub(super) tags: &'static [&'static str],
    pub(super) packages: &'static [&'static str],
    /// Dependencies that nothing in the image calls: packages whose names begin so.
    pub(super) without: &'static [&'static str],
    /// Paths that are not taken; a final `/` means everything below.
    pub(super) pruned: &'static [&'static str],
    /// Files that packages' scripts would have written.
    pub(super) files: &'static [(&'static str, &'static str)],
    pub(super) links: &'static [(&'static str, &'static str)],
    /// Hard links in `/bin` for everything that busybox can do.
    pub(super) applets: bool,
    pub(super) command: &'static [&'static str],
    pub(super) ports: &'static [&'static str],
    pub(super) stop_signal: Option<&'static str>,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nadm:x:4:\nwww-data:x:33:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

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

pub(super) const RECIPES: [Recipe; 2] = [
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
        pruned: &[
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
        ],
        files: &[
            ("etc/passwd", PASSWD),
            ("etc/group", GROUP),
            ("etc/nsswitch.conf", NSSWITCH),
            ("etc/nginx/conf.d/default.conf", NGINX_SITE),
        ],
        links: &[("var/log/nginx/access.log", "/dev/stdout"), ("var/log/nginx/error.log", "/dev/stderr")],
        applets: false,
        command: &["nginx", "-g", "daemon off;"],
        ports: &["80/tcp"],
        stop_signal: Some("SIGQUIT"),
    },
    Recipe {
        name: "busybox",
        tags: &["latest", "1.36"],
        packages: &["busybox-static"],
        without: &[],
        pruned: &["usr/"],
        files: &[("etc/passwd", PASSWD), ("etc/group", GROUP), ("etc/nsswitch.conf", NSSWITCH)],
        links: &[],
        applets: true,
        command: &["sh"],
        ports: &[],
        stop_signal: None,
    },
];
