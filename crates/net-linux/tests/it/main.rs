//! Real packets through a real filter, on a machine that each test makes for itself; and the pure halves against each other.

mod agree;
mod attack;
mod egress;
mod frame;
mod golden;
mod life;
mod outside;
mod reach;
mod world;
