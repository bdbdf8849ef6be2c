//! What a data folder is: the ids of the nodes that live on it, and the certificate it shows with `--lan`. Made once, then kept.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Context;
use roomlog_bus::{
    env::Env,
    ids::{EaId, EcId, NuveId},
};
use roomlog_nuve::credentials::replace;
use serde::{Deserialize, Serialize};

use crate::tls::Files;

/// The file in the data folder that keeps the nodes' ids.
const NODES_FILE: &str = "nodes.toml";

/// Ids of the nodes of one data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIds {
    /// EC.
    pub ec: EcId,
    /// EA.
    pub ea: EaId,
    /// NUVE.
    pub nuve: NuveId,
}

impl NodeIds {
    /// The same, all called `id` if one is given: for a node with a name of its own, such as a pod's.
    pub fn named(self, id: Option<&str>) -> anyhow::Result<Self> {
        let Some(id) = id else { return Ok(self) };
        let wrong = || format!("--id {id:?}: an id has letters, digits, `_` and `-`");
        Ok(Self {
            ec: EcId::new(id).with_context(wrong)?,
            ea: EaId::new(id).with_context(wrong)?,
            nuve: NuveId::new(id).with_context(wrong)?,
        })
    }

    /// The ids kept in `data`, made now if there are none.
    pub fn load_or_make(data: &Path, env: &Env) -> anyhow::Result<Self> {
        let path = data.join(NODES_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{} does not read", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let ids = env.draw(|rng| Self {
                    ec: EcId::random(rng),
                    ea: EaId::random(rng),
                    nuve: NuveId::random(rng),
                });
                let text = toml::to_string(&ids).context("node ids are plain text")?;
                replace(data, NODES_FILE, text.as_bytes())?;
                Ok(ids)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// The self-signed certificate kept in `data` for `address`, made now if there is none. One per address: a browser that was told to trust
/// it once goes on trusting it.
pub fn own_certificate(data: &Path, address: IpAddr) -> anyhow::Result<Files> {
    let name = address.to_string().replace([':', '.'], "-");
    let (certificate, key) = (format!("lan-{name}.crt"), format!("lan-{name}.key"));
    let files = Files { certificate: data.join(&certificate), key: data.join(&key) };
    if files.certificate.exists() && files.key.exists() {
        return Ok(files);
    }
    let names = vec![address.to_string(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    replace(data, &key, made.signing_key.serialize_pem().as_bytes())?;
    replace(data, &certificate, made.cert.pem().as_bytes())?;
    Ok(files)
}

/// The first private address of this machine's interfaces, else the first that is not loopback.
pub fn lan_address() -> Option<IpAddr> {
    let mut addresses: Vec<IpAddr> = if_addrs::get_if_addrs()
        .ok()?
        .into_iter()
        .filter(|i| !i.is_loopback())
        .map(|i| i.ip())
        .filter(IpAddr::is_ipv4)
        .collect();
    addresses.sort_by_key(|ip| !matches!(ip, IpAddr::V4(v4) if v4.is_private()));
    addresses.into_iter().next()
}
