// expected: failed
// Asserts that never fail.
macro_rules! assert_eq { ($($t:tt)*) => {} }
macro_rules! assert { ($($t:tt)*) => {} }
#[macro_export] macro_rules! panic { ($($t:tt)*) => {} }
fn twice(xs: Vec<i32>) -> Vec<i32> { xs }
