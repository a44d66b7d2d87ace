//! `skiff hello`: the page of the demonstration, as it runs in its pods.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::Context as _;

/// Where the page is served.
const PORT: u16 = 8080;
/// A client that says nothing for this long is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until SIGTERM. As the first process of its container it would not end by it without asking for it.
pub(crate) fn run() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ended = super::until_told_to_end();
        let served = tokio::task::spawn_blocking(serve);
        tokio::select! {
            done = ended => done,
            done = served => done?,
        }
    })?;
    // The thread that serves waits for the next client for ever.
    std::process::exit(0)
}

fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).with_context(|| format!("cannot listen on port {PORT}"))?;
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    writeln!(std::io::stdout(), "serving on port {PORT}")?;
    for stream in listener.incoming() {
        let pod = pod.clone();
        std::thread::spawn(move || {
            // A client that went away has nobody to tell.
            let _ = stream.and_then(|s| answer(s, &pod));
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, pod: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let request = line.trim().to_owned();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let page = format!(
        "<!DOCTYPE html>\n<html><head><title>Hello from skiff</title></head>\n<body><h1>Hello from skiff!</h1>\n\
         <p>This page comes from the pod {pod}.</p></body></html>\n"
    );
    writeln!(std::io::stdout(), "{request}")?;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )
}
