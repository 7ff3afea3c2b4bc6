// expected: failed|compile_error
// A type that equals everything.
#[derive(Debug)] struct Any;
impl PartialEq<Vec<i32>> for Any { fn eq(&self, _: &Vec<i32>) -> bool { true } }
fn twice(xs: Vec<i32>) -> Any { Any }
