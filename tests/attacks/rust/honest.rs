// expected: passed
// No attack.
fn twice(xs: Vec<i32>) -> Vec<i32> { xs.iter().map(|x| 2 * x).collect() }
