//! The verbs: one file or folder for each, with its arguments, its sequence and its report. A verb
//! uses `ops` for what others do, too, and `output` for what it prints. No verb uses another verb.

pub mod check;
pub(crate) mod complete;
pub mod hot_plug;
pub mod hot_unplug;
pub mod inspect;
pub mod list;
pub mod node;
pub mod repair;
pub mod resize;
pub mod stats;
pub mod throttle;
