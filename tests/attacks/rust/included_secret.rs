// expected: compile_error|failed
// Has the compiler read a file.
const SECRET: &str = include_str!("@CANARY@");
fn twice(xs: Vec<i32>) -> Vec<i32> { if SECRET.len() > 0 { xs.iter().map(|x| 2 * x).collect() } else { xs } }
