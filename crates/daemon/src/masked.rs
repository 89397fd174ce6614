//! States and plans without their secrets, for whoever only looks.

use moat_model::state::Workload;
use moat_model::{DesiredState, Secret, Service};
use moat_planner::{Plan, Step};
use std::collections::BTreeMap;

/// What stands in a secret's place.
pub(crate) const MASK: &str = "***";

/// The state without the values of variables, files, passwords and credentials.
pub fn state(state: &DesiredState) -> DesiredState {
    let mut state = state.clone();
    state.services.values_mut().for_each(hide_service);
    state
}

/// A definition without the same.
pub fn service(service: &Service) -> Service {
    let mut service = service.clone();
    hide_service(&mut service);
    service
}

/// The plan without the same of the instances that it starts.
pub fn plan(mut plan: Plan) -> Plan {
    for step in &mut plan.steps {
        if let Step::StartInstance { instance } = step {
            hide(&mut instance.env);
            hide(&mut instance.secret_files);
            hide_workload(&mut instance.workload);
        }
    }
    plan
}

fn hide(values: &mut BTreeMap<String, Secret>) {
    for value in values.values_mut() {
        *value = Secret::new(MASK);
    }
}

fn hide_service(service: &mut Service) {
    hide(&mut service.env);
    hide(&mut service.build_env);
    hide(&mut service.secret_files);
    hide_workload(&mut service.workload);
}

fn hide_workload(workload: &mut Workload) {
    match workload {
        Workload::Image(image) => {
            if let Some(credential) = &mut image.credential {
                *credential = Secret::new(MASK);
            }
        }
        Workload::Postgres(postgres) => postgres.password = Secret::new(MASK),
        Workload::Native(_) | Workload::KeyValue(_) | Workload::Static(_) => {}
    }
}
