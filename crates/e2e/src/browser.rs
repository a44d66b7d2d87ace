//! A real browser: Debian's Chromium without a window, driven through its WebDriver.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{Home, cluster::curl, command::PATIENCE, eventually, wait::check};

/// Ends with everything that belongs to it when it is dropped.
pub struct Browser {
    driver: Child,
    /// Where the session is.
    url: String,
}

impl Browser {
    /// Starts one. Its WebDriver listens on `port`; `resolver` are Chromium's rules for names, such as
    /// `MAP cdn.example.com 127.0.0.1:8443`, and certificates are not looked at.
    pub fn start(home: &Home, port: u16, resolver: &str) -> Browser {
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        home.environment(&mut command);
        let driver = command.spawn().expect("chromedriver is installed");
        // From here on it ends when this is dropped, also when something below fails.
        let mut browser = Browser { driver, url: format!("http://127.0.0.1:{port}") };
        eventually(PATIENCE, || {
            let status = curl(&[&format!("{}/status", browser.url)]).result()?;
            check(status.contains("\"ready\":true"), || status)
        });
        let profile = home.dir.join(format!("chromium-{port}"));
        let arguments = [
            "--headless".to_owned(),
            // It runs as root, in a network namespace of the test.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--ignore-certificate-errors".to_owned(),
            "--window-size=1280,900".to_owned(),
            format!("--user-data-dir={}", profile.display()),
            format!("--host-resolver-rules={resolver}"),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let session = browser.ask("POST", "/session", &wanted)["sessionId"].as_str().expect("a session").to_owned();
        browser.url = format!("{}/session/{session}", browser.url);
        browser
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let (url, body) = (format!("{}{path}", self.url), body.to_string());
        let mut arguments = vec!["--max-time", "60", "-X", method];
        if method == "POST" {
            arguments.extend(["-H", "Content-Type: application/json", "-d", &body]);
        }
        arguments.push(&url);
        let answer: Value = serde_json::from_str(&curl(&arguments).ok()).expect("JSON");
        answer["value"].clone()
    }

    /// Goes to a page and waits until it is loaded.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// What a function's body returns in the page.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until all of these can be read on the page.
    #[track_caller]
    pub fn shows(&self, texts: &[&str]) {
        eventually(PATIENCE, || {
            let page = self.run("return document.body.innerText").as_str().unwrap_or_default().to_owned();
            check(texts.iter().all(|text| page.contains(text)), || format!("not all of {texts:?} in\n{page}"))
        });
    }

    /// Clicks the first element that a CSS selector finds and that has this text, whatever places it has for line breaks.
    #[track_caller]
    pub fn click(&self, selector: &str, text: &str) {
        let script = format!(
            "const found = [...document.querySelectorAll({})].find((e) => e.innerText.replace(/\\u200b/g, '').trim() === {});
             if (found) found.click();
             return !!found;",
            json!(selector),
            json!(text)
        );
        eventually(PATIENCE, || check(self.run(&script) == true, || format!("no {selector} {text:?} on the page")));
    }

    /// Writes what is seen as a PNG file, for people.
    pub fn picture(&self, to: &Path) {
        use base64::Engine as _;
        let picture = self.ask("GET", "/screenshot", &Value::Null);
        let picture = base64::engine::general_purpose::STANDARD.decode(picture.as_str().expect("base64"));
        std::fs::write(to, picture.expect("base64")).expect("a file");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The session's end is the browser's; what the driver did not end goes with the home.
        let _ = curl(&["-X", "DELETE", &self.url]).result();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
