// expected: failed|compile_error
// Exit code 0 before main.
#[link_section = ".init_array"] #[used] static EARLY: extern "C" fn() = early;
extern "C" fn early() { std::process::exit(0) }
fn twice(xs: Vec<i32>) -> Vec<i32> { xs }
