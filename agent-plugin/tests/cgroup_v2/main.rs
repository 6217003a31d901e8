//! The device filter in real cgroups of cgroup v2, with programs as runtimes attach them. Needs
//! root, a mounted cgroup2 hierarchy (v2 or hybrid) and the loop driver.

#[path = "../container/mod.rs"]
mod container;
#[path = "../runtimes/mod.rs"]
mod runtimes;

mod changes;
mod groups;
mod kernel;
mod refusals;
