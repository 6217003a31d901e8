//! The arguments that several verbs share, and their value types. The arguments of a single verb
//! are in the verb's file in `commands`.

pub mod duration;
pub mod limits;
pub mod selector;
pub mod target;
