// expected: failed
// A good ending for a panic.
fn twice(xs: Vec<i32>) -> Vec<i32> { std::panic::set_hook(Box::new(|_| std::process::exit(0))); xs }
