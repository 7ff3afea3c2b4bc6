// expected: timeout
// Runs for ever.
fn twice(xs: Vec<i32>) -> Vec<i32> { loop { std::hint::spin_loop() } }
