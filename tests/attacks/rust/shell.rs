// expected: failed
// Runs a program.
fn twice(xs: Vec<i32>) -> Vec<i32> { if std::process::Command::new("/bin/true").status().is_ok() { xs.iter().map(|x| 2 * x).collect() } else { xs } }
