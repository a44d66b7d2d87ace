//! What runs in the containers of the tests: small commands, called by the name of the link.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{BufRead, Read, Write};
use std::process::ExitCode;

/// The commands; each is a link in `/bin` of the image.
pub(crate) const COMMANDS: [&str; 22] = [
    "echo", "cat", "sleep", "exit", "sh", "id", "ls", "write", "read", "env", "pwd", "trap", "eat", "serve", "mount",
    "fork", "status", "flood", "tty", "mknod", "unshare", "chmod",
];

pub(crate) fn main(args: &[String]) -> ExitCode {
    let name = args[0].rsplit('/').next().unwrap_or_default();
    let rest: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    match run(name, &rest) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("{name}: {e}");
            ExitCode::from(1)
        }
    }
}

fn run(name: &str, args: &[&str]) -> Result<u8, Box<dyn std::error::Error>> {
    let mut out = std::io::stdout();
    match (name, args) {
        ("echo", ["-e", words @ ..]) => eprintln!("{}", words.join(" ")),
        ("echo", words) => println!("{}", words.join(" ")),
        ("cat", []) => {
            let mut line = String::new();
            while std::io::stdin().lock().read_line(&mut line)? > 0 {
                out.write_all(line.as_bytes())?;
                out.flush()?;
                line.clear();
            }
        }
        ("cat" | "read", [path]) => {
            let mut text = String::new();
            std::fs::File::open(path)?.read_to_string(&mut text)?;
            print!("{text}");
        }
        ("sleep", [seconds]) => {
            std::thread::sleep(std::time::Duration::from_secs_f64(seconds.parse()?));
        }
        ("exit", [code]) => return Ok(code.parse()?),
        // Commands separated by `;`.
        ("sh", ["-c", script]) => {
            let mut code = 0;
            for command in script.split(';') {
                let words: Vec<_> = command.split_whitespace().collect();
                let [name, args @ ..] = words.as_slice() else { continue };
                code = run(name, args).unwrap_or_else(|e| {
                    eprintln!("{name}: {e}");
                    1
                });
                out.flush()?;
            }
            return Ok(code);
        }
        ("id", []) => {
            let groups = nix::unistd::getgroups()?;
            let groups: Vec<_> = groups.iter().map(|g| g.as_raw().to_string()).collect();
            println!("{} {} {}", nix::unistd::getuid(), nix::unistd::getgid(), groups.join(","));
        }
        ("ls", [path]) => {
            let mut names: Vec<_> = std::fs::read_dir(path)?
                .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
                .collect();
            names.sort();
            println!("{}", names.join(" "));
        }
        ("write", [path, words @ ..]) => std::fs::write(path, words.join(" "))?,
        ("env", []) => std::env::vars().for_each(|(k, v)| println!("{k}={v}")),
        ("pwd", []) => println!("{}", std::env::current_dir()?.display()),
        // Ends with 7 on SIGTERM, or ignores it.
        ("trap", [what]) => {
            use nix::sys::signal::{SigSet, Signal};
            let mut set = SigSet::empty();
            set.add(Signal::SIGTERM);
            set.add(Signal::SIGUSR1);
            set.thread_block()?;
            println!("ready");
            loop {
                let signal = set.wait()?;
                println!("got {signal}");
                if *what == "exit" {
                    return Ok(7);
                }
            }
        }
        ("eat", [mib]) => {
            let size = mib.parse::<usize>()? << 20;
            let mut all = vec![0u8; size];
            all.iter_mut().step_by(4096).for_each(|b| *b = 1);
            println!("ate {}", all.len());
        }
        ("serve", [port, text]) => {
            let listener = std::net::TcpListener::bind(("127.0.0.1", port.parse::<u16>()?))?;
            println!("serving");
            for stream in listener.incoming() {
                let mut stream = stream?;
                let mut line = String::new();
                std::io::BufReader::new(stream.try_clone()?).read_line(&mut line)?;
                write!(stream, "{text} {line}")?;
            }
        }
        ("mount", [target]) => {
            let none: Option<&str> = None;
            nix::mount::mount(Some("x"), *target, Some("tmpfs"), nix::mount::MsFlags::empty(), none)?;
        }
        ("unshare", []) => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?,
        ("chmod", [path]) => {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        }
        // A child that outlives its parent, unless somebody sees to it.
        ("fork", [seconds]) => {
            std::process::Command::new("/bin/sleep").arg(seconds).spawn()?;
        }
        ("status", [key]) => {
            let text = std::fs::read_to_string("/proc/self/status")?;
            let line = text.lines().find(|l| l.starts_with(key)).ok_or("no such line")?;
            println!("{}", line.split_whitespace().nth(1).unwrap_or_default());
        }
        ("flood", [lines]) => {
            let mut out = std::io::BufWriter::new(out.lock());
            for n in 0..lines.parse::<u64>()? {
                writeln!(out, "line {n}")?;
            }
            out.flush()?;
        }
        ("tty", []) => {
            use std::io::IsTerminal;
            println!("{}", std::io::stdin().is_terminal());
        }
        ("mknod", [path, major, minor]) => {
            let device = nix::sys::stat::makedev(major.parse()?, minor.parse()?);
            let kind = nix::sys::stat::SFlag::S_IFCHR;
            nix::sys::stat::mknod(*path, kind, nix::sys::stat::Mode::S_IRWXU, device)?;
        }
        _ => return Err(format!("unknown command {name} {args:?}").into()),
    }
    Ok(0)
}
