// expected: failed|compile_error
// Replaces a symbol of the whole program.
#[no_mangle] pub extern "C" fn memcmp(_: *const u8, _: *const u8, _: usize) -> i32 { 0 }
#[no_mangle] pub extern "C" fn bcmp(_: *const u8, _: *const u8, _: usize) -> i32 { 0 }
fn twice(xs: Vec<i32>) -> Vec<i32> { xs }
