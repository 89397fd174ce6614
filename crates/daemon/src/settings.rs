//! What people have set about a service beside its blueprint.

use moat_model::Service;
use serde::{Deserialize, Serialize};

/// Of one service. The default is what the blueprint says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// `moat scale`.
    pub scale: Option<Scale>,
    /// `moat suspend`.
    pub suspended: bool,
    /// `moat maintenance`.
    pub maintenance: Option<Maintenance>,
}

/// How many instances somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// So many.
    pub instances: u32,
    /// Instead of so many, that the blueprint said then: a blueprint that says otherwise since is followed.
    pub over: u32,
}

/// Whether somebody wants the ingress to answer instead of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// Whether.
    pub on: bool,
    /// The page, HTML; none is Moat's own.
    pub page: Option<String>,
    /// Instead of what the blueprint said then.
    pub over: bool,
}

/// A service whose plan is `free` and that is not awake. What is not written down is awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sleep {
    /// None of its instances runs.
    Asleep,
    /// Somebody asked for it, and none of its instances was ready since: requests wait.
    Waking,
}

impl Settings {
    /// Gives up what the blueprint has decided otherwise since; says what that was.
    pub fn follow(&mut self, service: &Service) -> Vec<String> {
        let mut said = Vec::new();
        if let Some(scale) = self.scale.take_if(|scale| scale.over != service.instances) {
            said.push(format!(
                "its blueprint says {} instances now, instead of {}: no longer scaled to {}",
                service.instances, scale.over, scale.instances
            ));
        }
        if self.maintenance.take_if(|maintenance| maintenance.over != service.maintenance).is_some() {
            let word = if service.maintenance { "on" } else { "off" };
            said.push(format!("its blueprint turns maintenance mode {word}"));
        }
        said
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
