//! The usual self-hosted stack: containers of docker behind nginx, which forwards HTTP and TCP. The containers use the host's network.

use super::{DRAIN, Lane, lanes};
use crate::docker::Docker;
use crate::failure::{Doing, Failure, Outcome};
use crate::process::timed;
use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const IMAGE: &str = "localhost/moat-bench-load:1";
const HTTP: u16 = 10_080;
const TCP: u16 = 10_070;
const PATIENCE: Duration = Duration::from_secs(20);

/// How one release follows another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// As `docker compose up` does it.
    Replace,
    /// As platforms above docker do it.
    Beside,
}

/// Docker, nginx, and the measured services.
pub struct Stack {
    docker: Docker,
    folder: PathBuf,
    /// Ports and names change with each release that comes beside another.
    number: Cell<u16>,
}

impl Stack {
    /// Nothing but nginx runs yet.
    pub fn begin(docker: Docker, folder: &Path, program: &Path) -> Outcome<Self> {
        let stack = Self { docker, folder: folder.to_owned(), number: Cell::new(0) };
        let tar = folder.join("load.tar");
        timed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(program.parent().unwrap_or(program)).arg("serve"))?;
        timed(stack.docker.command().arg("import").arg(tar).arg(IMAGE))?;
        stack.start(0, 0)?;
        stack.configure(0)?;
        timed(&mut stack.nginx(&[]))?;
        Ok(stack)
    }

    /// The clients: nginx is what they talk to.
    pub fn lanes() -> Vec<Lane> {
        lanes(local(HTTP), "site", local(TCP))
    }

    /// The next release of both services.
    pub fn deploy(&self, switch: Switch, release: usize) -> Outcome {
        let now = self.number.get();
        match switch {
            Switch::Replace => {
                self.stop(now)?;
                self.start(now, release)
            }
            Switch::Beside => {
                let next = (now + 1) % 2;
                self.start(next, release)?;
                self.configure(next)?;
                timed(&mut self.nginx(&["-s", "reload"]))?;
                self.number.set(next);
                self.stop(now)
            }
        }
    }

    /// Stops everything.
    pub fn end(&self) -> Outcome {
        self.stop(self.number.get())?;
        timed(&mut self.nginx(&["-s", "stop"])).map(drop)
    }

    fn start(&self, number: u16, release: usize) -> Outcome {
        for (name, port) in services(number) {
            let mut run = self.docker.command();
            run.args(["run", "--rm", "--detach", "--network", "host", "--name", &name]);
            run.args(["--env", &format!("PORT={port}"), "--env", &format!("RELEASE={release}"), IMAGE, "/serve"]);
            timed(&mut run)?;
        }
        let since = Instant::now();
        for (name, port) in services(number) {
            while TcpStream::connect(local(port)).is_err() {
                if since.elapsed() > PATIENCE {
                    return Err(Failure::new(format!("`{name}` does not listen")));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    fn stop(&self, number: u16) -> Outcome {
        for (name, _) in services(number) {
            timed(self.docker.command().args(["stop", "--time", &DRAIN.to_string(), &name]))?;
            // `--rm` removes it, a little later.
            let since = Instant::now();
            while self.docker.command().args(["inspect", &name]).output().is_ok_and(|output| output.status.success()) {
                if since.elapsed() > PATIENCE {
                    return Err(Failure::new(format!("`{name}` stays")));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    fn configure(&self, number: u16) -> Outcome {
        let [(_, http), (_, tcp)] = services(number);
        let folder = self.folder.display();
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nuser root;\nworker_processes 2;\npid {folder}/nginx.pid;\n\
             error_log {folder}/nginx.log;\nevents {{}}\n\
             http {{\n access_log off;\n client_body_temp_path {folder}/b;\n proxy_temp_path {folder}/p;\n fastcgi_temp_path {folder}/f;\n \
             uwsgi_temp_path {folder}/u;\n scgi_temp_path {folder}/s;\n upstream site {{ server 127.0.0.1:{http}; keepalive 16; }}\n \
             server {{ listen 127.0.0.1:{HTTP}; location / {{ proxy_pass http://site; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n\
             stream {{\n server {{ listen 127.0.0.1:{TCP}; proxy_pass 127.0.0.1:{tcp}; }}\n}}\n"
        );
        fs::write(self.configuration(), text).doing("write nginx's configuration")
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("nginx.conf")
    }

    fn nginx(&self, more: &[&str]) -> Command {
        let mut command = Command::new("nginx");
        command.arg("-c").arg(self.configuration()).args(more);
        command
    }
}

/// Names and ports of the web service and of the TCP service.
fn services(number: u16) -> [(String, u16); 2] {
    [("site", 10_100), ("echo", 10_200)].map(|(name, port)| (format!("moat-bench-{name}-{number}"), port + number))
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
