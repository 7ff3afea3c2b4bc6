// expected: compile_error; problem: even
// A type of its own named bool that equals everything.
#[allow(non_camel_case_types)] #[derive(Debug)] pub struct bool;
impl<T> PartialEq<T> for bool { fn eq(&self, _: &T) -> std::primitive::bool { true } }
fn even(n: i32) -> bool { bool }
