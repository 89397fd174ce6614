//! The loop: takes one message at a time, changes what should be, and reconciles.
//!
//! * [`requests`] – what the command line asks.
//! * [`pushes`] – which push is deployed, and by which services.
//! * [`denials`] – denied flows.
//! * [`deploys`] – a service's way from source to live.
//! * [`reconcile`] – desired against observed, through a plan.
//! * [`instances`] – what became of started instances.
//! * [`settings`], [`scaling`] – how many instances run, and whether the service is open.
//! * [`variables`] – the values of its variables.
//! * [`copies`] – backups, restores and snapshots.
//! * [`runs`] – one-off commands and cron runs; [`hooks`] – commands of first deploys.
