//! A field of a request that breaks a rule.

use std::fmt::{self, Debug};

use crate::{
    error::{BoxedError, Error, InvalidField},
    text::{displayed, truncated},
};

/// Names a field of a request. It becomes text only for an error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    list: &'static str,
    index: usize,
    part: &'static str,
}

impl Field {
    /// A field of the request itself.
    pub(super) fn of_request(part: &'static str) -> Field {
        Field { list: "", index: 0, part }
    }

    /// An element of a list.
    pub(super) fn element(list: &'static str, index: usize) -> Field {
        Field { list, index, part: "" }
    }

    /// A part of this element.
    #[inline(never)]
    pub(super) fn part(self, part: &'static str) -> Field {
        Field { part, ..self }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Field { list, index, part } = self;
        match (*list, *part) {
            ("", part) => f.write_str(part),
            (list, "") => write!(f, "{list}[{index}]"),
            (list, part) => write!(f, "{list}[{index}].{part}"),
        }
    }
}

/// The error for a value that breaks a rule.
#[cold]
#[inline(never)]
pub(super) fn invalid(field: Field, value: &dyn Debug, rule: &'static str) -> BoxedError {
    // Debug output is escaped, so that it can be cut between any characters.
    let value = truncated(format!("{value:?}"), 200);
    let field = displayed(&field);
    BoxedError::from(Error::InvalidRequest(Box::new(InvalidField { field, value, rule })))
}
