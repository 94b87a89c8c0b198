//! What the environment says about telemetry, by OpenTelemetry's names.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use http::{HeaderName, HeaderValue, Uri, uri::Scheme};

use super::queue::Batching;

/// How telemetry is recorded and where it goes.
#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    /// Share of new traces that are recorded, 0 to 1.
    pub sampling: f64,
    /// The cluster's name in metrics; Istio's default is `Kubernetes`.
    pub cluster: String,
    /// Where spans go; without it none are recorded.
    pub traces: Option<Receiver>,
    /// Where the agent's own metrics go, beside Prometheus.
    pub metrics: Option<Receiver>,
    /// How often the agent's own metrics go there.
    pub metrics_interval: Duration,
    /// When spans leave and how many may wait.
    pub batching: Batching,
    /// What is true of everything on this node (`OTEL_RESOURCE_ATTRIBUTES`).
    pub resource_attributes: Vec<(String, String)>,
}

/// An OTLP receiver.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// What it speaks.
    pub protocol: Protocol,
    /// Its address; for HTTP the whole URL, path included.
    pub endpoint: Uri,
    /// Sent with every message, e.g. for authentication.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Whether messages are compressed.
    pub gzip: bool,
    /// PEM file of the roots to trust instead of the system's.
    pub certificate: Option<PathBuf>,
}

/// The two transports of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP/1.1.
    Http,
}

impl Default for TelemetryOptions {
    /// Nothing is exported.
    fn default() -> Self {
        Self {
            sampling: 0.01,
            cluster: "Kubernetes".to_owned(),
            traces: None,
            metrics: None,
            metrics_interval: Duration::from_secs(60),
            batching: Batching::default(),
            resource_attributes: Vec::new(),
        }
    }
}

impl TelemetryOptions {
    /// Reads `OTEL_*`, and Istio's `CLUSTER_ID`, from the environment.
    ///
    /// # Errors
    /// When a variable is set to something it cannot be; the error names it.
    pub fn from_env() -> anyhow::Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// An empty variable is as good as none, as OpenTelemetry says.
    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let env = Env(&|name| variable(name).filter(|value| !value.trim().is_empty()));
        let mut options = Self::default();
        if let Some(cluster) = env.text("CLUSTER_ID") {
            options.cluster = cluster;
        }
        if let Some(list) = env.text("OTEL_RESOURCE_ATTRIBUTES") {
            options.resource_attributes = pairs(&list)
                .context("OTEL_RESOURCE_ATTRIBUTES (hint: `k8s.cluster.name=east,key=value`)")?;
        }
        if let Some(name) = env.text("OTEL_SERVICE_NAME") {
            options.resource_attributes.retain(|(key, _)| key != "service.name");
            options.resource_attributes.push(("service.name".to_owned(), name));
        }
        let batching = &mut options.batching;
        env.milliseconds("OTEL_BSP_SCHEDULE_DELAY", &mut batching.delay)?;
        env.milliseconds("OTEL_BSP_EXPORT_TIMEOUT", &mut batching.export_timeout)?;
        env.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &mut batching.batch_spans)?;
        env.count("OTEL_BSP_MAX_QUEUE_SIZE", &mut batching.queue_spans)?;
        env.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", &mut options.metrics_interval)?;
        if env.text("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(options);
        }
        options.traces = env.receiver("TRACES", "v1/traces")?;
        options.metrics = env.receiver("METRICS", "v1/metrics")?;
        Ok(options)
    }
}

/// Variables by name, without the empty ones.
struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn milliseconds(&self, name: &str, value: &mut Duration) -> anyhow::Result<()> {
        if let Some(text) = self.text(name) {
            *value = milliseconds(name, &text)?;
        }
        Ok(())
    }

    fn count(&self, name: &str, value: &mut usize) -> anyhow::Result<()> {
        if let Some(text) = self.text(name) {
            *value = match text.trim().parse() {
                Ok(count) if count > 0 => count,
                _ => bail!("{name}=`{text}` is not a number of spans (hint: `512`)"),
            };
        }
        Ok(())
    }

    /// `OTEL_EXPORTER_OTLP_{signal}_{what}`, else `OTEL_EXPORTER_OTLP_{what}`, with its name.
    fn exporter(&self, signal: &str, what: &str) -> Option<(String, String)> {
        [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")]
            .into_iter()
            .find_map(|name| self.text(&name).map(|text| (name, text.trim().to_owned())))
    }

    /// Where `signal` goes; nowhere without an endpoint.
    fn receiver(&self, signal: &str, path: &str) -> anyhow::Result<Option<Receiver>> {
        let name = format!("OTEL_{signal}_EXPORTER");
        match self.text(&name).as_deref().map(str::trim) {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => bail!("{name}=`{other}` is not known (hint: `otlp` or `none`)"),
        }
        let Some((name, endpoint)) = self.exporter(signal, "ENDPOINT") else { return Ok(None) };
        let endpoint = endpoint_uri(&name, &endpoint)?;
        let protocol = self.protocol(signal, &endpoint)?;
        // The endpoint of one signal is the whole URL; the common one is where `v1/…` are.
        let endpoint = match protocol {
            Protocol::Http if !name.contains(signal) => {
                let base = endpoint.to_string();
                let base = base.trim_end_matches('/');
                endpoint_uri(&name, &format!("{base}/{path}"))?
            }
            _ => endpoint,
        };
        let headers = match self.exporter(signal, "HEADERS") {
            Some((name, list)) => headers(&list).with_context(|| {
                format!("{name} (hint: `authorization=Bearer%20abc,key=value`)")
            })?,
            None => Vec::new(),
        };
        let timeout = match self.exporter(signal, "TIMEOUT") {
            Some((name, text)) => milliseconds(&name, &text)?,
            None => Duration::from_secs(10),
        };
        let gzip = match self.exporter(signal, "COMPRESSION") {
            None => true,
            Some((_, text)) if text == "gzip" => true,
            Some((_, text)) if text == "none" => false,
            Some((name, text)) => bail!("{name}=`{text}` is not known (hint: `gzip` or `none`)"),
        };
        let certificate = self.exporter(signal, "CERTIFICATE").map(|(_, path)| path.into());
        Ok(Some(Receiver { protocol, endpoint, headers, timeout, gzip, certificate }))
    }

    /// OTLP's default is HTTP; port 4317 is gRPC's by registration and so means gRPC.
    fn protocol(&self, signal: &str, endpoint: &Uri) -> anyhow::Result<Protocol> {
        match self.exporter(signal, "PROTOCOL") {
            None if endpoint.port_u16() == Some(4317) => Ok(Protocol::Grpc),
            None => Ok(Protocol::Http),
            Some((_, text)) if text == "grpc" => Ok(Protocol::Grpc),
            Some((_, text)) if text == "http/protobuf" => Ok(Protocol::Http),
            Some((name, text)) => {
                bail!("{name}=`{text}` is not spoken here (hint: `grpc` or `http/protobuf`)")
            }
        }
    }
}

fn endpoint_uri(name: &str, text: &str) -> anyhow::Result<Uri> {
    let uri: Option<Uri> = text.parse().ok();
    match uri {
        Some(uri)
            if uri.host().is_some()
                && (uri.scheme() == Some(&Scheme::HTTP)
                    || uri.scheme() == Some(&Scheme::HTTPS)) =>
        {
            Ok(uri)
        }
        _ => bail!("{name}=`{text}` is not an http or https URL (hint: `http://collector:4317`)"),
    }
}

fn milliseconds(name: &str, text: &str) -> anyhow::Result<Duration> {
    match text.trim().parse() {
        Ok(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds)),
        _ => bail!("{name}=`{text}` is not a number of milliseconds (hint: `10000`)"),
    }
}

fn headers(list: &str) -> anyhow::Result<Vec<(HeaderName, HeaderValue)>> {
    pairs(list)?
        .into_iter()
        .map(|(name, value)| {
            let name: HeaderName =
                name.parse().with_context(|| format!("`{name}` is no header name"))?;
            let mut value = HeaderValue::try_from(value)
                .with_context(|| format!("the value of `{name}` is no header value"))?;
            // Mostly tokens; they must not reach a log.
            value.set_sensitive(true);
            Ok((name, value))
        })
        .collect()
}

/// `key=value,key=value`, percent-encoded, as in W3C Baggage.
fn pairs(list: &str) -> anyhow::Result<Vec<(String, String)>> {
    list.split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, _)| !key.trim().is_empty())
                .with_context(|| "an entry has no `key=` before its value".to_owned())?;
            Ok((percent_decode(key.trim())?, percent_decode(value.trim())?))
        })
        .collect()
}

fn percent_decode(text: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let code = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.context("a `%` is not followed by two hexadecimal digits")?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).context("percent-encoded text is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<TelemetryOptions> {
        TelemetryOptions::from_variables(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported() {
        let options = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).unwrap();
        assert!(options.traces.is_none() && options.metrics.is_none());
    }

    #[test]
    fn the_common_endpoint_serves_both_signals_under_their_paths() {
        let options = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/otlp/")]).unwrap();
        let traces = options.traces.unwrap();
        assert_eq!(traces.endpoint, "http://c:4318/otlp/v1/traces");
        assert_eq!((traces.protocol, traces.gzip), (Protocol::Http, true));
        assert_eq!(options.metrics.unwrap().endpoint, "http://c:4318/otlp/v1/metrics");
    }

    #[test]
    fn the_endpoint_of_a_signal_is_taken_as_it_is() {
        let options =
            read(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c/custom/path")]).unwrap();
        assert_eq!(options.traces.unwrap().endpoint, "https://c/custom/path");
        assert!(options.metrics.is_none());
    }

    #[test]
    fn port_4317_means_grpc_unless_a_protocol_is_set() {
        let protocol =
            |variables: &[(&str, &str)]| read(variables).unwrap().traces.unwrap().protocol;
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(protocol(&[endpoint]), Protocol::Grpc);
        assert_eq!(
            protocol(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]),
            Protocol::Http
        );
    }

    #[test]
    fn what_is_said_of_one_signal_wins() {
        let options = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "5000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "7000"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc, x-tenant = 7"),
            ("OTEL_METRICS_EXPORTER", "none"),
        ])
        .unwrap();
        let traces = options.traces.unwrap();
        assert_eq!(traces.timeout, Duration::from_secs(7));
        assert!(!traces.gzip && options.metrics.is_none());
        assert_eq!(traces.headers[0].1, "Bearer abc");
        assert_eq!(traces.headers[1].1, "7");
        assert!(!format!("{traces:?}").contains("abc"), "a token is in the debug output");
    }

    #[test]
    fn batches_and_resources_are_read() {
        let options = read(&[
            ("OTEL_BSP_SCHEDULE_DELAY", "250"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4096"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "128"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "5000"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=east,service.name=old"),
            ("OTEL_SERVICE_NAME", "agent"),
        ])
        .unwrap();
        let expected = Batching {
            delay: Duration::from_millis(250),
            batch_spans: 128,
            queue_spans: 4096,
            export_timeout: Duration::from_secs(5),
            ..Batching::default()
        };
        assert_eq!(options.batching, expected);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let attributes = [pair("k8s.cluster.name", "east"), pair("service.name", "agent")];
        assert_eq!(options.resource_attributes, attributes);
    }

    #[test]
    fn a_bad_value_names_its_variable_and_says_what_to_write() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "no-value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zz"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
        ] {
            let error = format!("{:#}", read(&[(name, value), endpoint]).unwrap_err());
            assert!(error.contains(name) && error.contains("hint"), "{name}: {error}");
        }
    }
}
