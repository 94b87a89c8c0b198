//! The root file system of a virtual machine: an archive that the kernel unpacks into memory.
//!
//! Two archives one after the other, as the kernel allows: one with programs, the same for all
//! kernels, and a small one with a kernel's modules. Programs come from this machine, each with
//! the libraries it is linked with.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    fs::File,
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use super::archive::Unpacked;
use crate::needs;

/// What the end-to-end tests, the demo and a person at the prompt call by name.
const TOOLS: &[&str] = &[
    "awk",
    "bash",
    "bpftool",
    "cat",
    "cp",
    "curl",
    "cut",
    "dmesg",
    "grep",
    "head",
    "ip",
    "iptables",
    "ls",
    "mkdir",
    "modprobe",
    "mount",
    "mv",
    "nft",
    "nsenter",
    "ping",
    "ps",
    "redis-cli",
    "redis-server",
    "rm",
    "sed",
    "setpriv",
    "sh",
    "sleep",
    "sort",
    "ss",
    "sysctl",
    "tail",
    "tcpdump",
    "true",
    "umount",
    "uname",
    "unshare",
];
/// Those a prompt can do without.
const OPTIONAL: &[&str] = &["curl", "ping", "ps"];
/// Modules that are there for whoever asks the kernel for what they do, with what they need.
const MODULES: &[&str] = &[
    "kernel/drivers/net/veth",
    "kernel/drivers/net/dummy",
    "kernel/drivers/net/macvlan",
    "kernel/net/ipv4/",
    "kernel/net/ipv6/",
    "kernel/net/mptcp/",
    "kernel/net/netfilter/",
    "kernel/net/sched/",
];
const PASSWD: &str = "root:x:0:0::/root:/bin/sh\ntcpdump:x:100:100::/:/bin/false\n\
                      nobody:x:65534:65534::/:/bin/false\n";
const GROUP: &str = "root:x:0:\ntcpdump:x:100:\nnogroup:x:65534:\n";

/// A root file system in the making.
pub(crate) struct Root {
    folder: PathBuf,
}

impl Root {
    /// An empty one with the tools in it, in place of whatever is at `folder`.
    pub(crate) fn lay(folder: PathBuf) -> anyhow::Result<Self> {
        let _ = fs::remove_dir_all(&folder);
        let root = Self { folder };
        for place in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/share"] {
            root.make(place)?;
        }
        for place in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(place), root.folder.join(place))?;
        }
        for place in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp"] {
            root.make(place)?;
        }
        root.write("etc/passwd", PASSWD)?;
        root.write("etc/group", GROUP)?;
        root.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
        root.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")?;
        for tool in TOOLS {
            match needs::find(tool) {
                Some(path) => root.copy(&path, &merged(&path))?,
                None if OPTIONAL.contains(tool) => {}
                None => bail!("{tool} is not on this machine (hint: cargo xtask setup)"),
            }
        }
        // Which iptables loads by name.
        for folder in ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables"] {
            for plugin in fs::read_dir(folder).into_iter().flatten().flatten() {
                root.copy(&plugin.path(), &plugin.path())?;
            }
        }
        Ok(root)
    }

    /// Adds a program of ours, without what only a debugger reads: unpacking is slow there.
    pub(crate) fn program(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let place = self.place(Path::new(to))?;
        let mut strip = Command::new("strip");
        strip.arg("--strip-all").arg("-o").arg(&place).arg(from);
        let status = strip.status().context("could not run strip (hint: it is in binutils)")?;
        if !status.success() {
            bail!("could not copy {} without its debug information", from.display());
        }
        self.libraries(from)
    }

    /// Packs it.
    pub(crate) fn pack(&self, path: PathBuf) -> anyhow::Result<Archive> {
        let file = File::create(&path);
        pack(&self.folder, file.with_context(|| format!("could not make {}", path.display()))?)?;
        Ok(Archive { path })
    }

    /// A file of this machine and what it is linked with.
    fn copy(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let place = self.place(to)?;
        // A path that is a link, as those of Debian's alternatives, becomes the file itself.
        fs::copy(from, &place)
            .with_context(|| format!("could not copy {} to {}", from.display(), place.display()))?;
        self.libraries(from)
    }

    fn libraries(&self, of: &Path) -> anyhow::Result<()> {
        let output = Command::new("ldd").arg(of).output().context("could not run ldd")?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            let to = merged(&library);
            if !self.folder.join(relative(&to)).exists() {
                let place = self.place(&to)?;
                fs::copy(&library, &place)
                    .with_context(|| format!("could not copy {}", library.display()))?;
            }
        }
        Ok(())
    }

    fn write(&self, to: &str, text: &str) -> anyhow::Result<()> {
        let place = self.place(Path::new(to))?;
        fs::write(&place, text).with_context(|| format!("could not write {}", place.display()))
    }

    fn make(&self, place: &str) -> anyhow::Result<()> {
        let path = self.folder.join(place);
        fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))
    }

    /// Where a path of the virtual machine is here, its folder made.
    fn place(&self, path: &Path) -> anyhow::Result<PathBuf> {
        let place = self.folder.join(relative(path));
        let folder = place.parent().expect("every path is below the root");
        fs::create_dir_all(folder)
            .with_context(|| format!("could not make {}", folder.display()))?;
        Ok(place)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The programs, packed.
pub(crate) struct Archive {
    path: PathBuf,
}

impl Archive {
    /// What `kernel` boots with: the programs, and then its modules. Beside the programs' own file.
    pub(crate) fn with_modules(&self, kernel: &Unpacked) -> anyhow::Result<PathBuf> {
        // Not `with_extension`: a release has dots in it.
        let path = self.path.with_file_name(format!("{}.cpio", kernel.release));
        fs::copy(&self.path, &path)
            .with_context(|| format!("could not make {}", path.display()))?;
        let folder = self.path.with_file_name(format!("{}.modules", kernel.release));
        lay_modules(kernel, &folder)?;
        let packed = pack(&folder, File::options().append(true).open(&path)?);
        let _ = fs::remove_dir_all(&folder);
        packed.map(|()| path)
    }
}

/// Makes `folder` a root with the modules that machines need, and nothing else.
fn lay_modules(kernel: &Unpacked, folder: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_dir_all(folder);
    let to = folder.join("usr/lib/modules").join(&kernel.release);
    for module in modules(kernel)? {
        let (from, to) = (kernel.modules.join(&module), to.join(&module));
        fs::create_dir_all(to.parent().expect("modules are in folders"))?;
        fs::copy(&from, &to).with_context(|| format!("could not copy {}", from.display()))?;
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        let from = kernel.modules.join(list);
        if from.is_file() {
            fs::copy(&from, to.join(list))?;
        }
    }
    // depmod looks where modules were before /usr was merged.
    symlink("usr/lib", folder.join("lib"))?;
    depmod(folder, &kernel.release)?;
    fs::remove_file(folder.join("lib")).context("could not remove a link")
}

/// The wanted modules and all they need, as paths below the kernel's folder of modules.
fn modules(kernel: &Unpacked) -> anyhow::Result<BTreeSet<String>> {
    let list = kernel.modules.join("modules.dep");
    if !list.is_file() {
        let base = kernel.modules.ancestors().nth(3).expect("modules are in BASE/lib/modules");
        // Where the package has only usr/lib, depmod is told that this is /usr's place.
        let base = if base.ends_with("usr") { base.parent().unwrap_or(base) } else { base };
        let lib = base.join("lib");
        if !lib.exists() {
            symlink("usr/lib", lib)?;
        }
        depmod(base, &kernel.release)?;
    }
    let text =
        fs::read_to_string(&list).with_context(|| format!("could not read {}", list.display()))?;
    Ok(closure(&text, MODULES))
}

/// `modules.dep` has a line for each module, with everything it needs, however far.
fn closure(modules_dep: &str, wanted: &[&str]) -> BTreeSet<String> {
    let needs: HashMap<&str, &str> =
        modules_dep.lines().filter_map(|line| line.split_once(':')).collect();
    let is_wanted = |module: &str| wanted.iter().any(|prefix| module.starts_with(prefix));
    let mut all = BTreeSet::new();
    for (module, needed) in needs.into_iter().filter(|(module, _)| is_wanted(module)) {
        all.insert(module.to_owned());
        all.extend(needed.split_whitespace().map(str::to_owned));
    }
    all
}

fn depmod(base: &Path, release: &str) -> anyhow::Result<()> {
    let mut depmod = Command::new(needs::find("depmod").unwrap_or_else(|| "depmod".into()));
    // What it warns of is only that these are not all modules.
    depmod.arg("-b").arg(base).arg(release).stderr(Stdio::null());
    if !depmod.status().context("could not run depmod (hint: cargo xtask setup)")?.success() {
        bail!("depmod could not order the modules of {release}");
    }
    Ok(())
}

/// Writes all that is in `folder` to an archive of the kind that the kernel unpacks.
fn pack(folder: &Path, archive: File) -> anyhow::Result<()> {
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--null", "--format", "newc", "--owner", "0:0", "--quiet"]);
    cpio.current_dir(folder).stdin(Stdio::piped()).stdout(archive);
    let mut child = cpio.spawn().context("could not run cpio (hint: cargo xtask setup)")?;
    let listed = list(folder, folder, &mut child.stdin.take().expect("stdin is piped"));
    let status = child.wait().context("could not wait for cpio")?;
    listed.context("could not list the files for an initramfs")?;
    if !status.success() {
        bail!("cpio could not pack {}", folder.display());
    }
    Ok(())
}

/// Every path below `folder`, folders before what is in them.
fn list(root: &Path, folder: &Path, to: &mut impl io::Write) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = path.strip_prefix(root).expect("it is below");
        to.write_all(name.as_os_str().as_encoded_bytes())?;
        to.write_all(b"\0")?;
        if entry.file_type()?.is_dir() {
            list(root, &path, to)?;
        }
    }
    Ok(())
}

/// The paths that `ldd` prints: `name => /path (address)`, or for the loader `/path (address)`.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    let path_of =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    ldd.lines().filter_map(path_of).collect()
}

/// The same path on a system whose /bin, /sbin and /lib are links into /usr.
fn merged(path: &Path) -> PathBuf {
    if path.starts_with("/usr") { path.to_owned() } else { Path::new("/usr").join(relative(path)) }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_libraries() {
        let printed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                       \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = libraries(printed);
        assert_eq!(merged(&found[0]), Path::new("/usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert_eq!(merged(&found[1]), Path::new("/usr/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_module_comes_with_what_it_needs() {
        let list = "kernel/drivers/net/veth.ko:\n\
                    kernel/net/netfilter/nf_tables.ko: kernel/lib/libcrc32c.ko\n\
                    kernel/lib/libcrc32c.ko:\nkernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\n";
        let found = closure(list, MODULES);
        assert!(
            found.contains("kernel/lib/libcrc32c.ko") && !found.contains("kernel/fs/xfs/xfs.ko")
        );
        assert_eq!(found.len(), 3);
    }
}
