//! What really passes between the nodes.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::{Bed, NODES, PATIENCE, component, place::control_folder};

/// What is sent in the end: once it is recorded, everything before it is.
const END: &str = "end of the recording";

/// A recording of every packet that leaves or reaches one of the two nodes, until it is stopped.
#[derive(Debug)]
pub struct Wire {
    bed: Bed,
    tcpdump: Child,
    file: PathBuf,
}

impl Wire {
    /// Begins to record; packets sent after it returns are in it. `name` is unique.
    ///
    /// # Errors
    /// When tcpdump does not run.
    pub fn record(bed: &Bed, name: &str) -> anyhow::Result<Self> {
        let file = control_folder().join(format!("{name}.pcap"));
        // But what is told to receivers of spans, outside the mesh.
        let filter = "tcp and not port 4317";
        // The shell ends when nobody holds its standard input any more, and ends tcpdump: a
        // signal would reach nsenter alone.
        let script = "tcpdump --immediate-mode --packet-buffered --relinquish-privileges=root \
                      --buffer-size=65536 --snapshot-length=65535 \
                      --interface \"$0\" -w \"$1\" \"$2\" & read -r _; kill -INT $!; wait $!";
        let mut shell = bed.command("sh");
        shell.args(["-c", script, &NODES[0].to_string()]).arg(&file).arg(filter);
        shell.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut tcpdump = shell.spawn().with_context(|| format!("could not run {shell:?}"))?;
        let mut said = String::new();
        let stderr = tcpdump.stderr.take().expect("stderr is piped");
        let mut stderr = BufReader::new(stderr);
        while !said.contains("listening on") {
            let read = stderr.read_line(&mut said)?;
            ensure!(read > 0, "tcpdump does not record: {said}");
        }
        // It would end by a broken pipe when it counts its packets.
        tcpdump.stderr = Some(stderr.into_inner());
        Ok(Self { bed: bed.clone(), tcpdump, file })
    }

    /// Everything recorded, as bytes.
    ///
    /// # Errors
    /// When tcpdump failed.
    pub fn stop(mut self) -> anyhow::Result<Vec<u8>> {
        let mut end = self.bed.command("bash");
        // The kubelet's port: it wants TLS, and says so.
        let script =
            "exec 3<>/dev/tcp/\"$0\"/10250; printf '%s\\r\\n' \"$1\" >&3; cat <&3 >/dev/null";
        end.args(["-c", script, &NODES[0].address().to_string(), END]);
        component::run(&mut end)?;
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.read()?, END) {
            ensure!(Instant::now() < deadline, "tcpdump does not record");
            thread::sleep(Duration::from_millis(10));
        }
        drop(self.tcpdump.stdin.take());
        let mut said = String::new();
        let mut stderr = self.tcpdump.stderr.take().expect("stderr is piped");
        stderr.read_to_string(&mut said)?;
        let status = self.tcpdump.wait()?;
        ensure!(status.success(), "tcpdump ended with {status}: {said}");
        ensure!(said.contains("0 packets dropped by kernel"), "the recording has gaps: {said}");
        let bytes = self.read()?;
        fs::remove_file(&self.file)?;
        Ok(bytes)
    }

    fn read(&self) -> anyhow::Result<Vec<u8>> {
        fs::read(&self.file).with_context(|| format!("could not read {}", self.file.display()))
    }
}

/// Whether `bytes` hold `text` somewhere.
pub fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
