//! A whole machine of its own: Debian 12 with systemd and version 2 control groups, in QEMU's software emulation.
//!
//! [`Root`] says what is installed; [`Root::image`] makes the disk by `debootstrap`, once for each machine. [`Machine`] boots it, runs
//! commands in it, reboots it, and cuts its power. It has no network but what is made inside.
//!
//! Invariant: QEMU ends with the test, however that ends, and nothing outside the test's folder is written. (Not the kernel's own
//! virtualisation: it is missing or forbidden where tests run. Programs are ten to twenty times slower than outside: bring what was built.)

mod channel;
mod root;

pub use channel::Said;
pub use root::{Image, Root};

use channel::Channel;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The kernel's command line: no console but the serial one, nothing that only costs time under emulation. The second processor is off
/// until somebody writes 1 to its `online`: the kernel waits for each other one at every namespace that comes or goes.
const KERNEL_LINE: &str = "root=/dev/nvme0n1 rw rootwait console=ttyS0 tsc=reliable maxcpus=1 loglevel=4 systemd.show_status=0 mitigations=off nokaslr audit=0 systemd.unit=multi-user.target";
/// An old processor: what a newer one can do is slower to emulate than to do without.
const CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand";
/// How long a boot may take on a machine that does other work too.
const BOOT: Duration = Duration::from_mins(5);

/// A machine with a disk that outlives its power.
pub struct Machine {
    folder: tempfile::TempDir,
    kernel: PathBuf,
    running: Option<Running>,
}

struct Running {
    qemu: Child,
    channel: Channel,
}

impl Machine {
    /// A machine with a disk of its own, as the image is, and a second one with what is in `payload`, which it sees read-only at `/payload`.
    ///
    /// # Errors
    /// What `cp` and `mke2fs` say.
    pub fn new(image: &Image, payload: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("moat-vm-").tempdir()?;
        crate::images::run(
            Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(image.disk()).arg(folder.path().join("root.ext4")),
        )?;
        root::filesystem(payload, &folder.path().join("payload.ext4"), "moat-payload", 64)?;
        Ok(Self { folder, kernel: image.kernel(), running: None })
    }

    /// Switches it on and waits until it runs commands; how long that took.
    ///
    /// # Errors
    /// QEMU does not start, or the machine does not come up; with the end of what its console shows.
    pub fn start(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        let path = |name: &str| self.folder.path().join(name);
        let socket = path("agent");
        // That of the boot before would be taken for this one's.
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let drive = |name: &str| format!("if=none,id={name},format=raw,cache=unsafe,file={}", path(&format!("{name}.ext4")).display());
        // The parent's death signal ends it whatever becomes of the test.
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "qemu-system-x86_64",
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-nic",
                "none",
            ])
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", "2048", "-append", KERNEL_LINE])
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-drive", &drive("root"), "-device", "nvme,serial=root,drive=root"])
            .args(["-drive", &drive("payload"), "-device", "nvme,serial=payload,drive=payload"])
            .args(["-chardev", &format!("file,id=console,append=on,path={}", path("console").display()), "-serial", "chardev:console"])
            .args(["-chardev", &format!("socket,id=agent,server=on,wait=off,path={}", socket.display())])
            .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=moat"]);
        let qemu = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(path("qemu.log"))?).spawn()?;
        // Dropped, and so ended, should anything from here on fail.
        let mut qemu = Off(Some(qemu));
        let mut channel = loop {
            if let Some(child) = qemu.0.as_mut()
                && let Some(status) = child.try_wait()?
            {
                let said = fs::read_to_string(path("qemu.log")).unwrap_or_default();
                return Err(io::Error::other(format!("QEMU ended ({status}): {said}")));
            }
            match Channel::connect(&socket) {
                Ok(channel) => break channel,
                Err(error) if began.elapsed() > BOOT => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        channel.hello(BOOT).map_err(|error| self.with_console(&error))?;
        if let Some(qemu) = qemu.0.take() {
            self.running = Some(Running { qemu, channel });
        }
        Ok(began.elapsed())
    }

    /// Runs a script in bash as root, and waits for its end.
    ///
    /// # Errors
    /// The machine is off, or does not answer for ten minutes; with the end of what its console shows.
    pub fn sh(&mut self, script: &str) -> io::Result<Said> {
        let said = self.running()?.channel.run(script, Duration::from_mins(10));
        said.map_err(|error| self.with_console(&error))
    }

    /// Has its own system restart it, and waits until it runs commands again; how long that took.
    ///
    /// # Errors
    /// As [`Machine::start`]; it does not go down within minutes.
    pub fn reboot(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        // Its answer may not come out any more.
        self.running()?.channel.send("systemctl reboot")?;
        // QEMU ends at a restart: its own reset does not always come back under emulation.
        while self.running()?.qemu.try_wait()?.is_none() {
            if began.elapsed() > BOOT {
                return Err(self.with_console(&io::Error::new(io::ErrorKind::TimedOut, "the machine does not go down")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.running = None;
        self.start()?;
        Ok(began.elapsed())
    }

    /// Cuts the power: what the machine had not written is lost.
    pub fn cut_power(&mut self) {
        if let Some(mut running) = self.running.take() {
            // It may have ended by itself.
            let _ = running.qemu.kill();
            let _ = running.qemu.wait();
        }
    }

    /// What its console has shown since it was first switched on.
    pub fn console(&self) -> String {
        fs::read(self.folder.path().join("console")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn running(&mut self) -> io::Result<&mut Running> {
        self.running.as_mut().ok_or_else(|| io::Error::other("the machine is off"))
    }

    fn with_console(&self, error: &io::Error) -> io::Error {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        io::Error::new(error.kind(), format!("{error}; the end of its console:\n{last}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
    }
}

/// QEMU until somebody takes it.
struct Off(Option<Child>);

impl Drop for Off {
    fn drop(&mut self) {
        if let Some(child) = self.0.as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
