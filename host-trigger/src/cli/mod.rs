//! The arguments that several verbs share, and their value types; and groups of arguments that need
//! checks of their own. The other arguments of a single verb are in the verb's file in `commands`.

pub mod duration;
pub mod limits;
pub mod mount;
pub mod selector;
pub mod target;
pub mod volumes;
