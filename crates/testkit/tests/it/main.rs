//! Simulation: a planner and an engine that fails, is killed and restarted, until what runs is what should run.

#[cfg(test)]
mod engine;
#[cfg(test)]
mod simulation;
