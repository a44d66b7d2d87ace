//! `skiff dashboard` in a real browser.

use std::{process::Command, time::Duration};

use skiff_e2e::{browser::Browser, cluster::curl, command, eventually, host, kubectl::Background, wait::check};

use crate::{
    shared, tests,
    workloads::{PATIENCE, ready, sleeper},
};

tests![the_cluster_in_a_browser];

fn the_cluster_in_a_browser() {
    let kubectl = shared::cluster().in_new("dashboard");
    let namespace = kubectl.namespace.clone().expect("a new one");
    kubectl.apply(&sleeper("seen"));
    ready(&kubectl, "seen");
    let mut command = Command::new(host::skiff());
    command.args(["dashboard", "--kubeconfig"]).arg(&kubectl.kubeconfig);
    let mut dashboard = Background::start(&mut command);
    let line = dashboard.line(Duration::from_secs(30), |line| line.contains("http://127.0.0.1:"));
    let url = line.split(' ').find(|word| word.starts_with("http://")).expect("an address").to_owned();

    // Who does not know the path is told nothing, and nobody is told anything under another name.
    let origin = url.split('/').take(3).collect::<Vec<_>>().join("/");
    for stranger in ["/", "/api/v1/secrets", "/00000000000000000000000000000000/api/v1/secrets"] {
        curl(&[&format!("{origin}{stranger}")]).fails_with("404");
    }
    curl(&["-H", "Host: example.com", &url]).fails_with("403");

    let home = skiff_e2e::Home::new();
    let browser = Browser::start(&home, 19516, "");
    browser.open(&format!("{url}#pods"));
    let choose = format!(
        "const select = document.getElementById('namespace');
         select.value = '{namespace}';
         select.dispatchEvent(new Event('change'));
         return select.value;"
    );
    eventually(PATIENCE, || {
        let chosen = browser.run(&choose);
        check(chosen == namespace.as_str(), || format!("{chosen} is chosen"))
    });
    browser.shows(&["NAME", "READY", "STATUS", "seen", "1/1", "Running", "live"]);
    // What comes later is shown without being asked for.
    kubectl.apply(&sleeper("later"));
    browser.shows(&["later"]);
    browser.click("td", "seen");
    browser.shows(&[&format!("Pod {namespace}/seen"), "kind: Pod", "image: "]);
    browser.click("button", "Events");
    browser.shows(&["Normal  Scheduled: Successfully assigned"]);

    kubectl.run(&["create", "deployment", "web", "--image=nginx", "--replicas=1"]).ok();
    browser.open(&format!("{url}#deployments.apps"));
    browser.run("location.reload()");
    eventually(PATIENCE, || {
        let chosen = browser.run(&choose);
        check(chosen == namespace.as_str(), || format!("{chosen} is chosen"))
    });
    browser.click("td", "web");
    browser.run("window.prompt = () => '2'; window.confirm = () => true;");
    browser.click("button", "Scale…");
    eventually(PATIENCE, || {
        let replicas = kubectl.path(&["deployment", "web"], "{.spec.replicas}")?;
        check(replicas == "2", || replicas)
    });
    browser.click("button", "Restart");
    eventually(PATIENCE, || {
        let stamp = kubectl.path(&["deployment", "web"], "{.spec.template.metadata.annotations}")?;
        check(stamp.contains("restartedAt"), || stamp)
    });
    browser.click("button", "Delete…");
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "deployments", "-o", "name"]).result()?;
        check(left.is_empty(), || left)
    });
    if let Some(to) = std::env::var_os("SKIFF_E2E_PICTURES") {
        browser.picture(&std::path::Path::new(&to).join("dashboard.png"));
    }
    let mut unknown = Command::new(host::skiff());
    command::run(unknown.args(["dashboard", "--colour"]), "").fails_with("unknown flag: --colour");
}
