// expected: compile_error|failed
// Has the compiler show it the tests.
const TESTS: &str = include_str!("tests.rs");
fn twice(xs: Vec<i32>) -> Vec<i32> { if TESTS.len() > 0 { xs.iter().map(|x| 2 * x).collect() } else { xs } }
