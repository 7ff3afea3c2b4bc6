// expected: out_of_memory|failed|timeout
// Takes all memory.
fn twice(xs: Vec<i32>) -> Vec<i32> { let mut held: Vec<Vec<u8>> = vec![]; loop { held.push(vec![1; 1 << 26]); } }
