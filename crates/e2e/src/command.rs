//! Running a program and judging what it printed.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// No command of a test takes longer, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a program printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    pub stdout: String,
    pub stderr: String,
    /// `None` after a signal.
    pub code: Option<i32>,
}

impl Output {
    /// Its standard output; panics when it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == Some(0), "{} failed:\n{}", self.command, self.all());
        self.stdout
    }

    /// Its standard error; panics when it succeeded.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(self.code != Some(0), "{} succeeded:\n{}", self.command, self.all());
        self.stderr
    }

    /// For [`crate::eventually`].
    pub fn result(self) -> Result<String, String> {
        if self.code == Some(0) { Ok(self.stdout) } else { Err(format!("{} failed:\n{}", self.command, self.all())) }
    }

    /// Panics unless it failed and named `what`.
    #[track_caller]
    pub fn fails_with(self, what: &str) {
        let command = self.command.clone();
        let stderr = self.fails();
        assert!(stderr.contains(what), "{command} did not say {what:?} but:\n{stderr}");
    }

    /// Panics unless it succeeded and printed all of `what`.
    #[track_caller]
    pub fn prints(self, what: &[&str]) -> String {
        let command = self.command.clone();
        let stdout = self.ok();
        for what in what {
            assert!(stdout.contains(what), "{command} did not print {what:?} but:\n{stdout}");
        }
        stdout
    }

    fn all(&self) -> String {
        format!("exit code {:?}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs a program to its end, with `input` on its standard input.
pub fn run(command: &mut Command, input: &str) -> Output {
    run_for(command, input, PATIENCE)
}

/// As [`run`]; one that has not ended by itself after `patience` is killed, which its exit code tells.
pub fn run_for(command: &mut Command, input: &str, patience: Duration) -> Output {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let text = text.rsplit_once("/tools/").map_or(text.clone(), |(_, rest)| rest.to_owned());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {text}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // Whoever does not read its input breaks the pipe, which is no fault.
    let feeding = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait().expect("a child of ours") {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                child.kill().expect("a child of ours");
                break child.wait().expect("a child of ours");
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    feeding.join().expect("does not panic");
    Output {
        command: text,
        stdout: stdout.join().expect("does not panic"),
        stderr: stderr.join().expect("does not panic"),
        code: status.code(),
    }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is to show.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
