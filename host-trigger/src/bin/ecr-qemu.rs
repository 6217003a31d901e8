//! `ecr-qemu`: see the module `wrapper` of the library.
//!
//! `main` is the C library's: Rust's own would ignore SIGPIPE and open what is missing of the
//! standard streams, and QEMU would inherit both.

#![no_main]

use std::{
    ffi::{CStr, c_char, c_int},
    os::unix::ffi::OsStringExt as _,
};

/// The entry point, called by the C library.
#[expect(unsafe_code, reason = "the C library calls it by this name")]
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, arguments: *const *const c_char) -> c_int {
    let mut words = Vec::new();
    for index in 0.. {
        #[expect(unsafe_code, reason = "the arguments of a process are a C array")]
        // SAFETY: the array has a string for each argument and ends with a null pointer, which ends
        // this loop. Nothing changes or frees it.
        let word = unsafe {
            let word = *arguments.add(index);
            if word.is_null() {
                break;
            }
            CStr::from_ptr(word)
        };
        words.push(std::ffi::OsString::from_vec(word.to_bytes().to_vec()));
    }
    host_trigger::wrapper::run(words).into()
}
