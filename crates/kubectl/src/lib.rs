//! kubectl: the commands of Kubernetes' command line, as `skiff kubectl` and under the name `kubectl`.
//!
//! What is printed, to which stream, and the code at the end are those of kubectl v1.36. `commands` has a file for
//! each command; `targets` finds what a command line is about, `print` has the output formats, `describe` the texts
//! of `kubectl describe`. Objects are JSON values throughout: what a server has is only known when it is asked.

mod cli;
mod commands;
mod dashboard;
mod describe;
mod discovery;
mod error;
mod files;
mod flags;
mod kubeconfig;
mod out;
mod patch;
mod pods;
mod print;
mod rest;
mod rollout;
mod streams;
mod targets;
mod time;
mod watching;
mod web;

use std::{ffi::OsString, process::ExitCode};

use crate::{
    cli::{Cli, Command, GLOBAL},
    error::{Error, Result},
    flags::Parsed,
    out::tell,
};

/// Runs kubectl with the words behind its name, and returns what to end with.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words = texts(words);
    finish(run(&words))
}

/// Runs `skiff dashboard` with the words behind it, which are flags as kubectl has them, and returns what to end with.
pub fn dashboard(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words = texts(words);
    finish(execute("skiff dashboard", "dashboard", &dashboard::COMMAND, &words))
}

fn texts(words: impl Iterator<Item = OsString>) -> Vec<String> {
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}

fn finish(command: impl Future<Output = Result<()>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(command);
    // A read of standard input may still hold a thread, which nobody has to wait for.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = error.message();
            if !message.is_empty() {
                tell!("{message}");
            }
            ExitCode::from(error.code())
        }
    }
}

async fn run(words: &[String]) -> Result<()> {
    let (path, command, rest) = find(words)?;
    let called = std::iter::once("kubectl").chain(path.iter().copied()).collect::<Vec<_>>().join(" ");
    let Some(command) = command else {
        out::text(&commands::help_of_all());
        return Ok(());
    };
    execute(&called, &path.join(" "), command, &rest).await
}

/// Runs a command: `called` is what was typed for it, `path` that without the program.
async fn execute(called: &str, path: &str, command: &'static Command, rest: &[String]) -> Result<()> {
    let mut flags: Vec<&[flags::Flag]> = command.flags.to_vec();
    flags.push(GLOBAL);
    let parsed = Parsed::parse(rest, &flags, called)?;
    let Some(run) = command.run.filter(|_| !parsed.is("help")) else {
        if let Some(unknown) = parsed.args.first().filter(|_| !parsed.is("help") && !command.subcommands.is_empty()) {
            return Err(Error::text(format!("unknown command {unknown:?} for {called:?}")));
        }
        if parsed.is("help") {
            out::text(&commands::help(called, command));
            return Ok(());
        }
        tell!("{}", commands::help(called, command).trim_end());
        return Err(Error::Exit(1));
    };
    run(&Cli::new(path.to_owned(), parsed)).await
}

/// The command that a line means, its path, and the words that are left.
fn find(words: &[String]) -> Result<(Vec<&'static str>, Option<&'static Command>, Vec<String>)> {
    let mut path = Vec::new();
    let mut command: Option<&'static Command> = None;
    let mut rest = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let word = &words[at];
        if word == "--" {
            break;
        }
        if word.starts_with('-') && word.len() > 1 {
            rest.push(word.clone());
            // A flag in front of the command may have its value in the next word.
            if takes_next_word(word, command) && at + 1 < words.len() {
                at += 1;
                rest.push(words[at].clone());
            }
            at += 1;
            continue;
        }
        let inside = command.map_or(commands::ALL, |command| command.subcommands);
        let name = commands::ALIASES.iter().find(|(alias, _)| alias == word).map_or(word.as_str(), |(_, name)| name);
        let Some(found) = inside.iter().find(|command| command.name == name) else {
            if command.is_none() {
                return Err(Error::text(format!("unknown command {word:?} for \"kubectl\"")));
            }
            break;
        };
        path.push(found.name);
        command = Some(found);
        at += 1;
        if found.subcommands.is_empty() {
            break;
        }
    }
    rest.extend(words[at..].iter().cloned());
    Ok((path, command, rest))
}

fn takes_next_word(word: &str, command: Option<&Command>) -> bool {
    let own = command.map_or(&[][..], |command| command.flags);
    let mut known = GLOBAL.iter().chain(own.iter().copied().flatten());
    let found = match word.strip_prefix("--") {
        Some(long) => known.find(|flag| flag.name == long),
        None => {
            let mut letters = word.chars().skip(1);
            let first = letters.next();
            known.find(|flag| Some(flag.short) == first).filter(|_| letters.next().is_none())
        }
    };
    found.is_some_and(|flag| !matches!(flag.takes, flags::Takes::Bool | flags::Takes::Optional(_)))
}
