//! Writing tar archives (POSIX ustar) that depend on nothing but what is put in.

/// Everything is in blocks of this many bytes.
const BLOCK: usize = 512;

/// An archive in the making. Every entry is root's and from the beginning of 1970.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    /// Adds a file; `path` has at most 100 bytes.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.header(path, mode, content.len(), b'0');
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    pub(crate) fn folder(&mut self, path: &str, mode: u32) {
        self.header(path, mode, 0, b'5');
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn header(&mut self, path: &str, mode: u32, size: usize, kind: u8) {
        assert!(path.len() <= 100, "{path} is longer than the format's field");
        let mut header = [0; BLOCK];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        // The sum counts its own field as spaces.
        put(148, "        ");
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn the_machines_own_tar_reads_what_is_written() {
        let mut tar = Tar::default();
        tar.folder("etc/", 0o755);
        tar.file("etc/hello", 0o644, b"hello");
        tar.file("program", 0o755, &[7; 1000]);
        let mut list = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--file", "-"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        list.stdin.take().unwrap().write_all(&tar.finish()).unwrap();
        let output = list.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<_> = text.lines().map(words).collect();
        assert_eq!(
            lines,
            [
                "drwxr-xr-x 0/0 0 1970-01-01 00:00 etc/",
                "-rw-r--r-- 0/0 5 1970-01-01 00:00 etc/hello",
                "-rwxr-xr-x 0/0 1000 1970-01-01 00:00 program",
            ]
        );
    }
}
