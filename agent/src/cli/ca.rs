//! `sluice ca`: every option of the CA, and its rotation by hand.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{duration::duration, log::Log};
use crate::{
    ca::{self, NamespacedName, Schedule, ServerName},
    mesh::TrustDomain,
};

/// Run the certificate authority of a cluster: Istio's CreateCertificate for the agents.
///
/// Finds the API server as every pod does, or by KUBECONFIG. Any number of replicas may run.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Ca {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    kept: Option<Kept>,

    #[command(flatten)]
    serve: Option<Serve>,

    #[command(flatten)]
    lives: Lives,

    #[command(flatten)]
    log: Log,
}

#[derive(Debug, Subcommand)]
enum Command {
    Rotate(Rotate),
    NewRoot(NewRoot),
}

/// Make a new root now: published at once, signs after --rotation-overlap
#[derive(Args, Debug)]
struct Rotate {
    #[command(flatten)]
    kept: Kept,
}

/// Start a new CA where the Secret is lost: signs at once, and what the lost roots signed is
/// trusted until it is over
#[derive(Args, Debug)]
struct NewRoot {
    #[command(flatten)]
    kept: Kept,

    #[command(flatten)]
    lives: Lives,
}

/// What a root is for, and how long it and what it signs live.
#[derive(Args, Debug)]
struct Lives {
    /// Root of trust of the cluster's workloads
    #[arg(long, env = "TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,

    /// The longest a workload certificate may be valid, and how long when nothing is asked
    #[arg(long, env = "SECRET_TTL", value_name = "DURATION", default_value = "24h", value_parser = duration)]
    certificate_lifetime: Duration,

    /// How long a root is valid
    #[arg(long, env = "SLUICE_CA_ROOT_LIFETIME", value_name = "DURATION", default_value = "10years", value_parser = duration)]
    root_lifetime: Duration,

    /// The age at which a root gets a successor
    #[arg(long, env = "SLUICE_CA_ROTATE_AFTER", value_name = "DURATION", default_value = "1year", value_parser = duration)]
    rotate_after: Duration,

    /// How long a new root is published before it signs; agents must have read it by then
    #[arg(long, env = "SLUICE_CA_ROTATION_OVERLAP", value_name = "DURATION", default_value = "24h", value_parser = duration)]
    rotation_overlap: Duration,
}

/// Where the roots are kept.
#[derive(Args, Debug)]
struct Kept {
    /// Secret that holds the roots' keys, created when missing; nobody else may read it
    #[arg(long, env = "SLUICE_CA_SECRET", value_name = "NAMESPACE/NAME")]
    secret: NamespacedName,

    /// ConfigMap that the root certificates are published in, under root-cert.pem
    #[arg(long, env = "SLUICE_CA_CONFIG_MAP", value_name = "NAMESPACE/NAME")]
    config_map: NamespacedName,
}

#[derive(Args, Debug)]
struct Serve {
    /// Service account of the agents, which may ask for the identities of their node's pods
    #[arg(long, env = "SLUICE_CA_AGENT_SERVICE_ACCOUNT", value_name = "NAMESPACE/NAME")]
    agent_service_account: NamespacedName,

    /// DNS name or address that agents reach the CA by; may be given several times
    #[arg(
        long = "dns-name",
        env = "SLUICE_CA_DNS_NAMES",
        value_name = "NAME",
        value_delimiter = ',',
        required = true
    )]
    dns_names: Vec<ServerName>,

    /// Audience that callers' service-account tokens must be bound to
    #[arg(long, env = "SLUICE_CA_AUDIENCE", value_name = "NAME", default_value = "sluice-ca", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    audience: String,

    /// Address of the gRPC server; [::] is 0.0.0.0 where there is no IPv6
    #[arg(long, env = "SLUICE_CA_LISTEN_ADDR", value_name = "ADDR", default_value = "[::]:15012")]
    listen_addr: SocketAddr,

    /// Address of /healthz/live and /healthz/ready; [::] as above
    #[arg(long, env = "SLUICE_READY_ADDR", value_name = "ADDR", default_value = "[::]:15021")]
    ready_addr: SocketAddr,

    /// Address of /stats/prometheus; [::] as above
    #[arg(long, env = "SLUICE_STATS_ADDR", value_name = "ADDR", default_value = "[::]:15020")]
    stats_addr: SocketAddr,
}

impl Ca {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("sluice-ca")
            .build()
            .context("could not start the CA's threads")?;
        match (self.command, self.kept, self.serve) {
            (Some(Command::Rotate(Rotate { kept })), ..) => {
                runtime.block_on(ca::rotate(&kept.secret, &kept.config_map))
            }
            (Some(Command::NewRoot(NewRoot { kept, lives })), ..) => {
                let schedule = lives.schedule()?;
                let (secret, config_map) = (&kept.secret, &kept.config_map);
                runtime.block_on(ca::new_root(secret, config_map, &lives.trust_domain, &schedule))
            }
            (None, Some(kept), Some(serve)) => {
                self.log.to_stderr()?;
                runtime.block_on(ca::run(serve.options(kept, self.lives)?))
            }
            // Clap lets nobody get here: without a subcommand they are required.
            (None, ..) => anyhow::bail!("options are missing (hint: sluice ca --help)"),
        }
    }
}

impl Lives {
    fn schedule(&self) -> anyhow::Result<Schedule> {
        let Self { certificate_lifetime, root_lifetime, rotate_after, rotation_overlap, .. } = self;
        // A root that expires while it signs, or while its leaves are valid, cuts everyone off.
        let needed = *rotate_after + *rotation_overlap + *certificate_lifetime * 2;
        anyhow::ensure!(
            *root_lifetime >= needed,
            "a root of {root_lifetime:?} would expire before its successor has taken over (hint: \
             --root-lifetime of at least {needed:?})",
        );
        Ok(Schedule {
            root_lifetime: *root_lifetime,
            rotate_after: *rotate_after,
            overlap: *rotation_overlap,
            certificate_lifetime: *certificate_lifetime,
        })
    }
}

impl Serve {
    fn options(self, kept: Kept, lives: Lives) -> anyhow::Result<ca::Options> {
        Ok(ca::Options {
            schedule: lives.schedule()?,
            trust_domain: lives.trust_domain,
            secret: kept.secret,
            config_map: kept.config_map,
            agent_service_account: self.agent_service_account,
            audience: self.audience,
            dns_names: self.dns_names,
            certificate_lifetime: lives.certificate_lifetime,
            listen_addr: self.listen_addr,
            ready_addr: self.ready_addr,
            stats_addr: self.stats_addr,
        })
    }
}
