//! Simulation: a planner and an engine that fails, is killed and restarted, until what runs is what should run. Images: made, run and asked.

#[cfg(test)]
mod engine;
#[cfg(test)]
mod images;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod simulation;
