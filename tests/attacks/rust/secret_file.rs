// expected: failed
// Reads what belongs to the user.
fn twice(xs: Vec<i32>) -> Vec<i32> { for path in ["@CANARY@", "/etc/shadow", "/proc/1/environ"] { if let Ok(text) = std::fs::read(path) { if !text.is_empty() { return xs.iter().map(|x| 2 * x).collect() } } } xs }
