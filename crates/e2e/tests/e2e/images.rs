//! Images built on the user's machine and run in a cluster.

use std::{fs, process::Command};

use skiff_e2e::{Cluster, Home, cluster::curl, eventually, host, kubectl::Background};

use crate::{
    tests,
    workloads::{PATIENCE, ready},
};

tests![images_are_built_and_run, images_go_to_a_registry_and_come_back, a_build_that_fails_leaves_nothing];

/// The guide's Dockerfile, whose RUN has no index of packages to ask here.
const DOCKERFILE: &str = r#"FROM busybox AS pages
WORKDIR /pages
RUN echo "built by $(id -u)" > index.html && mkdir empty && ln -s index.html link

FROM python:3.11-slim

WORKDIR /app

# Install dependencies
COPY requirements.txt .
RUN test -f requirements.txt && rm /etc/debian_version

# Copy application code
COPY main.py .
COPY --from=pages --chown=1000:1000 /pages/ pages/

# Expose port
EXPOSE 8000

# Run the application
CMD ["python3", "main.py", "--host", "0.0.0.0", "--port", "8000"]
"#;

const MAIN: &str = r#"import http.server, os
assert not os.path.exists("/etc/debian_version")
assert os.stat("pages/index.html").st_uid == 1000 and os.readlink("pages/link") == "index.html"
os.chdir("pages")
http.server.test(http.server.SimpleHTTPRequestHandler, port=8000, bind="0.0.0.0")
"#;

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"}, "spec": {"containers": [{
    "name": "app", "image": "fastapi-demo:latest", "imagePullPolicy": "IfNotPresent"}]}}"#;

fn import(home: &Home, images: &[&str]) {
    for image in images {
        let archive = host::prepared(&format!("images/{image}.tar"));
        home.skiff(&["image", "import", archive.to_str().expect("UTF-8")]).prints(&[image]);
    }
}

fn images_are_built_and_run() {
    let cluster = Cluster::create("images", &[]);
    let home = &cluster.home;
    import(home, &["busybox", "python"]);
    let context = home.dir.join("context");
    fs::create_dir(&context).unwrap();
    for (name, content) in [("Dockerfile", DOCKERFILE), ("main.py", MAIN), ("requirements.txt", "fastapi\n")] {
        fs::write(context.join(name), content).unwrap();
    }
    let build = ["image", "build", "-t", "fastapi-demo:latest", "context"];
    let first = home.skiff(&build).prints(&["docker.io/library/fastapi-demo:latest"]);
    let again = home.skiff(&build);
    assert_eq!(again.stderr.matches("  cached").count(), 7, "{}", again.stderr);
    assert_eq!(again.ok(), first);
    home.skiff(&["image", "list"]).prints(&["docker.io/library/fastapi-demo:latest", "docker.io/library/busybox"]);

    let missing = home.kind(&["load", "docker-image", "nothing", "--name", "images"]).fails();
    assert!(missing.contains("ERROR: image: \"nothing\" not present locally"), "{missing}");
    home.kind(&["load", "docker-image", "fastapi-demo:latest", "--name", "images"]).ok();
    let kubectl = cluster.kubectl().within("default");
    kubectl.apply(POD);
    ready(&kubectl, "app");
    let page = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/').read().decode(), end='')";
    let answer = eventually(PATIENCE, || kubectl.run(&["exec", "app", "--", "python3", "-c", page]).result());
    assert_eq!(answer, "built by 0\n");

    // By name and as an archive.
    home.skiff(&["image", "load", "fastapi-demo", "--cluster", "images"]).prints(&["fastapi-demo:latest"]);
    home.skiff(&["image", "save", "fastapi-demo", "-o", "saved.tar"]).ok();
    home.skiff(&["image", "load", "saved.tar", "--cluster", "images"]).prints(&["fastapi-demo:latest"]);
    home.skiff(&["image", "remove", "fastapi-demo"]).ok();
    home.skiff(&["image", "remove", "fastapi-demo"]).fails_with("not found");
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn images_go_to_a_registry_and_come_back() {
    // Debian's registry, which lets one user write.
    const REGISTRY: &str = "127.0.0.1:15000";
    let home = Home::new();
    import(&home, &["busybox"]);
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '{REGISTRY}'}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        home.dir.join("registry").display(),
        // Of "secret".
        home.file("htpasswd", "me:$2a$05$RnHzYqPeTA0tq/9s/TbYKu/CeslmOmjxIcU7g1PMwMqaNECopwePS\n"),
    );
    let mut registry = Command::new(host::prepared("tools/docker-registry"));
    registry.args(["serve", &home.file("registry.yaml", &config)]);
    let _registry = Background::start(&mut registry);
    let catalog = format!("http://{REGISTRY}/v2/_catalog");
    eventually(PATIENCE, || curl(&["-u", "me:secret", &catalog]).result());

    let context = home.dir.join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), "FROM busybox\nRUN echo pushed > /file\nCMD [\"cat\", \"/file\"]\n").unwrap();
    let name = format!("{REGISTRY}/team/myapp:v1.0");
    home.skiff(&["image", "build", "-t", &name, "context"]).ok();
    home.skiff(&["image", "push", &name]).fails_with("the registry does not let this user write there");
    fs::create_dir(home.dir.join(".docker")).unwrap();
    // As `docker login` leaves it.
    home.file(".docker/config.json", &format!(r#"{{"auths": {{"{REGISTRY}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#));
    let first = home.skiff(&["image", "push", &name]);
    assert_eq!(first.stderr.matches(": Pushed ").count(), 3, "two layers and the configuration: {}", first.stderr);
    let digest = first.prints(&["Pushed 127.0.0.1:15000/team/myapp:v1.0: sha256:"]);
    let again = home.skiff(&["image", "push", &name]);
    assert_eq!(again.stderr.matches(": Layer already exists").count(), 3, "{}", again.stderr);
    assert_eq!(again.ok(), digest);
    // Under another name nothing but the manifest is sent.
    let other = format!("{REGISTRY}/team/myapp:stable");
    home.skiff(&["image", "tag", &name, &other]).prints(&[&other]);
    assert!(!home.skiff(&["image", "push", &other]).stderr.contains(": Pushed "));
    home.skiff(&["image", "push", "nothing:here"]).fails_with("not found");

    // Another machine.
    let there = Home::new();
    there.skiff(&["image", "pull", &name]).fails_with("authorization failed");
    fs::create_dir(there.dir.join(".docker")).unwrap();
    fs::copy(home.dir.join(".docker/config.json"), there.dir.join(".docker/config.json")).unwrap();
    there.skiff(&["image", "pull", &name]).prints(&["Pulled 127.0.0.1:15000/team/myapp:v1.0: sha256:"]);
    fs::create_dir(there.dir.join("context")).unwrap();
    fs::write(there.dir.join("context/Dockerfile"), format!("FROM {name}\nRUN test \"$(cat /file)\" = pushed\n"))
        .unwrap();
    there.skiff(&["image", "build", "-t", "checked", "context"]).ok();
}

fn a_build_that_fails_leaves_nothing() {
    let home = Home::new();
    import(&home, &["busybox"]);
    let context = home.dir.join("context");
    fs::create_dir(&context).unwrap();
    fs::write(home.dir.join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", context.join("link")).unwrap();
    let build = |dockerfile: &str| {
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        home.skiff(&["image", "build", "-t", "bad", "context"])
    };
    for (dockerfile, why) in [
        ("FROM busybox\nRUN exit 3", "line 2: RUN exit 3: did not complete successfully: exit code: 3"),
        ("FROM busybox\nCOPY ../secret /", "\"/secret\": not found"),
        ("FROM busybox\nCOPY link /", "\"/link\": not found"),
        ("FROM busybox\nRUN ln -s / out\nFROM busybox\nCOPY --from=0 /out/proc/self/environ /x", "not found"),
        ("FROM busybox\nCOPY --from=0 /x /x", "line 2: invalid from flag value 0"),
        ("FROM busybox\nRUN echo 1 > /proc/sys/kernel/domainname", "exit code"),
        ("FROM busybox\nRUN mount -t tmpfs x /mnt", "exit code"),
        ("FROM busybox\nUSER 1000\nRUN touch /file", "exit code: 1"),
        ("FROM busybox\nONBUILD RUN x", "line 2: instruction ONBUILD is not supported"),
    ] {
        build(dockerfile).fails_with(why);
    }
    // A link of the image that leads out of it does not lead out of it.
    build("FROM busybox\nRUN ln -s / /host && ln -s /tmp /t\nCOPY Dockerfile /host/t/deep/\nRUN test -f /tmp/deep/Dockerfile")
        .ok();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(home.dir.to_str().unwrap()), "{mounts}");
    assert_eq!(fs::read_dir(home.dir.join("skiff/images/staging")).unwrap().count(), 0);
    assert_eq!(fs::read(home.dir.join("secret")).unwrap(), b"secret");
}
