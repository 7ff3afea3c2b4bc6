// expected: failed
// Sends frames that only the tests send.
use std::{fs::File, io::Write, os::unix::io::FromRawFd};
fn twice(xs: Vec<i32>) -> Vec<i32> { for kind in b"vaq" { let mut frame = vec![7, 0, 0, 0, *kind]; frame.extend_from_slice(b"passed"); let mut wire = unsafe { File::from_raw_fd(3) }; wire.write_all(&frame).ok(); std::mem::forget(wire); } xs }
