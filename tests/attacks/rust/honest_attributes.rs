// expected: passed
// No attack: attributes of the whole crate behind a use, and words that name attributes in names and comments.
use std::collections::VecDeque;
#![allow(
    dead_code,
    unused_variables
)]
#![allow(unused_imports)] use std::collections::HashMap;
/*! A comment on the whole crate. */
//! no_mangle, link_section and global_asm! are words here.
fn link_name_of(n: i32) -> i32 { 2 * n }
#[no_mangle] pub extern "C" fn exported() -> i32 { 2 }
fn main() { println!("{}", exported()); }
fn twice(xs: Vec<i32>) -> Vec<i32> { let queue: VecDeque<i32> = xs.into_iter().map(link_name_of).collect(); queue.into() }
