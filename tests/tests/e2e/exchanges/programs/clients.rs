//! Clients that are not ours, and what they are told.

use std::{path::Path, process::Command};

use sluice_tests::Pod;

/// A client.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client {
    Curl,
    /// The same with HTTP/2 from the first byte on.
    Curl2,
    Wget,
}

/// What curl asks of an application, beside where.
pub(super) const OF_APPLICATIONS: &[&[&str]] = &[
    &["/"],
    &["--head", "/"],
    &["--http1.0", "/"],
    &["--http2", "/"],
    &["/?q=up%7Bjob=%22api%22%7D"],
    &["--data", "hello", "/echo"],
    &["--data", "hello", "--header", "Transfer-Encoding: chunked", "/echo"],
    &["--data-binary", "@upload", "--header", "Expect: 100-continue", "/echo"],
    &["--upload-file", "upload", "/echo"],
    &["--header", "Connection: close", "/"],
    &["--no-keepalive", "--header", "Connection: keep-alive", "/"],
    &["/stream"],
    &["/", "/stream", "/?again"],
];
/// What it asks of one that serves files and stands before an application.
pub(super) const OF_FRONTS: &[&[&str]] = &[
    &["/", "/big.txt", "/nothing", "/"],
    &["--head", "/big.txt"],
    &["--range", "100-200", "/big.txt"],
    &["--header", "Accept-Encoding: gzip", "/big.txt"],
    &["--data", "hello", "/echo"],
];
/// What it asks of one in HTTP/1 alone.
pub(super) const IN_HTTP1: &[&[&str]] = &[
    &["/stream"],
    &["--range", "9999999-", "/big.txt"],
    &["--etag-save", "etag", "/"],
    &["--etag-compare", "etag", "/"],
    &["--location", "/moved"],
    &["--http1.0", "/"],
    &["--header", "Connection: close", "/"],
    &["--header", "Transfer-Encoding: chunked", "--upload-file", "upload", "/digest"],
    // curl asks by itself whether it may, as for all that is larger than 1 MiB. In HTTP/2 nginx answers
    // some of these with 400, and what curl makes of a stream that is reset behind its answer is a matter
    // of luck, both without the mesh too.
    &["--expect100-timeout", "60", "--upload-file", "large", "/digest"],
    &["--expect100-timeout", "60", "--upload-file", "large", "/small"],
    &["--header", "Expect:", "--upload-file", "large", "/small"],
];
/// What wget asks of one.
pub(super) const BY_WGET: &[&[&str]] = &[
    &["/", "/big.txt", "/nothing", "/"],
    &["--header=Range: bytes=5-9", "/big.txt"],
    &["--compression=gzip", "/big.txt"],
    &["/moved"],
    &["--post-file=upload", "/digest"],
    &["--method=PUT", "--body-file=large", "/small"],
];

impl Client {
    /// What it prints in a pod: heads, without what is of the moment, and bodies.
    pub(super) fn hears(
        self,
        folder: &Path,
        from: &Pod,
        to: &str,
        asked: &[&str],
    ) -> anyhow::Result<String> {
        let mut command = Command::new(self.program());
        command.current_dir(folder).args(self.always());
        command.args(asked.iter().map(|word| match word.starts_with('/') {
            true => format!("http://{to}{word}"),
            false => (*word).to_owned(),
        }));
        let finished = from.run(command)?;
        let kept = |line: &&str| !line.to_ascii_lowercase().starts_with("date:");
        let said: Vec<_> = finished.stdout.lines().filter(kept).collect();
        let (status, complaint) =
            (finished.status.code(), finished.stderr.replace(to, "the server"));
        Ok(format!("{status:?}: {}{complaint}", said.join("\n")))
    }

    fn program(self) -> &'static str {
        match self {
            Self::Curl | Self::Curl2 => "curl",
            Self::Wget => "wget",
        }
    }

    fn always(self) -> Vec<&'static str> {
        let curl = vec![
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--include",
            "--path-as-is",
            "--write-out",
            "\n%{http_code} %{size_download} %{num_connects} %{errormsg}\n",
        ];
        match self {
            Self::Curl => curl,
            Self::Curl2 => [curl, vec!["--http2-prior-knowledge"]].concat(),
            Self::Wget => vec![
                "--no-config",
                "--quiet",
                "--tries=1",
                "--timeout=60",
                "--save-headers",
                "--content-on-error",
                "--output-document=-",
            ],
        }
    }
}
