//! A host with an operating system of its own: this machine's files under a layer of its own, and systemd as its first process.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{command, interrupt, netns::Namespace, run::Run};

/// Boots in two seconds on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

const SYSTEMD: &str = "/lib/systemd/systemd";

/// What would reach beyond the host that is being pretended: kernel parameters, modules, devices.
const MASKED: [&str; 10] = [
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-binfmt.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-remount-fs.service",
    "systemd-tmpfiles-setup-dev.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "proc-sys-fs-binfmt_misc.automount",
];

/// In new namespaces: a layer over this machine's files, file systems of its own for all that is not a file, then systemd.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$DIRECTORY"
mkdir "$DIRECTORY/upper" "$DIRECTORY/work" "$DIRECTORY/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIRECTORY/upper,workdir=$DIRECTORY/work" "$DIRECTORY/root"
hostname "$NAME"
cd "$DIRECTORY/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t bpf bpf sys/fs/bpf
mount -t cgroup2 cgroup2 sys/fs/cgroup
for directory in run tmp dev; do mount -t tmpfs tmpfs "$directory"; done
for device in null zero full random urandom tty; do touch "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
mkdir run/systemd dev/pts
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=666
ln -s pts/ptmx dev/ptmx
echo "$NAME" > etc/hostname
rm -f etc/machine-id
touch etc/machine-id
# A machine that is a container's image forbids its packages to start anything.
rm -rf etc/systemd/system/*.wants usr/sbin/policy-rc.d
for unit in $MASKED; do ln -sf /dev/null "etc/systemd/system/$unit"; done
# Not by chroot alone: services that want namespaces of their own move the root, which only the root of a namespace can be.
mkdir -p old
pivot_root . old
umount --lazy old
exec chroot . /usr/bin/env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal --show-status=no --unit=sysinit.target
"#;

/// A booted host. Dropped, it is switched off: all its processes end, and its files are gone.
#[derive(Debug)]
pub struct System {
    name: String,
    /// `unshare`; the first process of the host ends with it.
    outer: Child,
    init: u32,
    cgroup: PathBuf,
    directory: PathBuf,
}

impl System {
    /// Boots a host in a network namespace.
    ///
    /// # Errors
    /// systemd does not come up; with what it said.
    pub fn boot(run: &Run, name: &str, network: &Namespace) -> Result<Self> {
        ensure!(Path::new(SYSTEMD).is_file(), "there is no {SYSTEMD} on this machine: `apt-get install systemd`");
        let directory = run.files().join(format!("{name}.system"));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let cgroup = cgroups()?.join(format!("tandem-{}-{name}", run.prefix()));
        fs::create_dir(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        let console = fs::File::create(directory.with_extension("console"))?;
        let mut unshare = network.command("sh");
        // It goes into its cgroup first, so that the namespace of cgroups begins there.
        let enter = r#"echo $$ > "$CGROUP/cgroup.procs" && exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh -c "$BOOT""#;
        unshare.args(["-c", enter]).env("CGROUP", &cgroup).env("BOOT", BOOT).env("NAME", name);
        unshare.env("DIRECTORY", &directory).env("MASKED", MASKED.join(" "));
        let outer = unshare.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console).spawn()?;
        let mut system = Self { name: name.to_owned(), outer, init: 0, cgroup, directory };
        let came = interrupt::wait_until(BOOT_LIMIT, Duration::from_millis(100), || {
            system.init = system.first_process().unwrap_or(0);
            system.init != 0 && system.succeeds("systemctl", &["is-active", "--quiet", "sysinit.target"])
        })?;
        if !came {
            let said = fs::read_to_string(system.directory.with_extension("console")).unwrap_or_default();
            bail!("systemd does not come up on {name}; it said\n{said}");
        }
        Ok(system)
    }

    fn first_process(&self) -> Option<u32> {
        let outer = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd", program]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, and answers what it printed.
    ///
    /// # Errors
    /// It fails; with what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        command::run(self.command(program).args(arguments)).with_context(|| format!("on {}", self.name))
    }

    /// Runs a command to its end.
    pub fn ends(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.command(program).args(arguments).output().with_context(|| format!("cannot start {program}"))
    }

    /// Whether a command succeeds.
    pub fn succeeds(&self, program: &str, arguments: &[&str]) -> bool {
        self.ends(program, arguments).is_ok_and(|output| output.status.success())
    }

    /// Where a file of this host is for the lab.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// Writes a file that only root reads.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let file = self.path(path);
        let parent = file.parent().context("a file is in a directory")?;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        let mut open = fs::OpenOptions::new();
        let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&file)?;
        std::io::Write::write_all(&mut file, content).with_context(|| format!("cannot write {path} on {}", self.name))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // All processes of its namespace end with the first.
        if let Err(error) = self.outer.kill().and_then(|()| self.outer.wait()) {
            eprintln!("cannot end {}: {error}", self.name);
        }
        let gone = || remove_cgroups(&self.cgroup).is_ok();
        if !interrupt::wait_until(Duration::from_secs(5), Duration::from_millis(20), gone).unwrap_or(false) && !gone() {
            eprintln!("cannot remove {}", self.cgroup.display());
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("cannot remove {}: {error}", self.directory.display());
        }
    }
}

/// Where this machine has its cgroups of version 2.
fn cgroups() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2) == Some(&"cgroup2")).and_then(|fields| fields.get(1).copied());
    ensure!(found.is_some(), "no cgroup2 file system is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`");
    Ok(PathBuf::from(found.unwrap_or_default()))
}

fn remove_cgroups(cgroup: &Path) -> std::io::Result<()> {
    for inner in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&inner.path())?;
    }
    fs::remove_dir(cgroup)
}
