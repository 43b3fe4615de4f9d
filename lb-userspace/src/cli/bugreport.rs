//! `tandem bugreport`: all that somebody needs who was not there.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::Args;
use flate2::{Compression, write::GzEncoder};
use tar::{Builder, Header};

use super::{Exit, Failure, print};
use crate::{config, pinned};

/// How long one command may take: a host that needs a report may be one on which things hang.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that is kept of what one command says: its end, where the newest is.
const KEPT_BYTES: usize = 8 << 20;

/// Collect what is known of this member into one archive, to send to somebody
#[derive(Debug, Args)]
#[command(before_long_help = "\
Examples:
  tandem bugreport
  tandem bugreport /tmp/lb1.tar.gz       what is in it: tar -tzf /tmp/lb1.tar.gz

The archive holds the configuration, what every `tandem` command that looks says, and what the host says of its links, addresses, routes,
neighbours, BPF programs and the agent's journal. No key is in it: configurations name key files, and these are not read. It does hold
addresses, of clients too (`get flows`). Nothing is changed, and a command that fails or hangs is left out and said so.
")]
pub(super) struct Arguments {
    /// The archive, which must not exist [default: tandem-bugreport-HOST.tar.gz here]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Where maps and links are pinned
    #[arg(long, value_name = "DIR", default_value = pinned::DEFAULT_DIRECTORY)]
    pin_dir: PathBuf,
}

/// What is asked of `tandem` itself: the file's name, the arguments, and which of the places they take.
const ASKED: [(&str, &[&str], &[&str]); 12] = [
    ("status.json", &["status", "-o", "json"], &["--pin-dir", "--config"]),
    ("status.txt", &["status"], &["--pin-dir", "--config"]),
    ("members.json", &["get", "members", "-o", "json"], &["--pin-dir", "--config"]),
    ("services.json", &["get", "services", "-o", "json"], &["--pin-dir", "--config"]),
    ("backends.json", &["get", "backends", "-o", "json"], &["--pin-dir", "--config"]),
    ("drops.json", &["get", "drops", "-o", "json"], &["--pin-dir", "--config"]),
    ("flows.json", &["get", "flows", "-o", "json"], &["--pin-dir", "--config"]),
    ("metrics.txt", &["metrics"], &["--pin-dir", "--config"]),
    ("datapath.json", &["datapath", "status", "-o", "json"], &["--pin-dir"]),
    ("config-check.txt", &["config", "check"], &["--config"]),
    ("doctor.json", &["doctor", "-o", "json"], &["--pin-dir", "--config"]),
    ("version.txt", &["--version"], &[]),
];

/// What is asked of the host.
const HOST: [(&str, &[&str]); 11] = [
    ("host/uname.txt", &["uname", "-a"]),
    ("host/os-release.txt", &["cat", "/etc/os-release"]),
    ("host/uptime.txt", &["uptime"]),
    ("host/links.txt", &["ip", "-details", "-statistics", "link"]),
    ("host/addresses.txt", &["ip", "addr"]),
    ("host/routes.txt", &["ip", "route", "show", "table", "all"]),
    ("host/neighbours.txt", &["ip", "neigh"]),
    ("host/bpf-programs.txt", &["bpftool", "prog"]),
    ("host/bpf-net.txt", &["bpftool", "net"]),
    ("host/journal.txt", &["journalctl", "--no-pager", "--unit=tandem", "--lines=20000"]),
    ("host/kernel-log.txt", &["dmesg"]),
];

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let failed = |what: &Path, error: io::Error| Failure::new(Exit::Failed, format!("{}: {error}", what.display()));
    let name = format!("tandem-bugreport-{}", rustix::system::uname().nodename().to_string_lossy());
    let path = arguments.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let file = File::create_new(&path).map_err(|error| failed(&path, error))?;
    let mut archive =
        Archive { name, tar: Builder::new(GzEncoder::new(file, Compression::default())), left_out: String::new() };
    let written = collect(&mut archive, arguments).and_then(|()| archive.finish());
    match written {
        Ok(left_out) => {
            for line in left_out.lines() {
                eprintln!("left out: {line}");
            }
            print(&format!("{}\n", path.display()))?;
            Ok(Exit::Ok)
        }
        Err(error) => {
            // Half an archive would be taken for a whole one.
            _ = fs::remove_file(&path);
            Err(failed(&path, error))
        }
    }
}

fn collect(archive: &mut Archive, arguments: &Arguments) -> io::Result<()> {
    let own = std::env::current_exe()?;
    for (name, words, places) in ASKED {
        let mut command = Command::new(&own);
        command.args(words);
        for place in places {
            let value = if *place == "--config" { &arguments.config } else { &arguments.pin_dir };
            command.arg(place).arg(value);
        }
        archive.add_said(name, &mut command)?;
    }
    match fs::read(&arguments.config) {
        Ok(text) => archive.add("tandem.toml", &text)?,
        Err(error) => archive.leave_out("tandem.toml", &error.to_string()),
    }
    for (name, words) in HOST {
        if let Some((program, rest)) = words.split_first() {
            archive.add_said(name, Command::new(program).args(rest))?;
        }
    }
    Ok(())
}

struct Archive {
    /// The directory that everything is in.
    name: String,
    tar: Builder<GzEncoder<File>>,
    left_out: String,
}

impl Archive {
    fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        self.tar.append_data(&mut header, format!("{}/{name}", self.name), content)
    }

    /// Adds what a command says, words and data, whatever its exit code: a report is about what fails.
    fn add_said(&mut self, name: &str, command: &mut Command) -> io::Result<()> {
        match said(command) {
            Ok(text) => self.add(name, &text),
            Err(error) => {
                self.leave_out(name, &error.to_string());
                Ok(())
            }
        }
    }

    fn leave_out(&mut self, name: &str, why: &str) {
        self.left_out += &format!("{name}: {why}\n");
    }

    /// Ends the archive; what is not in it, and why.
    fn finish(mut self) -> io::Result<String> {
        let left_out = std::mem::take(&mut self.left_out);
        self.add("left-out.txt", left_out.as_bytes())?;
        self.tar.into_inner()?.finish()?.sync_all()?;
        Ok(left_out)
    }
}

/// What a command says until it ends, or its time is over.
fn said(command: &mut Command) -> io::Result<Vec<u8>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (text, texts) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    for (number, pipe) in [
        stdout.map(|pipe| Box::new(pipe) as Box<dyn io::Read + Send>),
        stderr.map(|pipe| Box::new(pipe) as Box<dyn io::Read + Send>),
    ]
    .into_iter()
    .enumerate()
    {
        let text = text.clone();
        thread::spawn(move || {
            let mut read = Vec::new();
            // What came before an error is worth as much.
            _ = pipe.map(|mut pipe| pipe.read_to_end(&mut read));
            _ = text.send((number, read));
        });
    }
    let mut parts = Vec::new();
    for _ in 0..2 {
        match texts.recv_timeout(PATIENCE) {
            Ok(part) => parts.push(part),
            Err(_late) => return Err(end(&mut child)),
        }
    }
    child.wait()?;
    parts.sort_unstable();
    let whole: Vec<u8> = parts.into_iter().flat_map(|(_, read)| read).collect();
    Ok(whole[whole.len().saturating_sub(KEPT_BYTES)..].to_vec())
}

fn end(child: &mut Child) -> io::Error {
    if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
        return error;
    }
    io::Error::new(io::ErrorKind::TimedOut, format!("it was not done in {}", humantime::format_duration(PATIENCE)))
}
