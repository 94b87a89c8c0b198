//! Servers that are not ours: applications in several languages, and what stands before one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use sluice_tests::{PATIENCE, Pod, Process, eventually};

use super::super::ways::Ground;

/// A server.
pub(super) struct Server {
    /// The program that runs it.
    program: &'static str,
    /// Whether every machine for tests has it.
    is_needed: bool,
    /// What it is told, and the file that it is told in.
    source: &'static str,
    file: &'static str,
    pub(super) kind: Kind,
}

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An application, in a language that runs it from its source.
    Script,
    /// An application that is compiled first.
    Compiled,
    /// One that serves files, and passes on to [`NODE`] what it has none for.
    Front(Front),
}

/// How such a one is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Front {
    arguments: &'static [&'static str],
    /// What is said of its ports beside their numbers.
    options: &'static str,
    /// What it prints each time it is about to serve, from the start or anew.
    serves: &'static str,
    pub(super) speaks: Speaks,
}

/// Versions of HTTP that a front is asked in, at one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    Both,
}

pub(super) const NODE: Server = Server {
    program: "node",
    is_needed: true,
    source: include_str!("../servers/server.js"),
    file: "server.js",
    kind: Kind::Script,
};
pub(super) const NGINX: Server = nginx("", Speaks::Http1);
pub(super) const APACHE: Server = Server {
    program: "apache2",
    is_needed: true,
    source: include_str!("../servers/apache.conf"),
    file: "apache.conf",
    kind: Kind::Front(Front {
        arguments: &["-D", "FOREGROUND", "-f"],
        options: "",
        serves: "resuming normal operations",
        speaks: Speaks::Both,
    }),
};
/// All of them.
pub(super) const SERVERS: [Server; 7] = [
    NODE,
    Server {
        program: "python3",
        is_needed: true,
        source: include_str!("../servers/server.py"),
        file: "server.py",
        kind: Kind::Script,
    },
    Server {
        program: "java",
        is_needed: false,
        source: include_str!("../servers/Server.java"),
        file: "Server.java",
        kind: Kind::Script,
    },
    Server {
        program: "go",
        is_needed: false,
        source: include_str!("../servers/server.go"),
        file: "server.go",
        kind: Kind::Compiled,
    },
    NGINX,
    // Before 1.25.1 a port of nginx has one version of HTTP alone, where there is no TLS to tell.
    nginx("http2", Speaks::Http2),
    APACHE,
];
/// Where Debian puts the modules of Apache httpd.
const MODULES: &str = "/usr/lib/apache2/modules";

const fn nginx(options: &'static str, speaks: Speaks) -> Server {
    Server {
        program: "nginx",
        is_needed: true,
        source: include_str!("../servers/nginx.conf"),
        file: "nginx.conf",
        kind: Kind::Front(Front {
            arguments: &["-c"],
            options,
            serves: "start worker process ",
            speaks,
        }),
    }
}

/// A server at work in every pod that serves. It ends with this.
pub(super) struct Running {
    /// In the order of [`Ground::servers`].
    servers: Vec<Process>,
    serves: &'static str,
    _applications: Vec<Process>,
}

impl Server {
    /// What reports call it.
    pub(super) fn name(&self) -> String {
        match self.kind {
            Kind::Front(Front { options, .. }) => format!("{} {options}", self.program),
            _ => self.program.to_owned(),
        }
    }

    /// Starts it in every pod that serves, at the ports of row `number`; where the machine has it.
    pub(super) async fn start(
        &self,
        ground: &Ground,
        number: usize,
    ) -> anyhow::Result<Option<Running>> {
        let Some(program) = found(self.program)? else {
            ensure!(!self.is_needed, "no {} (hint: cargo xtask setup)", self.program);
            println!("left out: this machine has no {}", self.program);
            return Ok(None);
        };
        let folder = ground.directory().join(format!("{}-{number}", self.program));
        fs::create_dir(&folder)?;
        let ports = ground.ports(number).map(|port| port.to_string());
        let mut running =
            Running { servers: Vec::new(), serves: "listening", _applications: Vec::new() };
        let source = folder.join(self.file);
        fs::write(&source, self.source)?;
        let program = match self.kind {
            Kind::Compiled => compiled(&program, &source, &folder)?,
            _ => program,
        };
        for pod in ground.servers() {
            let mut command = Command::new(&program);
            match self.kind {
                Kind::Script => command.arg(&source).args(&ports),
                Kind::Compiled => command.args(&ports),
                Kind::Front(front) => {
                    running.serves = front.serves;
                    let own = folder.join(pod.name());
                    fs::create_dir(&own)?;
                    let application = own.join("application");
                    running._applications.push(NODE.before(&folder, pod, &application).await?);
                    let settings = own.join(self.file);
                    fs::write(&settings, front.settings(self.source, ground, number, &own))?;
                    command.args(front.arguments).arg(settings)
                }
            };
            running.servers.push(pod.spawn(&format!("{}-{number}", self.program), command)?);
        }
        for server in &running.servers {
            server.output().line(PATIENCE, |line| line.contains(running.serves)).await?;
        }
        Ok(Some(running))
    }

    /// Starts it as the application that somebody else stands before, at a path.
    async fn before(&self, folder: &Path, pod: &Pod, path: &Path) -> anyhow::Result<Process> {
        let source = folder.join(self.file);
        fs::write(&source, self.source)?;
        let mut command = Command::new(self.program);
        command.arg(source).arg(path);
        let application = pod.spawn(&format!("{}-behind", self.program), command)?;
        application.output().line(PATIENCE, |line| line.contains("listening")).await?;
        Ok(application)
    }
}

impl Front {
    /// What it is told in a pod, where `own` is its folder.
    fn settings(self, source: &str, ground: &Ground, number: usize, own: &Path) -> String {
        let [port, undeclared] = ground.ports(number);
        let own = own.display().to_string();
        let settings = source
            .replace("{folder}", &own)
            .replace("{application}", &format!("{own}/application"))
            .replace("{site}", &site(ground).display().to_string())
            .replace("{modules}", MODULES)
            .replace("{port}", &port.to_string())
            .replace("{undeclared}", &undeclared.to_string());
        settings.replace(
            " {options}",
            &match self.options {
                "" => String::new(),
                options => format!(" {options}"),
            },
        )
    }
}

/// Where the files are that all fronts serve. They are the same ones, since their times are told.
pub(super) fn site(ground: &Ground) -> PathBuf {
    ground.directory().join("site")
}

impl Running {
    /// Has all of them read what they are told anew and go on with that, while what they were asked
    /// before is still being answered.
    pub(super) async fn reload(&self, signal: Signal) -> anyhow::Result<()> {
        for server in &self.servers {
            let begun =
                || server.output().lines().iter().filter(|l| l.contains(self.serves)).count();
            let before = begun();
            server.signal(signal)?;
            let again = || async { Ok((begun() > before).then_some(())) };
            eventually("a server has reloaded", again).await?;
        }
        Ok(())
    }
}

/// Where a program is, which may be one of the system administrator's.
fn found(program: &str) -> anyhow::Result<Option<PathBuf>> {
    let look = format!("PATH=$PATH:/usr/sbin; command -v {program}");
    let found = Command::new("sh").args(["-c", &look]).output().context("could not run sh")?;
    let path = String::from_utf8(found.stdout)?;
    Ok(found.status.success().then(|| PathBuf::from(path.trim())))
}

fn compiled(go: &Path, source: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let program = folder.join("server");
    let mut build = Command::new(go);
    build.env("CGO_ENABLED", "0").arg("build").arg("-o").arg(&program).arg(source);
    let built = build.output().context("could not run go")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(program)
}
